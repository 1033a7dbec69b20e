# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Captions become the tokens that diffusers' pipelines give their text encoders; the script trains on them."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from processes import start
from stock_parts import tiny_text_parts

import ddm_diffusers
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


def test_what_is_no_caption_is_refused(tokenizer, rejects):
    with rejects("`caption_column`", "caption", "text"):
        transform_of(tokenizer, caption_column="caption")
    with rejects("text", "None"):
        transform_of(tokenizer, ["a dot", None]).dataset[:]


@pytest.mark.slow
def test_the_script(tmp_path):
    """Trains on pixels; the stock pipeline loads the result and is guided."""
    (tmp_path / "data").mkdir()
    lines = []
    for i, image in enumerate(images(6)):
        image.save(tmp_path / "data" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i % 3]}))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    for name, part in tiny_text_parts().items():
        part.save_pretrained(tmp_path / "text" / name)
    arguments = ["--train_data_dir", "data", "--resolution", "8", "--center_crop", "--pixel_space", "--logger", "none"]
    arguments += [
        "--pretrained_model_name_or_path",
        "text",
        "--block_out_channels",
        "8",
        "16",
        "--layers_per_block",
        "1",
    ]
    arguments += ["--max_train_steps", "4", "--lr_warmup_steps", "1", "--output_dir", "out", "--eval_batch_size", "4"]
    run = start("train_ddm_text_to_image.py", *arguments, "--train_batch_size", "3", "--seed", "0", cwd=tmp_path)
    assert run.wait() == 0, run.output[-4000:]

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, ddm_diffusers.DDMUNet2DConditionModel)
    results = [
        pipe(
            "a dot", num_inference_steps=2, guidance_scale=scale, output_type="np", generator=torch.manual_seed(0)
        ).images
        for scale in (1.0, 8.0)
    ]
    assert results[0].shape == (1, 8, 8, 3) and not np.array_equal(*results)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and 'StableDiffusionPipeline.from_pretrained("out")' in card
