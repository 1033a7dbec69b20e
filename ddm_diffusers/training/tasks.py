# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pairs of a target image and the condition that it is generated from: of a data set, or made from plain images."""

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from diffusers import DiffusionPipeline
from PIL import Image

from ..model_card import framed_grid
from ..pipelines.images import resize
from .data import ImageTransform
from .folders import choose_image_column


TASKS = ("super_resolution", "inpainting", "colorization", "edges")
# ITU-R BT.601, as Pillow turns colour into grey
LUMINANCE = (0.299, 0.587, 0.114)


class ConditionalTransform(ImageTransform):
    """
    From the rows of a data set to pairs of a target and its condition, cropped and mirrored alike.

    | `task` | target | condition |
    | --- | --- | --- |
    | `None` | the column of images | the column of conditions |
    | `"super_resolution"` | the image | the means of its squares of `upscale` pixels, enlarged bicubically |
    | `"inpainting"` | the image | the image with a black rectangle at random, and where it is known (1) and is not (-1) |
    | `"colorization"` | the image, in colour | its luminance |
    | `"edges"` | the magnitude of the gradient of its luminance | the image |

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): As for [`ImageTransform`].
        resolution (`int`): Height and width of both.
        task (`str`, *optional*): See above.
        upscale (`int`, defaults to 1):
            How much larger the target is than the condition, for super-resolution and for pairs; `resolution` is a multiple.
        center_crop, random_flip, image_mode: As for [`ImageTransform`].
        conditioning_mode (`"L"` or `"RGB"`, *optional*):
            Grey or colour for the conditions of pairs; as the first one that decodes is, if `None`.
        conditioning_dropout_prob (`float`, defaults to 0.0):
            How often a condition is replaced with zeros, which stand for none (classifier-free guidance, arXiv
            2207.12598).
        image_column (`str`, *optional*): The column of targets. Default: the only column of images besides the conditions.
        conditioning_image_column (`str`, *optional*):
            The column of conditions, without a `task`. Default: `conditioning_image`.

    Raises:
        ValueError: the data set is not as [`ImageTransform`] needs it, has no pairs without a `task`, is grey where colour
            is needed, or `upscale` does not divide the resolution.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        resolution: int,
        task: str | None = None,
        upscale: int = 1,
        center_crop: bool = False,
        random_flip: bool = False,
        image_mode: str | None = None,
        conditioning_mode: str | None = None,
        conditioning_dropout_prob: float = 0.0,
        image_column: str | None = None,
        conditioning_image_column: str | None = None,
    ):
        if task is not None and task not in TASKS:
            raise ValueError(f"`task` is {task!r}, but has to be None or one of {TASKS}.")
        if upscale < 1 or resolution % upscale:
            raise ValueError(f"`upscale` is {upscale}, but has to be a divisor of the resolution, {resolution}.")
        if upscale > 1 and task not in (None, "super_resolution"):
            raise ValueError(f"`upscale` is {upscale}, but has to be 1 for {task!r}.")
        if dataset.features is None:
            dataset = dataset._resolve_features()
        self.conditions = None
        if task is None:
            condition = conditioning_image_column or "conditioning_image"
            if condition not in dataset.features:
                raise ValueError(
                    f"`task` is None, which needs the columns of targets and of conditions, but the data set has no column {condition!r}, only"
                    f" {list(dataset.features)}. Name the column of conditions with --conditioning_image_column, or make"
                    f" conditions from plain images with one of the tasks {TASKS}."
                )
            targets = {name: feature for name, feature in dataset.features.items() if name != condition}
            image_column = choose_image_column(targets, image_column)
            self.conditions = ImageTransform(
                dataset.select_columns([condition]),
                resolution // upscale,
                center_crop,
                random_flip,
                image_mode=conditioning_mode,
                image_column=condition,
            )
            dataset = dataset.select_columns([image_column, condition])
            dataset = dataset.cast_column(condition, self.conditions.dataset.features[condition])
        elif conditioning_image_column is not None:
            raise ValueError(
                f"`conditioning_image_column` is {conditioning_image_column!r}, but the task {task!r} makes its own"
                " conditions and accepts only None."
            )
        self.task, self.upscale, self.conditioning_dropout_prob = task, upscale, conditioning_dropout_prob
        super().__init__(
            dataset, resolution, center_crop, random_flip, image_mode=image_mode, image_column=image_column
        )
        if task == "colorization" and self.image_mode != "RGB":
            raise ValueError(f"`image_mode` is {self.image_mode!r}, but has to be 'RGB' for the task {task!r}.")

    @property
    def channels(self) -> int:
        """Channels of the target."""
        return 1 if self.task == "edges" else super().channels

    @property
    def conditioning_channels(self) -> int:
        """Channels of the condition."""
        if self.task is None:
            return self.conditions.channels
        channels = len(self.image_mode)
        return {"inpainting": channels + 1, "colorization": 1}.get(self.task, channels)

    def __call__(self, rows: dict, generators: list[torch.Generator] | None = None) -> dict:
        """
        As [`ImageTransform`], and `conditioning`: tensors of shape `(conditioning_channels, resolution, resolution)` in [-1,
        1].
        """
        if generators is None:
            seeds = torch.randint(2**62, (len(rows[self.image_column]),)).tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        same = [generator.clone_state() for generator in generators]
        targets = super().__call__(rows, generators)["pixel_values"]
        if self.task is None:
            conditions = self.conditions(rows, same)["pixel_values"]
            size = (self.resolution, self.resolution)
            pairs = [(t, resize(c[None], size)[0]) for t, c in zip(targets, conditions, strict=True)]
        else:
            pairs = [make_pair(self.task, t, self.upscale, g) for t, g in zip(targets, generators, strict=True)]
        for i, generator in enumerate(generators):
            if self.conditioning_dropout_prob > 0:
                if torch.rand((), generator=generator) < self.conditioning_dropout_prob:
                    pairs[i] = (pairs[i][0], torch.zeros_like(pairs[i][1]))
        targets, conditions = map(list, zip(*pairs, strict=True))
        return {"pixel_values": targets, "conditioning": conditions}


def make_pair(
    task: str, image: torch.Tensor, upscale: int = 1, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The target and the condition of a task, see [`ConditionalTransform`], made from an image `(channels, height, width)` in
    [-1, 1].
    """
    if task == "super_resolution":
        return image, resize(F.avg_pool2d(image[None], upscale), image.shape[-2:])[0]
    if task == "inpainting":
        known = torch.ones_like(image[:1])
        known[(0, *_random_rectangle(*image.shape[-2:], generator))] = -1
        return image, torch.cat([torch.where(known > 0, image, -1.0), known])
    if task == "colorization":
        return image, luminance(image)
    return edges(image), image


