# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A folder as a data set. `datasets` loads folders too, but it takes words in the names of files and folders for splits, skips
linked folders and newer image formats, and does not report what it leaves out.
"""

import glob
import hashlib
import logging
import os
import posixpath
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from datasets.data_files import SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.extract import Extractor
from PIL import Image as PILImage


logger = logging.getLogger(__name__)

# What Pillow opens, without the formats that it recognizes but does not decode. MPO is opened as JPEG.
IMAGE_SUFFIXES = {
    suffix for suffix, format in PILImage.registered_extensions().items() if format in {*PILImage.OPEN, "MPO"}
} - {".bufr", ".grib", ".h5", ".hdf", ".mpeg", ".mpg"}
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
KINDS = ("images", "metadata", "parquet files", "arrow files")
SPLITS = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}

# The name relative to the folder, with "/", and the path.
File = tuple[str, str]


def log(level: int, message: str) -> None:
    """Log on the main process. Accelerate's logger does too, but it needs an `Accelerator`."""
    if not PartialState._shared_state or PartialState().is_main_process:
        logger.log(level, message)


def load_folder(folder: str, cache_dir: str | None = None, streaming: bool = False) -> Dataset | IterableDataset:
    """
    Load a folder of images, of parquet or arrow files, or one that `save_to_disk` wrote.

    - Images get a column `label` if they are in several subfolders of one depth. If there are files `metadata.csv`,
      `metadata.jsonl` or `metadata.parquet`, the rows and the columns are those of the metadata.
    - Links are followed, archives count as folders, and hidden files and folders are skipped.
    - Everything counts, whatever it is called. If the top-level folders, or parquet or arrow files, are all named after
      splits, the split `train` is used.
    - A warning lists what is left out.

    Archives are unpacked, and tables converted, in `cache_dir`. See [`load_image_dataset`].

    Raises:
        ValueError: the folder is missing, has nothing to train on, has both images and parquet files with images, has
            several splits but no `train`, or contains `cache_dir`.
    """
    name = f"`train_data_dir` is {str(folder)!r}"
    if not os.path.isdir(folder):
        raise ValueError(f"{name}, but there is no such folder.")
    if cache_dir is not None:
        check_output_dir(cache_dir, folder, "cache_dir")
    names = set(os.listdir(folder))
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names:  # what load_from_disk needs
        dataset = _load_saved(name, folder)
        return dataset.to_iterable_dataset() if streaming else dataset

    files = _list_files(folder, cache_dir)
    kinds = {kind: [file for file in files if _kind(file) == kind] for kind in KINDS}
    metadata, kind = kinds["metadata"], "images"
    if kinds["images"]:
        clashing = [path for _, path in kinds["parquet files"] if _has_images(path)]
        if clashing:
            raise ValueError(
                f"{name}, which has {len(kinds['images'])} images and {len(clashing)} parquet files with images, {clashing[0]!r}"
                " for example, but only one of both is accepted. Move the other to a folder of its own."
            )
    else:
        # without images, a metadata file is a table like any other
        kinds["parquet files"] = kinds["parquet files"] or [file for file in metadata if _suffix(file) == ".parquet"]
        metadata, kind = [], "parquet files" if kinds["parquet files"] else "arrow files"
    used = kinds[kind]
    if not used:
        only = f", only {_count(files)}" if files else ""
        raise ValueError(f"{name}, but that folder holds no images, parquet or arrow files{only}.")
    if left_out := {*files}.difference(used, metadata):
        log(logging.WARNING, f"{name}. It has {len(used)} {kind}. Left out: {_count(sorted(left_out))}.")
    chosen = _train_split(name, used, kind)
    if kind != "images":
        return _load_files(kind.split()[0], chosen, cache_dir, streaming)
    other_splits = {path for _, path in used} - {path for _, path in chosen}
    if other_splits:
        folders = {file: posixpath.join(posixpath.dirname(file[0]), "") for file in metadata}
        metadata = [file for file in metadata if any(image.startswith(folders[file]) for image, _ in chosen)]
    if metadata:
        dataset = _load_metadata(name, metadata, chosen, other_splits, cache_dir)
    else:
        dataset = _load_images(chosen)
    return dataset.to_iterable_dataset() if streaming else dataset


def list_images(folder: str, cache_dir: str | None = None) -> list[str]:
    """The paths of all images of a folder, of its subfolders and archives; a warning lists what is left out."""
    files = _list_files(folder, cache_dir)
    images = [path for name, path in files if _kind((name, path)) == "images"]
    if left_out := [file for file in files if _kind(file) != "images"]:
        log(logging.WARNING, f"{str(folder)!r} has {len(images)} images. Left out: {_count(left_out)}.")
    return images


