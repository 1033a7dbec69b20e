# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches come to the device with what is known of them; one that cannot be loaded gives way to the one before."""

import io
import itertools
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from ddm_diffusers.training import ImageTransform, TrainingBatches
from ddm_diffusers.training.loading import BatchLoader


NUM_IMAGES = 6


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def batches_of(bad=(), colour=False, **options):
    """Batches of three out of six images, of which those of these numbers are cut off."""
    rows = []
    for i in range(NUM_IMAGES):
        pixels = np.full((8, 8), 40 * i, dtype=np.uint8)
        image = PILImage.fromarray(np.dstack([pixels, pixels, 255 - pixels]) if colour and i else pixels)
        data = encoded(image)
        rows.append({"bytes": data[:40] if i in bad else data, "path": f"{i}.png"})
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
    transform = ImageTransform(dataset, resolution=8, center_crop=True)
    return TrainingBatches(transform, 3, seed=0, **options)


def test_every_example_has_a_generator_of_its_own():
    loader = BatchLoader(batches_of(), torch.device("cpu"), 0)
    first, second = itertools.islice(loader, 2)
    assert first["pixel_values"].shape == (3, 1, 8, 8) and set(first) == {"pixel_values", "generators"}
    seeds = [generator.initial_seed() for batch in (first, second) for generator in batch["generators"]]
    assert len(set(seeds)) == 6
    again = next(iter(BatchLoader(batches_of(), torch.device("cpu"), 0)))
    assert [generator.initial_seed() for generator in again["generators"]] == seeds[:3]


def test_what_a_step_was_made_of():
    loader = BatchLoader(batches_of(), torch.device("cpu"), 0)
    start, loaded = loader.position, iter(loader)
    first, second = next(loaded), next(loaded)
    # six examples, each image of the epoch once
    assert sorted(loader.examples) == [(0, i) for i in range(NUM_IMAGES)]
    assert loader.position != start and loader.failure is None and loader.bad_images == []
    loader.begin_step()
    assert loader.examples == []
    third = next(loaded)
    assert {epoch for epoch, _ in loader.examples} == {1}
    assert not any(torch.equal(third["pixel_values"], each["pixel_values"]) for each in (first, second))
    # who goes on from there gets what comes next
    other = BatchLoader(batches_of(position=loader.position), torch.device("cpu"), 0)
    assert torch.equal(next(iter(other))["pixel_values"], next(loaded)["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_that_cannot_be_loaded(num_workers):
    """The one before takes its place, so that a step can end on all processes, and nothing more is loaded."""
    good = BatchLoader(batches_of(), torch.device("cpu"), 0)
    next(iter(good))
    bad = next(i for i in range(NUM_IMAGES) if (0, i) not in good.examples)  # in the second batch
    loader = BatchLoader(batches_of(bad=[bad]), torch.device("cpu"), num_workers)
    loaded = iter(loader)
    first, position = next(loaded), loader.position
    assert loader.failure is None
    for _ in range(2):
        assert torch.equal(next(loaded)["pixel_values"], first["pixel_values"])
        assert f"The image {bad}.png does not decode" in str(loader.failure)
        assert loader.position == position and len(loader.examples) == 3


def test_the_very_first_batch_cannot_be_loaded():
    loader = BatchLoader(batches_of(bad=range(1, NUM_IMAGES)), torch.device("cpu"), 0)
    with pytest.raises(Exception, match=r"The image [1-5].png does not decode"):
        next(iter(loader))


def test_images_that_are_skipped():
    loader = BatchLoader(batches_of(bad=[4], skip_bad_images=True), torch.device("cpu"), 0)
    assert all(batch["pixel_values"].shape == (3, 1, 8, 8) for batch in itertools.islice(loader, 2))
    (name, message), *more = loader.bad_images
    assert not more and "4.png" in message and loader.failure is None
    loader.begin_step()
    assert loader.bad_images == []


def test_colour_that_is_lost_is_told_once(caplog):
    caplog.set_level(logging.WARNING)
    list(itertools.islice(BatchLoader(batches_of(colour=True), torch.device("cpu"), 0), 4))
    told = [record.getMessage() for record in caplog.records if "--image_mode RGB" in record.getMessage()]
    assert len(told) == 1
