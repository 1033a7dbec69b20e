# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Runs `examples/train_ddm_image_to_image.py`: on pairs and on tasks, killed and resumed to the same bits, with a pipeline and
a model card in the end. What it shares with train_ddm.py is tested there.
"""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from processes import EXAMPLES, hub, start
from safetensors.torch import load_file

from ddm_diffusers import DDMImageToImagePipeline
from ddm_diffusers.training import load_digits_dataset


SCRIPT = "train_ddm_image_to_image.py"
OPTIONS = [
    "--resolution",
    8,
    "--block_out_channels",
    8,
    16,
    "--layers_per_block",
    1,
    "--random_flip",
    "--dropout",
    0.2,
]
OPTIONS += ["--train_batch_size", 8, "--seed", 0, "--learning_rate", 1e-3, "--lr_warmup_steps", 2]
OPTIONS += ["--max_train_steps", 12, "--eval_batch_size", 4, "--num_inference_steps", 2, "--output_dir", "out"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    load_digits_dataset().select(range(40)).save_to_disk(folder)
    return ["--train_data_dir", folder]


def train(*arguments, cwd, **environment):
    run = start(SCRIPT, *arguments, cwd=cwd, **environment)
    try:
        assert run.wait(600) == 0, run.output[-4000:]
    finally:
        run.kill()
    return run.output


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(digits, tmp_path):
    """With a task whose masks are random, crops, dropped conditions and dropout of the model."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    arguments = [*digits, *OPTIONS, "--task", "inpainting", "--conditioning_dropout_prob", 0.3]
    train(*arguments, "--checkpointing_steps", 12, cwd=whole)
    arguments += ["--checkpointing_steps", 3, "--resume_from_checkpoint", "latest"]
    run = start(SCRIPT, *arguments, cwd=killed)
    try:
        assert run.until(lambda: (killed / "out" / "checkpoint-6").exists(), timeout=600), run.output[-4000:]
    finally:
        run.kill()
    assert not (killed / "out" / "model_index.json").exists(), "too late"
    output = train(*arguments, cwd=killed)
    assert "Resuming from" in output
    for name in ("unet/diffusion_pytorch_model.safetensors", "checkpoint-12/model.safetensors"):
        a, b = load_file(whole / "out" / name), load_file(killed / "out" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_pairs_of_a_folder(tmp_path):
    """RGB to grey; the columns are those of diffusers' ControlNet training."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = []
    for i in range(10):
        colour = Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        colour.save(folder / f"condition-{i}.png")
        colour.convert("L").save(folder / f"target-{i}.png")
        lines.append(
            json.dumps({"image_file_name": f"target-{i}.png", "conditioning_image_file_name": f"condition-{i}.png"})
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    train("--train_data_dir", folder, *OPTIONS, "--save_images_steps", 6, cwd=tmp_path)
    out = tmp_path / "out"
    pipe = DDMImageToImagePipeline.from_pretrained(out)
    assert (pipe.unet.config.in_channels, pipe.unet.config.conditioning_channels) == (1, 3)
    assert pipe(Image.open(folder / "condition-0.png"), num_inference_steps=2).images[0].size == (16, 16)
    card = (out / "README.md").read_text()
    for part in ("pipeline_tag: image-to-image", "pairs of the data set", f"examples/{SCRIPT}", "](samples.png)"):
        assert part in card
    with Image.open(out / "samples.png") as grid:  # four pairs in threes, each 8 pixels enlarged 6 times, framed
        assert grid.size == (12 * 52, 52)
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-0000006.png", "step-0000012.png"]


def test_super_resolution_to_the_hub(digits, tmp_path):
    with hub() as server:
        arguments = ["--task", "super_resolution", "--push_to_hub", "--hub_model_id", "user/digits-4x"]
        output = train(*digits, *OPTIONS, *arguments, cwd=tmp_path, HF_TOKEN="hf_test")
        files = server.files("user/digits-4x")
    assert "Uploaded" in output
    assert b'DDMImageToImagePipeline.from_pretrained("user/digits-4x")' in files["README.md"]
    assert files["samples.png"].startswith(b"\x89PNG") and json.loads(files["model_index.json"])["upscale"] == 4
    pipe = DDMImageToImagePipeline.from_pretrained(tmp_path / "out")
    assert pipe(Image.new("L", (3, 2)), num_inference_steps=1).images[0].size == (12, 8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "`task` is None, which needs the columns"),
        (["--task", "depth"], "invalid choice: 'depth'"),
        (["--task", "colorization"], "`image_mode` is 'L'"),
        (["--task", "edges", "--evaluation_steps", 2], "--evaluation_steps compares images that have no condition"),
        (["--task", "super_resolution", "--upscale", 3], "`upscale` is 3"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, message, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("train_ddm_image_to_image")
    with pytest.raises((SystemExit, ValueError)) as refused:
        script.main(script.parse_args([str(argument) for argument in (*digits, *OPTIONS, *arguments)]))
    assert message in f"{refused.value}{capsys.readouterr().err}"