def _list_files(folder: str, cache_dir: str | None = None) -> list[File]:
    """
    All files of a folder and its subfolders, sorted by name, without hidden ones. Links are followed. An archive counts as a
    folder that is named like it, without the suffix; it is unpacked to `cache_dir`.
    """
    files = []
    root = os.path.abspath(folder)
    for parent, names in _walk(root):
        prefix = "" if parent == root else Path(parent).relative_to(root).as_posix() + "/"
        for name, exists in names:
            path = os.path.join(parent, name)
            suffix = next((each for each in ARCHIVE_SUFFIXES if name.lower().endswith(each)), None)
            if not exists:
                files.append((f"{prefix}{name} (broken link)", path))  # a suffix of its own, which is none of an image
            elif suffix is None:
                files.append((prefix + name, path))
            else:
                stem = prefix + name[: -len(suffix)]
                files += [
                    (f"{stem}/{inner}", path) for inner, path in _list_files(_unpack(path, cache_dir), cache_dir)
                ]
    return sorted(files)


def check_output_dir(output_dir: str, data_dir: str | None, option: str = "output_dir") -> None:
    """
    Refuse an output folder inside a data folder: the next run would train on the pictures of this one.

    Args:
        output_dir (`str`): The folder to write to. It need not exist.
        data_dir (`str`, *optional*): The folder to read from. `None`, or a name that is no local folder, is accepted.
        option (`str`, defaults to `"output_dir"`): The argument that the message names.

    Raises:
        ValueError: the output folder is the data folder, or inside it, or inside a folder that it links to.
    """
    if data_dir is None or not os.path.isdir(data_dir):
        return
    output = Path(output_dir).resolve()
    folders = {os.path.realpath(folder) for folder, _ in _walk(os.path.abspath(data_dir))}
    if not folders.isdisjoint(map(str, (output, *output.parents))):
        raise ValueError(
            f"`{option}` is {str(output_dir)!r}, which is inside the data folder {str(data_dir)!r}: the next run would read"
            f" what this one writes. Name a folder outside, for example"
            f" --{option} {os.path.realpath(data_dir)}-{option.removesuffix('_dir')}."
        )


def order_classes(values: Iterable) -> list:
    """Sort labels: as numbers if all of them are numbers, or names of numbers."""
    values = sorted(values)
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _find_image_columns(features: dict) -> list[str]:
    """The columns of images, or of what other libraries write for them to parquet files: bytes, or a struct with bytes."""
    return [
        name
        for name, feature in features.items()
        if isinstance(feature, Image)
        or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
        or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
    ]


def choose_image_column(features: dict, image_column: str | None) -> str:
    """The column of images that is asked for, or the only one."""
    candidates = _find_image_columns(features)
    if not candidates:
        raise ValueError(f"The data set has no column of images, only {dict(features)}.")
    if image_column is None and len(candidates) > 1:
        raise ValueError(
            f"The data set has several columns of images, {candidates}, so `image_column` has to be one of them, for example"
            f" --image_column {'image' if 'image' in candidates else candidates[0]}."
        )
    if image_column is not None and image_column not in candidates:
        raise ValueError(f"`image_column` is {image_column!r}, but has to be a column of images, one of {candidates}.")
    return image_column or candidates[0]


def _walk(folder: str, parents: frozenset = frozenset()) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """
    A folder and the folders below, without hidden ones; for each of its files the name, and whether it exists, as a broken
    link does not. Links are followed but not in circles.
    """
    real = os.path.realpath(folder)
    if real in parents:
        return
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            exists = not entry.is_symlink() or os.path.exists(entry.path)
            if exists and entry.is_dir():
                folders.append(entry.path)
            else:
                files.append((entry.name, exists))
    yield folder, files
    for path in folders:
        yield from _walk(path, parents | {real})


