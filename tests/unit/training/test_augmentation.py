# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that the augmentation does what its labels say: transformations of a smooth picture are compared with the picture drawn
at the transformed positions.
"""

import math

import pytest
import torch

from ddm_diffusers.training import augmentation
from ddm_diffusers.training.augmentation import augment


SIZE = 48  # so large that no reflection of the picture comes into view


def blob(x, y):
    """A smooth picture without symmetry, that is flat near its edges."""
    return torch.exp(-((x - 2) ** 2 + (y + 1) ** 2) / 12) - 0.6 * torch.exp(-((x + 3) ** 2 + (y - 2) ** 2) / 8)


def positions():
    center = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    y, x = torch.meshgrid(center, center, indexing="ij")
    return x, y


def run(monkeypatch, uniform, normal):
    """The blob augmented with these draws, and its labels."""
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(uniform, dtype=torch.float64))
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: torch.tensor(normal, dtype=torch.float64))
    images, labels = augment(blob(*positions())[None, None], 0.5, [None])
    monkeypatch.undo()
    return images[0, 0], labels[0].tolist()


NOTHING = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]


def draws(**changes):
    uniform = list(NOTHING)
    for index, value in changes.items():
        uniform[int(index[1:])] = value
    return uniform


ANGLE = (2 * 0.6 - 1) * math.pi  # of a draw of 0.6
COS, SIN = math.cos(ANGLE), math.sin(ANGLE)
CASES = {
    "nothing": (draws(), lambda x, y: (x, y), [0.0] * 9),
    "mirrored": (draws(i0=0.1), lambda x, y: (-x, y), [1.0] + [0.0] * 8),
    "upside down": (draws(i1=0.1, i2=0.1), lambda x, y: (x, -y), [0.0, 1.0] + [0.0] * 7),
    "scale": (draws(i3=0.1), lambda x, y: (x / 2**0.14, y / 2**0.14), [0, 0, 0.7, 0, 0, 0, 0, 0, 0]),
    "rotation": (
        draws(i4=0.6, i5=0.1),
        lambda x, y: (COS * x - SIN * y, SIN * x + COS * y),
        [0, 0, 0, COS - 1, SIN, 0, 0, 0, 0],
    ),
    "stretch": (draws(i6=0.1), lambda x, y: (x / 2**0.24, y * 2**0.24), [0, 0, 0, 0, 0, 1.2, 0, 0, 0]),
    # along the diagonal that the draw of 0.625 gives, by 45 degrees
    "stretch aslant": (
        draws(i6=0.1, i7=0.625, i8=0.1),
        lambda x, y: (
            ((x - y) / 2**0.24 + (x + y) * 2**0.24) / 2,
            ((y - x) / 2**0.24 + (x + y) * 2**0.24) / 2,
        ),
        [0, 0, 0, 0, 0, 1.2 * 0.5**0.5, 1.2 * 0.5**0.5, 0, 0],
    ),
    "shift": (draws(i9=0.1), lambda x, y: (x - 0.5 * 6, y + 0.3 * 6), [0, 0, 0, 0, 0, 0, 0, 0.5, -0.3]),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_is_what_its_labels_say(case, monkeypatch):
    uniform, position, expected_labels = CASES[case]
    image, labels = run(monkeypatch, uniform, [0.7, 1.2, 0.5, -0.3])
    assert labels == pytest.approx(expected_labels, abs=1e-6)
    expected = blob(*position(*positions()))
    # the picture is 1.6 high; interpolating it costs a little
    assert (image - expected).abs().max() < 0.03
    if case != "nothing":
        assert (image - blob(*positions())).abs().max() > 0.1


def test_how_often(monkeypatch):
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    monkeypatch.setattr(augmentation, "_resample", lambda images, matrices: images)
    _, labels = augment(torch.zeros(4000, 1, 2, 2), 0.12, generators)
    shares = (labels != 0).float().mean(dim=0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    # four standard errors
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()
    assert labels[:, 2][labels[:, 2] != 0].std() == pytest.approx(1, abs=0.15)


def test_each_image_follows_from_its_generator():
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    together, _ = augment(images, 1.0, [torch.Generator().manual_seed(i) for i in range(3)])
    alone, _ = augment(images[1:2], 1.0, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(together[1:2], alone)
