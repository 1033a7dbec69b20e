# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The batches of a training run on the device of their process, and what the step under way was made of."""

from collections.abc import Iterator

import torch
from accelerate.logging import get_logger
from accelerate.utils import send_to_device

from .data import TrainingBatches
from .signals import ignore_signals


logger = get_logger(__name__, log_level="INFO")


class BatchLoader:
    """
    Batches of [`TrainingBatches`] without end, on a device, each with `generators`, one for the noise of each example.

    A batch that cannot be loaded must not leave other processes waiting for this one in the middle of a step. So the one
    before takes its place, and `failure` says why: the run has to stop before it uses the step.

    Args:
        batches ([`TrainingBatches`]): Of this process.
        device (`torch.device`): Where they go.
        num_workers (`int`): Processes that load them; 0 loads in this one.

    Attributes:
        position (`(int, int)`): Where to go on after the last batch.
        examples (`list[(int, int)]`): What to call the examples since [`~BatchLoader.begin_step`].
        bad_images (`list[(str, str)]`): Which images were skipped since then, and what is wrong with each.
        failure (`Exception` or `None`): Why a batch since then could not be loaded.

    Raises:
        Exception: the very first batch cannot be loaded.
    """

    def __init__(self, batches: TrainingBatches, device: torch.device, num_workers: int):
        self.device = device
        self.dataloader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the one of the dropout, once more for each resumption
            worker_init_fn=ignore_signals,
        )
        self.position = batches.position
        self.failure = None
        self._told_of_colour = False
        self.begin_step()

    def begin_step(self) -> None:
        self.examples, self.bad_images = [], []

    def __iter__(self) -> Iterator[dict]:
        loaded, batch = iter(self.dataloader), None
        while True:
            if self.failure is None:
                try:
                    batch = self._note(next(loaded))
                except Exception as error:  # an image that does not decode, a stream or a disk that is gone
                    # without the frames that hold on to its workers, which ignore signals and which Python would wait for
                    self.failure, loaded = error.with_traceback(None), None
                    if batch is None:
                        raise self.failure from None
            on_device = send_to_device(batch, self.device, non_blocking=True)
            on_device["generators"] = [
                torch.Generator(self.device).manual_seed(seed) for seed in on_device.pop("seeds")
            ]
            yield on_device

    def _note(self, batch: dict) -> dict:
        """What is left of a batch without what is known of it."""
        # a DataLoader makes lists of tuples
        self.position = tuple(batch.pop("position"))
        self.examples.extend(map(tuple, batch.pop("examples")))
        self.bad_images.extend(map(tuple, batch.pop("bad_images")))
        if batch.pop("colour_lost") and not self._told_of_colour:
            self._told_of_colour = True
            logger.warning(
                "The model is grey, as the first image that can be read is, but there are images in colour, which are made"
                " grey. --image_mode RGB trains in colour."
            )
        return batch
