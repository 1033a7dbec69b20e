# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The images that a pipeline is given: read and checked, enlarged, padded, and cut into overlapping tiles."""

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor


# Pillow's mode for a number of channels. Images of any mode are converted to the first two.
IMAGE_MODES = {1: "L", 3: "RGB", 2: "LA", 4: "RGBA"}


def read_images(name: str, image: PipelineImageInput, channels: int) -> torch.Tensor:
    """
    Bring the images of an argument to one tensor, by diffusers' [`VaeImageProcessor`].

    Args:
        name (`str`): The name of the argument, for messages.
        image: A PIL image, an array `(height, width, channels)` or a tensor `(channels, height, width)` in [0, 1], without
            the channels for a grey image; a batch of them with one more dimension in front; or a list of one of these.
        channels (`int`):
            How many the images need to have; PIL images are converted if that is 1 or 3, and what is transparent is white.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`: float32 in [0, 1].

    Raises:
        ValueError: the argument is none of these.
    """
    if image is None:
        raise ValueError(f"`{name}` is None, but has to be an image or a list of images.")
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    kind = next((k for k in (PIL.Image.Image, np.ndarray, torch.Tensor) if images and isinstance(images[0], k)), None)
    if kind is None or not all(isinstance(each, kind) for each in images):
        raise ValueError(
            f"`{name}` is {[type(each).__name__ for each in images]}, but has to be a PIL image, a NumPy array, a tensor,"
            " or a list of one of these."
        )
    if kind is PIL.Image.Image:
        images = [_convert(name, each, channels) for each in images]
    else:
        images = [_check_array(name, each) for each in images]
    shapes = {each.size if kind is PIL.Image.Image else tuple(each.shape[-3:]) for each in images}
    if len(shapes) > 1:
        raise ValueError(f"`{name}` has images of the sizes {sorted(shapes)}, but has to have images of one size.")
    if kind is not PIL.Image.Image:
        images = (np.concatenate if kind is np.ndarray else torch.cat)(images)
    # 4 channels would be latents, unless they are told to have none
    pixels = VaeImageProcessor(do_resize=False, do_normalize=False, vae_latent_channels=0).preprocess(images).float()
    if pixels.shape[1] != channels or 0 in pixels.shape:
        raise ValueError(
            f"`{name}` is, as a batch, of shape {tuple(pixels.shape)}, but has to be of shape (batch_size, {channels},"
            " height, width)."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`{name}` has values from {low:g} to {high:g}, but they have to be in [0, 1].")
    return pixels


def convert_mode(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """
    The image in mode L or RGB, on white. Pillow by itself cuts 16 bits off at 255, takes floats in [0, 1] for black, and shows
    what is transparent.

    Raises:
        ValueError: floats are neither in [0, 1] nor in [0, 255].
    """
    if image.mode == "F":
        pixels = np.asarray(image)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(f"it has floats from {low:g} to {high:g}, but they have to be in [0, 1] or [0, 255].")
        image = PIL.Image.fromarray((pixels * (255 if high <= 1 else 1)).round().astype(np.uint8))
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode != "I" or pixels.max() > 255:  # older versions of Pillow open 16-bit files in mode I
            pixels = (pixels.astype(np.float64) / 257).round().clip(0, 255)
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Enlarge conditions in [-1, 1] to the size of the target, bicubically, in training as in the pipeline."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bicubic").clamp(-1, 1)


def pad(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the right and lower edges of images, up to multiples of a number."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


@dataclass(frozen=True)
class Tile:
    """A part of an image, and the weight of each of its pixels, which sums to 1 over all tiles."""

    rows: slice
    columns: slice
    row_weights: torch.Tensor
    column_weights: torch.Tensor

    def crop(self, images: torch.Tensor) -> torch.Tensor:
        """The tile's part of `(batch_size, channels, height, width)`, a view."""
        return images[..., self.rows, self.columns]

    def add(self, images: torch.Tensor, part: torch.Tensor) -> None:
        """Add a part to images by its weights, in place."""
        weights = self.row_weights[:, None] * self.column_weights
        self.crop(images).add_(part * weights.to(part.device))


def make_tiles(height: int, width: int, size: int | None, overlap: int | None, multiple: int) -> list[Tile]:
    """
    Overlapping tiles that cover an image, cross-faded linearly where they overlap.

    Args:
        height, width (`int`): Of the image, multiples of `multiple`.
        size (`int`, *optional*): Height and width of a tile, a multiple of `multiple`; one tile covers all, if `None`.
        overlap (`int`, *optional*): By how much neighbours overlap at least, at most `size - multiple`.
        multiple (`int`): Tiles begin at multiples of it.
    """
    return [
        Tile(rows, columns, row_weights, column_weights)
        for rows, row_weights in _intervals(height, size, overlap, multiple)
        for columns, column_weights in _intervals(width, size, overlap, multiple)
    ]


def _intervals(length: int, size: int | None, overlap: int | None, multiple: int) -> list[tuple[slice, torch.Tensor]]:
    if size is None or size >= length:
        return [(slice(0, length), torch.ones(length))]
    stride = (size - overlap) // multiple * multiple
    starts = [min(k * stride, length - size) for k in range(math.ceil((length - size) / stride) + 1)]
    weights = torch.zeros(len(starts), length)
    for k, start in enumerate(starts):
        position = torch.arange(1, size + 1)
        weight = torch.ones(size)
        if k > 0:
            weight = weight.minimum(position / (starts[k - 1] + size - start + 1))
        if k + 1 < len(starts):
            weight = weight.minimum(position.flip(0) / (start + size - starts[k + 1] + 1))
        weights[k, start : start + size] = weight
    weights /= weights.sum(dim=0)
    return [(slice(s, s + size), weights[k, s : s + size].clone()) for k, s in enumerate(starts)]


def _convert(name: str, image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    if image.mode == "F":  # Pillow would take its numbers for those of 8 bits
        raise ValueError(f"`{name}` is a PIL image of floats, mode F, of no known range: give an array in [0, 1].")
    mode = IMAGE_MODES.get(channels)
    if mode is None or (channels in (2, 4) and image.mode != mode):  # no conversion makes up an alpha channel
        accepted = "arrays and tensors" if mode is None else f"PIL images of mode {mode}, arrays and tensors"
        raise ValueError(
            f"`{name}` is a PIL image of mode {image.mode}, but with {channels} channels only {accepted} are accepted."
        )
    return image if channels in (2, 4) else convert_mode(image, mode)


def _check_array(name: str, image: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """An array or a tensor as a batch of images with channels."""
    is_tensor = isinstance(image, torch.Tensor)
    if not 2 <= image.ndim <= 4:
        raise ValueError(f"`{name}` has the shape {tuple(image.shape)}, but has to be an image or a batch of images.")
    if not (image.is_floating_point() if is_tensor else image.dtype.kind == "f"):
        raise ValueError(f"`{name}` has the dtype {image.dtype}, but has to have floats in [0, 1].")
    if image.ndim == 2:
        image = image[None] if is_tensor else image[..., None]
    return image if image.ndim == 4 else image[None]
