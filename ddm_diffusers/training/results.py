# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves behind: pipelines whose weights are saved before anything else is tried with them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image

from ..model_card import CARD_NAME, SAMPLES_NAME, write_model_card
from .checkpoints import replace_contents
from .tracking import tolerating_failures


BEST_NAME = "best.json"


def save_with_card(
    result: DiffusionPipeline | ModelMixin,
    folder: Path,
    draw: Callable[[DiffusionPipeline | ModelMixin], Image.Image],
    **card,
) -> Image.Image | None:
    """
    Save a pipeline, or a model, then draw samples with what a user would load, then write the model card. If drawing or
    the card fails, that is logged and the weights are there.

    Args:
        result ([`~diffusers.DiffusionPipeline`] or [`~diffusers.ModelMixin`]): What was trained.
        folder (`Path`): Where it goes. What is there already is replaced file by file.
        draw (`Callable`): From the loaded result to a grid of samples.
        card: Arguments of [`~model_card.write_model_card`].

    Returns:
        `PIL.Image.Image` or `None`: the samples, or `None` if drawing them failed.
    """

    def write(new):
        result.save_pretrained(new)
        (new / CARD_NAME).unlink(missing_ok=True)  # a short one, in the place of a card that somebody may have edited

    replace_contents(folder, write)
    grid = None
    (folder / SAMPLES_NAME).unlink(missing_ok=True)  # those of an earlier result
    with tolerating_failures("drawing the samples of the model card"):
        loaded = type(result).from_pretrained(folder).to(result.device)
        if isinstance(loaded, DiffusionPipeline):
            loaded.set_progress_bar_config(disable=True)
        grid = draw(loaded).convert("RGB")
        replace_contents(folder, lambda new: grid.save(new / SAMPLES_NAME))
    with tolerating_failures("writing the model card"):
        write_model_card(folder, result, **card)
    return grid


def keep_best(output_dir: Path, result: DiffusionPipeline | ModelMixin, step: int, distance: float) -> None:
    """Save the best result so far in `best/`, with its step and its distance."""

    def write(folder):
        result.save_pretrained(folder)
        (folder / BEST_NAME).write_text(json.dumps({"step": step, "distance": distance}) + "\n")

    replace_contents(output_dir / "best", write)


def read_best(output_dir: Path, step: int) -> float:
    """The distance of the result in `best/`, infinite if there is none or if it comes from a later step than this one."""
    path = output_dir / "best" / BEST_NAME
    best = json.loads(path.read_text()) if path.is_file() else {"step": math.inf}
    return best["distance"] if best["step"] <= step else math.inf
