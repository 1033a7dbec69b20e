# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every image of a folder is trained on, whatever it is called and however it got there, or a message says why not."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ddm_diffusers.training import check_output_dir, list_images, load_image_dataset


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def load(root):
    """`load()` is the data set of the folder."""
    return lambda folder=root, **options: load_image_dataset(
        train_data_dir=str(folder), cache_dir=str(root.parent / "cache"), **options
    )


def draw(root, *names):
    """An image for each name, all different."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int.from_bytes(name.encode()[-5:], "big") % 256
        Image.new("L", (4, 4), number).save(path)


def names_of(dataset, root):
    rows = dataset.cast_column("image", ImageFeature(decode=False))
    return [Path(row["image"]["path"]).relative_to(root.absolute()).as_posix() for row in rows]


def classes_of(dataset):
    names = dataset.features["label"].names
    return {Path(row["image"]["path"]).name: names[row["label"]] for row in undecoded(dataset)}


def undecoded(dataset):
    return dataset.cast_column("image", ImageFeature(decode=False))


# ------------------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize(
    "names",
    [
        ["bird/1.png", "train/2.png", "truck/3.png"],
        ["img_1.png", "img_test_1.png", "test-2.png", "validation.png"],
        ["test-station/1.png", "train-station/2.png"],
        ["train/cat/1.png", "train/test/2.png", "train/train/3.png"],
        ["train/1.png", "2.png"],
        ["data/train-0.png", "data/test-0.png"],
        ["__special__/1.png", "README.md.png"],
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_names_with_the_words_of_splits(names, streaming, root, load, caplog):
    draw(root, *names)
    assert names_of(load(streaming=streaming), root) == sorted(names)
    assert not caplog.records


def test_labels_are_the_names_of_the_folders(root, load):
    draw(root, "bird/1.png", "train/2.png", "truck/3.png")
    assert classes_of(load()) == {"1.png": "bird", "2.png": "train", "3.png": "truck"}


@pytest.mark.parametrize(
    "train, others",
    [
        (["train/1.png", "train/2.png"], ["test/3.png"]),
        (["train/cat/1.png", "train/dog/1.png"], ["validation/cat/1.png", "test/dog/1.png"]),
        (["Training/1.png"], ["Val/2.png"]),
        (["train2017/1.png"], ["val2017/1.png", "val2017/2.png"]),
        (["inner/train/1.png"], ["inner/dev/1.png"]),
        (["train/1.png"], ["test/1.png", "loose.png"]),
    ],
)
def test_folders_that_are_nothing_but_splits(train, others, root, load, caplog):
    draw(root, *train, *others)
    assert names_of(load(), root) == train
    assert f"Used: {len(train)} of {len(train + others)} images" in caplog.text and "'train'" in caplog.text


def test_one_split_alone(root, load):
    draw(root, "test/1.png")
    assert len(load()) == 1


def test_splits_without_train(root, load, rejects):
    draw(root, "test/1.png", "validation/1.png")
    with rejects("`train_data_dir`", "['test', 'validation']", "`train`"):
        load()


def table(path, *numbers, column="number"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({column: list(numbers)}).to_parquet(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_that_are_named_after_splits(streaming, root, load, caplog):
    table(root / "data" / "train-00000-of-00002.parquet", 1, 2)
    table(root / "data" / "train-00001-of-00002.parquet", 3)
    table(root / "data" / "test-00000-of-00001.parquet", 4)
    assert [row["number"] for row in load(streaming=streaming)] == [1, 2, 3]
    assert "Used: 2 of 3 parquet files" in caplog.text
    table(root / "data" / "more.parquet", 5)
    assert [row["number"] for row in load(streaming=streaming)] == [5, 4, 1, 2, 3]


def test_a_dictionary_of_saved_splits(root, load, caplog, rejects):
    rows = Dataset.from_dict({"number": [1, 2, 3]})
    DatasetDict(train=rows.select([0, 1]), test=rows.select([2])).save_to_disk(root)
    assert load()["number"][:] == [1, 2]
    assert "Used: 2 of 3 rows" in caplog.text
    shutil.rmtree(root / "train")
    DatasetDict(test=rows).save_to_disk(root)
    assert load()["number"][:] == [1, 2, 3]


# -------------------------------------------------------------------------------------------------------------------- files
def test_links_are_followed(root, load, tmp_path):
    draw(root, "a/1.png")
    draw(tmp_path / "elsewhere", "2.png", "inner/3.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "4.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert names_of(load(), root) == [
        *("a/1.png", "a/4.png", "b/2.png", "b/inner/3.png", "c/2.png", "c/inner/3.png"),
    ]


def test_links_in_circles_end(root, load, tmp_path):
    draw(root, "a/1.png")
    (root / "a" / "again").symlink_to(root)
    (tmp_path / "elsewhere").mkdir()
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    assert names_of(load(), root) == ["a/1.png", "b/back/1.png"]


def test_hidden_files_and_folders_do_not_count(root, load, caplog):
    draw(root, "0.png", ".hidden/1.png")
    (root / "._0.png").write_bytes(b"Mac OS X")
    (root / ".DS_Store").write_bytes(b"Mac OS X")
    assert names_of(load(), root) == ["0.png"]
    assert list_images(str(root)) == [str(root / "0.png")]
    assert not caplog.records


def test_a_hidden_folder_that_is_asked_for(root, load):
    draw(root, ".hidden/1.png")
    assert len(load(root / ".hidden")) == 1


@pytest.mark.parametrize("suffix", ["avif", "webp", "JPG", "Jpeg", "tif", "mpo", "jfif", "ppm"])
def test_formats_that_pillow_reads(suffix, root, load, caplog):
    draw(root, "0.png")
    Image.new("RGB", (16, 16), "red").save(root / f"1.{suffix}", None if suffix != "jfif" else "JPEG")
    dataset = load()
    assert names_of(dataset, root) == ["0.png", f"1.{suffix}"] and dataset[1]["image"].size == (16, 16)
    assert not caplog.records


def test_what_is_left_out_is_counted(root, load, caplog):
    draw(root, "a/0.png")
    for name in ("1.heic", "2.HEIC", "notes.txt", "Makefile"):
        (root / name).write_text("no image")
    (root / "3.png").symlink_to(root / "nowhere.png")
    (root / "4.png").symlink_to(root / "4.png")
    assert names_of(load(), root) == ["a/0.png"]
    assert "has 1 images. Left out: 2 .heic, 2 .png (broken link), 1 without a suffix, 1 .txt" in caplog.text
    caplog.clear()
    assert list_images(str(root)) == [str(root / "a" / "0.png")] and "2 .heic" in caplog.text


def test_a_folder_without_images(root, load, rejects):
    with rejects("`train_data_dir`", "nowhere", "no such folder"):
        load(root / "nowhere")
    with rejects("`train_data_dir`", "holds no images, parquet or arrow files."):
        load()
    (root / "notes.txt").write_text("no image")
    (root / "a.pdf").write_text("Pillow writes it only")
    with rejects("holds no images, parquet or arrow files, only 1 .pdf, 1 .txt."):
        load()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["images", "metadata", "parquet"])
def test_characters_of_patterns_in_paths(kind, streaming, root, load):
    folder = root / "dir[1] *?{a,b}"
    if kind == "parquet":
        table(folder / "x[0].parquet", 7)
    else:
        draw(folder, "x[0].png")
    if kind == "metadata":
        (folder / "metadata.csv").write_text("file_name,text\nx[0].png,a dot\n")
    (row,) = load(folder, streaming=streaming)
    assert row["number"] == 7 if kind == "parquet" else row["image"].size == (4, 4)
    assert kind != "metadata" or row["text"] == "a dot"


def test_numeric_folders_are_ordered_as_numbers(root, load):
    draw(root, "10/a.png", "9/b.png", "100/c.png", "-1/d.png")
    dataset = load()
    assert dataset.features["label"].names == ["-1", "9", "10", "100"]
    assert classes_of(dataset) == {"a.png": "10", "b.png": "9", "c.png": "100", "d.png": "-1"}
    draw(root, "b/e.png")
    assert load().features["label"].names == ["-1", "10", "100", "9", "b"]


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["a/1.png", "2.png"], ["a/x/1.png", "b/x/2.png"]])
def test_folders_that_give_no_labels(names, root, load):
    """As in datasets' imagefolder: there have to be several names, at one depth."""
    draw(root, *names)
    assert set(load().features) == {"image"}


