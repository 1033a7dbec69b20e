# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training runs in this process: a tiny model on eight digits."""

import argparse
import signal

import pytest
import torch

from ddm_diffusers import DDMPipeline, DDMScheduler
from ddm_diffusers.training import (
    ImageTransform,
    TrainingRun,
    add_data_arguments,
    add_training_arguments,
    ddm_loss,
    load_digits_dataset,
)


@pytest.fixture
def make_run(tmp_path):
    """`make_run("--max_train_steps", 3)` makes a run whose results go to `out` in the temporary folder."""

    def make(*options) -> TrainingRun:
        parser = argparse.ArgumentParser()
        add_data_arguments(parser)
        add_training_arguments(parser)
        defaults = [
            "--resolution",
            8,
            "--train_batch_size",
            4,
            "--lr_warmup_steps",
            0,
            "--seed",
            0,
            "--logger",
            "none",
        ]
        defaults += ["--eval_batch_size", 2, "--num_inference_steps", 2, "--output_dir", tmp_path / "out"]
        return TrainingRun(parser.parse_args([str(option) for option in (*defaults, *options)]), "train_ddm")

    # a run holds the signals until it is finished, which not every test does
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield make
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def prepared(make_run, tiny_unet):
    """`prepared(...)` makes a run as `make_run` does, with a model; the steps have no dropout."""

    def make(*options) -> TrainingRun:
        run = make_run(*options)
        run.prepare(tiny_unet(in_channels=1), ImageTransform(load_digits_dataset().select(range(8)), 8))
        return run

    return make


@pytest.fixture
def train():
    """`train(run)` goes through the steps of a run; `train(run, stop)` calls `stop(run)` after each batch."""

    def train(run, after_batch=lambda run: None, factor=1.0):
        scheduler = DDMScheduler()
        for batch in run:
            clean = batch["pixel_values"]
            noise = torch.stack(
                [torch.randn(each.shape, generator=g) for each, g in zip(clean, batch["generators"], strict=True)]
            )
            timesteps = torch.full((len(clean),), 500.0)
            with run.accumulate():
                output = run.model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
                loss = ddm_loss(scheduler, output, clean, noise, timesteps)
                run.optimize(loss * factor, {"part": loss / 2})
            after_batch(run)

    return train


@pytest.fixture
def pipeline_of():
    """`pipeline_of(run)` is the pipeline of what a run has trained."""
    return lambda run: DDMPipeline(run.trained_model(), DDMScheduler())
