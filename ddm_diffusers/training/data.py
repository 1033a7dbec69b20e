# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images for training: from scikit-learn, the Hub or a folder to batches of tensors in [-1, 1]."""

import io
import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset
from diffusers.image_processor import VaeImageProcessor
from PIL import Image as PILImage
from PIL import ImageOps

from ..model_card import listing
from ..pipelines.images import convert_mode
from .folders import choose_image_column, load_folder, log, order_classes


EMPTY = "`dataset` is empty, but at least one image is needed."


def load_digits_dataset() -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, with columns `image` and `label`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    return Dataset.from_dict(
        {"image": [PILImage.fromarray(image) for image in pixels], "label": digits.target.tolist()},
        features=Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])}),
    )


def load_image_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    Load the training split of an image data set; without a name or a folder, scikit-learn's digits.

    Args:
        dataset_name (`str`, *optional*): A data set on the Hub, or a local path that `datasets.load_dataset` accepts.
        dataset_config_name (`str`, *optional*): The configuration of that data set.
        train_data_dir (`str`, *optional*):
            A folder of images (a subfolder for each class, if any), of parquet or arrow files, or one that
            `Dataset.save_to_disk` wrote: see [`load_folder`].
        cache_dir (`str`, *optional*): Where `datasets` keeps what it downloads and converts.
        streaming (`bool`, defaults to `False`): Whether to read the data as they are needed, without a copy in the cache.

    Returns:
        `datasets.Dataset`, or a `datasets.IterableDataset` if it is streamed.

    Raises:
        ValueError: both a name and a folder are given, or the folder is none that [`load_folder`] accepts.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError(
            f"`dataset_name` is {dataset_name!r} and `train_data_dir` is {train_data_dir!r}, but only one is accepted."
        )
    if dataset_name is not None:
        return load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir, split="train", streaming=streaming)
    if train_data_dir is not None:
        return load_folder(train_data_dir, cache_dir, streaming)
    digits = load_digits_dataset()
    return digits.to_iterable_dataset() if streaming else digits


