# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Proves that the checkpoint in examples/pretrained loads, is small, and draws the classes that it is asked for."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddm_diffusers import DDMPipeline
from ddm_diffusers.model_card import is_generated_card


EXAMPLES = Path(__file__).parents[3] / "examples"
FOLDER = EXAMPLES / "pretrained" / "ddm-fashion-mnist"


def test_it_loads_is_small_and_follows_its_labels():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= 8e6
    card = (FOLDER / "README.md").read_text()
    assert "examples/train_ddm.py" in card and "--seed" in card and is_generated_card(card)
    pipe = DDMPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    trousers, bags = (
        pipe(
            batch_size=8,
            class_labels=[label] * 8,
            num_inference_steps=10,
            guidance_scale=1.5,
            generator=torch.manual_seed(0),
            output_type="pt",
        ).images
        for label in (1, 8)
    )
    assert trousers.shape == (8, 1, 28, 28)
    # trousers are narrow and bags are broad: how much of the left and right margins is bright
    margins = [images[..., [4, 5, 22, 23]].mean().item() for images in (trousers, bags)]
    assert margins[0] < 0.1 < 0.3 < margins[1]


@pytest.mark.slow
def test_a_classifier_names_the_requested_class(tmp_path, benchmark_script, monkeypatch):
    fashion_mnist, pretrained = benchmark_script("fashion_mnist"), benchmark_script("pretrained")
    if not Path(fashion_mnist.DEBIAN_FOLDER).is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    folder = tmp_path / "data"  # the first 40,000 and 2,000 images
    folder.mkdir()
    parts = {"train-images-idx3": 16 + 40_000 * 28 * 28, "train-labels-idx1": 8 + 40_000}
    parts |= {"t10k-images-idx3": 16 + 2_000 * 28 * 28, "t10k-labels-idx1": 8 + 2_000}
    for name, size in parts.items():
        with gzip.open(Path(fashion_mnist.DEBIAN_FOLDER, f"{name}-ubyte.gz")) as file:
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(file.read(size), compresslevel=1))
    _, accuracy = fashion_mnist.train_classifier(tmp_path / "classifier.safetensors", folder, epochs=2)
    assert accuracy > 0.89
    arguments = ["--num_samples", "300", "--steps", "10", "--guidance_scales", "1.5", "--data_dir", str(folder)]
    monkeypatch.setattr(pretrained, "GRID", 2)
    pretrained.main(["--output_dir", str(tmp_path), *arguments])
    contents = json.loads((tmp_path / "pretrained.json").read_text())
    (row,) = contents["rows"]
    assert (row["steps"], row["guidance_scale"]) == (10, 1.5)
    assert row["named"] >= 0.9
    assert contents["floor"] < row["distance"]
    with Image.open(tmp_path / "pretrained.png") as picture:
        assert min(picture.size) > 8 * 28
