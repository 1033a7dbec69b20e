# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that targets and conditions belong together: they are cropped and mirrored alike, what each task makes of an image is
what it says, and all that is random about a pair follows from its generator.
"""

import io

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ddm_diffusers.training import TASKS, ConditionalTransform, TrainingBatches, make_pair


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def colours(count=6, size=(24, 20), seed=0):
    """Smooth images, so that a crop or a mirror image is not mistaken for another."""
    low = np.random.default_rng(seed).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in low]


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pairs(conditions, targets, **columns):
    """`conditioning_image` first, with columns that nobody needs."""
    table = {"conditioning_image": conditions, "text": ["a"] * len(targets), "image": targets, **columns}
    features = {"conditioning_image": datasets.Image(), "text": datasets.Value("string"), "image": datasets.Image()}
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


def plain(images):
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture
def image():
    return F.interpolate(torch.rand(1, 3, 4, 4, generator=seeded()) * 2 - 1, 16, mode="bilinear")[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_are_cropped_and_mirrored_alike(streaming):
    images = colours()
    dataset = pairs([image.convert("L") for image in images], images)
    if streaming:
        dataset = dataset.to_iterable_dataset()
    transform = ConditionalTransform(dataset, 12, random_flip=True)
    assert (transform.channels, transform.conditioning_channels) == (3, 1)
    batch = next(iter(TrainingBatches(transform, 6, seed=0)))
    assert batch["pixel_values"].shape == (6, 3, 12, 12) and batch["conditioning"].shape == (6, 1, 12, 12)
    grey = make_pair("colorization", batch["pixel_values"][0])[1]
    for target, condition in zip(batch["pixel_values"], batch["conditioning"], strict=True):
        grey = make_pair("colorization", target)[1]
        # Pillow's grey is rounded twice, once before it is scaled
        assert (grey - condition).abs().max() < 0.03
        assert (grey.flip(-1) - condition).abs().max() > 0.1
    again = next(iter(TrainingBatches(transform, 6, seed=0)))
    assert torch.equal(again["conditioning"], batch["conditioning"])
    other = next(iter(TrainingBatches(transform, 6, seed=1)))
    assert not torch.equal(other["pixel_values"], batch["pixel_values"])


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_pairs(streaming, rejects):
    targets, conditions, masks = (
        [{"bytes": encoded(image), "path": None} for image in colours(2, seed=seed)] for seed in range(3)
    )
    features = datasets.Features(
        {"mask": datasets.Image(), "target": datasets.Image(), "source": datasets.Value("binary")}
    )
    rows = {"mask": masks, "target": targets, "source": [each["bytes"] for each in conditions]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    columns = {"image_column": "target", "conditioning_image_column": "source"}
    with rejects(
        "`task` is None", "no column 'conditioning_image'", "['mask', 'target', 'source']", "--conditioning_image"
    ):
        ConditionalTransform(dataset, 8, image_column="target")
    with rejects("`image_column`", "['mask', 'target']"):
        ConditionalTransform(dataset, 8, conditioning_image_column="source")
    with rejects("`image_column` is 'source'", "['mask', 'target']"):
        ConditionalTransform(dataset, 8, image_column="source", conditioning_image_column="source")
    with rejects("`conditioning_image_column` is 'source'", "'edges'"):
        ConditionalTransform(dataset, 8, "edges", **columns)
    with rejects("`image_column`", "['mask', 'target', 'source']"):
        ConditionalTransform(dataset, 8, "edges")

    found = next(iter(TrainingBatches(ConditionalTransform(dataset, 8, center_crop=True, **columns), 2, seed=0)))
    named = pairs(colours(2, seed=1), colours(2, seed=0))
    named = named.to_iterable_dataset() if streaming else named
    expected = next(iter(TrainingBatches(ConditionalTransform(named, 8, center_crop=True), 2, seed=0)))
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["conditioning"], expected["conditioning"])


def test_smaller_conditions_of_pairs_are_enlarged_as_by_the_pipeline():
    images = colours(size=(16, 16))
    small = [image.resize((4, 4), Image.Resampling.BOX) for image in images]
    transform = ConditionalTransform(pairs(small, images), 16, upscale=4, center_crop=True)
    batch = transform(datasets.Dataset.with_format(transform.dataset, None)[:2])
    expected = torch.from_numpy(np.array(small[1])).permute(2, 0, 1) / 127.5 - 1
    expected = F.interpolate(expected[None], 16, mode="bicubic")[0].clamp(-1, 1)
    torch.testing.assert_close(batch["conditioning"][1], expected, rtol=0, atol=1e-5)
    # rows are pairs on access as well
    assert set(transform.dataset[0]) == {"pixel_values", "conditioning"}


def test_super_resolution(image):
    target, condition = make_pair("super_resolution", image, 4)
    assert torch.equal(target, image)
    small = image.reshape(3, 4, 4, 4, 4).mean(dim=(2, 4))
    expected = F.interpolate(small[None], 16, mode="bicubic")[0].clamp(-1, 1)
    torch.testing.assert_close(condition, expected, rtol=0, atol=1e-6)


def test_inpainting(image):
    shares = []
    for seed in range(200):
        target, condition = make_pair("inpainting", image, generator=seeded(seed))
        assert torch.equal(target, image)
        pixels, known = condition[:3], condition[3] > 0
        assert set(condition[3].unique().tolist()) == {-1.0, 1.0}  # some of it, and not all
        assert torch.equal(pixels[:, known], image[:, known]) and bool((pixels[:, ~known] == -1).all())
        rows, columns = (~known).any(1).sum(), (~known).any(0).sum()
        assert (~known).sum() == rows * columns and min(rows, columns) >= 4
        shares.append(float((~known).float().mean()))
    assert min(shares) < 0.15 and max(shares) > 0.8
    assert torch.equal(*(make_pair("inpainting", image, generator=seeded(1))[1] for _ in range(2)))


def test_colorization(image):
    target, condition = make_pair("colorization", image)
    assert torch.equal(target, image)
    pil = Image.fromarray(((image / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()).convert("L")
    torch.testing.assert_close(condition[0], torch.from_numpy(np.array(pil)) / 127.5 - 1, rtol=0, atol=0.012)


def test_edges():
    step = torch.full((1, 8, 8), -1.0)
    step[..., 4:] = 1
    target, condition = make_pair("edges", step)
    assert torch.equal(condition, step)
    # a step of half a unit each side of the border; flat parts have none
    assert bool((target[..., 3:5] == 1).all()) and bool((target[..., [0, 1, 2, 5, 6, 7]] == -1).all())
    slope = torch.linspace(-1, 1, 9).expand(3, 9, 9)
    inner = make_pair("edges", slope)[0][0, 1:-1, 1:-1] / 2 + 0.5
    torch.testing.assert_close(inner, torch.full((7, 7), 0.25), rtol=0, atol=1e-6)  # twice a rise of 1/8


@pytest.mark.parametrize("task", TASKS)
def test_channels_are_those_that_are_told(task):
    transform = ConditionalTransform(plain(colours()), 8, task, upscale=4 if task == "super_resolution" else 1)
    batch = next(iter(TrainingBatches(transform, 2, seed=0)))
    assert batch["pixel_values"].shape == (2, transform.channels, 8, 8)
    assert batch["conditioning"].shape == (2, transform.conditioning_channels, 8, 8)
    for each in (batch["pixel_values"], batch["conditioning"]):
        assert each.dtype == torch.float32 and each.abs().max() <= 1


def test_dropped_conditions_are_zeros():
    transform = ConditionalTransform(plain(colours(20)), 8, "colorization", conditioning_dropout_prob=0.3)
    batches = TrainingBatches(transform, 200, seed=0)
    batch = next(iter(batches))
    dropped = (batch["conditioning"] == 0).flatten(1).all(dim=1)
    assert 0.15 < dropped.float().mean() < 0.45
    assert not (batch["pixel_values"] == 0).flatten(1).all(dim=1).any()
    assert torch.equal(next(iter(batches))["conditioning"], batch["conditioning"])


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({}, ("`task`", "None", "'conditioning_image'", "['image']", "'edges'")),
        ({"task": "depth"}, ("`task`", "'depth'", "'edges'")),
        ({"task": "super_resolution", "upscale": 3}, ("`upscale`", "3", "divisor", "8")),
        ({"task": "edges", "upscale": 2}, ("`upscale`", "2", "1", "'edges'")),
        ({"task": "colorization", "image_mode": "L"}, ("`image_mode`", "'L'", "'RGB'")),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, parts, rejects):
    with rejects(*(part.replace("'conditioning_image'", "conditioning_image") for part in parts)):
        ConditionalTransform(plain(colours()), 8, **arguments)
