# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""One reverse step of the decoupled process, the solver that combines the estimates of several steps, and a run of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..process import DecoupledProcess, add_scaled, at_least_float32


class Estimate(NamedTuple):
    """
    What a model output says about a noisy sample.

    Args:
        x_0 (`torch.Tensor` of shape `(batch_size, channels, ...)`): The clean sample.
        noise (`torch.Tensor` of the shape of `x_0`): The noise.
        coefficients (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`, *optional*):
            Attenuation coefficients. `None` stands for those of constant attenuation, `c = -x_0`.
    """

    x_0: torch.Tensor
    noise: torch.Tensor
    coefficients: torch.Tensor | None = None


def time_change(process: DecoupledProcess, t: float) -> float:
    """
    The time `u` at which the standard Wiener process (`noise_schedule="sqrt"`) has the `alpha_t : sigma_t` of `process` at
    `t`. It is 0 at t = 0 and 1 at t = 1, where `log(alpha_t / sigma_t)` is infinite.
    """
    return DecoupledProcess().time(process.alpha(t), process.sigma(t))


@dataclass(frozen=True)
class BridgeStep:
    r"""
    The reverse step from t to s, 0 <= s < t <= 1:

        x_s = x_0 + H_s + kept * eps + std * z,      z ~ N(0, I),      kept^2 + std^2 = sigma_s^2

    With `churn = 1` the scales are those of the Brownian bridge, [`~process.DecoupledProcess.bridge_scales`]. With another
    `churn` the share of the old noise is that power of the bridge's: for `eta = 1` it is `(sigma_s / sigma_t)^churn`, as if
    the Wiener path were exchanged for a new one `churn` times as fast. The marginal at s stays the same.

    Args:
        process ([`~process.DecoupledProcess`]): The process.
        s, t (`float`): The times.
        eta (`float`, defaults to 1.0): 1 for the paper's stochastic step ... 0 for a deterministic one.
        churn (`float`, defaults to 1.0): Above 0.

    Attributes:
        kept (`float`): The factor of the noise that stays.
        std (`float`): The factor of the fresh noise.
        moments (`tuple[float, float]`): What [`~BridgeStep.weights`] needs of the step, computed when it is planned.
    """

    process: DecoupledProcess
    s: float
    t: float
    eta: float = 1.0
    churn: float = 1.0
    kept: float = field(init=False)
    std: float = field(init=False)
    moments: tuple[float, float] = field(init=False)

    def __post_init__(self):
        kept, std = self.process.bridge_scales(self.s, self.t, self.eta)
        if self.churn != 1 and self.s > 0:
            sigma_s = self.process.sigma(self.s)
            share = (kept / sigma_s) ** self.churn
            kept, std = sigma_s * share, sigma_s * (1 - share**2) ** 0.5
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "moments", self._moments())

    def from_noise(self, estimate: Estimate) -> torch.Tensor:
        """The mean of `x_s` with the noise that the model predicted: `x_0 + H_s + kept eps`."""
        return add_scaled(self.process.mean(estimate.x_0, estimate.coefficients, self.s), self.kept, estimate.noise)

    def increment(self, x_t: torch.Tensor, estimate: Estimate) -> torch.Tensor:
        """The mean of `x_s` as a change of `x_t`, [`~process.DecoupledProcess.increment`]. `churn` has no part in it."""
        x_0, noise, coefficients = estimate
        return self.process.increment(x_t, x_0, coefficients, noise, self.s, self.t, self.eta)[0]

    def from_sample(self, x_t: torch.Tensor, x_0: torch.Tensor, coefficients: torch.Tensor | None) -> torch.Tensor:
        """
        The mean of `x_s` with the noise that the clean sample leaves in `x_t`, `eps = (x_t - x_0 - H_t) / sigma_t`:
        `kept / sigma_t x_t + (x_0 + H_s) - kept / sigma_t (x_0 + H_t)`.
        """
        return self.add_image(self.shrink(x_t), x_0, coefficients)

    def shrink(self, x_t: torch.Tensor) -> torch.Tensor:
        """The first term of [`~BridgeStep.from_sample`], which the noisy sample makes."""
        return at_least_float32(x_t) * (self.kept / self.process.sigma(self.t))

    def add_image(
        self, x: torch.Tensor, x_0: torch.Tensor, coefficients: torch.Tensor | None, weight: float = 1.0
    ) -> torch.Tensor:
        """`x` and `weight` times the other terms, which the clean sample and its coefficients make; linear in both."""
        kept = self.kept / self.process.sigma(self.t)
        if coefficients is None:  # in one kernel
            return add_scaled(x, weight * (self.process.alpha(self.s) - kept * self.process.alpha(self.t)), x_0)
        x = add_scaled(x, weight, self.process.mean(x_0, coefficients, self.s))
        return add_scaled(x, -weight * kept, self.process.mean(x_0, coefficients, self.t))

    def weights(self, times: Sequence[float]) -> list[float]:
        r"""
        The weights of the estimates made at `times` in the one clean sample that makes this step exact.

        With constant attenuation a step that keeps `(sigma_s / sigma_t)^kappa` of the noise solves
        `d(x / sigma^(1 + kappa)) = x_0_hat d(alpha / sigma^(1 + kappa)) + fresh noise`. For `kappa = 0` that is the equation
        of DPM-Solver++ (arXiv 2211.01095, proposition 4.1); the Brownian bridge has `kappa = 1`. So the step is exact with
        the mean of `x_0_hat` in the measure `d(alpha / sigma^(1 + kappa))`. Here `x_0_hat` is the polynomial through the
        estimates in the variable `u` of [`time_change`], in which the mean has a closed form. Into s = 0 the mean is the
        value of the polynomial there.

        Args:
            times (sequence of 1 to 3 `float`):
                The times of the estimates, the newest first. Two times give second order. If they include `s`, the
                polynomial interpolates.

        Returns:
            `list[float]`: one weight for each time; their sum is 1.
        """
        if len(times) == 1:
            return [1.0]
        mean, mean_square = self.moments
        nodes = [time_change(self.process, time) for time in times]
        weights = []
        for i, node in enumerate(nodes):
            # the mean of Lagrange's basis polynomial, the product of (u - other) / (node - other)
            others = nodes[:i] + nodes[i + 1 :]
            if len(others) == 1:
                weights.append((mean - others[0]) / (node - others[0]))
            else:
                first, second = others
                numerator = mean_square - (first + second) * mean + first * second
                weights.append(numerator / ((node - first) * (node - second)))
        return weights

    def _moments(self) -> tuple[float, float]:
        """The means of `u` and `u^2` in `d(alpha / sigma^(1 + kappa)) = d((1 - u) u^(-(1 + kappa) / 2))` from t to s."""
        if self.s == 0:
            return 0.0, 0.0
        u_s = time_change(self.process, self.s)
        log_ratio = math.log(time_change(self.process, self.t) / u_s)
        kappa = -2 * math.log(self.kept / self.process.sigma(self.s)) / log_ratio

        def integral(power):  # of u^power from u_s to u_t, over u_s^(power + 1)
            exponent = (power + 1) * log_ratio
            return log_ratio * (math.expm1(exponent) / exponent if exponent else 1.0)

        moments = [
            u_s**m * ((1 + kappa) * integral(m - (3 + kappa) / 2) + (1 - kappa) * u_s * integral(m - (1 + kappa) / 2))
            for m in range(3)
        ]
        return moments[1] / moments[0], moments[2] / moments[0]