class ImageTransform:
    """
    From the rows of a data set to decoded, cropped and normalized images, and their labels.

    Images of any mode are accepted: palettes are resolved, 16 bits become 8, and what is transparent becomes white.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            The data set. A stream has to say which columns it has.
        resolution (`int`): Height and width of the result.
        center_crop (`bool`, defaults to `False`): Whether to crop at the center rather than at random.
        random_flip (`bool`, defaults to `False`): Whether to mirror half of the images.
        class_conditional (`bool`, defaults to `False`): Whether to return labels.
        image_mode (`"L"` or `"RGB"`, *optional*): Grey or colour; as the first image that decodes is, if `None`.
        class_dropout_prob (`float`, defaults to 0.0):
            How often a label is replaced with the one after the last, which stands for "no class" (classifier-free
            guidance, arXiv 2207.12598).
        image_column (`str`, *optional*): The column of images, which may be encoded. Default: the only one.
        label_column (`str`, *optional*): The column of labels. Default: `label`.

    Attributes:
        class_names (`list[str]` or `None`): What the labels 0, 1, ... stand for.
        colour_lost (`bool`): Whether an image in colour was made grey for no other reason than that the first one is.
        dataset: The data set with undecoded images; rows of a `datasets.Dataset` are transformed on access.

    Raises:
        ValueError: the data set is empty, or one of its columns is not as it has to be: `image_column` is not one of
            images, or not given though there are several; `label_column` does not exist or has other values than numbers,
            strings or booleans.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        resolution: int,
        center_crop: bool = False,
        random_flip: bool = False,
        class_conditional: bool = False,
        image_mode: str | None = None,
        class_dropout_prob: float = 0.0,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        streamed = isinstance(dataset, IterableDataset)
        if not streamed and len(dataset) == 0:
            raise ValueError(EMPTY)
        if dataset.features is None:
            dataset = dataset._resolve_features()
        self.image_column = choose_image_column(dataset.features, image_column)
        self.label_column = label_column or "label"
        self.class_names, self._class_of = None, None
        if class_conditional:
            self.class_names, self._class_of = _find_classes(dataset, self.label_column)
        # Undecoded, so that an image that does not decode can be named.
        dataset = dataset.cast_column(self.image_column, Image(decode=False))
        self.resolution, self.center_crop, self.random_flip = resolution, center_crop, random_flip
        self.class_dropout_prob = class_dropout_prob
        self.to_tensor = VaeImageProcessor(do_resize=False)
        self.image_mode = image_mode or self._mode_of_first(dataset)
        self._mode_was_asked_for = image_mode is not None
        self.colour_lost = False
        self.dataset = dataset if streamed else dataset.with_transform(self)

    @property
    def channels(self) -> int:
        """Channels of the images, 1 or 3."""
        return len(self.image_mode)

    def __call__(self, rows: dict, generators: list[torch.Generator] | None = None) -> dict:
        """
        Args:
            rows (`dict`): Lists of values, one for each column.
            generators (`list[torch.Generator]`, *optional*): For what is random about each row; on the CPU.

        Returns:
            `dict` of `pixel_values`, tensors of shape `(channels, resolution, resolution)` in [-1, 1], and, if the data
            set is class-conditional, `class_labels`.

        Raises:
            ValueError: an image does not decode, or a label is none of the classes.
        """
        generators = generators or [None] * len(rows[self.image_column])
        return {"pixel_values": self.pixels(rows, generators)} | self.condition(rows, generators)

    def pixels(
        self, rows: dict, generators: Sequence[torch.Generator | None], mirror: bool = True
    ) -> list[torch.Tensor]:
        """The images of rows alone, as of a call, or none of them mirrored."""
        images = [self._decode(value) for value in rows[self.image_column]]
        if self.image_mode == "L" and not self._mode_was_asked_for:
            self.colour_lost = self.colour_lost or not all(map(_is_grey, images))
        images = [self._crop(image, generator, mirror) for image, generator in zip(images, generators, strict=True)]
        return list(self.to_tensor.preprocess(images))

    def draw_flip(self, generator: torch.Generator | None) -> bool:
        """Whether an image is mirrored, which is drawn before anything else about a row that is cropped at its center."""
        return self.random_flip and bool(torch.rand((), generator=generator) < 0.5)

    def condition(self, rows: dict, generators: Sequence[torch.Generator | None]) -> dict:
        """What goes along with the images of rows, as of a call, drawn after them."""
        if self.class_names is None:
            return {}
        labels = []
        for label, value in zip(rows[self.label_column], rows[self.image_column], strict=True):
            if label not in self._class_of:
                raise ValueError(
                    f"The label of the image {_name(value)} is {label!r}, but has to be one of {list(self._class_of)}."
                )
            labels.append(self._class_of[label])
        if self.class_dropout_prob > 0:
            labels = [
                len(self.class_names) if torch.rand((), generator=generator) < self.class_dropout_prob else label
                for label, generator in zip(labels, generators, strict=True)
            ]
        return {"class_labels": labels}

    def _mode_of_first(self, dataset: Dataset | IterableDataset) -> str:
        error = None
        for row in itertools.islice(dataset, 100):
            try:
                return "L" if _is_grey(self._decode(row[self.image_column])) else "RGB"
            except ValueError as raised:
                error = error or raised
        raise error or ValueError(EMPTY)

    def _decode(self, value: dict | None) -> PILImage.Image:
        try:
            source = io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]
            with PILImage.open(source) as image:
                image = ImageOps.exif_transpose(image)
                # here, as numbers that are no image are an error
                return convert_mode(image, "L") if image.mode == "F" else image
        except Exception as error:  # Pillow's plugins raise more than OSError, SyntaxError and struct.error among them
            raise ValueError(f"The image {_name(value)} does not decode: {error}") from error

    def _crop(self, image: PILImage.Image, generator: torch.Generator | None, mirror: bool) -> PILImage.Image:
        centering = (0.5, 0.5) if self.center_crop else tuple(torch.rand(2, generator=generator).tolist())
        image, size = convert_mode(image, self.image_mode), (self.resolution, self.resolution)
        image = ImageOps.fit(image, size, PILImage.Resampling.BILINEAR, centering=centering)
        return ImageOps.mirror(image) if mirror and self.draw_flip(generator) else image


def _name(value: dict | None) -> str:
    """What to call an undecoded image in a message."""
    return (value or {}).get("path") or "without a path"


def _is_grey(image: PILImage.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _find_classes(dataset: Dataset | IterableDataset, column: str) -> tuple[list[str], dict]:
    """The names of the classes, and which of them a value of the column stands for."""
    feature = dataset.features.get(column)
    if feature is None:
        raise ValueError(
            f"`class_conditional` is True, but the data set has no column `{column}`, only {list(dataset.features)}. Name"
            " another one with --label_column. A folder of images has labels if its images are in several subfolders of the"
            " same depth, and there is no metadata."
        )
    scalars = ("int", "uint", "float", "string", "large_string", "bool")
    labelled, streamed = isinstance(feature, ClassLabel), isinstance(dataset, IterableDataset)
    if not labelled and not (isinstance(feature, Value) and feature.dtype.startswith(scalars)):
        raise ValueError(
            f"`label_column` is {column!r}, whose values are {feature}, but each label has to be one class: a `ClassLabel`, a"
            " number, a string or a boolean."
        )
    if not labelled and streamed:
        raise ValueError(
            f"`class_conditional` is True, but the column `{column}` of a stream has to be a `ClassLabel`, as the classes"
            f" cannot be counted; it is {feature}."
        )
    counts = {}
    if not streamed:
        labels = dataset.select_columns(column).with_format("arrow")[:][column]
        counts = {each["values"]: each["counts"] for each in labels.value_counts().to_pylist()}
    values = range(feature.num_classes) if labelled else order_classes(value for value in counts if value is not None)
    names = feature.names if labelled else [str(value) for value in values]
    if not names:
        raise ValueError(f"`label_column` is {column!r}, which has no labels, only None.")
    shown = [f"{n} ({counts.get(v, 0):,})" if counts else n for n, v in zip(names, values, strict=True)]
    missing = f"; {counts[None]:,} images have no label" if None in counts else ""
    log(logging.INFO, f"{len(names):,} classes of the column `{column}`: {listing(shown, 50)}{missing}")
    return names, {value: index for index, value in enumerate(values)}


class TrainingBatches(torch.utils.data.IterableDataset):
    """
    Batches for one process of a training run, without end, for a `DataLoader` with `batch_size=None`.

    The data set is gone through again and again, each time in another order. The order, and all that is random about an
    example, follow from `seed` and from the position of the example alone: not from the number of processes or workers,
    and not from where the run was interrupted. Every batch is full, whatever the size of the data set.

    A batch has what the transform makes of its rows, and

    - `seeds`: an `int` for each example, for the noise that is added to it;
    - `examples`: what to call each of them, `(epoch, number of the row)`; of a stream the number is that of the shuffled
      row;
    - `position`: `(epoch, offset)` of the example that follows on the batches of all processes, where to go on;
    - `bad_images`: the images that did not decode, in whose place others of the batch stand: for each what
      identifies it, in every epoch unless a stream has no paths, and a message;
    - `colour_lost`: as of the transform.

    Args:
        transform ([`ImageTransform`]): With its data set.
        batch_size (`int`): Examples in a batch, 1 or more.
        seed (`int`): 0 or more.
        process_index, num_processes (`int`, defaults to 0 and 1): Which of the batches are this process's.
        position (`(int, int)`, defaults to `(0, 0)`): The epoch and the offset in it to begin at.
        skip_bad_images (`bool`, defaults to `False`): Whether an image that does not decode is left out rather than an error.
        shuffle_buffer_size (`int`, defaults to 1000): From how many rows of a stream the next one is drawn.
    """

    def __init__(
        self,
        transform: ImageTransform,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        position: tuple[int, int] = (0, 0),
        skip_bad_images: bool = False,
        shuffle_buffer_size: int = 1000,
    ):
        self.transform, self.batch_size, self.seed, self.position = transform, batch_size, seed, position
        self.process_index, self.num_processes = process_index, num_processes
        self.skip_bad_images, self.shuffle_buffer_size = skip_bad_images, shuffle_buffer_size
        dataset = transform.dataset
        # without the transform, which is called with generators here
        self.dataset = dataset if isinstance(dataset, IterableDataset) else dataset.with_format(None)

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows = self._rows(*self.position)
        begin = self.process_index * self.batch_size
        for number in itertools.count():
            batch = list(itertools.islice(rows, self.batch_size * self.num_processes))
            # a DataLoader takes the batches of its workers in turn
            if number % num_workers == worker_index:
                epoch, offset, _ = batch[-1]
                yield self._load(batch[begin : begin + self.batch_size]) | {"position": (epoch, offset + 1)}

    def _rows(self, first_epoch: int, offset: int) -> Iterator[tuple[int, int, int | dict]]:
        """`(epoch, offset, row)` without end, where the row of a data set in memory is its index."""
        for epoch in itertools.count(first_epoch):
            if isinstance(self.dataset, IterableDataset):
                stream = self.dataset.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer_size)
                stream.set_epoch(epoch)
                # not enumerate(stream), which gives each worker of a DataLoader another part of it
                batches = stream.iter(batch_size=1)
                rows = enumerate({column: values[0] for column, values in batch.items()} for batch in batches)
            else:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch)[0])
                rows = enumerate(torch.randperm(len(self.dataset), generator=generator).tolist())
            number = -1
            for number, row in itertools.islice(rows, offset, None):
                yield epoch, number, row
            if number < 0 and offset == 0:
                raise ValueError(EMPTY)
            offset = 0

    def _load(self, batch: list[tuple[int, int, int | dict]]) -> dict:
        epochs, offsets, rows = zip(*batch, strict=True)
        in_memory = isinstance(rows[0], int)
        names = list(zip(epochs, rows if in_memory else offsets, strict=True))
        if in_memory:
            rows = self.dataset[list(rows)]
        else:
            rows = {column: [row[column] for row in rows] for column in rows[0]}
        seeds = [_mix(self.seed, epoch, offset) for epoch, offset in zip(epochs, offsets, strict=True)]
        good, bad = [], []
        for i, (seed, _) in enumerate(seeds):
            row = {column: [values[i]] for column, values in rows.items()}
            try:
                good.append((i, self.transform(row, [torch.Generator().manual_seed(seed)])))
            except ValueError as error:
                # not every image has a path
                message = f"{str(error).rstrip('.')}. It is {names[i]} as (epoch, row)."
                if not self.skip_bad_images:
                    raise ValueError(f"{message} With --skip_bad_images it is left out.") from error
                identity = f"row {names[i][1]}"
                if not in_memory:  # the rows of a stream have other numbers in each epoch
                    identity = (row[self.transform.image_column][0] or {}).get("path") or str(names[i])
                bad.append((identity, message))
        if not good:
            raise ValueError(f"None of the {len(batch)} images of a batch is good. {bad[0][1]}")
        # others stand in for what does not decode, with the noise of the place that they fill
        chosen = (good * -(-len(batch) // len(good)))[: len(batch)]
        examples = [example for _, example in chosen]
        loaded = {key: torch.stack([torch.as_tensor(each[key][0]) for each in examples]) for key in examples[0]}
        return loaded | {
            "seeds": [noise_seed for _, noise_seed in seeds],
            "examples": [names[i] for i, _ in chosen],
            "bad_images": bad,
            "colour_lost": self.transform.colour_lost,
        }


def _mix(*numbers: int) -> list[int]:
    """Two seeds from numbers that may be near to each other."""
    return np.random.SeedSequence(numbers).generate_state(2, np.uint64).tolist()
