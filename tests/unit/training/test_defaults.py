# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Proves that the defaults follow the data, that what is given stays, and that what was chosen is printed."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from ddm_diffusers.training import (
    add_model_arguments,
    add_training_arguments,
    add_transformer_arguments,
    build_model,
    set_data_defaults,
    training_length,
)


@pytest.fixture
def choose(capsys):
    """`choose(186, 64, "--model_type", "dit")` parses options and sets the defaults for 186 images of 64 pixels."""

    def make(num_images, size, *arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--resolution", type=int, default=size)
        add_model_arguments(parser)
        add_transformer_arguments(parser)
        add_training_arguments(parser)
        args = parser.parse_args([str(argument) for argument in arguments])
        dataset = object() if num_images is None else range(num_images)
        set_data_defaults(args, SimpleNamespace(dataset=dataset), size, Accelerator())
        return args, capsys.readouterr().out

    return make


@pytest.mark.parametrize(
    ("num_images", "size", "options", "channels", "batch_size", "warmup_steps", "millions"),
    [
        (186, 64, [], [32, 32, 64, 64, 128], 16, 120, 4.9),  # 12 steps in each of 100 epochs
        (186, 64, ["--max_train_steps", 8000], [32, 32, 64, 64, 128], 16, 500, 4.9),
        (186, 64, ["--max_train_steps", 9], [32, 32, 64, 64, 128], 16, 0, 4.9),
        (5_000, 28, [], [64, 64, 128], 16, 500, 4.7),
        (50_000, 32, [], [128, 128, 256, 256], 64, 500, 30.1),
        (50_000, 256, [], [128, 128, 256, 256, 512, 512], 16, 500, 118.9),
        (None, 64, ["--max_train_steps", 1000], [128, 128, 256, 256, 512], 16, 100, 78.0),
        (10, 4, [], [32], 16, 10, None),
    ],
)
def test_u_net_batch_and_warm_up(num_images, size, options, channels, batch_size, warmup_steps, millions, choose):
    args, printed = choose(num_images, size, *options)
    assert (args.block_out_channels, args.train_batch_size, args.lr_warmup_steps) == (
        channels,
        batch_size,
        warmup_steps,
    )
    for option in (
        f"--block_out_channels {' '.join(map(str, channels))},",
        f"--train_batch_size {batch_size},",
        f"--lr_warmup_steps {warmup_steps}\n",
    ):
        assert option in printed
    assert ("a stream" if num_images is None else f"{num_images:,} images") in printed
    if millions is not None:
        with torch.device("meta"):
            assert build_model(args, 3, size).num_parameters() / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("num_images", "layers", "heads", "millions"), [(500, 6, 3, 4), (5_000, 8, 4, 9.5), (None, 12, 6, 32)]
)
def test_transformer(num_images, layers, heads, millions, choose):
    args, printed = choose(num_images, 32, "--model_type", "dit", "--max_train_steps", 10)
    assert (args.num_layers, args.num_attention_heads) == (layers, heads)
    assert f"--num_layers {layers}, --num_attention_heads {heads}" in printed and "block_out" not in printed
    with torch.device("meta"):
        assert build_model(args, 3, 32).num_parameters() / 1e6 == pytest.approx(millions, rel=0.15)


def test_what_is_given_stays(choose):
    options = ["--block_out_channels", 8, 16, "--train_batch_size", 3, "--lr_warmup_steps", 0]
    args, printed = choose(186, 64, *options)
    assert (args.block_out_channels, args.train_batch_size, args.lr_warmup_steps) == ([8, 16], 3, 0) and not printed


@pytest.mark.parametrize("option", ["--pretrained_model_name_or_path", "--model_config_name_or_path"])
def test_a_network_that_is_loaded_stays(option, choose):
    args, printed = choose(186, 64, option, "model")
    assert args.block_out_channels is None and "block_out" not in printed and args.train_batch_size == 16


def test_the_length_of_a_run(choose, rejects):
    accelerator = Accelerator()
    args, _ = choose(33, 8)
    assert training_length(args, 33, accelerator) == (16, 3, 300)
    args.max_train_steps = 7
    assert training_length(args, 33, accelerator) == (16, 3, 7)
    assert training_length(args, None, accelerator) == (16, None, 7)
    with rejects("`--max_train_steps`", "None", "a stream"):
        choose(None, 8)