# ----------------------------------------------------------------------------------------------------------------- metadata
def write_metadata(path, rows):
    dataset = Dataset.from_list(rows)
    {".csv": dataset.to_csv, ".jsonl": dataset.to_json, ".parquet": dataset.to_parquet}[path.suffix](path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata(suffix, streaming, root, load, caplog):
    draw(root, "a/1.png", "b/2.png")
    write_metadata(
        root / f"metadata.{suffix}", [{"file_name": "b/2.png", "text": "two"}, {"file_name": "a/1.png", "text": "one"}]
    )
    dataset = load(streaming=streaming)
    assert names_of(dataset, root) == ["b/2.png", "a/1.png"] and [row["text"] for row in dataset] == ["two", "one"]
    assert not caplog.records


def test_metadata_with_pairs(root, load, caplog):
    draw(root, "a.png", "b.png")
    write_metadata(root / "metadata.jsonl", [{"file_name": "a.png", "conditioning_image_file_name": "b.png"}])
    dataset = load()
    assert dataset[0]["conditioning_image"].size == (4, 4) and not caplog.records


def test_metadata_that_does_not_fit_the_images(root, load, caplog):
    draw(root, "1.png", "2.png", "3.png")
    write_metadata(root / "metadata.jsonl", [{"file_name": name, "text": name} for name in ("1.png", "9.png")])
    assert names_of(load(), root) == ["1.png", "9.png"]
    assert f"does not list 2 of 3 images, '{root}/2.png' for example" in caplog.text
    assert f"lists, though they do not exist, 1 of 3 images, '{root}/9.png' for example" in caplog.text


@pytest.mark.parametrize("place", ["root", "splits", "test"])
def test_metadata_of_splits(place, root, load, caplog):
    draw(root, "train/1.png", "test/2.png")
    if place == "root":
        names = [{"file_name": "test/2.png", "text": "2"}, {"file_name": "train/1.png", "text": "1"}]
        write_metadata(root / "metadata.csv", names)
    else:
        write_metadata(root / "test" / "metadata.csv", [{"file_name": "2.png", "text": "2"}])
    if place == "splits":
        write_metadata(root / "train" / "metadata.csv", [{"file_name": "1.png", "text": "1"}])
    dataset = load()
    assert names_of(dataset, root) == ["train/1.png"]
    assert ("text" in dataset.features) == (place != "test")
    assert len(caplog.records) == 1 and "Used: 1 of 2 images" in caplog.text


# ------------------------------------------------------------------------------------------------------------------- tables
def test_a_stray_parquet_file_beside_images(root, load, caplog, rejects):
    draw(root, "a/1.png", "b/2.png")
    table(root / "index.parquet", 1, 2)
    (root / "damaged.parquet").write_text("no parquet")
    assert names_of(load(), root) == ["a/1.png", "b/2.png"]
    assert "Left out: 2 .parquet" in caplog.text
    features = Features({"picture": ImageFeature()})
    Dataset.from_dict({"picture": [Image.new("L", (4, 4))]}, features=features).to_parquet(root / "train.parquet")
    with rejects("2 images", "1 parquet files with images", "train.parquet", "only one"):
        load()


def test_metadata_without_images_is_a_table(root, load):
    table(root / "metadata.parquet", 1, 2)
    assert load()["number"][:] == [1, 2]


def test_other_files_beside_parquet_files(root, load, caplog):
    table(root / "a.parquet", 1)
    (root / "README.md").write_text("about")
    assert len(load()) == 1
    assert "has 1 parquet files. Left out: 1 .md" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- archives
def pack(folder, archive):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix != ".tar" else "w") as packed:
            for path in files:
                packed.add(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz"])
def test_archives_count_as_folders(suffix, streaming, root, load, tmp_path, caplog):
    draw(tmp_path / "cats", "1.png", "2.png", "__MACOSX/._1.png", ".hidden/3.png")
    draw(root, "dogs/4.png")
    pack(tmp_path / "cats", root / f"cats.{suffix}")
    dataset = load(streaming=streaming)
    assert classes_of(dataset) == {"1.png": "cats", "2.png": "cats", "4.png": "dogs"}
    assert [row["image"].size for row in dataset] == [(4, 4)] * 3
    assert not caplog.records


def test_archives_of_splits_and_with_metadata(root, load, tmp_path, caplog):
    draw(tmp_path / "packed", "train/1.png", "test/2.png")
    write_metadata(tmp_path / "packed" / "train" / "metadata.csv", [{"file_name": "1.png", "text": "one"}])
    pack(tmp_path / "packed", root / "all.zip")
    (row,) = load()
    assert row["text"] == "one" and "Used: 1 of 2 images" in caplog.text


def test_an_archive_that_is_replaced_is_unpacked_again(root, load, tmp_path):
    draw(tmp_path / "packed", "1.png")
    pack(tmp_path / "packed", root / "all.zip")
    assert len(load()) == 1
    draw(tmp_path / "packed", "2.png")
    pack(tmp_path / "packed", root / "all.zip")
    assert len(load()) == 2


def test_a_damaged_archive(root, load, rejects):
    (root / "all.zip").write_text("no archive")
    with rejects("all.zip", "neither zip nor tar"):
        load()


# ------------------------------------------------------------------------------------------------------------------ outputs
@pytest.mark.parametrize("output", ["data", "data/out", "data/a/b/c", "link/out", "data/linked/out", "elsewhere/out"])
def test_an_output_folder_inside_the_data_folder(output, root, tmp_path, rejects):
    draw(root, "a/1.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    with rejects("`output_dir`", f"{output}'", "inside the data folder", f"--output_dir {root}-output"):
        check_output_dir(str(tmp_path / output), str(root))
    with rejects(f"{output}'"):
        check_output_dir(str(tmp_path / output), str(tmp_path / "link"))


def test_output_folders_elsewhere(root, tmp_path, monkeypatch):
    draw(root, "a/1.png")
    monkeypatch.chdir(tmp_path)
    for output in ("out", "data-out", "../data"):
        check_output_dir(output, "data")
    check_output_dir("data/out", "data/a")
    for name in (None, "user/photos", "nowhere"):
        check_output_dir("nowhere/out", name)


def test_a_cache_inside_the_data_folder(root, rejects):
    draw(root, "a/1.png")
    with rejects("`cache_dir`", "inside the data folder"):
        load_image_dataset(train_data_dir=str(root), cache_dir=str(root / "cache"))
