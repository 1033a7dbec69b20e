# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A run's curves and pictures in TensorBoard, Weights & Biases or Trackio, none of which may end it."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image


logger = get_logger(__name__, log_level="INFO")


@contextmanager
def tolerating_failures(of: str, step: int | None = None) -> Iterator[None]:
    """Log an error instead of raising it. What only shows how a run goes must not end the run."""
    try:
        yield
    except Exception as error:
        where = "" if step is None else f"Step {step}: "
        logger.error(f"{where}{of} failed, the run goes on. {type(error).__name__}: {error}")


class Tracking:
    """
    The tracker that `--logger` names, through Accelerate. A tracker that fails is left alone until it is started again.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Made with that tracker.
        name (`str`): The name of the project.
        args (`argparse.Namespace`): The options of the run.

    Attributes:
        ids (`dict[str, str]`): The run's id at Weights & Biases or name at Trackio, which continues the same curve.
        failed (`bool`): Whether the tracker has failed since it was started.

    Raises:
        ImportError: the tracker is not installed. Accelerate would train without one.
    """

    def __init__(self, accelerator: Accelerator, name: str, args: Namespace):
        if args.logger != "none" and not accelerator.log_with:
            raise ImportError(
                f"`--logger` is {args.logger}, but that package is not installed: `pip install {args.logger}`, or give"
                " `--logger none`."
            )
        self.accelerator = accelerator
        self.name = name
        self.args = args
        self.ids = {}
        self.failed = False

    def start(self, step: int) -> None:
        """Begin after this step. A run that is resumed goes on in the same curve."""
        self.failed = False
        resumed = self.args.resume_from_checkpoint is not None or step > 0
        options = {
            "tensorboard": {"purge_step": step + 1 if resumed else None},
            "wandb": {"id": self.ids.get("wandb"), "resume": "allow"},
            "trackio": {"name": self.ids.get("trackio"), "resume": "allow"},
        }
        config = {key: str(value) for key, value in vars(self.args).items() if key != "hub_token"}
        self.accelerator.init_trackers(self.name, config=config, init_kwargs=options)
        if self.accelerator.is_main_process and (kind := self.args.logger) in ("wandb", "trackio"):
            run = self.accelerator.get_tracker(kind, unwrap=True)
            self.ids[kind] = run.id if kind == "wandb" else run.name

    def restart(self, step: int) -> None:
        """Try once more with one that has failed."""
        if self.failed:
            with self._tolerating_failures(step):
                self.start(step)

    def log(self, values: dict[str, float], step: int) -> None:
        with self._tolerating_failures(step):
            self.accelerator.log(values, step=step)

    def log_image(self, name: str, image: Image.Image, path: Path, step: int) -> None:
        """Log an image, which is in this file too."""
        with self._tolerating_failures(step):
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({name: [image]}, step=step)
                elif tracker.name == "trackio":
                    import trackio

                    tracker.log({name: trackio.Image(str(path))}, step=step)

    def end(self, step: int) -> None:
        with self._tolerating_failures(step):
            self.accelerator.end_training()

    @contextmanager
    def _tolerating_failures(self, step: int) -> Iterator[None]:
        with tolerating_failures("the tracker", step):
            try:
                yield
            except Exception:
                self.failed = True
                self.accelerator.trackers = []
                raise
