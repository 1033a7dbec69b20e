# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import copy
import difflib
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

from ..hub import HubMixin
from ..presets import sampler_options
from ..process import Attenuation, DecoupledProcess, NoiseSchedule, at_least_float32
from . import time_grids
from .multistep import BridgeStep, Estimate, MultistepSolver, Run
from .parameterizations import (
    KNOWN_SCHEDULERS,
    VP_PREDICTION_TYPES,
    Decoupled,
    FlowMatching,
    VarianceExploding,
    VariancePreserving,
    adopt_config,
    parameterization_of,
)


logger = logging.get_logger(__name__)

PREDICTION_TYPES = ("decoupled", *VP_PREDICTION_TYPES, "flow_prediction")
TIME_GRIDS = ("uniform", "power", "ratio", "model")
STEP_FORMS = ("posterior", "increment", "raw")

# How many runs a scheduler remembers: a pipeline that is called in the callback of another one begins a run in a run.
MAX_RUNS = 4


class MissingAttributeError(AttributeError, ValueError):
    """A pipeline reads an attribute of a scheduler that the models of this scheduler do not have."""


@dataclass
class DDMSchedulerOutput(BaseOutput):
    """
    The output of [`DDMScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(batch_size, channels, ...)`):
            The sample at the next, smaller time; the model's next input.
        pred_original_sample (`torch.Tensor` of shape `(batch_size, channels, ...)`):
            The clean sample that the model output stands for, clipped as the config has it. Steps of higher order combine it
            with former ones.
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
    `shift=2.0, clip_sample=False` is better still, at 5 steps above all (docs/benchmarks.md). The authors' samplers are
    [`~DDMScheduler.paper`] and [`~DDMScheduler.adm`] (docs/method.md).

    Runs may nest: a pipeline that is called in the callback of another one may share its scheduler. Threads that sample at
    the same time need a scheduler each, as with all of diffusers' schedulers that keep the index of their step:
    `DDMScheduler.from_config(scheduler.config)`.

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
            1, as in the paper; or 2 or 3, which extrapolate the estimates of the clean sample from the last two or
            three evaluations, at no further cost, and derive the noise from the result
            ([`~schedulers.multistep.BridgeStep.weights`]). 3 is better still with `eta=0.0` on a perfect model, and worse
            on the trained ones that were measured.
        corrector (`bool`, defaults to `True`):
            Whether a step also takes the last one again with the estimate at its end, as UniPC does (arXiv 2302.04867):
            no further evaluation. Only with `solver_order` above 1.
        eta (`float`, defaults to 1.0): 1 for the paper's stochastic step ... 0 for a deterministic one.
        churn (`float`, *optional*):
            How fast noise is exchanged for fresh noise where `eta` lets it be, in multiples of the Wiener process's own
            speed, in (0, 10] (see [`~schedulers.multistep.BridgeStep`]): what a network got wrong is washed out with
            the old noise. By default the square of a fifth of the number of steps, but at least 1 and at most 4, since it
            takes steps to take fresh noise away. Only with `solver_order` above 1, where the last but one step draws none
            at all.
        time_grid (`"uniform"`, `"power"`, `"ratio"` or `"model"`, defaults to `"ratio"`):
            The times of the evaluations, see [`~schedulers.time_grids`]: equal steps of t, the paper's; a power of equal
            steps down to `t_min`; a little more of the steps near both ends; or equal steps in the model's own timesteps,
            diffusers' `timestep_spacing="trailing"`, with which the `strength` of image-to-image and inpainting pipelines
            means the same noise as with diffusers' schedulers.
        rho (`float`, defaults to 2.0): Exponent of the power grid, above 0. 1 gives equal steps down to `t_min`.
        t_min (`float`, defaults to 1e-4): Last time of the power grid at which the model is evaluated, in (0, 1).
        step_form (`"posterior"`, `"increment"` or `"raw"`, defaults to `"posterior"`):
            What a step of constant attenuation takes over where the two predictions disagree or clipping acts. Else all
            three are the same.

            | `step_form` | mean of `x_s` | from |
            | --- | --- | --- |
            | `"posterior"` | `(1 - s) x0_hat + kept eps_hat` | this package |
            | `"increment"` | `x_t + (t - s) x0_hat - (sigma_t - kept) eps_hat` | DDM-Public, and stochastic ADM-Public |
            | `"raw"` | `x0_hat + s c_hat + kept eps_hat` | ADM-Public's deterministic sampler |

            `kept` is `sigma_s^2 / sigma_t` for `eta=1.0` and `sigma_s` for `eta=0.0`. The last two need
            `prediction_type="decoupled"` and `solver_order=1`.
        clip_sample (`bool`, defaults to `True`):
            Whether to clip the estimate of the clean sample; with linear attenuation the slope is clipped to [-1, 1]
            instead, the range that it is drawn from in training.
        clip_sample_range (`float`, defaults to 1.0): The largest magnitude of a clean sample, above 0.
        beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr:
            As in [`~diffusers.DDPMScheduler`]: the process that an `"epsilon"`, `"sample"` or `"v_prediction"` model was
            trained on. Unused otherwise.
        thresholding, dynamic_thresholding_ratio, sample_max_value:
            As in [`~diffusers.DDPMScheduler`]; replaces `clip_sample`. Not with linear attenuation.
        shift (`float`, defaults to 1.0):
            What `sigma_t / alpha_t` is multiplied with at all times of the grid, as in
            [`~diffusers.FlowMatchEulerDiscreteScheduler`]: above 1 there are more steps at much noise. 2 is
            better at 5 steps on the trained models that were measured, and 0.6 with `eta=0.0` on a perfect one. That of
            a `"flow_prediction"` model comes from its config, with the other options of that scheduler.
        trained_with (`str`, *optional*):
            The scheduler of diffusers that the model was trained with, whose numbers describe its process. Set by
            [`~DDMScheduler.from_config`]. `None` is `DDPMScheduler`, or `FlowMatchEulerDiscreteScheduler` for velocities.

    Raises:
        ValueError: An argument has a value that is not accepted or contradicts another one.
    """

    _compatibles = list(KNOWN_SCHEDULERS)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        prediction_type: Literal["decoupled", "epsilon", "sample", "v_prediction", "flow_prediction"] = "decoupled",
        solver_order: Literal[1, 2, 3] = 2,
        corrector: bool = True,
        eta: float = 1.0,
        churn: float | None = None,
        time_grid: Literal["uniform", "power", "ratio", "model"] = "ratio",
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
        trained_with: str | None = None,
        step_form: Literal["posterior", "increment", "raw"] = "posterior",
    ):
        self.process = DecoupledProcess(attenuation, noise_schedule)
        _check(
            _is_index(num_train_timesteps, 1), "a whole number of 1 or more", num_train_timesteps=num_train_timesteps
        )
        _check(prediction_type in PREDICTION_TYPES, f"one of {PREDICTION_TYPES}", prediction_type=prediction_type)
        _check(solver_order in (1, 2, 3), "1, 2 or 3", solver_order=solver_order)
        _check(_is_number(eta) and 0 <= eta <= 1, "in [0, 1]", eta=eta)
        _check(churn is None or (_is_number(churn) and 0 < churn <= 10), "None or in (0, 10]", churn=churn)
        _check(time_grid in TIME_GRIDS, f"one of {TIME_GRIDS}", time_grid=time_grid)
        _check(step_form in STEP_FORMS, f"one of {STEP_FORMS}", step_form=step_form)
        if prediction_type != "decoupled" or solver_order > 1:
            reason = f"with `prediction_type={prediction_type!r}` and `solver_order={solver_order}`"
            _check(step_form == "posterior", f"'posterior' {reason}", step_form=step_form)
        _check(_is_number(t_min) and 0 < t_min < 1, "in (0, 1)", t_min=t_min)
        for name, value in (("rho", rho), ("clip_sample_range", clip_sample_range), ("shift", shift)):
            _check(_is_number(value) and 0 < value < math.inf, "a finite number above 0", **{name: value})
        if attenuation == "linear":
            reason = "with `attenuation='linear'`"
            _check(prediction_type == "decoupled", f"'decoupled' {reason}", prediction_type=prediction_type)
            _check(not thresholding, f"False {reason}", thresholding=thresholding)
        self._describe_model()

    def _describe_model(self) -> None:
        """Set what depends on the process that the model was trained on."""
        if self.config.prediction_type == "decoupled":
            T, clip_slope = self.config.num_train_timesteps, self.config.clip_sample
            self.parameterization = Decoupled(self.process, T, clip_slope, self.config.step_form == "raw")
        else:
            self.parameterization = parameterization_of(self.config)
        self.init_noise_sigma = self.parameterization.init_noise_sigma
        self.num_inference_steps = None
        # the newest run first; until `set_timesteps` there is one without steps
        self._runs = [Run(self.parameterization.all_timesteps, [], [], [], [], [])]
        self._step_index = None
        self._begin_index = None

    @classmethod
    def paper(cls, **options) -> "DDMScheduler":
        """
        The sampler of the paper (arXiv 2306.13720) as it stands in the authors' first release (DDM-Public,
        `sample_fn`): first order, the bridge's noise, a uniform grid, `step_form="increment"` and clipping.

        The release evaluates the model once more, at t = 1e-4: see [`~schedulers.time_grids.uniform`].

        Args:
            options: Options of [`DDMScheduler`] that differ, e.g. `attenuation="linear"`, or `clip_sample=False` for
                latents.
        """
        return cls(**{**sampler_options("ddm", **options), **options})

    @classmethod
    def adm(cls, **options) -> "DDMScheduler":
        """
        The sampler of the authors' later release (ADM-Public). All variants are of first order.

        | `noise_schedule` | `eta` | `step_form` | times | clips | in the release |
        | --- | --- | --- | --- | --- | --- |
        | `"linear"` (default here) | 0.0 (default) | `"raw"` | uniform | no | `ddm_const_2.sample_fn_d` |
        | `"linear"` | above 0 | `"increment"` | equal steps to 1e-6 | yes | `ddm_const_2.sample_fn_s` |
        | `"sqrt"` | 0.0 (default) | `"raw"` | equal steps to 1e-4 | yes | `ddm_const.sample_fn_d` |
        | `"sqrt"` | above 0 | `"increment"` | equal steps to 1e-4 | yes | `ddm_const.sample_fn_s` |

        Args:
            options: Options of [`DDMScheduler`] that differ. For latents the release does not clip:
                `clip_sample=False`.
        """
        return cls(**{**sampler_options("adm", **options), **options})

    @classmethod
    def from_config(cls, config: dict, return_unused_kwargs: bool = False, **kwargs):
        """
        Create a scheduler from its config, or from that of another one whose models it takes over.

        A config of diffusers' schedulers keeps all its values, those included that the other one had left at its
        defaults, so that `from_config` of the other class gives back the scheduler that it was.

        Args:
            config (`dict`): The config of a scheduler, as `pipe.scheduler.config`.
            return_unused_kwargs (`bool`, defaults to `False`): Whether to return the keys that are not used as well.
            kwargs: Options that replace those of the config. An unknown one is a warning.

        Raises:
            ValueError: The config is that of a scheduler whose models mix image and noise in a way that is not known.
        """
        config = adopt_config(config, cls._get_init_keys(cls))
        if "extrapolation" in config:  # an option of release 0.1.0
            config = dict(config)
            if config.pop("extrapolation") != "time":
                logger.warning(
                    "`extrapolation='log_snr'` is no option any more; `DPMSolverMultistepScheduler` has it."
                )
        options = cls._get_init_keys(cls)
        for name in kwargs.keys() - options - {"dtype"} if not return_unused_kwargs else ():
            similar = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean `{similar[0]}`?" if similar else ""
            logger.warning(f"`{name}` is no option of {cls.__name__} and is ignored.{hint}")
        result = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        # the options that only the other scheduler has are in the config now
        (result[0] if return_unused_kwargs else result)._describe_model()
        return result

    # ----------------------------------------------------------------------------------------- what stock pipelines read
    @property
    def timesteps(self) -> torch.Tensor:
        """
        The timesteps of the newest run, of shape `(num_steps,)`. A part of them may be assigned: the steps then go from each
        of its timesteps to the next one, and from the last one to 0.
        """
        return self._runs[0].timesteps

    @timesteps.setter
    def timesteps(self, timesteps: torch.Tensor) -> None:
        run, values = self._runs[0], timesteps.tolist()
        chosen = [self.index_for_timestep(value) for value in values]
        _check(
            chosen == sorted(set(chosen)), "in the order of the timesteps that `set_timesteps` made", timesteps=values
        )
        times = [run.times[i] for i in chosen]
        path_scales = [run.path_scales[i] for i in chosen]
        self._runs[0] = self._plan(timesteps, values, times, [run.scales[i] for i in chosen], path_scales)
        self._step_index = None

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels of the run and a final 0, of flow matching and EDM models; others do not have the attribute."""
        if not isinstance(self.parameterization, (FlowMatching, VarianceExploding)):
            raise AttributeError  # explained by __getattr__
        run = self._runs[0]
        if not run.steps:
            return self.parameterization.scheduler.sigmas
        return torch.tensor([b for _, b in run.scales], dtype=torch.float32, device=run.timesteps.device)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """`alphas_cumprod` of the scheduler that an `"epsilon"`, `"sample"` or `"v_prediction"` model was trained with."""
        if not isinstance(self.parameterization, VariancePreserving):
            raise AttributeError
        return torch.tensor(self.parameterization.a, dtype=torch.float64, device="cpu").square().float()

    @property
    def betas(self) -> torch.Tensor:
        """The `betas` that belong to `alphas_cumprod`."""
        alphas_cumprod = self.alphas_cumprod
        return 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])

    def __getattr__(self, name: str):
        models = {
            "sigmas": "flow matching and EDM models",
            "alphas_cumprod": "models that predict epsilon, the sample or v",
            "betas": "models that predict epsilon, the sample or v",
        }
        if name in models:
            raise MissingAttributeError(
                f"`scheduler.{name}` exists for {models[name]}, but `prediction_type` is {self.config.prediction_type!r}. A"
                " pipeline that reads it needs another scheduler for this model."
            )
        return super().__getattr__(name)

    def _get_conditioning_c_in(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """`c_in` of an EDM model, by the name that Cosmos' pipelines call."""
        return self.parameterization.scale_input(1.0, sigma)

    @property
    def step_index(self) -> int | None:
        """The index of the next step; increases by 1 with each [`~DDMScheduler.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first timestep, set by a pipeline with [`~DDMScheduler.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Set the index of the first timestep, as pipelines do. It counts where a step cannot tell its index from its timestep
        without waiting for the device: for a copy of a timestep that lies there.

        Args:
            begin_index (`int`, defaults to 0): The index into `timesteps`, from 0 to their number.

        Raises:
            ValueError: `begin_index` is not as above.
        """
        num_steps = len(self.timesteps)
        _check(
            _is_index(begin_index, 0) and begin_index <= num_steps,
            f"a whole number in [0, {num_steps}]",
            begin_index=begin_index,
        )
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """
        The model's input at a sample: the sample itself, or `c_in` times the sample for EDM models.

        Args:
            sample (`torch.Tensor`): The input sample.
            timestep (`float` or `torch.Tensor`, *optional*): The current timestep.
        """
        if not isinstance(self.parameterization, VarianceExploding):
            return sample
        run, index = self._init_step_index(timestep)
        return self.parameterization.scale_input(sample, run.scales[index][1])

    # ----------------------------------------------------------------------------------------------------------- the plan
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: None = None,
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
                Custom noise levels instead, for flow matching models, strictly falling, in (0, 1], with or without a final
                0; for EDM models what their scheduler takes. With `timesteps` as well, a flow matching model is told these.
            mu (`float`, *optional*): For flow matching models that shift the noise levels by resolution.
            original_inference_steps (`None`): Pipelines of LCMs pass it; anything else is refused.

        Raises:
            ValueError: None of `num_inference_steps`, `timesteps` and `sigmas` is given, or two that contradict each
                other, or one is not as above. The former timesteps stay then.
        """
        _check(original_inference_steps is None, "None", original_inference_steps=original_inference_steps)
        custom = [given for given in (timesteps, sigmas) if given is not None]
        lengths = {len(given) for given in custom} | ({num_inference_steps} - {None})
        if len(lengths) != 1:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}, `timesteps` is {timesteps} and `sigmas` is {sigmas}, but"
                " exactly one of them has to be given, or several of one length."
            )
        if custom:
            new, a, b = self.parameterization.custom(timesteps, sigmas, mu)
        else:
            _check(
                _is_index(num_inference_steps, 1),
                "a whole number of 1 or more",
                num_inference_steps=num_inference_steps,
            )
            new, a, b = self.parameterization.discretize(self._times(int(num_inference_steps)), self.process, mu)
        scales = list(zip(a.tolist(), b.tolist(), strict=True))
        times = [self.process.time(*each) for each in scales]
        path_scales = [self.path_scale(*each) for each in scales]
        if not custom:  # it starts from pure noise, wherever the model is asked about it
            times[0], path_scales[0] = 1.0, 1 / self.init_noise_sigma
        self.num_inference_steps = len(times)
        run = self._plan(new.to(device), new.tolist(), times, scales, path_scales)
        under_way = [other for other in self._runs if other.steps and not other.has_ended]
        self._runs = [run, *under_way][:MAX_RUNS]
        self._step_index = None
        self._begin_index = None

    def path_scale(self, a: float, b: float) -> float:
        """The factor that brings a sample `a x_0 + b eps` to the decoupled path, `alpha_t x_0 + sigma_t eps`."""
        t = self.process.time(a, b)
        factor = (self.process.alpha(t) + self.process.sigma(t)) / (a + b)
        return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor

    def _times(self, num_steps: int) -> list[float]:
        """The times of the grid."""
        config, process = self.config, self.process
        if config.time_grid == "uniform":
            times = time_grids.uniform(num_steps)
        elif config.time_grid == "power":
            times = time_grids.power(num_steps, config.rho, config.t_min)
        elif config.time_grid == "ratio":
            times = time_grids.ratio(num_steps, process)
        else:
            scales = self.parameterization.scales(self.parameterization.uniform_timesteps(num_steps))
            times = process.time(*scales).tolist()
        if isinstance(self.parameterization, FlowMatching):  # these shift their own
            return times
        return time_grids.shifted(times, process, config.shift)

    def _plan(
        self,
        timesteps: torch.Tensor,
        values: list[float],
        times: list[float],
        scales: list[tuple[float, float]],
        path_scales: list[float],
    ) -> Run:
        """A run over these timesteps and then to 0."""
        times = [*times, 0.0]
        steps = []
        for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            eta, churn = self.config.eta, 1.0
            if self.config.solver_order > 1:
                if i == len(times) - 3:  # the last but one; the last step draws no noise in any case
                    eta = 0.0
                churn = self.config.churn or min(max((self.num_inference_steps / 5) ** 2, 1), 4)
            steps.append(BridgeStep(self.process, s, t, eta, churn) if t > 0 else None)
        solver = (
            MultistepSolver(self.config.solver_order, self.config.corrector) if self.config.solver_order > 1 else None
        )
        return Run(timesteps, values, times, [*scales, (1.0, 0.0)], [*path_scales, 1.0], steps, solver)

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """
        The index of a timestep, by its value; a tensor on a device is waited for.

        Args:
            timestep (`float` or `torch.Tensor` of one entry, or of equal ones): The timestep.
            schedule_timesteps (`torch.Tensor`, *optional*): Where to look, `timesteps` by default.

        Raises:
            ValueError: It is none of them.
        """
        values = self._runs[0].values if schedule_timesteps is None else schedule_timesteps.tolist()
        timestep = timestep.flatten()[:1] if torch.is_tensor(timestep) else torch.tensor([timestep])
        value = float(timestep.float())  # in the precision of the timesteps
        if value not in values:
            raise ValueError(f"`timestep` is {value}, but has to be one of `timesteps`: {values}.")
        return values.index(value)

    def _init_step_index(self, timestep: float | torch.Tensor) -> tuple[Run, int]:
        """
        The run and the index of a timestep.

        A loop over `timesteps` passes views of it, whose place in memory tells both at no cost. Numbers and tensors on the
        CPU are looked up. A copy of a timestep on another device would have to be waited for: it is taken for the next one.
        """
        if torch.compiler.is_compiling() and self._step_index is not None:
            return self._runs[0], self._step_index
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        for run in self._runs:
            index = None if torch.compiler.is_compiling() else run.index_of_view(timestep)
            if index is not None:
                return run, index
        index = self._begin_index if self._step_index is None else self._step_index
        on_device = torch.is_tensor(timestep) and timestep.device.type != "cpu"
        if index is None or not (on_device or torch.compiler.is_compiling()):
            index = self.index_for_timestep(timestep)
        if index >= len(self._runs[0].steps):
            raise ValueError(
                f"`step` was called more often than the {len(self._runs[0].steps)} times that `set_timesteps` has"
                " prepared. Call `set_timesteps` again before the next run."
            )
        return self._runs[0], index

    # ----------------------------------------------------------------------------------------------------------- the step
    def convert_model_output(
        self, model_output: torch.Tensor, sample: torch.Tensor, a: float | torch.Tensor, b: float | torch.Tensor
    ) -> Estimate:
        """
        What a model output says about the sample `a x_0 + b eps`, with the clean sample clipped as the config has it.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, quantities * channels, ...)`): As in [`~DDMScheduler.step`].
            sample (`torch.Tensor` of shape `(batch_size, channels, ...)`): The sample, in float32 or better.
            a, b (`float` or `torch.Tensor` that broadcasts against `sample`): How much of image and noise it holds.

        Returns:
            [`~schedulers.multistep.Estimate`]: clean sample, noise, and for linear attenuation or `step_form="raw"` the
            coefficients.
        """
        estimate = self.parameterization.estimate(at_least_float32(model_output), sample, a, b)
        if self.config.attenuation == "linear":
            return estimate
        if self.config.thresholding:
            return estimate._replace(x_0=DDPMScheduler._threshold_sample(self, estimate.x_0))
        if self.config.clip_sample:
            limit = self.config.clip_sample_range
            return estimate._replace(x_0=estimate.x_0.clamp(-limit, limit))
        return estimate

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        prev_timestep: float | torch.Tensor | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        pred_original_sample: torch.Tensor | None = None,
        **kwargs,
    ) -> DDMSchedulerOutput | tuple:
        """
        Take one reverse step, from a timestep to the next one, or to the clean sample after the last.

        The step is [`~schedulers.multistep.BridgeStep`] at the clean sample, the coefficients and the noise that the model
        estimates. With constant attenuation the coefficients are derived again from the estimate of the clean sample,
        `c = -x_0`, whether or not clipping changed it; see `step_form` for the alternatives. The arithmetic runs in float32, or in float64 if the sample does.

        A step may be taken back and taken again. A timestep that was left out restarts the solver at first order.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, (num_coefficients + 1) * channels, ...)`):
                Attenuation coefficients and noise, concatenated on dim 1. Of a model of another process its prediction, of
                the shape of `sample`; learned variances may follow on dim 1, and are not used.
            timestep (`float` or `torch.Tensor`): The current timestep, an entry of `timesteps`.
            sample (`torch.Tensor` of shape `(batch_size, channels, ...)`): The current sample.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                For the fresh noise; a list has one generator for each sample of the batch.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMSchedulerOutput`] instead of a tuple.
            prev_timestep (`float` or `torch.Tensor`, *optional*):
                The next timestep, which pipelines of unCLIP pass. It has to be the one that follows in `timesteps`.
            per_token_timesteps (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*):
                For flow matching and samples `(batch_size, num_tokens, channels)`: the timestep of each token. Tokens at
                `timestep` take the step; others take Euler's to the next of `timesteps`. The model output is then `x_0 - eps`,
                as in [`~diffusers.FlowMatchEulerDiscreteScheduler`].
            pred_original_sample (`torch.Tensor` of the shape of `sample`, *optional*):
                The clean sample, in place of the one that `model_output` stands for. Cosmos' pipelines pass it.
            kwargs: `eta` and `use_clipped_model_output` have no effect; `DDIMPipeline` passes them to every scheduler. The
                scheduler's own `eta` is that of its config.

        Returns:
            [`DDMSchedulerOutput`] or `(prev_sample, pred_original_sample)`, in the higher of the dtypes of `sample` and
            `model_output`.

        Raises:
            ValueError: `set_timesteps` was not called, `timestep` is none of its timesteps, `model_output` has not the shape
                above, or the list of generators has a wrong length. The scheduler stays as it was.
        """
        self._check_step(model_output, sample, generator, kwargs)
        if per_token_timesteps is not None:
            _check(
                isinstance(self.parameterization, FlowMatching) and per_token_timesteps.shape == sample.shape[:2],
                f"of shape {tuple(sample.shape[:2])}, for a flow matching model",
                per_token_timesteps=tuple(per_token_timesteps.shape),
            )
        run, i = self._init_step_index(timestep)
        if prev_timestep is not None and i + 1 < len(run.steps):
            following = self.index_for_timestep(prev_timestep)
            _check(following == i + 1, f"the timestep after {run.values[i]}", prev_timestep=prev_timestep)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        x, (a, b), bridge = at_least_float32(sample), run.scales[i], run.steps[i]
        if per_token_timesteps is not None:
            model_output = -model_output

        if bridge is None:  # from 0 to 0
            x_0, prev_sample = x.clone(), x.clone()
        else:
            if pred_original_sample is None:
                estimate = self.convert_model_output(model_output, x, a, b)
            else:
                x_0 = at_least_float32(pred_original_sample)
                estimate = Estimate(x_0, (x - a * x_0) / b)
            x_0 = estimate.x_0
            x_t = x if run.path_scales[i] == 1 else x * run.path_scales[i]
            if run.solver is None:
                if bridge.t == 1 and not self._predicts_both:  # there is nothing but noise
                    estimate = estimate._replace(noise=x_t)
                increments = self.config.step_form == "increment"
                prev_sample = bridge.increment(x_t, estimate) if increments else bridge.from_noise(estimate)
            else:
                prev_sample = run.solver.step(i, run.steps, x_t, estimate)
            if bridge.std > 0:
                fresh_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                prev_sample = prev_sample.add_(fresh_noise, alpha=bridge.std)
            if run.path_scales[i + 1] != 1:
                prev_sample = prev_sample / run.path_scales[i + 1]
        if per_token_timesteps is not None:
            prev_sample = self._step_tokens(run, i, model_output, x, per_token_timesteps, prev_sample)

        self._step_index = i + 1
        if i + 1 == len(run.steps):
            run.end()
        # the solver keeps the estimate, which a caller may change
        prev_sample, x_0 = prev_sample.to(dtype), x_0.to(dtype, copy=run.solver is not None)
        if not return_dict:
            return (prev_sample, x_0)
        return DDMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def _step_tokens(
        self,
        run: Run,
        index: int,
        model_output: torch.Tensor,
        x: torch.Tensor,
        per_token_timesteps: torch.Tensor,
        prev_sample: torch.Tensor,
    ) -> torch.Tensor:
        """`prev_sample` for the tokens of the run's own timestep, and Euler's step for those at other ones."""
        near = 1e-3  # timesteps that pipelines compute again differ by roundings
        timesteps = at_least_float32(per_token_timesteps)
        following = torch.tensor([*run.values, 0.0], dtype=timesteps.dtype, device=timesteps.device)
        following = torch.where(following < timesteps[..., None] - near, following, 0.0).amax(dim=-1)
        a, b = (scale[..., None] for scale in self.parameterization.scales(timesteps))
        next_a, next_b = (scale[..., None] for scale in self.parameterization.scales(following))
        estimate = self.convert_model_output(model_output, x, a, b)
        own = ((timesteps - run.values[index]).abs() < near)[..., None]
        return torch.where(own, prev_sample, next_a * estimate.x_0 + next_b * estimate.noise)

    def _check_step(self, model_output, sample, generator, unknown) -> None:
        for name in unknown.keys() - {"eta", "use_clipped_model_output"}:
            raise TypeError(f"`step` got an unexpected keyword argument {name!r}.")
        _check(sample.ndim >= 2, "of shape (batch_size, channels, ...)", sample=tuple(sample.shape))
        for name, tensor in (("sample", sample), ("model_output", model_output)):
            if not tensor.is_floating_point():
                raise ValueError(f"`{name}` has the dtype {tensor.dtype}, but has to have a floating point one.")
        quantities = self.parameterization.quantities
        accepted = [(sample.shape[0], n * sample.shape[1], *sample.shape[2:]) for n in quantities]
        if tuple(model_output.shape) not in accepted:
            what, hint = "", ""
            if self._predicts_both:
                what = ": coefficients and noise, concatenated on dim 1"
                if model_output.shape == sample.shape:
                    hint = (
                        " A model that predicts one quantity, such as DDPM's, needs `DDMScheduler.from_config(config)` with"
                        " the config of the scheduler that it was trained with."
                    )
            elif tuple(model_output.shape) == (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:]):
                hint = (
                    " A model that also predicts variances needs the config of a scheduler with `variance_type='learned'` or"
                    " 'learned_range'; a decoupled model needs `prediction_type='decoupled'`."
                )
            raise ValueError(
                f"`model_output` has the shape {tuple(model_output.shape)}, but with"
                f" `prediction_type={self.config.prediction_type!r}` and `attenuation={self.config.attenuation!r}` a"
                f" sample of shape {tuple(sample.shape)} needs {' or '.join(map(str, accepted))}{what}.{hint}"
            )
        if isinstance(generator, list):
            if not all(isinstance(each, torch.Generator) for each in generator):
                raise ValueError(
                    f"`generator` is {generator}, but a list has to have a torch.Generator for each sample."
                )
            if len(generator) != sample.shape[0]:
                raise ValueError(
                    f"`generator` is a list of length {len(generator)}, but the batch has {sample.shape[0]} samples; one"
                    " generator is accepted, or a list of one for each sample."
                )

    @property
    def _predicts_both(self) -> bool:
        """Whether the model predicts image and noise as two outputs."""
        return isinstance(self.parameterization, Decoupled)

    # ------------------------------------------------------------------------------------------------ the forward process
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
            timesteps (`torch.Tensor`, 0-d or of shape `(1,)` or `(batch_size,)`):
                In [0, num_train_timesteps], or those of the other model. Not checked on a device.
            attenuation (`torch.Tensor`, *optional*):
                What [`~DDMScheduler.get_attenuation`] returned. Needed for linear attenuation, whose slope is random.

        Returns:
            `torch.Tensor` of the shape and dtype of `original_samples`.

        Raises:
            ValueError: A shape or a timestep is not as above, or `attenuation` is missing.
        """
        _check(
            noise.shape == original_samples.shape,
            f"the shape of the samples, {tuple(original_samples.shape)}",
            noise=tuple(noise.shape),
        )
        timesteps = torch.as_tensor(timesteps, device=original_samples.device)
        # none, of a pipeline whose strength leaves no step, gives no samples, as in diffusers
        _check(
            timesteps.ndim == 0 or timesteps.shape in ((0,), (1,), original_samples.shape[:1]),
            f"0-d or of shape (1,) or ({original_samples.shape[0]},)",
            timesteps=tuple(timesteps.shape),
        )
        self.parameterization.check_timesteps(timesteps)
        if attenuation is None and self.config.attenuation == "linear":
            raise ValueError(
                "`attenuation` is None, but linear attenuation needs the coefficients that `get_attenuation` drew."
            )
        if attenuation is not None:
            channels = self.process.num_coefficients * original_samples.shape[1]
            expected = (original_samples.shape[0], channels, *original_samples.shape[2:])
            _check(tuple(attenuation.shape) == expected, f"of shape {expected}", attenuation=tuple(attenuation.shape))
        noisy = self.parameterization.add_noise(original_samples, noise, timesteps, attenuation)
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """[`~DDMScheduler.add_noise`] by the name and in the order of diffusers' schedulers for flow matching."""
        return self.add_noise(sample, noise, timestep)

    def __copy__(self) -> "DDMScheduler":
        """A scheduler in the same state whose steps leave no trace in this one."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._runs = [replace(run, solver=copy.copy(run.solver)) for run in self._runs]
        return new

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _is_index(value, lowest: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= lowest


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check(accepted: bool, what: str, **argument) -> None:
    if not accepted:
        ((name, value),) = argument.items()
        raise ValueError(f"`{name}` is {value!r}, but has to be {what}.")
