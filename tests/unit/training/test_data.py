# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images reach training from every documented source, as the tensors that the docstring promises, or fail by name; and the
batches of a run are the same however it is split and interrupted.
"""

import io
import itertools

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ddm_diffusers.training import ImageTransform, TrainingBatches, load_image_dataset


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
    dataset = load_image_dataset(train_data_dir=str(tmp_path))
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


def test_a_name_and_a_folder(rejects):
    with rejects("`dataset_name` is 'a' and `train_data_dir` is 'b'"):
        load_image_dataset(dataset_name="a", train_data_dir="b")


ENCODED = Features({"bytes": Value("binary"), "path": Value("string")})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("feature", [Value("binary"), Value("large_binary"), ENCODED, ImageFeature()], ids=str)
def test_encoded_images(feature, streamed):
    rows = [png(50), png(100)]
    if isinstance(feature, Value):
        rows = [row["bytes"] for row in rows]
    dataset = Dataset.from_dict({"picture": rows}, features=Features({"picture": feature}))
    transform = ImageTransform(dataset.to_iterable_dataset() if streamed else dataset, resolution=4)
    assert transform.image_column == "picture"
    batch = next(iter(TrainingBatches(transform, batch_size=2, seed=0)))
    assert sorted(shades(batch)) == [50, 100]


@pytest.mark.parametrize("streamed", [False, True])
def test_several_columns_of_images(streamed, rejects):
    features = Features(
        {"mask": ImageFeature(), "id": Value("int64"), "image": ImageFeature(), "raw": Value("binary")}
    )
    rows = {"mask": [png(10)], "id": [1], "image": [png(20)], "raw": [png(30)["bytes"]]}
    dataset = Dataset.from_dict(rows, features=features)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    with rejects("`image_column`", "['mask', 'image', 'raw']", "--image_column image"):
        ImageTransform(dataset, resolution=4)
    with rejects("`image_column` is 'id'", "['mask', 'image', 'raw']"):
        ImageTransform(dataset, resolution=4, image_column="id")
    for column, shade in {"mask": 10, "image": 20, "raw": 30}.items():
        transform = ImageTransform(dataset, resolution=4, image_column=column)
        assert shades(next(iter(TrainingBatches(transform, batch_size=1, seed=0)))) == [shade]


def test_missing_columns():
    with pytest.raises(ValueError, match=r"no column of images, only .*caption"):
        ImageTransform(Dataset.from_dict({"caption": ["a"]}), resolution=8)
    unlabeled = load_image_dataset().remove_columns("label")
    with pytest.raises(ValueError, match=r"`class_conditional` is True.*no column `label`, only \['image'\]"):
        ImageTransform(unlabeled, resolution=8, class_conditional=True)
    with pytest.raises(ValueError, match=r"`dataset` is empty"):
        ImageTransform(load_image_dataset().select([]), resolution=8)


# ---------------------------------------------------------------------------------------------- images of any mode and size
def transformed(path, **options):
    """What training sees of one file, without anything random, as bytes of shape `(height, width, channels)`."""
    dataset = Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": path.name}]})
    transform = ImageTransform(dataset, center_crop=True, **options)
    values = transform.dataset[0]["pixel_values"]
    assert values.dtype == torch.float32 and values.min() >= -1 and values.max() <= 1
    return ((values.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def square(pixels):
    return pixels[0, :, 1:-1]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_to_8(suffix, dtype, tmp_path):
    # cut off at 255, as Pillow converts it, nearly all of it would be white
    values = np.linspace(0, 65535, 64).round().astype(dtype).reshape(8, 8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")
    expected = (values.astype(float) / 257).round().astype(np.uint8)
    np.testing.assert_array_equal(transformed(path, resolution=8)[..., 0], expected)
    np.testing.assert_array_equal(transformed(path, resolution=8, image_mode="RGB")[..., 2], expected)


def test_32_bit_integers_that_fit_into_8_bits_are_kept(tmp_path):
    values = np.arange(64, dtype=np.int32).reshape(8, 8) * 4
    Image.fromarray(values).save(tmp_path / "image.tiff")
    np.testing.assert_array_equal(transformed(tmp_path / "image.tiff", resolution=8)[..., 0], values)


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("image_mode", [None, "L", "RGB"])
def test_floats_are_scaled(image_mode, high, tmp_path):
    values = np.linspace(0, high, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "image.tiff")
    result = transformed(tmp_path / "image.tiff", resolution=8, image_mode=image_mode)
    assert result.shape == (8, 8, 3 if image_mode == "RGB" else 1)
    np.testing.assert_array_equal(result[..., 0], (values * (255 / high)).round())


@pytest.mark.parametrize("bad", [-0.1, 256, np.nan, np.inf])
def test_floats_that_are_no_image(bad, tmp_path, rejects):
    Image.fromarray(np.array([[0, bad]], dtype=np.float32)).save(tmp_path / "image.tiff")
    with rejects("image.tiff", "does not decode", f"{bad:g}", "[0, 1] or [0, 255]"):
        transformed(tmp_path / "image.tiff", resolution=2)


def test_a_palette_is_resolved_to_its_colours(tmp_path, pixels):
    image = Image.fromarray(square(pixels)).quantize(16)
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(transformed(tmp_path / "image.png", resolution=10), image.convert("RGB"))


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path, pixels):
    image = Image.fromarray(square(pixels)).quantize(4)
    image.save(tmp_path / "image.png", transparency=2)
    expected = np.where(np.asarray(image)[..., None] == 2, 255, image.convert("RGB"))
    assert 0 < (np.asarray(image) == 2).sum() < 100
    np.testing.assert_array_equal(transformed(tmp_path / "image.png", resolution=10), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_becomes_white(mode, tmp_path, pixels):
    image = Image.fromarray(square(pixels)).convert(mode)
    alpha = np.zeros((10, 10), np.uint8)
    alpha[:5], alpha[5] = 255, 51
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "image.png")
    colours = np.asarray(image.convert("RGB" if mode == "RGBA" else "L")).reshape(10, 10, -1).astype(float)
    opacity = alpha[..., None] / 255
    expected = colours * opacity + 255 * (1 - opacity)
    result = transformed(tmp_path / "image.png", resolution=10)
    np.testing.assert_array_equal(result[:5], colours[:5])
    assert (result[6:] == 255).all()
    assert abs(result - expected).max() <= 1  # Pillow rounds what is half transparent in two steps


def test_cmyk_becomes_rgb(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "image.tiff")
    with Image.open(tmp_path / "image.tiff") as image:
        assert image.mode == "CMYK"
    np.testing.assert_array_equal(transformed(tmp_path / "image.tiff", resolution=2), colours)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_stand_as_the_camera_was_held(orientation, turns, tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(square(pixels)).save(tmp_path / "image.png", exif=exif)
    expected = np.rot90(square(pixels), turns)
    np.testing.assert_array_equal(transformed(tmp_path / "image.png", resolution=10), expected)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1), (1, 3000)])
def test_one_pixel_wide(size, tmp_path):
    width, height = size
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    result = transformed(tmp_path / "image.png", resolution=4)
    assert result.shape == (4, 4, 3)
    # one pixel from the center fills the square, with some of its neighbours along the length and nothing from elsewhere
    middle = values[max(0, height // 2 - 1) : height // 2 + 2, max(0, width // 2 - 1) : width // 2 + 2]
    assert (result >= middle.min((0, 1))).all() and (result <= middle.max((0, 1))).all()
    assert width > 1 or (result == result[:, :1]).all()
    assert height > 1 or (result == result[:1]).all()


# --------------------------------------------------------------------------------------------------------------------- labels
def png(value):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{value}.png"}


def labelled(labels, feature=None):
    dataset = Dataset.from_dict({"image": [png(i) for i in range(len(labels))], "label": labels})
    return dataset if feature is None else dataset.cast_column("label", feature)


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([100, 3, 7, 3], ["3", "7", "100"], [2, 0, 1, 0]),  # as numbers: by name 100 would be the first
        ([-1.5, 20.0, -1.5], ["-1.5", "20.0"], [0, 1, 0]),
        (["wolf", "cat", "wolf"], ["cat", "wolf"], [1, 0, 1]),
        (["10", "9", "100"], ["9", "10", "100"], [1, 0, 2]),
        ([True, False], ["False", "True"], [1, 0]),
    ],
)
def test_labels_with_gaps_and_names_become_classes(labels, names, classes):
    transform = ImageTransform(labelled(labels), resolution=4, class_conditional=True)
    assert transform.class_names == names
    assert transform.dataset[:]["class_labels"] == classes


@pytest.mark.parametrize(
    ("labels", "feature", "parts"),
    [
        ([[0, 1], [2]], List(Value("int64")), ("List(Value('int64'))",)),
        ([{"a": 1}] * 2, Features({"a": Value("int64")}), ("'a'",)),
        ([b"a", b"b"], Value("binary"), ("binary",)),
        ([None, None], Value("null"), ("null",)),
        ([None, None], Value("string"), ("only None",)),
    ],
)
def test_labels_that_are_no_classes(labels, feature, parts, rejects):
    features = Features({"image": ImageFeature(), "label": feature})
    dataset = Dataset.from_dict({"image": [png(0), png(1)], "label": labels}, features=features)
    with rejects("`label_column` is 'label'", *parts):
        ImageTransform(dataset, resolution=4, class_conditional=True, image_column="image")


def test_another_column_of_labels(caplog, rejects):
    caplog.set_level("INFO")
    dataset = labelled([1, 1]).add_column("breed", ["pug", "borzoi"])
    transform = ImageTransform(dataset, resolution=4, class_conditional=True, label_column="breed")
    assert transform.class_names == ["borzoi", "pug"] and transform.dataset[:]["class_labels"] == [1, 0]
    assert "2 classes of the column `breed`: borzoi (1), pug (1)" in caplog.text
    with rejects("no column `kind`", "['image', 'label', 'breed']", "--label_column"):
        ImageTransform(dataset, resolution=4, class_conditional=True, label_column="kind")


def test_the_classes_are_listed(caplog):
    caplog.set_level("INFO")
    dataset = labelled([0, 2, 0, None], ClassLabel(names=["cat", "dog", "eel"]))
    ImageTransform(dataset, resolution=4, class_conditional=True)
    assert "`label`: cat (2), dog (0), eel (1); 1 images have no label" in caplog.text
    ImageTransform(dataset.to_iterable_dataset(), resolution=4, class_conditional=True)
    assert "`label`: cat, dog, eel" in caplog.text
    ImageTransform(labelled(list(range(60))), resolution=4, class_conditional=True)
    assert "60 classes" in caplog.text and "49 (1) and 10 more" in caplog.text
    caplog.clear()
    ImageTransform(dataset, resolution=4)
    assert not caplog.records


@pytest.mark.parametrize("feature", [Value("int64"), ClassLabel(names=["a", "b"])])
def test_a_missing_label_is_an_error_that_names_the_image(feature, rejects):
    dataset = labelled([0, None, 1], feature)
    transform = ImageTransform(dataset, resolution=4, class_conditional=True)
    with rejects("1.png", "None", "[0, 1]"):
        transform.dataset[1]
    with rejects("1.png", "None", "[0, 1]"):
        next(iter(TrainingBatches(transform, batch_size=3, seed=0)))
    assert ImageTransform(dataset, resolution=4).dataset[1]["pixel_values"].shape == (1, 4, 4)


def test_a_stream_tells_its_classes_only_by_their_names(rejects):
    stream = labelled([0, 1], ClassLabel(names=["a", "b"])).to_iterable_dataset()
    assert ImageTransform(stream, resolution=4, class_conditional=True).class_names == ["a", "b"]
    with rejects("`label`", "stream", "`ClassLabel`", "int64"):
        ImageTransform(labelled([0, 1]).to_iterable_dataset(), resolution=4, class_conditional=True)


def test_labels_are_dropped_as_often_as_asked_for():
    dataset = labelled([i % 2 for i in range(100)])
    transform = ImageTransform(dataset, resolution=4, class_conditional=True, class_dropout_prob=0.25)
    batches = TrainingBatches(transform, batch_size=100, seed=0)
    counts = [torch.bincount(batch["class_labels"], minlength=3).tolist() for batch in itertools.islice(batches, 20)]
    dropped = sum(count[2] for count in counts)
    # of 2,000, binomial: within five standard deviations
    assert abs(dropped - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert len({tuple(count) for count in counts}) > 1


# -------------------------------------------------------------------------------------------------------------------- batches
def load(batches, count, num_workers=0):
    """The first batches as a run sees them."""
    dataloader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=num_workers)
    batches = list(itertools.islice(dataloader, count))
    for batch in batches:
        # a DataLoader makes lists of tuples
        batch |= {"position": tuple(batch["position"]), "examples": list(map(tuple, batch["examples"]))}
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if torch.is_tensor(a[name]):
                assert torch.equal(a[name], b[name]), name
            else:
                assert a[name] == b[name], name


def join(*batches):
    """The batches of several processes as those of one."""
    return [
        {
            name: parts[-1][name]
            if name == "position"
            else any(part[name] for part in parts)
            if name == "colour_lost"
            else torch.cat([part[name] for part in parts])
            if torch.is_tensor(parts[0][name])
            else sum((part[name] for part in parts), [])
            for name in parts[0]
        }
        for parts in zip(*batches, strict=True)
    ]


def shades(batch):
    """Which images these are, by their brightness, to tens."""
    return ((batch["pixel_values"].mean((1, 2, 3)) + 1) * 12.75).round().int().mul(10).tolist()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Twenty images, each with a brightness of its own, in memory and as streams from images and from parquet."""
    folder = tmp_path_factory.mktemp("sources")
    pattern = np.random.default_rng(0).integers(0, 5, (5, 6))  # shows how an image was cropped and mirrored
    images = [Image.fromarray((10 * i + pattern).astype(np.uint8)) for i in range(20)]
    for i, image in enumerate(images):
        path = folder / "imagefolder" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    memory = load_image_dataset(train_data_dir=str(folder / "imagefolder"), cache_dir=str(folder / "cache"))
    (folder / "parquet").mkdir()
    for shard in range(3):
        memory.shard(3, shard).to_parquet(folder / "parquet" / f"train-{shard}.parquet")
    streams = {
        name: load_image_dataset(train_data_dir=str(folder / name), cache_dir=str(folder / "cache"), streaming=True)
        for name in ("imagefolder", "parquet")
    }
    return {"memory": memory, **streams}


