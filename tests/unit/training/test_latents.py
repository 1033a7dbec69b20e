# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Latents that are kept on the disk are those of encoding on the fly, are made once, survive a kill, and belong to one data
set, one autoencoder and one way of cropping.
"""

import itertools
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from processes import fork, until
from stock_parts import tiny_vae

from ddm_diffusers.training import CachedLatents, ImageTransform, LatentSpace, TrainingBatches, latents


NUM_IMAGES = 10


@pytest.fixture
def dataset():
    pixels = np.random.default_rng(0).integers(0, 256, size=(NUM_IMAGES, 10, 12, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [PILImage.fromarray(each) for each in pixels], "label": [i % 3 for i in range(NUM_IMAGES)]}
    return Dataset.from_dict(rows, features=features)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD_SIZE", 4)


def transform_of(dataset, **options):
    return ImageTransform(dataset, **{"resolution": 8, "center_crop": True, "random_flip": True, **options})


def space_of(**options):
    return LatentSpace(tiny_vae(scaling_factor=0.5, **options), "cpu")


def test_space_tells_what_it_encodes():
    space = space_of()  # with two levels
    assert space.image_mode == "RGB" and space.latent_size(8) == 4
    with pytest.raises(ValueError, match="`resolution` is 9, but has to be a multiple of 2"):
        space.latent_size(9)
    assert space_of(in_channels=1, out_channels=1).image_mode == "L"
    with pytest.raises(ValueError, match="`vae` encodes images of 4 channels, but"):
        space_of(in_channels=4, out_channels=4)


def counted(space):
    """The sizes of the batches that are encoded from now on."""
    sizes = []
    space.vae.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


def clean_batches(transform, space, **options):
    """Five batches, as a run sees them, and their latents."""
    pairs = []
    for batch in itertools.islice(TrainingBatches(transform, 3, seed=1, **options), 5):
        batch["generators"] = [torch.Generator().manual_seed(seed) for seed in batch["seeds"]]
        pairs.append((batch, space.clean(batch)))
    return pairs


def test_cached_latents_are_those_of_encoding_on_the_fly(dataset, tmp_path):
    """With labels, their dropout, mirroring and drawing from the posterior, by the same random numbers."""
    options, space = {"class_conditional": True, "class_dropout_prob": 0.5}, space_of()
    transform = transform_of(dataset, **options)
    cached = CachedLatents(transform, space, tmp_path, Accelerator(cpu=True))
    pairs = list(zip(clean_batches(transform, space), clean_batches(cached, space), strict=True))
    labels = [(a["class_labels"].tolist(), b["class_labels"].tolist()) for (a, _), (b, _) in pairs]
    assert len(pairs) == 5 and all(a == b for a, b in labels) and any(3 in a for a, _ in labels)
    for (_, fresh), (_, kept) in pairs:
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-5)
    # and afterwards each generator stands where it stood, so that noise and times are the same
    for (a, _), (b, _) in pairs:
        assert [g.get_state().tolist() for g in a["generators"]] == [g.get_state().tolist() for g in b["generators"]]


def test_images_without_anything_else(dataset, tmp_path):
    transform, space = transform_of(dataset.select_columns("image")), space_of()
    cached = CachedLatents(transform, space, tmp_path, Accelerator(cpu=True))
    for (_, fresh), (_, kept) in zip(clean_batches(transform, space), clean_batches(cached, space), strict=True):
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-5)


def test_images_are_encoded_once(dataset, tmp_path):
    space = space_of()
    sizes = counted(space)
    CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True), batch_size=3)
    assert sum(sizes) == 2 * NUM_IMAGES  # and mirrored
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latents.json",
        *(f"shard-{i:05d}.safetensors" for i in range(3)),
    ]
    cached = CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True))
    clean_batches(cached, space)
    assert sum(sizes) == 2 * NUM_IMAGES
    (tmp_path / "shard-00001.safetensors").unlink()
    CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True))
    assert sum(sizes) == 2 * NUM_IMAGES + 8


def encode_slowly(dataset, folder):
    latents.SHARD_SIZE = 2
    space = space_of()
    space.vae.encoder.register_forward_hook(lambda *_: time.sleep(0.05))
    CachedLatents(transform_of(dataset), space, folder, Accelerator(cpu=True), batch_size=1)


def test_caching_that_was_killed_goes_on(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD_SIZE", 2)
    process = fork(encode_slowly, dataset, str(tmp_path))
    assert until(lambda: len(list(tmp_path.glob("shard-*.safetensors"))) >= 2, process.is_alive)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.safetensors")}
    assert 2 <= len(there) <= 5
    (tmp_path / "shard-00004.123.tmp").write_bytes(b"half")
    space = space_of()
    sizes = counted(space)
    cached = CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True))
    assert sum(sizes) == 2 * (NUM_IMAGES - 2 * len(there))
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())
    assert not list(tmp_path.glob("*.tmp"))
    for (_, fresh), (_, kept) in zip(
        clean_batches(transform_of(dataset), space), clean_batches(cached, space), strict=True
    ):
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-5)


def other_image(dataset):
    rows = dataset.to_dict()
    rows["image"][0] = rows["image"][1]
    return Dataset.from_dict(rows, features=dataset.features)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda dataset: (transform_of(other_image(dataset)), space_of()), "data set"),
        (lambda dataset: (transform_of(dataset.select(range(9))), space_of()), "images: 10 there, 9 now"),
        (lambda dataset: (transform_of(dataset), space_of(latent_channels=2)), "autoencoder"),
        (lambda dataset: (transform_of(dataset, resolution=4), space_of()), "resolution: 8 there, 4 now"),
        (lambda dataset: (transform_of(dataset, random_flip=False), space_of()), "mirrored: True there, False now"),
    ],
    ids=["an image", "fewer images", "autoencoder", "resolution", "mirrored"],
)
def test_latents_of_something_else_are_refused(change, named, dataset, tmp_path, rejects):
    accelerator = Accelerator(cpu=True)
    CachedLatents(transform_of(dataset), space_of(), tmp_path, accelerator)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    transform, space = change(dataset)
    with rejects("`folder`", str(tmp_path), named):
        CachedLatents(transform, space, tmp_path, accelerator)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@torch.no_grad()
def test_other_weights_are_another_autoencoder(dataset, tmp_path, rejects):
    space = space_of()
    CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True))
    next(space.vae.parameters()).view(-1)[0] += 1e-3
    with rejects("`folder`", "autoencoder"):
        CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True))


def test_random_crops_and_streams_have_no_cache(dataset, tmp_path, rejects):
    with rejects("`transform`", "center"):
        CachedLatents(transform_of(dataset, center_crop=False), space_of(), tmp_path, Accelerator(cpu=True))
    with rejects("`transform`", "stream"):
        stream = transform_of(dataset.to_iterable_dataset())
        CachedLatents(stream, space_of(), tmp_path, Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())


def test_bad_images(dataset, tmp_path, rejects):
    rows = dataset.cast_column("image", Image(decode=False)).to_dict()
    rows["image"][5] = {"bytes": b"no image", "path": "bad.png"}
    dataset = Dataset.from_dict(rows, features=dataset.features)
    with rejects("bad.png", "row 5", "--skip_bad_images"):
        CachedLatents(transform_of(dataset), space_of(), tmp_path, Accelerator(cpu=True))
    space = space_of()
    cached = CachedLatents(transform_of(dataset), space, tmp_path, Accelerator(cpu=True), skip_bad_images=True)
    batches = clean_batches(cached, space, skip_bad_images=True)
    pairs = clean_batches(transform_of(dataset), space, skip_bad_images=True)
    for (_, kept), (_, fresh) in zip(batches, pairs, strict=True):
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-5)
    with rejects("bad.png"):
        cached({"latent_row": [5], "label": [0]})
    assert json.loads((tmp_path / "latents.json").read_text())["images"] == NUM_IMAGES


def test_the_measured_deviation_is_that_of_the_latents(dataset):
    space, transform = space_of(), transform_of(dataset, random_flip=False)
    channels, deviation = space.measure(transform)
    posterior = space.encode(torch.stack(transform.dataset[:]["pixel_values"]))
    expected = 0.5 * (posterior.mean.square() + posterior.std.square()).mean().sqrt()
    assert channels == 4
    # one draw of 640 numbers: four standard errors of their deviation
    assert deviation == pytest.approx(expected.item(), rel=4 / (2 * posterior.mean.numel()) ** 0.5)
