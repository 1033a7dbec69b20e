# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..hub import HubMixin
from ..process import EXTRAPOLATIONS, Attenuation, DecoupledProcess, Extrapolation, NoiseSchedule, at_least_float32
from .model_process import FLOW_SCHEDULERS, FlowProcess, VariancePreservingProcess, adopt_config


VP_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
PREDICTION_TYPES = ("decoupled", *VP_PREDICTION_TYPES, "flow_prediction")
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

    The defaults are a compromise between trained models and exact ones. On the trained models that were measured,
    `shift=2.0, clip_sample=False` is better still, at 5 steps above all (docs/benchmarks.md). The paper's sampler is
    `DDMScheduler(solver_order=1, eta=1.0, time_grid="uniform")`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): The timestep that the model is told at t = 1.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`):
            How the image fades, see [`~process.DecoupledProcess`].
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): `sigma_t = sqrt(t)` or `sigma_t = t`.
        prediction_type (`str`, defaults to `"decoupled"`):
            `"decoupled"`: the model returns attenuation coefficients and noise, concatenated on dim 1. For models that
            were trained on another process: `"epsilon"`, `"sample"` or `"v_prediction"` (DDPM's, see `beta_schedule`) or
            `"flow_prediction"` (flow matching's velocity, see `shift`). The sampler walks the decoupled path all the same
            and asks the model at its own timesteps and scale. [`~DDMScheduler.from_config`] reads these options off the
            config of another scheduler.
        solver_order (`int`, defaults to 2):
            1, the paper's step; or 2 or 3, which extrapolate the estimates of the clean sample from the last two or
            three evaluations, at no further cost, and derive the noise from the result. 3 is better still with
            `eta=0.0` on a perfect model, and worse on the trained ones that were measured.
        extrapolation (`"time"` or `"log_snr"`, defaults to `"time"`):
            In which variable the estimates are continued, see [`~process.DecoupledProcess.extrapolation_weights`]:
            time, or lambda, which with `solver_order=2` and `eta=0` is DPM-Solver++(2M) (arXiv 2211.01095).
        corrector (`bool`, defaults to `True`):
            Whether a step also takes the last one again with the estimate at its end, as UniPC does (arXiv 2302.04867):
            no further evaluation. Only with `solver_order` above 1 and `extrapolation="time"`.
        eta (`float`, defaults to 1.0): 1 for the paper's stochastic step ... 0 for a deterministic one.
        churn (`float`, *optional*):
            How fast noise is exchanged for fresh noise where `eta` lets it be, in multiples of the Wiener process's own
            speed, in (0, 10] (see [`~process.DecoupledProcess.bridge_scales`]): what a network got wrong is washed out with
            the old noise. By default the square of a fifth of the number of steps, but at least 1 and at most 4, since it
            takes steps to take fresh noise away. Only with `solver_order` above 1, where the last but one step draws none
            at all.
        time_grid (`"uniform"`, `"power"` or `"ratio"`, defaults to `"ratio"`):
            `t_i = 1 - i / N`, the paper's; `t_i = (1 + i / (N - 1) (t_min^(1 / rho) - 1))^rho` for i < N, then 0; or
            the times at which `sigma_t / alpha_t = (s / (1 - s))^1.25` for `s = 1 - i / (N + 1/2)`, then 0: a little
            more of the steps near both ends than with steps of equal size on flow matching's straight path, of exponent 1.
        rho (`float`, defaults to 2.0): Exponent of the power grid, above 0. 1 gives equal steps down to `t_min`.
        t_min (`float`, defaults to 1e-4): Last time of the power grid at which the model is evaluated, in (0, 1).
        clip_sample (`bool`, defaults to `True`):
            Whether to clip the estimate of the clean sample; with linear attenuation the slope is clipped to [-1, 1]
            instead, the range that it is drawn from in training.
        clip_sample_range (`float`, defaults to 1.0): The largest magnitude of a clean sample.
        beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr:
            As in [`~diffusers.DDPMScheduler`]: the process that an `"epsilon"`, `"sample"` or `"v_prediction"` model was
            trained on. Unused otherwise.
        thresholding, dynamic_thresholding_ratio, sample_max_value:
            As in [`~diffusers.DDPMScheduler`], for these models; replaces `clip_sample`.
        shift (`float`, defaults to 1.0):
            What `sigma_t / alpha_t` is multiplied with at all times of the grid, as in
            [`~diffusers.FlowMatchEulerDiscreteScheduler`]: above 1 there are more steps at much noise. 2 is
            better at 5 steps on the trained models that were measured, and 0.6 with `eta=0.0` on a perfect one. That of
            a `"flow_prediction"` model comes from its config, with the other options of that scheduler.

    Raises:
        ValueError: an argument has a value that is not accepted or contradicts another one.
    """

    _compatibles = [*(scheduler.name for scheduler in KarrasDiffusionSchedulers), *FLOW_SCHEDULERS]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        prediction_type: Literal["decoupled", "epsilon", "sample", "v_prediction", "flow_prediction"] = "decoupled",
        solver_order: Literal[1, 2, 3] = 2,
        extrapolation: Extrapolation = "time",
        corrector: bool = True,
        eta: float = 1.0,
        churn: float | None = None,
        time_grid: Literal["uniform", "power", "ratio"] = "ratio",
        rho: float = 2.0,
        t_min: float = 1e-4,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        shift: float = 1.0,
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
        _check(churn is None or 0 < churn <= 10, "None or in (0, 10]", churn=churn)
        _check(time_grid in TIME_GRIDS, f"one of {TIME_GRIDS}", time_grid=time_grid)
        _check(rho > 0, "above 0", rho=rho)
        _check(0 < t_min < 1, "in (0, 1)", t_min=t_min)
        _check(clip_sample_range > 0, "above 0", clip_sample_range=clip_sample_range)
        _check(shift > 0, "above 0", shift=shift)

        # The process that the model was trained on, if it is another one
        self.model_process = None
        if prediction_type != "decoupled":
            _check(
                attenuation == "constant",
                f"'constant' with `prediction_type={prediction_type!r}`",
                attenuation=attenuation,
            )
        if prediction_type in VP_PREDICTION_TYPES:
            self.model_process = VariancePreservingProcess(
                prediction_type,
                {
                    "num_train_timesteps": num_train_timesteps,
                    "beta_start": beta_start,
                    "beta_end": beta_end,
                    "beta_schedule": beta_schedule,
                    "trained_betas": trained_betas,
                    "rescale_betas_zero_snr": rescale_betas_zero_snr,
                    "thresholding": thresholding,
                    "dynamic_thresholding_ratio": dynamic_thresholding_ratio,
                    "sample_max_value": sample_max_value,
                },
            )
        elif prediction_type == "flow_prediction":
            self.model_process = FlowProcess({"num_train_timesteps": num_train_timesteps, "shift": shift})

        # Standard deviation of the initial noise: x_1 is pure noise and sigma_1 = 1.
        self.init_noise_sigma = 1.0

        # Settable values. Until `set_timesteps` is called, the timesteps are those of whole training indices.
        self.num_inference_steps = None
        if self.model_process is None:
            self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32)
        else:
            self.timesteps = self.model_process.all_timesteps
        # The times t in [0, 1] of the steps and the final 0, as numbers: nothing waits for the device that has `timesteps`.
        self._times = None
        # How much of image and noise the samples hold at these times, where it is not `(alpha_t, sigma_t)`
        self._scales = None
        self._step_index = None
        self._begin_index = None
        self._estimates = []
        self._last_step = None

    @classmethod
    def from_config(cls, config: dict, return_unused_kwargs: bool = False, **kwargs):
        """
        Create a scheduler from its config, or from that of another one whose models it takes over.

        A config of diffusers' schedulers keeps all its values, those included that the other one had left at its
        defaults, so that `from_config` of the other class gives back the scheduler that it was.

        Args:
            config (`dict`): The config of a scheduler, as `pipe.scheduler.config`.
            return_unused_kwargs (`bool`, defaults to `False`): Whether to return the keys that are not used as well.
            kwargs: Options that replace those of the config.

        Raises:
            ValueError: the config is that of a scheduler whose models mix image and noise in a way that is not known.
        """
        config = adopt_config(config, cls._get_init_keys(cls))
        result = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        scheduler = result[0] if return_unused_kwargs else result
        if isinstance(scheduler.model_process, FlowProcess):
            scheduler.model_process = FlowProcess(scheduler.config)
        return result

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
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """
        Set the timesteps of a run. Each costs exactly one evaluation of the model; the last step ends at t = 0.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps, 1 or more.
            device (`str` or `torch.device`, *optional*): The device of `timesteps`.
            timesteps (`Sequence[float]` or `torch.Tensor`, *optional*):
                Custom timesteps instead, strictly falling, in (0, num_train_timesteps]; for `"epsilon"`, `"sample"` and
                `"v_prediction"` models whole numbers in [0, num_train_timesteps).
            sigmas (`Sequence[float]`, *optional*):
                Custom noise levels instead, for `"flow_prediction"` models, strictly falling, in (0, 1].
            mu (`float`, *optional*): For `"flow_prediction"` models that shift the noise levels by resolution.

        Raises:
            ValueError: none of `num_inference_steps`, `timesteps` and `sigmas` is given, or two that contradict each
                other, or one is not as above.
        """
        custom = [given for given in (timesteps, sigmas) if given is not None]
        if num_inference_steps is None:
            accepted = len(custom) == 1
        else:
            accepted = not custom or (len(custom) == 1 and sigmas is not None and len(sigmas) == num_inference_steps)
        if not accepted:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}, `timesteps` is {timesteps} and `sigmas` is {sigmas}, but"
                " exactly one of them has to be given."
            )
        times = None
        if not custom:
            _check(
                _whole(num_inference_steps) and num_inference_steps >= 1,
                "a whole number of 1 or more",
                num_inference_steps=num_inference_steps,
            )
            times = self._grid(int(num_inference_steps))
            if self.config.shift != 1 and self.config.prediction_type != "flow_prediction":  # these shift their own
                times = self.process.time(self.process.alpha(times), self.config.shift * self.process.sigma(times))
            times = times.tolist()

        scales = None
        if self.model_process is not None:
            new, scales = self.model_process.discretize(times, self.process, timesteps, sigmas=sigmas, mu=mu)
            times = [self.process.time(a, b) for a, b in scales]
            if not custom:
                times[0] = 1.0  # pure noise, wherever the model is asked about it
            scales = [*scales, (1.0, 0.0)]
        else:
            T = self.config.num_train_timesteps
            for name, value in (("sigmas", sigmas), ("mu", mu)):
                _check(value is None, "None with `prediction_type='decoupled'`", **{name: value})
            if timesteps is not None:
                given = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu") / T
                # in the precision that the model is told them
                falling = given.ndim == 1 and len(given) > 0 and bool((given.float().diff() < 0).all())
                _check(
                    falling and bool(given[0] <= 1) and bool(given[-1] > 0),
                    f"strictly falling numbers in (0, {T}]",
                    timesteps=timesteps,
                )
                times = given.tolist()
            new = torch.tensor(times, dtype=torch.float64).mul(T).float()

        self.num_inference_steps = len(times)
        self.timesteps = new.to(device)
        self._times = [*times, 0.0]
        self._scales = scales
        self._step_index = None
        self._begin_index = None
        self._estimates = []
        self._last_step = None

    def _grid(self, num_steps: int) -> torch.Tensor:
        i = torch.arange(num_steps, dtype=torch.float64)
        if self.config.time_grid == "uniform":
            return 1 - i / num_steps
        if self.config.time_grid == "ratio":
            s = 1 - i / (num_steps + 0.5)
            return self.process.time((1 - s) ** 1.25, s**1.25)
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
        **kwargs,
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
            kwargs: `eta` and `use_clipped_model_output` have no effect; `DDIMPipeline` passes them to every scheduler. The
                scheduler's own `eta` is that of its config.

        Returns:
            [`DDMSchedulerOutput`] or `(prev_sample, pred_original_sample)`, in the dtype of `sample`.

        Raises:
            ValueError: `set_timesteps` was not called, all its steps were taken, `timestep` is none of them,
                `model_output` has not the shape above, or the list of generators has a wrong length.
        """
        self._check_step(model_output, sample, generator, kwargs)
        if self._step_index is None:
            self._step_index = self._begin_index if self._begin_index is not None else self._index_of(timestep)
        if self._step_index >= self.num_inference_steps:
            raise ValueError(
                f"`step` was called more often than the {self.num_inference_steps} times that `set_timesteps` has"
                " prepared. Call `set_timesteps` again before the next run."
            )
        t, s = self._times[self._step_index : self._step_index + 2]
        x_t, model_output = at_least_float32(sample), at_least_float32(model_output)

        if self._scales is None:
            x_0, coefficients, noise = self._estimate(model_output, x_t, t)
        else:
            (a, b), (_, next_b) = self._scales[self._step_index : self._step_index + 2]
            x_0, coefficients, noise = self._estimate_by_other_process(model_output, x_t, a, b)
            if t < 1:
                x_t = x_t * (self.process.sigma(t) / b)
            else:  # nothing else is in it
                noise = x_t
        if self.config.solver_order > 1:
            x_t, x_0, coefficients = self._extrapolate(x_0, coefficients, x_t, t, s)
            prev_sample, std = self.process.reverse(x_t, x_0, coefficients, s, t, *self._stochasticity)
        else:
            prev_sample, std = self.process.posterior(x_0, coefficients, noise, s, t, *self._stochasticity)
        if std > 0:
            fresh_noise = randn_tensor(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
            prev_sample.add_(fresh_noise, alpha=std)
        if self._scales is not None and s > 0:
            prev_sample = prev_sample * (next_b / self.process.sigma(s))

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

    def _estimate_by_other_process(
        self, model_output: torch.Tensor, x: torch.Tensor, a: float, b: float
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        """The same of a model that was trained on another process, at `x = a x_0 + b eps`."""
        x_0, noise = self.model_process.estimate(model_output, x, a, b)
        if self.config.thresholding:
            x_0 = self.model_process.threshold(x_0)
        elif self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x_0, None, noise

    def _extrapolate(
        self, x_0: torch.Tensor, coefficients: torch.Tensor | None, x_t: torch.Tensor, t: float, s: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        `x_t`, corrected by what the model has told since, and the clean sample and the coefficients extrapolated from the
        last evaluations, as many as there are up to the order of the solver.
        """
        self._estimates = [(t, x_0, coefficients), *self._estimates][: self.config.solver_order]
        if self._last_step is not None:
            x_t = self._correct(x_t, t)
        x_0, coefficients = self._mean_estimate(s, t, *self._stochasticity)
        if self.config.corrector and self.config.extrapolation == "time":
            self._last_step = (t, x_0, coefficients, self._stochasticity)
        return x_t, x_0, coefficients

    @property
    def _stochasticity(self) -> tuple[float, float]:
        """`eta` and `churn` of the current step."""
        if self.config.solver_order == 1:
            return self.config.eta, 1.0
        if self._step_index == self.num_inference_steps - 2:
            return 0.0, 1.0
        churn = self.config.churn
        return self.config.eta, min(max((self.num_inference_steps / 5) ** 2, 1), 4) if churn is None else churn

    def _mean_estimate(self, s: float, t: float, eta: float, churn: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The clean sample and the coefficients that stand for the step from t to s, by all estimates that are kept."""
        times, images, attenuations = zip(*self._estimates, strict=True)
        weights = self.process.extrapolation_weights(s, times, self.config.extrapolation, t, eta, churn)
        coefficients = None if attenuations[0] is None else _weighted_sum(weights, attenuations)
        return _weighted_sum(weights, images), coefficients

    def _correct(self, x_t: torch.Tensor, t: float) -> torch.Tensor:
        """
        `x_t` as the last step would have made it, had it known the estimate at its end. The step is linear in the
        estimates, so the same noise is kept.
        """
        start, used_x_0, used_coefficients, stochasticity = self._last_step
        x_0, coefficients = self._mean_estimate(t, start, *stochasticity)
        x_0 = x_0 - used_x_0
        coefficients = None if coefficients is None else coefficients - used_coefficients
        return self.process.correct(x_t, x_0, coefficients, t, start, *stochasticity)

    def _index_of(self, timestep: float | torch.Tensor) -> int:
        timestep, timesteps = float(timestep), self.timesteps.tolist()
        for index, each in enumerate(timesteps):
            # pipelines may hold them in another precision
            if math.isclose(each, timestep, rel_tol=1e-6):
                return index
        raise ValueError(f"`timestep` is {timestep}, but has to be one of `timesteps`: {timesteps}.")

    def _check_step(self, model_output, sample, generator, unknown):
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        for name in unknown.keys() - {"eta", "use_clipped_model_output"}:
            raise TypeError(f"`step` got an unexpected keyword argument {name!r}.")
        _check(sample.ndim >= 2, "of shape (batch_size, channels, ...)", sample=tuple(sample.shape))
        quantities = self.process.num_coefficients + 1 if self.model_process is None else 1
        expected = (sample.shape[0], quantities * sample.shape[1], *sample.shape[2:])
        if tuple(model_output.shape) != expected:
            what = ": coefficients and noise, concatenated on dim 1" if quantities > 1 else ""
            hint = ""
            if quantities > 1 and model_output.shape == sample.shape:
                hint = (
                    " A model that predicts one quantity, such as DDPM's, needs `DDMScheduler.from_config(config)` with"
                    " the config of the scheduler that it was trained with."
                )
            raise ValueError(
                f"`model_output` has the shape {tuple(model_output.shape)}, but with"
                f" `prediction_type={self.config.prediction_type!r}` and `attenuation={self.config.attenuation!r}` a"
                f" sample of shape {tuple(sample.shape)} needs {expected}{what}.{hint}"
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
        The forward process, `x_t = x_0 + H_t + sigma_t eps`, or that of the model if it was trained on another one.

        Args:
            original_samples (`torch.Tensor` of shape `(batch_size, channels, ...)`): Clean samples.
            noise (`torch.Tensor` of the shape of `original_samples`): Standard normal noise.
            timesteps (`torch.Tensor`, 0-d or of shape `(1,)` or `(batch_size,)`): In [0, num_train_timesteps].
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
            timesteps.ndim == 0 or timesteps.shape in ((1,), original_samples.shape[:1]),
            f"0-d or of shape (1,) or ({original_samples.shape[0]},)",
            timesteps=tuple(timesteps.shape),
        )
        if self.model_process is not None:
            return self.model_process.add_noise(original_samples, noise, timesteps)
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

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """[`~DDMScheduler.add_noise`] by the name and in the order of diffusers' schedulers for flow matching."""
        return self.add_noise(sample, noise, timestep)

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