# parquet has a test of its own, as datasets waits for five seconds at the end of each pass over it
SOURCES = ["memory", "imagefolder"]


@pytest.fixture
def make(sources):
    def make(source="memory", batch_size=6, seed=3, resolution=4, **options):
        # everything about an example that can be random
        transform = ImageTransform(
            sources[source], resolution, random_flip=True, class_conditional=True, class_dropout_prob=0.3
        )
        return TrainingBatches(transform, batch_size, seed, shuffle_buffer_size=7, **options)

    return make


@pytest.mark.parametrize("source", SOURCES)
def test_batches_follow_from_the_seed(make, source):
    batches = load(make(source), 9)
    assert_same(batches, load(make(source), 9))
    assert batches[0]["pixel_values"].shape == (6, 1, 4, 4) and batches[0]["class_labels"].shape == (6,)
    others = load(make(source, seed=4), 9)
    assert list(map(shades, batches)) != list(map(shades, others))
    # the noise of no two examples is the same
    seeds = [seed for batch in batches + others for seed in batch["seeds"]]
    assert len(set(seeds)) == 2 * 9 * 6


@pytest.mark.parametrize("source", SOURCES)
def test_every_image_once_per_epoch_each_time_in_another_order(make, source, sources):
    # 10 batches of 6 are 3 epochs of 20
    transform = ImageTransform(sources[source], 5, center_crop=True, random_flip=True)
    batches = load(TrainingBatches(transform, batch_size=6, seed=0, shuffle_buffer_size=7), 10)
    seen = [shade for batch in batches for shade in shades(batch)]
    orders = [seen[:20], seen[20:40], seen[40:]]
    assert all(len(set(order)) == 20 for order in orders)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({tuple(order) for order in orders}) == 3 and sorted(orders[0]) not in orders
    names = [name for batch in batches for name in batch["examples"]]
    assert sorted(names) == [(epoch, number) for epoch in range(3) for number in range(20)]
    if source == "memory":
        for (_, row), shade in zip(names, seen, strict=True):
            assert shade == np.asarray(sources["memory"][row]["image"]).min() // 10 * 10


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_nothing(make, source, num_workers):
    assert_same(load(make(source), 9, num_workers), load(make(source), 9))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_processes_share_the_batches_of_one(make, source, num_workers):
    parts = [
        load(make(source, batch_size=3, process_index=index, num_processes=2), 9, num_workers) for index in range(2)
    ]
    assert_same(join(*parts), load(make(source, batch_size=6), 9))


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_goes_on_at_any_position(make, source):
    whole = load(make(source), 9)
    positions = [batch["position"] for batch in whole]
    assert positions[:4] == [(0, 6), (0, 12), (0, 18), (1, 4)]  # the fourth batch begins in the first epoch
    for done, position in enumerate(positions[:-1], start=1):
        assert_same(load(make(source, position=position), 9 - done), whole[done:])
    assert_same(load(make(source, position=positions[3]), 5, num_workers=2), whole[4:])


