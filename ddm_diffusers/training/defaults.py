# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The defaults that follow the data: the size of a new network, the batch and the warm-up."""

import argparse
import math

from accelerate import Accelerator

from .data import ImageTransform
from .latents import CachedLatents


SMALL, LARGE = 2_000, 20_000  # images
WARMUP_STEPS = 500


def default_block_out_channels(size: int, num_images: int | None = None) -> list[int]:
    """
    The channels of each level of a U-Net: up to six levels, as many as the size can be halved for, down to 4 pixels.

    Args:
        size (`int`): Height and width of images or latents.
        num_images (`int`, *optional*):
            How many there are. The first level has 32 channels for fewer than 2,000 images, 64 for fewer than 20,000, and
            128 for more, or if it is not known how many there are.
    """
    first = 128 if num_images is None or num_images >= LARGE else 64 if num_images >= SMALL else 32
    channels = [first, first, 2 * first, 2 * first, 4 * first, 4 * first]
    while len(channels) > 1 and (size / 2 ** (len(channels) - 1)) not in range(4, size):
        channels.pop()
    return channels


def training_length(
    args: argparse.Namespace, num_images: int | None, accelerator: Accelerator
) -> tuple[int, int | None, int]:
    """
    The length of a run.

    Returns:
        `tuple`: images in a step, steps in an epoch (`None` for a stream), steps of the run.

    Raises:
        ValueError: `--max_train_steps` is not given for a stream.
    """
    # accelerate's configuration goes before --gradient_accumulation_steps
    batch_size = args.train_batch_size * accelerator.num_processes * accelerator.gradient_accumulation_steps
    if num_images is None:
        if args.max_train_steps is None:
            raise ValueError("`--max_train_steps` is None, but has to be given for a stream, which has no length.")
        return batch_size, None, args.max_train_steps
    epoch = math.ceil(num_images / batch_size)
    return batch_size, epoch, args.max_train_steps or args.num_epochs * epoch


def set_data_defaults(
    args: argparse.Namespace, transform: ImageTransform | CachedLatents, size: int, accelerator: Accelerator
) -> None:
    """
    Set the options below that `args` has and that are `None`, and print them.

    | option | below 2,000 images | below 20,000 | more, or a stream |
    | --- | --- | --- | --- |
    | `--block_out_channels`, first level | 32 | 64 | 128 |
    | `--num_layers` of a transformer | 6 | 8 | 12 |
    | `--num_attention_heads` of a transformer | 3 | 4 | 6 |
    | `--train_batch_size` | 16 | 16 | 64 up to 32 pixels, else 16 |
    | `--lr_warmup_steps` | a tenth of the run, at most 500 | the same | the same |

    A U-Net has as many levels as [`default_block_out_channels`] says. A network that is loaded stays as it is.

    Args:
        args (`argparse.Namespace`): The options of a script.
        transform ([`ImageTransform`] or [`CachedLatents`]): With the data set.
        size (`int`): Height and width of images or latents.
        accelerator ([`~accelerate.Accelerator`]): Of the run.
    """
    num_images = len(transform.dataset) if hasattr(transform.dataset, "__len__") else None
    column = 2 if num_images is None or num_images >= LARGE else 1 if num_images >= SMALL else 0
    defaults = {"train_batch_size": 64 if column == 2 and size <= 32 else 16}
    weights = getattr(args, "from_pretrained_unet", getattr(args, "pretrained_model_name_or_path", None))
    if not weights and getattr(args, "model_config_name_or_path", None) is None:
        if getattr(args, "model_type", "unet") == "dit":
            defaults |= {"num_layers": (6, 8, 12)[column], "num_attention_heads": (3, 4, 6)[column]}
        else:
            defaults["block_out_channels"] = default_block_out_channels(size, num_images)
    chosen = {name: value for name, value in defaults.items() if getattr(args, name, 0) is None}
    vars(args).update(chosen)
    if args.lr_warmup_steps is None:
        *_, max_train_steps = training_length(args, num_images, accelerator)
        chosen["lr_warmup_steps"] = args.lr_warmup_steps = min(WARMUP_STEPS, max_train_steps // 10)
    if chosen:
        values = (" ".join(map(str, value)) if isinstance(value, list) else value for value in chosen.values())
        options = ", ".join(f"--{name} {value}" for name, value in zip(chosen, values, strict=True))
        images = "a stream" if num_images is None else f"{num_images:,} images"
        accelerator.print(f"Defaults for {images} of {size} x {size}: {options}")
