# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind become the same tensor, what is none of them is refused by name, and tiles blend linearly."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddm_diffusers.pipelines.images import convert_mode, make_tiles, pad, read_images, resize


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
TENSOR = torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        COLOUR / 255,
        TENSOR,
        TENSOR.double(),
        TENSOR[None],
        [TENSOR],
        (COLOUR.astype(np.float32) / 255,),
    ],
    ids=["PIL", "array", "tensor", "float64", "batch", "list", "tuple"],
)
def test_one_image_of_any_kind(image):
    pixels = read_images("image", image, 3)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, TENSOR[None])


def test_batches_and_lists_of_batches():
    assert read_images("image", torch.stack([TENSOR, 1 - TENSOR]), 3).shape == (2, 3, 6, 4)
    both = read_images("image", [TENSOR, torch.stack([1 - TENSOR, TENSOR])], 3)
    torch.testing.assert_close(both, torch.stack([TENSOR, 1 - TENSOR, TENSOR]))
    assert read_images("image", [Image.fromarray(COLOUR)] * 2, 3).shape == (2, 3, 6, 4)


@pytest.mark.parametrize(
    "image", [Image.fromarray(GREY), GREY / 255, TENSOR[0], TENSOR[:1]], ids=lambda i: type(i).__name__
)
def test_grey_images_need_no_channels(image):
    torch.testing.assert_close(read_images("image", image, 1), TENSOR[None, :1])


def test_pillow_images_are_converted_to_grey_and_colour():
    grey = read_images("image", Image.fromarray(COLOUR), 1)
    torch.testing.assert_close(
        grey, torch.from_numpy(np.asarray(Image.fromarray(COLOUR).convert("L")))[None, None] / 255
    )
    torch.testing.assert_close(read_images("image", Image.fromarray(GREY), 3), TENSOR[None, :1].expand(1, 3, 6, 4))
    # four channels as they are, which are neither latents nor an alpha channel to remove
    rgba = np.dstack([COLOUR, GREY])
    pixels = read_images("image", Image.fromarray(rgba, "RGBA"), 4)
    torch.testing.assert_close(pixels, torch.from_numpy(rgba).permute(2, 0, 1)[None] / 255)


@pytest.mark.parametrize(
    ("image", "channels", "parts"),
    [
        (None, 3, ["None", "an image or a list"]),
        ("photo.png", 3, ["['str']", "a PIL image, a NumPy array, a tensor"]),
        ([], 3, ["[]"]),
        ([TENSOR, COLOUR], 3, ["['Tensor', 'ndarray']"]),
        ([TENSOR, TENSOR[:, :5]], 3, ["(3, 5, 4)", "(3, 6, 4)", "one size"]),
        (TENSOR, 1, ["(1, 3, 6, 4)", "(batch_size, 1, height, width)"]),
        (TENSOR[:, :0], 3, ["(1, 3, 0, 4)"]),
        (TENSOR[0, 0], 3, ["the shape (4,)"]),
        (COLOUR, 3, ["the dtype uint8", "[0, 1]"]),
        (TENSOR.mul(255).byte(), 3, ["the dtype torch.uint8"]),
        (TENSOR * 2 - 1, 3, ["values from -", "[0, 1]"]),
        (TENSOR + float("nan"), 3, ["values from nan"]),
        (Image.fromarray(GREY.astype(np.float32)), 1, ["mode F", "[0, 1]"]),
        (Image.fromarray(COLOUR), 4, ["mode RGB", "4 channels", "PIL images of mode RGBA"]),
        (Image.fromarray(COLOUR), 5, ["mode RGB", "5 channels", "only arrays and tensors"]),
    ],
    ids=lambda value: None if isinstance(value, (np.ndarray, torch.Tensor, Image.Image)) else str(value),
)
def test_what_is_refused(image, channels, parts, rejects):
    with rejects("`condition`", *parts):
        read_images("condition", image, channels)


def test_modes_that_pillow_converts_wrongly():
    sixteen = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert np.asarray(convert_mode(Image.fromarray(sixteen), "L")).tolist() == [[0, 100, 255]]
    wide = Image.fromarray(sixteen.astype(np.int32), mode="I")
    assert np.asarray(convert_mode(wide, "L")).tolist() == [[0, 100, 255]]
    # mode I with values of 8 bits
    eight = Image.fromarray(np.array([[0, 100, 255]], dtype=np.int32), mode="I")
    assert np.asarray(convert_mode(eight, "L")).tolist() == [[0, 100, 255]]
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert convert_mode(half, "RGB").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert convert_mode(palette, "L").getpixel((0, 0)) == 255


def test_resize_and_pad():
    images = TENSOR[None] * 2 - 1
    assert resize(images, (6, 4)) is images
    enlarged = resize(torch.eye(4)[None, None] * 2 - 1, (16, 16))
    assert enlarged.shape == (1, 1, 16, 16) and enlarged.min() == -1 and enlarged.max() == 1
    padded = pad(images, 4)
    assert padded.shape == (1, 3, 8, 4)
    torch.testing.assert_close(padded[..., :6, :], images)
    torch.testing.assert_close(padded[..., 6:, :], images[..., 5:, :].expand(1, 3, 2, 4))
    assert torch.equal(pad(images, 2), images)


def test_tiles_blend_linearly():
    """Where two tiles overlap by three pixels, the first has 3/4, 1/2 and 1/4 of the weight."""
    first, second = make_tiles(2, 13, 8, 3, 1)
    assert (first.columns, second.columns) == (slice(0, 8), slice(5, 13)) and first.rows == slice(0, 2)
    assert first.column_weights.tolist() == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert second.column_weights.tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    result = torch.zeros(1, 1, 2, 13)
    first.add(result, torch.zeros(1, 1, 2, 8))
    second.add(result, torch.ones(1, 1, 2, 8))
    assert result[0, 0, 0].tolist() == pytest.approx([0] * 5 + [0.25, 0.5, 0.75] + [1] * 5)
