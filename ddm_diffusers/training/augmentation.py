# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Augmentation whose parameters the network is told, so that samples do not show it (arXiv 2206.00364, appendix F.2)."""

import math

import torch
import torch.nn.functional as F


# mirrored, upside down, scale, rotation (2), stretch (2), shift (2)
NUM_LABELS = 9

SCALE_STD, STRETCH_STD, SHIFT_STD = 0.2, 0.2, 0.125

# The low-pass filter of the wavelet sym6, with which images are resampled to and from twice the resolution.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
MARGIN = len(SYM6) // 4


def augment(
    images: torch.Tensor, probability: float, generators: list[torch.Generator | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mirror half of the images, and with `probability` each turn them upside down, scale, rotate, stretch and shift them.

    The releases of arXiv 2306.13720 train on CIFAR-10 with it (`use_augment`), DDM-Public and the later `ddm_const_2` with a
    probability of 0.12, and give the labels to the network. Samples are drawn without labels.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): In float32.
        probability (`float`): In [0, 1].
        generators (list of `torch.Generator` or `None`): One for each image; those on other devices than the CPU as well.

    Returns:
        The augmented images, and labels of shape `(batch_size, 9)`, which are 0 for images as they were.
    """
    labels, matrices = [], []
    for generator in generators:
        device = "cpu" if generator is None else generator.device
        uniform = torch.rand(10, generator=generator, device=device, dtype=torch.float64).tolist()
        normal = torch.randn(4, generator=generator, device=device, dtype=torch.float64).tolist()
        label, matrix = _transform(uniform, normal, probability, images.shape[3], images.shape[2])
        labels.append(label)
        matrices.append(matrix)
    labels = torch.tensor(labels, dtype=images.dtype, device=images.device)
    mirrored, upside_down = (labels[:, i, None, None, None] == 1 for i in (0, 1))
    images = torch.where(mirrored, images.flip(3), images)
    images = torch.where(upside_down, images.flip(2), images)
    return _resample(images, torch.stack(matrices).to(images)), labels


def _transform(
    uniform: list[float], normal: list[float], probability: float, width: int, height: int
) -> tuple[list[float], torch.Tensor]:
    """The labels of one image, and the matrix that takes a position of the result, from the center, to one of the image."""
    mirrored = float(uniform[0] < 0.5)
    upside_down = float(uniform[1] < 0.5 and uniform[2] < probability)
    scale = normal[0] if uniform[3] < probability else 0.0
    angle = (2 * uniform[4] - 1) * math.pi if uniform[5] < probability else 0.0
    stretch = normal[1] if uniform[6] < probability else 0.0
    # half of the stretches are along the axes
    axis = (2 * uniform[7] - 1) * math.pi if uniform[8] < 0.5 else 0.0
    shift = normal[2:] if uniform[9] < probability else [0.0, 0.0]

    s, a = 2 ** (SCALE_STD * scale), 2 ** (STRETCH_STD * stretch)
    matrix = (
        torch.diag(torch.tensor([1 / s, 1 / s, 1.0], dtype=torch.float64))
        @ _rotation(angle)
        @ _rotation(-axis)
        @ torch.diag(torch.tensor([1 / a, a, 1.0], dtype=torch.float64))
        @ _rotation(axis)
    )
    translation = torch.eye(3, dtype=torch.float64)
    translation[0, 2], translation[1, 2] = -shift[0] * SHIFT_STD * width, -shift[1] * SHIFT_STD * height
    label = [mirrored, upside_down, scale, math.cos(angle) - 1, math.sin(angle)]
    label += [stretch * math.cos(axis), stretch * math.sin(axis), *shift]
    return label, matrix @ translation


def _rotation(angle: float) -> torch.Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _resample(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Images at the positions that the matrices give, interpolated at twice the resolution, mirrored beyond their edges."""
    height, width = images.shape[2:]
    padded = F.pad(images, [width - 1, width - 1, height - 1, height - 1], mode="reflect")
    fine = _upsample(_upsample(padded, 2), 3)

    # positions in units of the fine grid, whose center the filter shifts by half a unit
    center = torch.eye(3, dtype=images.dtype, device=images.device)
    center[:2, 2] = -0.5
    double = torch.diag(torch.tensor([2.0, 2.0, 1.0]).to(images))
    matrices = center @ double @ matrices @ double.inverse() @ center.inverse()
    size = [2 * (height + 2 * MARGIN), 2 * (width + 2 * MARGIN)]
    to_unit = torch.diag(torch.tensor([2 / fine.shape[3], 2 / fine.shape[2], 1.0]).to(images))
    from_unit = torch.diag(torch.tensor([size[1] / 2, size[0] / 2, 1.0]).to(images))
    grid = F.affine_grid((to_unit @ matrices @ from_unit)[:, :2], [*images.shape[:2], *size], align_corners=False)
    fine = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    coarse = _downsample(_downsample(fine, 2), 3)
    return coarse[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _filter(images: torch.Tensor, dim: int, reverse: bool) -> torch.Tensor:
    taps = torch.tensor(SYM6[::-1] if reverse else SYM6).to(images)
    shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
    return taps.reshape(shape).repeat(images.shape[1], 1, 1, 1)


def _upsample(images: torch.Tensor, dim: int) -> torch.Tensor:
    """Twice as many values along a dimension: zeros between them, then the filter."""
    length = images.shape[dim]
    spread = torch.stack([images, torch.zeros_like(images)], dim=dim + 1).flatten(dim, dim + 1)
    spread = spread.narrow(dim, 0, 2 * length - 1)
    padding = (len(SYM6) // 2, 0) if dim == 2 else (0, len(SYM6) // 2)
    return F.conv2d(spread, _filter(images, dim, reverse=True), groups=images.shape[1], padding=padding)


def _downsample(images: torch.Tensor, dim: int) -> torch.Tensor:
    """Half as many values along a dimension: the filter, then every other one."""
    half = (len(SYM6) - 1) // 2
    stride, padding = ((2, 1), (half, 0)) if dim == 2 else ((1, 2), (0, half))
    return F.conv2d(images, _filter(images, dim, False), groups=images.shape[1], stride=stride, padding=padding)
