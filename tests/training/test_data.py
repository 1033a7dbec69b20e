# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images reach training from every documented source, as the tensors that the docstring promises, or fail by name."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from ddm_diffusers.training import ImageTransform, load_image_dataset


@pytest.fixture(scope="module")
def pixels():
    """Four colour images of 12 x 10 pixels with known corners."""
    return np.random.default_rng(0).integers(0, 256, size=(4, 10, 12, 3), dtype=np.uint8)


@pytest.fixture
def image_folder(tmp_path, pixels):
    for i, image in enumerate(pixels):
        folder = tmp_path / "images" / ("cats" if i < 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_digits_are_the_default():
    dataset = load_image_dataset()
    transform = ImageTransform(dataset, resolution=8, center_crop=True, class_conditional=True)
    assert len(dataset) == 1797
    assert transform.channels == 1
    assert transform.class_names == [str(i) for i in range(10)]

    from sklearn.datasets import load_digits

    digits = load_digits()
    batch = transform.dataset[:100]
    expected = torch.from_numpy(digits.images[:100] / 8 - 1).float()[:, None]
    # 17 grey levels are stored as bytes: off by half a level of 255, plus rounding
    torch.testing.assert_close(torch.stack(batch["pixel_values"]), expected, atol=1 / 255 + 1e-6, rtol=0)
    assert batch["class_labels"] == digits.target[:100].tolist()


@pytest.mark.parametrize("source", ["imagefolder", "parquet", "arrow", "save_to_disk"])
def test_a_folder_of_each_kind(source, image_folder, tmp_path, pixels):
    if source != "imagefolder":
        dataset = load_image_dataset(train_data_dir=str(image_folder), cache_dir=str(tmp_path / "cache"))
        image_folder = tmp_path / source
        image_folder.mkdir()
        if source == "parquet":
            # as another library writes it: bytes and path, no word of an image
            rows = [{"bytes": p.read_bytes(), "path": p.name} for p in sorted((tmp_path / "images").rglob("*.png"))]
            Dataset.from_dict({"picture": rows, "label": ["cats", "cats", "dogs", "dogs"]}).to_parquet(
                image_folder / "train.parquet"
            )
        else:
            dataset.save_to_disk(image_folder)
            if source == "arrow":
                (image_folder / "state.json").unlink()
                (image_folder / "dataset_info.json").unlink()
    dataset = load_image_dataset(train_data_dir=str(image_folder), cache_dir=str(tmp_path / "cache"))
    transform = ImageTransform(dataset, resolution=10, center_crop=True, class_conditional=True)
    assert transform.channels == 3
    assert transform.class_names == ["cats", "dogs"]
    batch = transform.dataset[:]
    assert batch["class_labels"] == [0, 0, 1, 1]
    expected = torch.from_numpy(pixels[:, :, 1:-1]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(torch.stack(batch["pixel_values"]), expected, atol=1e-6, rtol=0)


def test_crops_and_flips_are_those_asked_for(image_folder, tmp_path, pixels):
    dataset = load_image_dataset(train_data_dir=str(image_folder), cache_dir=str(tmp_path / "cache"))
    values = torch.from_numpy(pixels[0]).permute(2, 0, 1) / 127.5 - 1

    torch.manual_seed(0)
    flipping = ImageTransform(dataset, resolution=10, center_crop=True, random_flip=True)
    center = values[:, :, 1:-1]
    seen = [flipping.dataset[0]["pixel_values"] for _ in range(40)]
    flipped = [torch.allclose(image, center.flip(2), atol=1e-6) for image in seen]
    plain = [torch.allclose(image, center, atol=1e-6) for image in seen]
    assert all(a != b for a, b in zip(flipped, plain, strict=True))
    assert any(flipped) and any(plain)  # each fails once in 2^40 seeds

    # a crop of a square from 12 x 10 pixels only has a choice along the width, and ranges over it
    cropping = ImageTransform(dataset, resolution=10)
    assert len({cropping.dataset[0]["pixel_values"].sum().item() for _ in range(40)}) > 1


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_image_modes(mode, channels, tmp_path, pixels):
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.fromarray(pixels[0]).convert(mode).save(tmp_path / f"image.{suffix}")
    dataset = load_image_dataset(train_data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    transform = ImageTransform(dataset, resolution=4)
    assert transform.channels == channels
    assert transform.dataset[0]["pixel_values"].shape == (channels, 4, 4)
    assert ImageTransform(dataset, resolution=4, image_mode="L").dataset[0]["pixel_values"].shape == (1, 4, 4)


def test_an_image_that_does_not_decode_is_named(image_folder, tmp_path):
    broken = image_folder / "cats" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = load_image_dataset(train_data_dir=str(image_folder), cache_dir=str(tmp_path / "cache"))
    transform = ImageTransform(dataset, resolution=8)
    assert transform.dataset[0]["pixel_values"].shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"1\.png does not decode"):
        transform.dataset[1]


def test_a_missing_or_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"`train_data_dir` is .*nowhere.*no such folder"):
        load_image_dataset(train_data_dir=str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"`train_data_dir` is .*holds no images, parquet or arrow files"):
        load_image_dataset(train_data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"`dataset_name` is 'a' and `train_data_dir` is 'b'"):
        load_image_dataset(dataset_name="a", train_data_dir="b")


def test_missing_columns():
    with pytest.raises(ValueError, match=r"no column of images, only .*caption"):
        ImageTransform(Dataset.from_dict({"caption": ["a"]}), resolution=8)
    unlabeled = load_image_dataset().remove_columns("label")
    with pytest.raises(ValueError, match=r"`class_conditional` is True.*no column `label`, only \['image'\]"):
        ImageTransform(unlabeled, resolution=8, class_conditional=True)
    with pytest.raises(ValueError, match=r"`dataset` is empty"):
        ImageTransform(load_image_dataset().select([]), resolution=8)


def test_names_that_look_like_a_split(tmp_path, rejects):
    for name in ("test-001.png", "test-002.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert len(load_image_dataset(train_data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))) == 2
    splits = tmp_path / "splits"
    for split, count in (("train", 3), ("test", 2)):
        (splits / split).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4)).save(splits / split / f"{i}.png")
    assert len(load_image_dataset(train_data_dir=str(splits), cache_dir=str(tmp_path / "cache"))) == 3
    (splits / "train").rename(splits / "validation")
    with rejects("`train_data_dir`", "'validation'", "'test'", "`train`"):
        load_image_dataset(train_data_dir=str(splits), cache_dir=str(tmp_path / "cache"))