def luminance(image: torch.Tensor) -> torch.Tensor:
    """Grey `(1, height, width)` of an image of 1 or 3 channels."""
    if image.shape[0] == 1:
        return image
    return torch.tensordot(image.new_tensor(LUMINANCE), image, dims=1)[None]


def edges(image: torch.Tensor) -> torch.Tensor:
    """The magnitude of Sobel's gradient of the luminance, `(1, height, width)` in [-1, 1], where 1 is a step from 0 to 1."""
    sobel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([sobel, sobel.T])[:, None]
    # half of the range of [-1, 1] is that of [0, 1]
    gradient = F.conv2d(F.pad(luminance(image)[None] / 2, (1, 1, 1, 1), mode="replicate"), kernels)
    return 2 * gradient.square().sum(dim=1).sqrt().clamp(max=1) - 1


def pair_grid(
    pipeline: DiffusionPipeline,
    num_images: int,
    num_inference_steps: int,
    *,
    targets: torch.Tensor,
    conditioning: torch.Tensor,
) -> Image.Image:
    """
    For each of the first `num_images` pairs side by side: the condition, what the pipeline makes of it, the target.

    Args:
        pipeline ([`DDMImageToImagePipeline`]): Draws, each with `num_inference_steps`.
        targets (`torch.Tensor` of shape `(num_pairs, channels, resolution, resolution)`): In [-1, 1].
        conditioning (`torch.Tensor` of shape `(num_pairs, conditioning_channels, resolution, resolution)`): In [-1, 1].
    """
    targets, conditioning = (each[:num_images] / 2 + 0.5 for each in (targets, conditioning))
    height, width = targets.shape[-2:]
    images = pipeline(
        conditioning,
        num_inference_steps=num_inference_steps,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(0),
    ).images
    # a channel that tells where the image is known is not shown
    shown = conditioning if conditioning.shape[1] in (1, 3) else conditioning[:, :-1]
    shown, targets = (pipeline.image_processor.postprocess(2 * each - 1) for each in (shown, targets))
    return framed_grid([image for three in zip(shown, images, targets, strict=True) for image in three], columns=12)


def _random_rectangle(height: int, width: int, generator: torch.Generator | None) -> tuple[slice, slice]:
    """Of sides from a quarter of the image's to all of it, but never the whole image."""
    while True:
        slices = []
        for length in (height, width):
            side = int(torch.randint(max(1, length // 4), length + 1, (), generator=generator))
            begin = int(torch.randint(length - side + 1, (), generator=generator))
            slices.append(slice(begin, begin + side))
        if any(each.stop - each.start < length for each, length in zip(slices, (height, width), strict=True)):
            return tuple(slices)