class Evaluation(NamedTuple):
    """What the solver keeps of a step: its index and time, the estimate, and the weights of the estimates that it used."""

    index: int
    t: float
    x_0: torch.Tensor
    coefficients: torch.Tensor | None
    weights: tuple[float, ...]


class MultistepSolver:
    """
    Extrapolates the clean sample from the last evaluations of the model, at no further evaluation.

    The corrector takes the last step again once the estimate at its end is known, as UniPC does (arXiv 2302.04867). A step
    is linear in the estimates, so the correction keeps the fresh noise of that step.

    Args:
        order (`int`): How many estimates a step uses at most, 2 or 3.
        corrector (`bool`): Whether to correct.
    """

    def __init__(self, order: int, corrector: bool):
        self.order, self.corrector = order, corrector
        self.history: tuple[Evaluation, ...] = ()

    def step(self, index: int, steps: Sequence[BridgeStep], x_t: torch.Tensor, estimate: Estimate) -> torch.Tensor:
        """
        The mean of `x_s` after a step, from its estimate and those before.

        Evaluations of this step and of later ones are forgotten, so a step may be taken back and taken again. After a
        step that was left out, the solver starts anew at first order.

        Args:
            index (`int`): The step to take, `steps[index]`.
            steps (sequence of [`BridgeStep`]): All steps of the run.
            x_t (`torch.Tensor` of shape `(batch_size, channels, ...)`): The noisy sample.
            estimate ([`Estimate`]): What the model says about it.

        Returns:
            `torch.Tensor` of the shape of `x_t`, in float32 or better.
        """
        earlier = tuple(evaluation for evaluation in self.history if evaluation.index < index)
        # Cosmos' pipelines ask for an estimate with both halves of a guided batch, and then step with one
        past = tuple(evaluation for evaluation in earlier if evaluation.x_0.shape == estimate.x_0.shape)
        if past and past[0].index != index - 1:
            past = ()
        times = [steps[index].t, *(evaluation.t for evaluation in past)][: self.order]
        weights = tuple(steps[index].weights(times))
        newest = Evaluation(index, steps[index].t, estimate.x_0, estimate.coefficients, weights)
        self.history = (newest, *earlier)[: self.order + 1]
        if self.corrector and past:
            used = (0.0, *past[0].weights)
            better = (*steps[index - 1].weights(times), 0.0)
            for evaluation, old, new in zip((newest, *past), used, better, strict=False):
                x_t = steps[index - 1].add_image(x_t, evaluation.x_0, evaluation.coefficients, new - old)
        x_s = steps[index].shrink(x_t)
        for evaluation, weight in zip((newest, *past), weights, strict=False):
            x_s = steps[index].add_image(x_s, evaluation.x_0, evaluation.coefficients, weight)
        return x_s


