# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..hub import HubMixin
from ..process import EXTRAPOLATIONS, Attenuation, DecoupledProcess, Extrapolation, NoiseSchedule, at_least_float32


PREDICTION_TYPES = ("decoupled",)
TIME_GRIDS = ("uniform", "power", "ratio")


@dataclass
class DDMSchedulerOutput(BaseOutput):
    """
    The output of [`DDMScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(batch_size, channels, ...)`):
            The sample at the next, smaller time; the model's next input.
        pred_original_sample (`torch.Tensor` of shape `(batch_size, channels, ...)`):
            The estimate of the clean sample that the step used.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class DDMScheduler(HubMixin, SchedulerMixin, ConfigMixin):
    """
    The decoupled diffusion process (Huang et al., "Decoupled Diffusion Models", arXiv 2306.13720): an image fades to
    zero by an analytic function while a Wiener process raises noise from zero. A model predicts both parts, and the
    reverse step is closed-form for any step size.

    This scheduler inherits from [`~diffusers.SchedulerMixin`] and [`~diffusers.configuration_utils.ConfigMixin`]. Time
    is continuous: `timesteps` are floats, `t * num_train_timesteps` with t in (0, 1]. Samples may have any rank of 2
    or more, `(batch_size, channels, ...)`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): The timestep that the model is told at t = 1.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`):
            How the image fades, see [`~process.DecoupledProcess`].
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): `sigma_t = sqrt(t)` or `sigma_t = t`.
        prediction_type (`"decoupled"`, defaults to `"decoupled"`):
            The model returns attenuation coefficients and noise, concatenated on dim 1.
        solver_order (`int`, defaults to 1):
            1, the paper's step; or 2 or 3, which extrapolate the estimates of the clean sample from the last two or
            three evaluations, at no further cost, and derive the noise from the result.
        extrapolation (`"time"` or `"log_snr"`, defaults to `"time"`):
            In which variable the estimates are continued, see [`~process.DecoupledProcess.extrapolation_weights`]:
            time, or lambda, which with `solver_order=2` and `eta=0` is DPM-Solver++(2M) (arXiv 2211.01095).
        eta (`float`, defaults to 1.0): 1 for the paper's stochastic step ... 0 for a deterministic one.
        time_grid (`"uniform"`, `"power"` or `"ratio"`, defaults to `"uniform"`):
            `t_i = 1 - i / N`, the paper's; `t_i = (1 + i / (N - 1) (t_min^(1 / rho) - 1))^rho` for i < N, then 0; or
            the times at which `sigma_t / alpha_t = s^1.5 / (1 - s)` for `s = 1 - i / (N + 1/2)`, then 0: near t = 1
            equal steps of `alpha / sigma`, in which the reverse process is linear, and finer ones where details form.
        rho (`float`, defaults to 2.0): Exponent of the power grid, above 0. 1 gives equal steps down to `t_min`.
        t_min (`float`, defaults to 1e-4): Last time of the power grid at which the model is evaluated, in (0, 1).
        clip_sample (`bool`, defaults to `True`):
            Whether to clip the estimate of the clean sample; with linear attenuation the slope is clipped to [-1, 1]
            instead, the range that it is drawn from in training.
        clip_sample_range (`float`, defaults to 1.0): The largest magnitude of a clean sample.

    Raises:
        ValueError: an argument has a value that is not accepted or contradicts another one.
    """

    _compatibles = []
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        prediction_type: Literal["decoupled"] = "decoupled",
        solver_order: Literal[1, 2, 3] = 1,
        extrapolation: Extrapolation = "time",
        eta: float = 1.0,
        time_grid: Literal["uniform", "power", "ratio"] = "uniform",
        rho: float = 2.0,
        t_min: float = 1e-4,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
    ):
        self.process = DecoupledProcess(attenuation, noise_schedule)
        _check(
            _whole(num_train_timesteps) and num_train_timesteps >= 1,
            "a whole number of 1 or more",
            num_train_timesteps=num_train_timesteps,
        )
        _check(prediction_type in PREDICTION_TYPES, f"one of {PREDICTION_TYPES}", prediction_type=prediction_type)
        _check(solver_order in (1, 2, 3), "1, 2 or 3", solver_order=solver_order)
        _check(extrapolation in EXTRAPOLATIONS, f"one of {EXTRAPOLATIONS}", extrapolation=extrapolation)
        _check(
            solver_order < 3 or extrapolation == "time",
            "1 or 2 with `extrapolation='log_snr'`",
            solver_order=solver_order,
        )
        _check(0 <= eta <= 1, "in [0, 1]", eta=eta)
        _check(time_grid in TIME_GRIDS, f"one of {TIME_GRIDS}", time_grid=time_grid)
        _check(rho > 0, "above 0", rho=rho)
        _check(0 < t_min < 1, "in (0, 1)", t_min=t_min)
        _check(clip_sample_range > 0, "above 0", clip_sample_range=clip_sample_range)

        # Standard deviation of the initial noise: x_1 is pure noise and sigma_1 = 1.
        self.init_noise_sigma = 1.0

        # Settable values. Until `set_timesteps` is called, the timesteps are those of whole training indices.
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32)
        # The times t in [0, 1] of the steps and the final 0, as numbers: nothing waits for the device that has `timesteps`.
        self._times = None
        self._step_index = None
        self._begin_index = None
        self._estimates = []

    @property
    def step_index(self) -> int | None:
        """The index of the current timestep; increases by 1 with each [`~DDMScheduler.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first timestep, set by a pipeline with [`~DDMScheduler.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Set the index of the first timestep. A pipeline that calls this spares the look-up of its first timestep, which
        waits for the device.

        Args:
            begin_index (`int`, defaults to 0): The index into `timesteps`.
        """
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """
        Return the sample as it is, for interchangeability with schedulers that scale the model's input.

        Args:
            sample (`torch.Tensor`): The input sample.
            timestep (`float` or `torch.Tensor`, *optional*): The current timestep.
        """
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """
        Set the timesteps of a run. Each costs exactly one evaluation of the model; the last step ends at t = 0.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps, 1 or more.
            device (`str` or `torch.device`, *optional*): The device of `timesteps`.
            timesteps (`Sequence[float]` or `torch.Tensor`, *optional*):
                Custom timesteps instead, strictly falling, in (0, num_train_timesteps].

        Raises:
            ValueError: not exactly one of `num_inference_steps` and `timesteps` is given, or it is not as above.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps} and `timesteps` is {timesteps}, but exactly one of"
                " them has to be given."
            )
        T = self.config.num_train_timesteps
        if timesteps is None:
            _check(
                _whole(num_inference_steps) and num_inference_steps >= 1,
                "a whole number of 1 or more",
                num_inference_steps=num_inference_steps,
            )
            times = self._grid(int(num_inference_steps))
        else:
            times = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu") / T
            # in the precision that the model is told them
            falling = times.ndim == 1 and len(times) > 0 and bool((times.float().diff() < 0).all())
            _check(
                falling and bool(times[0] <= 1) and bool(times[-1] > 0),
                f"strictly falling numbers in (0, {T}]",
                timesteps=timesteps,
            )

        self.num_inference_steps = len(times)
        self.timesteps = (times * T).to(device=device, dtype=torch.float32)
        self._times = [*times.tolist(), 0.0]
        self._step_index = None
        self._begin_index = None
        self._estimates = []

    def _grid(self, num_steps: int) -> torch.Tensor:
        i = torch.arange(num_steps, dtype=torch.float64)
        if self.config.time_grid == "uniform":
            return 1 - i / num_steps
        if self.config.time_grid == "ratio":
            s = 1 - i / (num_steps + 0.5)
            return self.process.time(1 - s, s**1.5)
        rho, t_min = self.config.rho, self.config.t_min
        fraction = i / max(num_steps - 1, 1)
        # as a blend, which ends at t_min even where t_min^(1 / rho) is lost beside 1
        return ((1 - fraction) + fraction * t_min ** (1 / rho)) ** rho

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDMSchedulerOutput | tuple:
        """
        Take one reverse step, from the current timestep to the next one, or to the clean sample after the last.

        The step is the posterior of the process, [`~process.DecoupledProcess.posterior`], at the clean sample, the
        coefficients and the noise that the model estimates. With constant attenuation the coefficients are derived
        again from the estimate of the clean sample, `c = -x_0`, whether or not clipping changed it. The arithmetic
        runs in float32, or in float64 if the sample does.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, (num_coefficients + 1) * channels, ...)`):
                Attenuation coefficients and noise, concatenated on dim 1.
            timestep (`float` or `torch.Tensor`): The current timestep, an entry of `timesteps`.
            sample (`torch.Tensor` of shape `(batch_size, channels, ...)`): The current sample.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                For the fresh noise; a list has one generator for each sample of the batch.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMSchedulerOutput`] instead of a tuple.

        Returns:
            [`DDMSchedulerOutput`] or `(prev_sample, pred_original_sample)`, in the dtype of `sample`.

        Raises:
            ValueError: `set_timesteps` was not called, all its steps were taken, `timestep` is none of them,
                `model_output` has not the shape above, or the list of generators has a wrong length.
        """
        self._check_step(model_output, sample, generator)
        if self._step_index is None:
            self._step_index = self._begin_index if self._begin_index is not None else self._index_of(timestep)
        if self._step_index >= self.num_inference_steps:
            raise ValueError(
                f"`step` was called more often than the {self.num_inference_steps} times that `set_timesteps` has"
                " prepared. Call `set_timesteps` again before the next run."
            )
        t, s = self._times[self._step_index], self._times[self._step_index + 1]
        x_t = at_least_float32(sample)

        x_0, coefficients, noise = self._estimate(at_least_float32(model_output), x_t, t)
        if self.config.solver_order > 1:
            x_0, coefficients, noise = self._extrapolate(x_0, coefficients, x_t, t, s)

        prev_sample, std = self.process.posterior(x_0, coefficients, noise, s, t, self.config.eta)
        if std > 0:
            fresh_noise = randn_tensor(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
            prev_sample = torch.add(prev_sample, fresh_noise, alpha=std)

        self._step_index += 1
        prev_sample, x_0 = prev_sample.to(sample.dtype), x_0.to(sample.dtype)
        if not return_dict:
            return (prev_sample, x_0)
        return DDMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def _estimate(
        self, model_output: torch.Tensor, x_t: torch.Tensor, t: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The clean sample, the coefficients (`None` where the sample tells them) and the noise that the model sees."""
        channels = x_t.shape[1]
        coefficients, noise = model_output[:, :-channels], model_output[:, -channels:]
        if self.config.attenuation == "linear":
            if self.config.clip_sample:
                k, c = coefficients.chunk(2, dim=1)
                coefficients = torch.cat([k.clamp(-1, 1), c], dim=1)
            return self.process.clean(x_t, coefficients, noise, t), coefficients, noise
        x_0 = self.process.clean(x_t, coefficients, noise, t)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x_0, None, noise

    def _extrapolate(
        self, x_0: torch.Tensor, coefficients: torch.Tensor | None, x_t: torch.Tensor, t: float, s: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        The clean sample and the coefficients extrapolated from the last evaluations, as many as there are up to the
        order of the solver, and the noise that belongs to them in `x_t`.
        """
        self._estimates = [(t, x_0, coefficients), *self._estimates][: self.config.solver_order]
        times, images, attenuations = zip(*self._estimates, strict=True)
        weights = self.process.extrapolation_weights(s, times, self.config.extrapolation)
        x_0 = _weighted_sum(weights, images)
        if coefficients is not None:
            coefficients = _weighted_sum(weights, attenuations)
        return x_0, coefficients, self.process.noise(x_t, x_0, coefficients, t)

    def _index_of(self, timestep: float | torch.Tensor) -> int:
        timestep = float(timestep)
        for index, t in enumerate(self._times[:-1]):
            # float64 arithmetic on what was rounded to float32
            if math.isclose(t * self.config.num_train_timesteps, timestep, rel_tol=1e-6):
                return index
        raise ValueError(f"`timestep` is {timestep}, but has to be one of `timesteps`: {self.timesteps.tolist()}.")

    def _check_step(self, model_output, sample, generator):
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        _check(sample.ndim >= 2, "of shape (batch_size, channels, ...)", sample=tuple(sample.shape))
        channels = (self.process.num_coefficients + 1) * sample.shape[1]
        expected = (sample.shape[0], channels, *sample.shape[2:])
        if tuple(model_output.shape) != expected:
            raise ValueError(
                f"`model_output` has the shape {tuple(model_output.shape)}, but with"
                f" `prediction_type={self.config.prediction_type!r}` and `attenuation={self.config.attenuation!r}` a"
                f" sample of shape {tuple(sample.shape)} needs {expected}: coefficients and noise, concatenated on"
                " dim 1."
            )
        if isinstance(generator, list) and len(generator) != sample.shape[0]:
            raise ValueError(
                f"`generator` is a list of length {len(generator)}, but the batch has {sample.shape[0]} samples; one"
                " generator is accepted, or a list of one for each sample."
            )

    def get_attenuation(
        self, clean: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """
        The attenuation coefficients that a model is trained to predict.

        Args:
            clean (`torch.Tensor` of shape `(batch_size, channels, ...)`): Clean samples.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                For the slope of linear attenuation, which is drawn as `clamp(N(0, I), -1, 1)`.

        Returns:
            `torch.Tensor` in the dtype of `clean`: `c` of the shape of `clean`, or `k` and `c` of shape
            `(batch_size, 2 * channels, ...)`.
        """
        if self.config.attenuation == "constant":
            return self.process.coefficients(clean)
        slope = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype).clamp(-1, 1)
        return self.process.coefficients(clean, slope)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        attenuation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The forward process, `x_t = x_0 + H_t + sigma_t eps`.

        Args:
            original_samples (`torch.Tensor` of shape `(batch_size, channels, ...)`): Clean samples.
            noise (`torch.Tensor` of the shape of `original_samples`): Standard normal noise.
            timesteps (`torch.Tensor`, 0-d or of shape `(batch_size,)`): In [0, num_train_timesteps].
            attenuation (`torch.Tensor`, *optional*):
                What [`~DDMScheduler.get_attenuation`] returned. Needed for linear attenuation, whose slope is random.

        Returns:
            `torch.Tensor` of the shape and dtype of `original_samples`.

        Raises:
            ValueError: a shape is not as above, or `attenuation` is missing.
        """
        _check(
            noise.shape == original_samples.shape,
            f"the shape of the samples, {tuple(original_samples.shape)}",
            noise=tuple(noise.shape),
        )
        timesteps = torch.as_tensor(timesteps, device=original_samples.device)
        _check(
            timesteps.ndim == 0 or timesteps.shape == original_samples.shape[:1],
            f"0-d or of shape ({original_samples.shape[0]},)",
            timesteps=tuple(timesteps.shape),
        )
        if attenuation is None:
            if self.config.attenuation == "linear":
                raise ValueError(
                    "`attenuation` is None, but linear attenuation needs the coefficients that `get_attenuation` drew."
                )
            attenuation = self.get_attenuation(original_samples)
        channels = self.process.num_coefficients * original_samples.shape[1]
        expected = (original_samples.shape[0], channels, *original_samples.shape[2:])
        _check(tuple(attenuation.shape) == expected, f"of shape {expected}", attenuation=tuple(attenuation.shape))
        t = at_least_float32(timesteps) / self.config.num_train_timesteps
        return self.process.marginal(original_samples, attenuation, noise, t).to(original_samples.dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _weighted_sum(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = torch.add(total, tensor, alpha=weight)
    return total


def _whole(value) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _check(accepted: bool, what: str, **argument) -> None:
    if not accepted:
        ((name, value),) = argument.items()
        raise ValueError(f"`{name}` is {value!r}, but has to be {what}.")