@pytest.mark.parametrize("source", SOURCES)
def test_fewer_images_than_a_batch(make, source):
    batch, following = load(make(source, batch_size=50), 2)
    assert len(batch["pixel_values"]) == len(following["pixel_values"]) == 50
    assert [epoch for epoch, _ in batch["examples"]] == [0] * 20 + [1] * 20 + [2] * 10
    assert batch["position"] == (2, 10) and following["position"] == (4, 20)
    parts = [load(make(source, batch_size=25, process_index=index, num_processes=2), 2) for index in range(2)]
    assert_same(join(*parts), [batch, following])


@pytest.mark.slow
def test_a_stream_of_several_parquet_files(make, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds, after each pass
    whole = load(make("parquet"), 6)
    assert len({name for batch in whole for name in batch["examples"]}) == 36
    assert {shade for batch in whole[:4] for shade in shades(batch)} == set(range(0, 200, 10))
    assert list(map(shades, whole)) != list(map(shades, load(make("parquet", seed=4), 6)))
    assert_same(load(make("parquet"), 6, num_workers=2), whole)
    assert_same(load(make("parquet", position=whole[3]["position"]), 2), whole[4:])
    parts = [load(make("parquet", batch_size=3, process_index=index, num_processes=2), 6) for index in range(2)]
    assert_same(join(*parts), whole)


def with_bad_images(*numbers):
    rows = [png(10 * i) for i in range(20)]
    for number in numbers:
        rows[number]["bytes"] = rows[number]["bytes"][:40]
    return Dataset.from_dict({"image": rows})


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_images_are_skipped_and_named(streamed, num_workers):
    dataset = with_bad_images(2, 5, 19)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    transform = ImageTransform(dataset, resolution=4)
    batches = load(TrainingBatches(transform, batch_size=5, seed=0, skip_bad_images=True), 8, num_workers)
    # 8 batches are 2 epochs: each bad image is met twice
    bad_images = [bad_image for batch in batches for bad_image in batch["bad_images"]]
    assert len(bad_images) == 6
    for number in (2, 5, 19):
        path = f"{10 * number}.png"
        identities = [identity for identity, message in bad_images if f"image {path} does not decode" in message]
        assert identities == 2 * [path if streamed else f"row {number}"]
    for batch in batches:
        assert len(batch["pixel_values"]) == len(batch["seeds"]) == len(batch["examples"]) == 5
        # whoever stands in for a bad image is of the same batch and called by its own name
        assert {20, 50, 190}.isdisjoint(shades(batch))
        assert len(set(shades(batch))) == len(set(batch["examples"])) == 5 - len(batch["bad_images"])
        if not streamed:
            assert shades(batch) == [10 * row for _, row in batch["examples"]]
    assert sum(len(set(shades(batch))) for batch in batches) == 2 * 17


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("modes", "image_mode", "lost"),
    [("LR", None, True), ("RL", None, False), ("LL", None, False), ("LR", "L", False)],
)
def test_colour_that_is_lost_to_a_grey_first_image(modes, image_mode, lost, num_workers):
    rows = []
    for mode in modes:
        buffer = io.BytesIO()
        Image.new({"L": "L", "R": "RGB"}[mode], (4, 4)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    transform = ImageTransform(Dataset.from_dict({"image": rows}), resolution=4, image_mode=image_mode)
    (batch,) = load(TrainingBatches(transform, batch_size=2, seed=0), 1, num_workers)
    assert batch["colour_lost"] is lost


def test_a_bad_image_stops_a_run_by_its_name(rejects):
    transform = ImageTransform(with_bad_images(5), resolution=4)
    with rejects("The image 50.png does not decode", "(0, 5)"):
        load(TrainingBatches(transform, batch_size=20, seed=0), 1)


def test_a_batch_of_bad_images_stops_a_run(rejects):
    transform = ImageTransform(with_bad_images(*range(1, 20)), resolution=4)
    with rejects("None of the 5 images of a batch is good", "does not decode"):
        load(TrainingBatches(transform, batch_size=5, seed=0, skip_bad_images=True), 4)


def test_an_empty_stream(rejects):
    stream = load_image_dataset(streaming=True).take(0)
    with rejects("`dataset` is empty"):
        ImageTransform(stream, resolution=8)
