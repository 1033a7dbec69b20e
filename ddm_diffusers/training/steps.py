# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is known of a step of a training run: its losses over all batches and processes, its time, how it began."""

import time

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor


class StepRecord:
    """
    Begins when it is made, with the state of the random generators, for a checkpoint that does the step again.

    Attributes:
        seconds (`float`): From the beginning to [`~StepRecord.end`].
    """

    def __init__(self):
        self._sums = None
        self._names = ()
        self._random_state = torch.get_rng_state()
        self._cuda_random_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self._began = time.perf_counter()

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Add the losses of a batch, 0-d and not yet divided by the number of batches in a step."""
        self._names = tuple(values)
        values = torch.stack([value.detach().float() for value in values.values()])
        self._sums = values if self._sums is None else self._sums + values

    def reduce(
        self, accelerator: Accelerator, num_batches: int, grad_norm: torch.Tensor | float, counts: list[float]
    ) -> tuple[dict[str, float], list[float]]:
        """
        The means of the losses and of `grad_norm`, and the sums of `counts`, over all processes. This is the one time in a
        step that the device is waited for.
        """
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        device = self._sums.device
        grad_norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=device)  # a float from DeepSpeed
        means = accelerator.reduce(torch.cat([self._sums / num_batches, grad_norm.reshape(1)]), "mean")
        sums = accelerator.reduce(torch.tensor(counts, dtype=torch.float32, device=device), "sum")
        values = torch.cat([means, sums]).tolist()
        names = (*self._names, "grad_norm")
        return dict(zip(names, values[: len(names)], strict=True)), values[len(names) :]

    def end(self) -> None:
        self.seconds = time.perf_counter() - self._began

    def restore_random_state(self) -> None:
        """As it was when the step began."""
        torch.set_rng_state(self._random_state)
        if self._cuda_random_state is not None:
            torch.cuda.set_rng_state(self._cuda_random_state)