@dataclass
class Run:
    """
    The plan of one run over the timesteps, and what its solver keeps.

    Args:
        timesteps (`torch.Tensor` of shape `(num_steps,)`): What the model is told.
        values (`list[float]`): The timesteps as numbers: nothing waits for the device that has `timesteps`.
        times (`list[float]`): The times t of the samples on the decoupled path, the final 0 included.
        scales (`list[tuple[float, float]]`): `(a, b)` that the model is evaluated at, the final `(1, 0)` included.
        path_scales (`list[float]`): The factors from the pipeline's samples to those of the decoupled path.
        steps (list of [`BridgeStep`]): The steps; `None` for a step from 0 to 0.
        solver ([`MultistepSolver`], *optional*): For orders above 1.
        has_ended (`bool`, defaults to `False`): Whether its last step was taken.
    """

    timesteps: torch.Tensor
    values: list[float]
    times: list[float]
    scales: list[tuple[float, float]]
    path_scales: list[float]
    steps: list[BridgeStep | None]
    solver: MultistepSolver | None = None
    has_ended: bool = False

    def end(self) -> None:
        """Forget the estimates, and with them their graph."""
        self.has_ended = True
        if self.solver is not None:
            self.solver.history = ()

    def index_of_view(self, timestep: float | torch.Tensor) -> int | None:
        """The index of a timestep that is an entry of `timesteps`, told by its place in memory and not by its value."""
        if not torch.is_tensor(timestep) or timestep.device != self.timesteps.device or timestep.numel() == 0:
            return None
        pointer = timestep.untyped_storage().data_ptr()
        if not self.values or pointer == 0 or pointer != self.timesteps.untyped_storage().data_ptr():
            return None
        index, rest = divmod(timestep.storage_offset() - self.timesteps.storage_offset(), self.timesteps.stride(0))
        return index if rest == 0 and 0 <= index < len(self.values) else None
