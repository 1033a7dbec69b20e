# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves behind: a pipeline, what it draws, and a model card that tells how it was made."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

from ..hub import SAMPLES_NAME, write_model_card
from .checkpoints import replace_contents


def save_trained_pipeline(
    pipeline: DiffusionPipeline,
    folder: Path,
    args: Namespace,
    script: str,
    sample_grid: Callable[[DiffusionPipeline, int, int], Image.Image],
    repo_id: str,
    settings: dict,
) -> Image.Image:
    """
    Save a pipeline, load it again as a user would, let it draw what its model card shows, and write that card. A pipeline
    that is in the folder already is replaced file by file.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): What was trained.
        folder (`Path`): Where it goes.
        args (`argparse.Namespace`): The options of the run.
        script (`str`): The name of the script that was run.
        sample_grid (`Callable`):
            [`~hub.sample_grid`] or the like, `(pipeline, num_images, num_inference_steps)` to the picture of the model card.
        repo_id (`str`): What users of the model card load: a repository or a folder.
        settings (`dict`): What else the card lists.

    Returns:
        `PIL.Image.Image`: the grid of samples.
    """

    def write(temporary):
        pipeline.save_pretrained(temporary)
        loaded = type(pipeline).from_pretrained(temporary).to(pipeline.device)
        loaded.set_progress_bar_config(disable=True)
        sample_grid(loaded, args.eval_batch_size, args.num_inference_steps).save(temporary / SAMPLES_NAME)

    replace_contents(folder, write)
    with Image.open(folder / SAMPLES_NAME) as image:
        grid = image.convert("RGB")
    named = args.dataset_name and not Path(args.dataset_name).exists()
    write_model_card(
        folder,
        pipeline,
        repo_id=repo_id,
        license=args.license,
        datasets=args.dataset_name if named else None,
        training_command=_command(script, args.hub_token),
        settings=settings,
    )
    return grid


def _command(script: str, secret: str | None) -> str:
    """The command of this run, without what is secret."""
    words = sys.argv[1:] if secret is None else [word.replace(secret, "...") for word in sys.argv[1:]]
    return shlex.join(["accelerate", "launch", f"examples/{script}.py", *words])
