# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training run shows and leaves behind: pictures, pipelines, and model cards that tell how they were made."""

import shlex
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from accelerate.logging import get_logger
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image

from ..hub import TRAINING_FILES
from ..model_card import SAMPLES_NAME, write_model_card
from .checkpoints import replace_contents
from .tracking import tolerating_failures


logger = get_logger(__name__, log_level="INFO")


class ResultsMixin:
    """
    The results of a [`TrainingRun`], all of them for the main process but where they say otherwise.

    A result is a pipeline, or a model that is one by itself.

    Attributes:
        card (`dict`): `pipeline_tag`, `description` and `usage` of the model card, of results from outside this package.
    """

    card = {}

    def show_progress(self, make_result: Callable[[], DiffusionPipeline | ModelMixin], settings: dict) -> None:
        """
        After a step, what is due by `--save_images_steps`, or epochs, and `--push_every_checkpoint`. Every process calls this.

        Args:
            make_result (`Callable`): The result so far, with [`~TrainingRun.trained_model`].
            settings (`dict`): What the model card lists besides the settings that all runs have.
        """
        args = self.args
        if self.is_due(self.save_images_steps):
            result = make_result()
            if self.accelerator.is_main_process:
                self.log_images(self.sample_grid(result, args.eval_batch_size, args.num_inference_steps))
        if args.push_every_checkpoint and self.is_due(args.checkpointing_steps):
            result = make_result()
            if self.accelerator.is_main_process:
                self.upload(result, settings)

    def log_images(self, grid: Image.Image, name: str = "samples") -> None:
        """Save a grid of samples in `samples/` and send it to the trackers."""
        self._pictured_step = self.global_step
        path = self.output_dir / "samples" / f"step-{self.global_step:07d}.png"
        with tolerating_failures("saving samples", self.global_step):
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        self.tracking.log_image(name, grid, path, self.global_step)

    def keep_best(self, distance: float, pipeline: DiffusionPipeline | ModelMixin, name: str = "distance") -> None:
        """Log a distance and, if it is the smallest so far, keep the pipeline in `best/`."""
        self.tracking.log({name: distance}, self.global_step)
        logger.info(f"Step {self.global_step}: {name} {distance:.4g}, best so far {min(distance, self.best):.4g}")
        if distance < self.best:
            with tolerating_failures("keeping the best", self.global_step):
                replace_contents(self.output_dir / "best", pipeline.save_pretrained)
                self.best = distance

    def save_pipeline(self, pipeline: DiffusionPipeline | ModelMixin, folder: Path, settings: dict) -> Image.Image:
        """
        Save a pipeline, load it again as a user would, let it draw what its model card shows, and write that card. A
        pipeline that is in the folder already is replaced file by file.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): What was trained.
            folder (`Path`): Where it goes.
            settings (`dict`): What the card lists besides the settings that all runs have.

        Returns:
            `PIL.Image.Image`: the grid of samples.
        """
        args = self.args

        def write(temporary):
            pipeline.save_pretrained(temporary)
            loaded = type(pipeline).from_pretrained(temporary).to(pipeline.device)
            if isinstance(loaded, DiffusionPipeline):
                loaded.set_progress_bar_config(disable=True)
            self.sample_grid(loaded, args.eval_batch_size, args.num_inference_steps).save(temporary / SAMPLES_NAME)

        replace_contents(folder, write)
        with Image.open(folder / SAMPLES_NAME) as image:
            grid = image.convert("RGB")
        named = args.dataset_name and not Path(args.dataset_name).exists()
        write_model_card(
            folder,
            pipeline,
            repo_id=self.uploader.repo_id if self.uploader is not None else str(self.output_dir),
            license=args.license,
            datasets=args.dataset_name if named else None,
            training_command=_command(self.name, self.seed, args.hub_token),
            settings={
                "parameters": self.num_parameters,
                "steps": self.global_step,
                "batch size": self.total_batch_size,
                "learning rate": args.learning_rate,
                "seed": self.seed,
                **settings,
            },
            **self.card,
        )
        return grid

    def upload(self, pipeline: DiffusionPipeline | ModelMixin, settings: dict) -> None:
        """Upload a pipeline in the background, with its model card, while training goes on."""
        step = self.global_step
        with tolerating_failures("the upload", step), self.uploader.snapshot(f"Step {step}") as folder:
            self.save_pipeline(pipeline, folder, settings)

    def save_result(self, pipeline: DiffusionPipeline | ModelMixin, settings: dict) -> None:
        """Save a pipeline in the output folder and upload it if that is asked for; [`~TrainingRun.finish`] calls this."""
        args = self.args
        grid = self.save_pipeline(pipeline, self.output_dir, settings)
        if self._pictured_step < self.global_step:
            self.log_images(grid)
        logger.info(
            f"Saved the pipeline in {self.output_dir} and {args.eval_batch_size} samples in"
            f" {self.output_dir / SAMPLES_NAME}"
        )
        if self.uploader is not None:
            logger.info(
                f"Uploading it to {self.uploader.repo_id}; if that fails, push_to_hub uploads it from there later"
            )
            ignored = [*TRAINING_FILES, f"{args.logging_dir}/*"]
            self.uploader.upload(self.output_dir, f"Trained for {self.global_step} steps", ignored)
            self.uploader.close()


def _command(script: str, seed: int, secret: str | None) -> str:
    """The command that does this run again: from its beginning, with its seed, without what is secret."""
    parser = ArgumentParser(add_help=False)
    for option in ("--resume_from_checkpoint", "--seed"):
        parser.add_argument(option)
    _, words = parser.parse_known_args()
    if secret is not None:
        words = [word.replace(secret, "...") for word in words]
    return shlex.join(["accelerate", "launch", f"examples/{script}.py", *words, "--seed", str(seed)])
