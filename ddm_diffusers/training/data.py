# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images for training: from scikit-learn, the Hub or a folder to batches of tensors in [-1, 1]."""

import io
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset, load_from_disk
from diffusers.image_processor import VaeImageProcessor
from PIL import Image as PILImage
from PIL import ImageOps


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
) -> Dataset:
    """
    Load the training split of an image data set; without a name or a folder, scikit-learn's digits.

    Args:
        dataset_name (`str`, *optional*): A data set on the Hub, or a local path that `datasets.load_dataset` accepts.
        dataset_config_name (`str`, *optional*): The configuration of that data set.
        train_data_dir (`str`, *optional*):
            A folder of images (a subfolder for each class, if any), of parquet or arrow files, or one that
            `Dataset.save_to_disk` wrote.
        cache_dir (`str`, *optional*): Where `datasets` keeps what it downloads and converts.

    Returns:
        `datasets.Dataset`

    Raises:
        ValueError: both a name and a folder are given, or the folder is missing, holds nothing to train on, or several
            splits of which none is called `train`.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError(
            f"`dataset_name` is {dataset_name!r} and `train_data_dir` is {train_data_dir!r}, but only one is accepted."
        )
    if dataset_name is not None:
        return load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir, split="train")
    if train_data_dir is None:
        return load_digits_dataset()

    folder = Path(train_data_dir)
    if not folder.is_dir():
        raise ValueError(f"`train_data_dir` is {train_data_dir!r}, but there is no such folder.")
    if (folder / "state.json").is_file():
        return load_from_disk(train_data_dir)
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    if ".parquet" in suffixes:
        builder = "parquet"
    elif ".arrow" in suffixes:
        builder = "arrow"
    elif suffixes & set(PILImage.registered_extensions()):
        builder = "imagefolder"
    else:
        raise ValueError(
            f"`train_data_dir` is {train_data_dir!r}, but that folder holds no images, parquet or arrow files."
        )
    splits = load_dataset(builder, data_dir=train_data_dir, cache_dir=cache_dir)
    # datasets takes files that are named like test-001.png for a split of that name, even where there is no other
    name = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    if name not in splits:
        raise ValueError(
            f"`train_data_dir` is {train_data_dir!r}, where datasets finds the splits {list(splits)}, but it has to be a"
            " folder with a split `train`, or without splits."
        )
    return splits[name]


class ImageTransform:
    """
    A transform for `Dataset.with_transform`: decoded, cropped and normalized images, and their labels.

    Args:
        dataset (`datasets.Dataset`): The data set; its first column of images is used.
        resolution (`int`): Height and width of the result.
        center_crop (`bool`, defaults to `False`): Whether to crop at the center rather than at random.
        random_flip (`bool`, defaults to `False`): Whether to mirror half of the images.
        class_conditional (`bool`, defaults to `False`): Whether to return the labels of the column `label`.
        image_mode (`"L"` or `"RGB"`, *optional*): Grey or colour; as the first image is, if `None`.

    Raises:
        ValueError: the data set is empty or has no column of images, or of labels where one is needed.
    """

    def __init__(
        self,
        dataset: Dataset,
        resolution: int,
        center_crop: bool = False,
        random_flip: bool = False,
        class_conditional: bool = False,
        image_mode: str | None = None,
    ):
        if len(dataset) == 0:
            raise ValueError("`dataset` is empty, but at least one image is needed.")
        self.image_column = _find_image_column(dataset)
        self.class_names = None
        if class_conditional:
            if "label" not in dataset.features:
                raise ValueError(
                    f"`class_conditional` is True, but the data set has no column `label`, only"
                    f" {dataset.column_names}."
                )
            if not isinstance(dataset.features["label"], ClassLabel):
                dataset = dataset.class_encode_column("label")
            self.class_names = dataset.features["label"].names
        # Undecoded, so that an image that does not decode can be named.
        dataset = dataset.cast_column(self.image_column, Image(decode=False))
        self.resolution = resolution
        self.center_crop = center_crop
        self.random_flip = random_flip
        self.image_mode = image_mode
        if image_mode is None:
            first = self._decode(dataset[0][self.image_column])
            self.image_mode = "L" if first.mode in ("1", "L", "LA") or first.mode.startswith("I") else "RGB"
        self.to_tensor = VaeImageProcessor(do_resize=False)
        self.dataset = dataset.with_transform(self)

    @property
    def channels(self) -> int:
        """Channels of the images, 1 or 3."""
        return len(self.image_mode)

    def __call__(self, examples: dict) -> dict:
        """
        Args:
            examples (`dict`): Lists of values, one for each column.

        Returns:
            `dict` of `pixel_values`, tensors of shape `(channels, resolution, resolution)` in [-1, 1], and, if the data
            set is class-conditional, `class_labels`.

        Raises:
            ValueError: an image does not decode.
        """
        images = [self._crop(self._decode(value)) for value in examples[self.image_column]]
        batch = {"pixel_values": list(self.to_tensor.preprocess(images))}
        if self.class_names is not None:
            batch["class_labels"] = examples["label"]
        return batch

    def _decode(self, value: dict) -> PILImage.Image:
        try:
            source = io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]
            with PILImage.open(source) as image:
                return ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's plugins raise more than OSError, SyntaxError and struct.error among them
            raise ValueError(f"The image {value['path'] or 'without a path'} does not decode: {error}") from error

    def _crop(self, image: PILImage.Image) -> PILImage.Image:
        centering = (0.5, 0.5) if self.center_crop else tuple(torch.rand(2).tolist())
        size = (self.resolution, self.resolution)
        image = ImageOps.fit(image.convert(self.image_mode), size, PILImage.Resampling.BILINEAR, centering=centering)
        if self.random_flip and torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        return image


def _find_image_column(dataset: Dataset) -> str:
    for name, feature in dataset.features.items():
        # parquet files that another library wrote hold the struct without saying that it is an image
        if isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
            return name
    raise ValueError(f"The data set has no column of images, only {dict(dataset.features)}.")
