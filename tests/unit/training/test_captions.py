# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Captions become the tokens that diffusers' pipelines give their text encoders."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from stock_parts import tiny_text_parts

from ddm_diffusers.training import CaptionTransform


CAPTIONS = ["a red dot", "a blue dot", "a dot"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_text_parts()["tokenizer"]


def images(count):
    pixels = np.random.default_rng(0).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    return [PILImage.fromarray(each) for each in pixels]


def transform_of(tokenizer, captions=CAPTIONS, **options):
    value = List(Value("string")) if isinstance(captions[0], list) else Value("string")
    features = Features({"image": Image(), "text": value})
    dataset = Dataset.from_dict({"image": images(len(captions)), "text": captions}, features=features)
    return CaptionTransform(dataset, tokenizer, resolution=8, center_crop=True, **options)


def tokens(tokenizer, caption):
    length = tokenizer.model_max_length
    return tokenizer(caption, padding="max_length", max_length=length, truncation=True).input_ids


def test_captions_are_tokens_of_one_length(tokenizer):
    batch = transform_of(tokenizer, [*CAPTIONS, "a dot " * 20]).dataset[:]
    assert torch.stack(batch["pixel_values"]).shape == (4, 3, 8, 8)
    ids = torch.stack(batch["input_ids"])
    assert ids.shape == (4, 16)
    assert ids.tolist() == [tokens(tokenizer, each) for each in [*CAPTIONS, "a dot " * 20]]


def test_captions_are_drawn_and_dropped(tokenizer):
    transform = transform_of(tokenizer, [["one", "two"]] * 2, caption_dropout_prob=0.25)
    rows = transform.dataset.with_format(None)[:1]
    counts = {}
    for seed in range(400):
        (ids,) = transform(rows, [torch.Generator().manual_seed(seed)])["input_ids"]
        counts[tuple(ids.tolist())] = counts.get(tuple(ids.tolist()), 0) + 1
    shares = [counts.pop(tuple(tokens(tokenizer, each))) / 400 for each in ("", "one", "two")]
    assert not counts
    # four standard errors
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=4 * 0.024)


def test_the_column_of_images(tokenizer, rejects):
    dataset = transform_of(tokenizer).dataset.with_format(None)
    dataset = dataset.add_column("mask", [b"no image"] * 3)
    with rejects("`image_column`", "['image', 'mask']"):
        CaptionTransform(dataset, tokenizer, resolution=8)
    transform = CaptionTransform(dataset, tokenizer, resolution=8, image_column="image")
    assert len(transform.dataset[:]["pixel_values"]) == 3


def test_what_is_no_caption_is_refused(tokenizer, rejects):
    with rejects("`caption_column`", "caption", "text"):
        transform_of(tokenizer, caption_column="caption")
    with rejects("text", "None"):
        transform_of(tokenizer, ["a dot", None]).dataset[:]