def _unpack(archive: str, cache_dir: str | None) -> str:
    """The folder that an archive is unpacked to, once. Unlike that of `datasets` it is complete and never outdated."""
    stat = os.stat(archive)
    digest = hashlib.sha256(f"{os.path.realpath(archive)} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, "unpacked", digest)
    if not folder.is_dir():
        kind = Extractor.infer_extractor_format(archive)
        if kind not in ("zip", "tar"):
            raise ValueError(
                f"The archive {archive!r} is damaged, or neither zip nor tar. Unpack it, or move it away."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            files = os.path.join(temporary, "files")
            Extractor.extract(archive, files, kind)
            try:
                os.replace(files, folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    return str(folder)


def _kind(file: File) -> str:
    """One of `KINDS`, or `others`."""
    suffix = _suffix(file)
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if posixpath.basename(file[0]) in ImageFolder.METADATA_FILENAMES:
        return "metadata"
    return {".parquet": "parquet files", ".arrow": "arrow files"}.get(suffix, "others")


def _suffix(file: File) -> str:
    return posixpath.splitext(file[0])[1].lower()


def _count(files: Iterable[File]) -> str:
    """`3 .heic, 1 .txt`."""
    counts = Counter(map(_suffix, files)).most_common()
    text = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts[:10])
    return text + ", ..." * (len(counts) > 10)


def _has_images(parquet: str) -> bool:
    try:
        return bool(_find_image_columns(Features.from_arrow_schema(pq.read_schema(parquet))))
    except (OSError, pa.ArrowInvalid):  # not a parquet file, whatever its name
        return False


def _train_split(name: str, files: list[File], kind: str) -> list[File]:
    """The files of the split `train`, or all of them unless everything at the top is named after splits."""
    common = posixpath.commonpath([posixpath.dirname(file) for file, _ in files])
    tops = ["".join(file[len(common) :].lstrip("/").partition("/")[:2]) for file, _ in files]  # "train/" or "1.png"
    split_of = {}
    for top in set(tops):
        is_folder = top.endswith("/")
        # test-00000-of-00001.parquet is a split, while images are often called test-1.png
        pattern = f"({'|'.join(SPLITS)})" + ("[-._ 0-9]*/" if is_folder else "([-._ 0-9].*)?[.][a-z]+")
        match = re.fullmatch(pattern, top, re.IGNORECASE)
        split_of[top] = match and SPLITS[match[1].lower()]
        if kind == "images" and not is_folder:
            split_of[top] = "no folder"
    found = set(split_of.values()) - {"no folder"}
    if None in found or len(found) < 2:
        return files
    chosen = [file for file, top in zip(files, tops, strict=True) if split_of[top] == "train"]
    _check_train(name, found, f"{len(chosen)} of {len(files)} {kind}")
    return chosen


def _check_train(name: str, splits: Iterable[str], used: str) -> None:
    if "train" not in splits:
        raise ValueError(
            f"{name}, which has the splits {sorted(splits)}, but it has to be a folder with a split `train`, or without"
            " splits. Name the folder of one split, or its files otherwise."
        )
    log(logging.WARNING, f"{name}, which has the splits {sorted(splits)}. Used: {used}.")


def _load_saved(name: str, folder: str) -> Dataset:
    dataset = datasets.load_from_disk(folder)
    if not isinstance(dataset, DatasetDict):
        return dataset
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    total = sum(map(len, dataset.values()))
    _check_train(name, dataset, f"{len(dataset.get('train', ()))} of {total} rows")
    return dataset["train"]


def _load_files(builder: str, files: list[File], cache_dir: str | None, streaming: bool) -> Dataset | IterableDataset:
    paths = [glob.escape(path) for _, path in files]
    return datasets.load_dataset(
        builder, data_files={"train": paths}, cache_dir=cache_dir, split="train", streaming=streaming
    )


def _load_images(files: list[File]) -> Dataset:
    """With the labels of the builder imagefolder, which takes a minute for 30,000 images and knows fewer formats."""
    columns, features = {"image": [path for _, path in files]}, {"image": Image()}
    labels = [posixpath.basename(posixpath.dirname(name)) for name, _ in files]
    depths = {name.count("/") for name, _ in files}
    if len(set(labels)) > 1 and len(depths) == 1:
        features["label"] = ClassLabel(names=order_classes(set(labels)))
        columns["label"] = features["label"].str2int(labels)
    return Dataset.from_dict(columns, features=Features(features))


def _load_metadata(name: str, metadata: list[File], chosen: list[File], other_splits: set[str], cache_dir: str | None):
    """The rows of the metadata. The builder imagefolder reads these alone, and does not compare them with the images."""
    dataset = _load_files("imagefolder", metadata, cache_dir, streaming=False)
    columns = [column for column, feature in dataset.features.items() if isinstance(feature, Image)]
    rows = list(
        zip(*(pc.struct_field(dataset.data.column(each), "path").to_pylist() for each in columns), strict=True)
    )
    if other_splits:
        dataset = dataset.select([i for i, row in enumerate(rows) if other_splits.isdisjoint(row)])
    listed = {path for row in rows for path in row if path is not None} - other_splits
    unlisted = [path for _, path in chosen if path not in listed]
    absent = sorted(path for path in listed.difference(path for _, path in chosen) if not os.path.isfile(path))
    for paths, what in ((unlisted, "does not list"), (absent, "lists, though they do not exist,")):
        if paths:
            images = f"{len(paths)} of {len(chosen)} images, {paths[0]!r} for example"
            log(logging.WARNING, f"{name}, whose metadata {what} {images}.")
    return dataset
