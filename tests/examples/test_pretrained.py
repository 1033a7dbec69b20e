# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Proves that the checkpoint in examples/pretrained loads, is small, and draws the classes that it is asked for."""

import sys
from pathlib import Path

import pytest
import torch

from ddm_diffusers import DDMPipeline
from ddm_diffusers.model_card import is_generated_card


EXAMPLES = Path(__file__).parents[2] / "examples"
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
def test_a_classifier_names_the_requested_class(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "benchmarks"), *sys.path])
    import fashion_mnist

    if not Path(fashion_mnist.DEBIAN_FOLDER).is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    classifier, accuracy = fashion_mnist.train_classifier(tmp_path / "classifier.safetensors", epochs=2)
    assert accuracy > 0.89
    pipe = DDMPipeline.from_pretrained(FOLDER)
    labels = torch.arange(300) % 10
    images = pipe(
        batch_size=300,
        class_labels=labels.tolist(),
        num_inference_steps=10,
        guidance_scale=1.5,
        generator=torch.manual_seed(0),
        output_type="pt",
    ).images
    named = fashion_mnist.predict(classifier, (images.cpu() * 2 - 1).float())
    assert (named == labels).float().mean() >= 0.9
