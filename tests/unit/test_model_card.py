# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A model card says what it is given, its code runs, and nothing that somebody wrote is overwritten."""

import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from ddm_diffusers import DDMImageToImagePipeline, DDMPipeline, DDMScheduler
from ddm_diffusers.model_card import framed_grid, is_generated_card, sample_grid, sign_card, write_model_card


@pytest.fixture
def pipe(tiny_unet):
    pipe = DDMPipeline(tiny_unet(num_class_embeds=3), DDMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_model_card_of_a_training(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "out")
    pipe = DDMPipeline.from_pretrained(saved)
    Image.new("L", (4, 4)).save(tmp_path / "out" / "samples.png")
    rows = [{"steps": 5, "FID": 12.5}, {"steps": 10, "FID": 8.25}]
    assert write_model_card(
        tmp_path / "out",
        pipe,
        repo_id="me/digits",
        license="apache-2.0",
        datasets="ylecun/mnist",
        training_command="accelerate launch examples/train_ddm.py --seed 0",
        settings={"batch size": 64},
        evaluation=rows,
    )
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.datasets) == ("apache-2.0", "ylecun/mnist")
    for part in ("--seed 0", "| batch size | 64 |", "| 10 | 8.25 |", "![Samples of the model](samples.png)"):
        assert part in text
    # its code works where its repository is
    code = text.split("```python\n")[1].split("```")[0].replace('"me/digits"', repr(str(saved)))
    exec(compile(code, "README.md", "exec"), {})


def test_an_edited_model_card_is_never_overwritten(saved, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(saved, folder)
    pipe = DDMPipeline.from_pretrained(saved)
    card = folder / "README.md"
    assert is_generated_card(card.read_text())
    assert write_model_card(folder, pipe, repo_id="me/other")  # ours, not edited: brought up to date
    assert "me/other" in card.read_text()
    card.write_text(card.read_text().replace("## Use", "## How I use it"))
    mine = card.read_text()
    assert not write_model_card(folder, pipe, repo_id="me/third")
    pipe.save_pretrained(folder)
    assert card.read_text() == mine


def test_a_card_is_generated_as_long_as_nobody_edits_it():
    card = sign_card("# A model\n\n")
    assert is_generated_card(card) and is_generated_card(card + "\n")
    assert not is_generated_card(card.replace("A model", "My model"))
    assert not is_generated_card(card + "More.")
    assert not is_generated_card("# A model\n")


def test_what_is_not_given_is_not_in_the_card(pipe, tmp_path):
    write_model_card(tmp_path, pipe, repo_id="me/model")
    text = (tmp_path / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "unconditional-image-generation" and card.data.license is None
    assert "\n# model\n" in text and "class_labels=[i % 3 for i in range(16)]" in text
    for part in ("## Training", "## Evaluation", "samples.png", "None"):
        assert part not in text


def test_class_names_are_in_the_card(tiny_unet, tmp_path):
    unet = tiny_unet(num_class_embeds=6, id2label=dict(enumerate("abcdef")))
    write_model_card(tmp_path, DDMPipeline(unet, DDMScheduler()), repo_id="me/model")
    text = (tmp_path / "README.md").read_text()
    assert 'class_labels=["a", "b", "c", "d"]' in text and "\nClasses: 0 a, 1 b, 2 c, 3 d, 4 e, 5 f.\n" in text


def test_a_pipeline_that_needs_images(tiny_unet, tmp_path):
    pipe = DDMImageToImagePipeline(tiny_unet(conditioning_channels=3), DDMScheduler())
    write_model_card(tmp_path, pipe, repo_id="me/model")
    text = (tmp_path / "README.md").read_text()
    assert "from PIL import Image" in text and 'Image.open("image.png")' in text
    assert ModelCard(text).data.pipeline_tag == "image-to-image"


def test_the_card_of_another_model(plain_unet, tmp_path):
    """With the task, the description and the code that are given; a bar in a table is no new column."""
    write_model_card(
        tmp_path,
        plain_unet(),
        repo_id="me/autoencoder",
        pipeline_tag="image-to-image",
        description="An autoencoder.",
        usage='load("{repo_id}")',
        training_command="train it",
        settings={"data": "a|b"},
    )
    text = (tmp_path / "README.md").read_text()
    assert "An autoencoder." in text and '```python\nload("me/autoencoder")\n```' in text
    assert "| data | a\\|b |" in text and "trust_remote_code" not in text


def test_a_grid_of_samples(pipe):
    """Six images in threes, each enlarged sixfold and framed; the same each time, class by class."""
    grid = sample_grid(pipe, num_images=6, num_inference_steps=2)
    assert grid.size == (3 * 52, 2 * 52)
    assert np.array_equal(np.asarray(grid), np.asarray(sample_grid(pipe, 6, 2)))
    options = {"class_labels": [0, 1, 2, 0, 1, 2], "num_inference_steps": 2, "generator": torch.manual_seed(0)}
    images = pipe(batch_size=6, **options).images
    assert np.array_equal(np.asarray(grid), np.asarray(framed_grid(images, 3)))


def test_a_grid_with_a_gap():
    images = [Image.new("L", (48, 96), value) for value in (0, 100, 255)]
    grid = framed_grid(images, 2)
    assert grid.mode == "RGB" and grid.size == (2 * 52, 2 * 100)  # large ones are not enlarged
    assert [grid.getpixel(place)[0] for place in ((26, 50), (78, 50), (26, 150), (78, 150))] == [0, 100, 255, 128]
    assert grid.getpixel((0, 0)) == (128, 128, 128)
