# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
How a model mixes image and noise, and what its output says about them.

Every model here sees `x = a x_0 + b eps` at its timestep. The decoupled process has a time `t` with
`alpha_t : sigma_t = a : b`, where its state is `x` up to a factor. So [`DDMScheduler`] takes its steps on the decoupled path
and asks each model at the model's own timestep and scale.

A scale is a float for one step of a sampler, or a tensor that broadcasts against the samples.
"""

import inspect
import math
from collections.abc import Collection, Sequence

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import DummyObject

from ..process import DecoupledProcess, at_least_float32, broadcast_time
from .multistep import Estimate, time_change


Scale = float | torch.Tensor
Given = Sequence[float] | torch.Tensor | None
Levels = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # timesteps, a, b

VP_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# The schedulers of diffusers whose models are understood. Others are refused: those of distilled models (LCM, TCD, SCM), of
# inversion and inpainting (DDIMInverse, RePaint), of discrete data, and those that are newer than this list.
KNOWN_SCHEDULERS = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
)


class Parameterization:
    """
    What all ways to mix image and noise answer. `scales`, `timesteps_at`, `estimate` and `output` are each one's own.

    Attributes:
        init_noise_sigma (`float`): The standard deviation of the samples that a run starts from.
        quantities (`tuple[int, ...]`): How many times the channels of a sample a model output may have.
        all_timesteps (`torch.Tensor`): The timesteps before `set_timesteps` is called, falling.
        timestep_range (`tuple[float, float]`): The lowest and the highest timestep that the model knows.
    """

    init_noise_sigma: float = 1.0
    quantities: tuple[int, ...] = (1,)
    all_timesteps: torch.Tensor
    timestep_range: tuple[float, float]

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(a, b)` at timesteps of any shape, in float32 or better, on their device."""
        raise NotImplementedError

    def timesteps_at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The timesteps with this `a : b`: the inverse of `scales`, which counts only the ratio."""
        raise NotImplementedError

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: Scale, b: Scale) -> Estimate:
        """Clean sample and noise that the model output stands for at `x = a x_0 + b eps`."""
        raise NotImplementedError

    def output(self, x_0: torch.Tensor, noise: torch.Tensor, a: Scale, b: Scale) -> torch.Tensor:
        """The output of a model that sees this clean sample and this noise: the inverse of `estimate`."""
        raise NotImplementedError

    def scale_input(self, x: torch.Tensor, b: Scale) -> torch.Tensor:
        """The model's input at the sample `x`."""
        return x

    def undo_scale_input(self, model_input: torch.Tensor, b: Scale) -> torch.Tensor:
        """The sample of a model's input: the inverse of `scale_input`."""
        return model_input

    def add_noise(
        self, x_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, coefficients: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`a x_0 + b eps` at timesteps that are 0-d or of shape `(batch_size,)`, in float32 or better."""
        a, b = (broadcast_time(scale, x_0) for scale in self.scales(timesteps))
        return a * at_least_float32(x_0) + b * at_least_float32(noise)

    def uniform_timesteps(self, num_steps: int) -> torch.Tensor:
        """Equal steps in the model's own timesteps, diffusers' `timestep_spacing="trailing"`, in float64."""
        lowest, highest = self.timestep_range
        return highest - torch.arange(num_steps, dtype=torch.float64) * (highest - lowest) / num_steps

    def discretize(self, times: Sequence[float], process: DecoupledProcess, mu: float | None = None) -> Levels:
        """`(timesteps, a, b)` at falling times of the decoupled process; the timesteps in the dtype that the model is told."""
        _refuse(mu=mu)
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        a, b = process.alpha(t), process.sigma(t)
        return self.timesteps_at(a, b).float(), a, b

    def check_timesteps(self, timesteps: torch.Tensor) -> None:
        """That timesteps are in the model's range."""
        check_range("timesteps", timesteps, *self.timestep_range)

    def custom(self, timesteps: Given, sigmas: Given, mu: float | None) -> Levels:
        """`(timesteps, a, b)` for the timesteps or noise levels that a caller gives."""
        _refuse(sigmas=sigmas, mu=mu)
        given = _falling("timesteps", timesteps, self.timestep_range, includes_low=False)
        return given.float(), *self.scales(given)


class Decoupled(Parameterization):
    """
    A model of the decoupled process (arXiv 2306.13720): attenuation coefficients and noise, concatenated on dim 1.

    Args:
        process ([`~process.DecoupledProcess`]): The process.
        num_train_timesteps (`int`): The timestep at t = 1.
        clip_slope (`bool`): Whether to clip the slope of linear attenuation to [-1, 1], from which training draws it.
        keep_coefficients (`bool`):
            Whether an estimate has the predicted coefficients of constant attenuation, and not `None` for `c = -x_0`.
    """

    def __init__(
        self,
        process: DecoupledProcess,
        num_train_timesteps: int,
        clip_slope: bool = False,
        keep_coefficients: bool = False,
    ):
        self.process, self.num_train_timesteps, self.clip_slope = process, num_train_timesteps, clip_slope
        self.keep_coefficients = keep_coefficients
        self.quantities = (process.num_coefficients + 1,)
        self.all_timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32, device="cpu")
        self.timestep_range = (0, num_train_timesteps)

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = at_least_float32(timesteps) / self.num_train_timesteps
        return self.process.alpha(t), self.process.sigma(t)

    def timesteps_at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.process.time(a, b) * self.num_train_timesteps

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: Scale, b: Scale) -> Estimate:
        channels, t = x.shape[1], self.process.time(a, b)
        coefficients, noise = output[:, :-channels], output[:, -channels:]
        if self.process.attenuation == "constant":
            x_0 = self.process.predict_x0(x, coefficients, noise, t)
            return Estimate(x_0, noise, at_least_float32(coefficients) if self.keep_coefficients else None)
        if self.clip_slope:
            k, c = coefficients.chunk(2, dim=1)
            coefficients = torch.cat([k.clamp(-1, 1), c], dim=1)
        return Estimate(self.process.predict_x0(x, coefficients, noise, t), noise, coefficients)

    def output(self, x_0: torch.Tensor, noise: torch.Tensor, a: Scale, b: Scale) -> torch.Tensor:
        return torch.cat([self.process.coefficients(x_0, torch.zeros_like(x_0)), noise], dim=1)

    def add_noise(
        self, x_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, coefficients: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.process.marginal(x_0, coefficients, noise, at_least_float32(timesteps) / self.num_train_timesteps)


class VariancePreserving(Parameterization):
    """
    `a^2 + b^2 = 1` with `a^2 = alphas_cumprod` at whole timesteps: DDPM (arXiv 2006.11239) and its kind.

    Args:
        alphas_cumprod (sequence of `float`): At all timesteps, rising; as the scheduler has them.
        prediction_type (`"epsilon"`, `"sample"` or `"v_prediction"`): What the model returns.
        learned_variance (`bool`): Whether the model may also return variances, in as many channels after the others.

    Raises:
        ValueError: The model would have to tell the image from its noise where there is no image.
    """

    def __init__(self, alphas_cumprod: Sequence[float], prediction_type: str, learned_variance: bool = False):
        if prediction_type not in VP_PREDICTION_TYPES:
            raise ValueError(f"`prediction_type` is {prediction_type!r}, but has to be one of {VP_PREDICTION_TYPES}.")
        self.prediction_type = prediction_type
        self.quantities = (1, 2) if learned_variance else (1,)
        alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        if prediction_type == "epsilon" and alphas_cumprod[-1] == 0:
            raise ValueError(
                "`rescale_betas_zero_snr` is True, but has to be False with `prediction_type='epsilon'`: at the last"
                " timestep the noise says nothing about the image."
            )
        self.a, self.b = alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()
        # log(a / b) at whole timesteps, falling; -30 stands for no image, where a / b is 0
        self.half_log_snr = (alphas_cumprod.logit() / 2).clamp_min(-30)
        self.all_timesteps = torch.arange(len(self.a) - 1, -1, -1, device="cpu")
        self.timestep_range = (0, len(self.a) - 1)

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact at whole timesteps. Between them `log(a / b)` is linear, as in k-diffusion's samplers."""
        dtype = torch.promote_types(timesteps.dtype, torch.float32)
        timesteps = timesteps.to(dtype).clamp(0, len(self.a) - 1)
        below, above = timesteps.floor(), timesteps.ceil()
        tables = torch.tensor([self.a, self.b, self.half_log_snr.tolist()], dtype=dtype, device=timesteps.device)
        a, b, lower = tables[:, below.long()]
        fraction = timesteps - below
        half_log_snr = lower + fraction * (tables[2, above.long()] - lower)
        whole = fraction == 0
        return (
            torch.where(whole, a, (2 * half_log_snr).sigmoid() ** 0.5),
            torch.where(whole, b, (-2 * half_log_snr).sigmoid() ** 0.5),
        )

    def timesteps_at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rising = -self.half_log_snr.to(a.dtype).to(a.device)  # in this order: MPS has no float64
        wanted = (b.log() - a.log()).clamp(rising[0], rising[-1])
        above = torch.searchsorted(rising, wanted).clamp(1, len(self.a) - 1)
        return above - 1 + (wanted - rising[above - 1]) / (rising[above] - rising[above - 1])

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: Scale, b: Scale) -> Estimate:
        output = output[:, : x.shape[1]]  # the mean part, where variances are learned
        if self.prediction_type == "epsilon":
            return Estimate((x - b * output) / a, output)
        if self.prediction_type == "sample":
            return Estimate(output, (x - a * output) / b)
        # v = a eps - b x_0 (arXiv 2202.00512)
        return Estimate(a * x - b * output, a * output + b * x)

    def output(self, x_0: torch.Tensor, noise: torch.Tensor, a: Scale, b: Scale) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return noise
        return x_0 if self.prediction_type == "sample" else a * noise - b * x_0

    def uniform_timesteps(self, num_steps: int) -> torch.Tensor:
        T = len(self.a)
        return (T - torch.arange(num_steps, dtype=torch.float64) * T / num_steps).round() - 1

    def discretize(self, times: Sequence[float], process: DecoupledProcess, mu: float | None = None) -> Levels:
        """
        The whole timesteps nearest to the times. No timestep occurs twice.

        A run starts from pure noise, and so does its first timestep, but not for a model that predicts noise: at the last
        timestep its output says little about the image, and dividing by `a` makes much of its error. It is asked in the
        middle of the first step, in the measure `d(a / b)` in which the reverse process is linear.
        """
        _refuse(mu=mu)
        T = len(self.a)
        if len(times) > T:
            raise ValueError(f"`num_inference_steps` is {len(times)}, but has to be at most {T}.")
        times = list(times)
        if self.prediction_type == "epsilon" and len(times) > 1:
            times[0] = process.time(process.alpha(times[1]) / process.sigma(times[1]) / 2, 1.0)
        # nearest in the standard deviation of the noise on the path of the standard Wiener process
        own = torch.tensor([DecoupledProcess().time(a, b) ** 0.5 for a, b in zip(self.a, self.b, strict=True)])
        wanted = torch.tensor([time_change(process, t) ** 0.5 for t in times])
        timesteps = []
        for i, nearest in enumerate((own - wanted[:, None]).abs().argmin(dim=1).tolist()):
            highest = timesteps[-1] - 1 if timesteps else T - 1
            timesteps.append(min(max(nearest, len(times) - 1 - i), highest))
        chosen = torch.tensor(timesteps)
        return chosen, *self.scales(chosen.double())

    def custom(self, timesteps: Given, sigmas: Given, mu: float | None) -> Levels:
        _refuse(sigmas=sigmas, mu=mu)
        given = _falling("timesteps", timesteps, self.timestep_range, whole=True).long()
        return given, *self.scales(given.double())


class VarianceExploding(Parameterization):
    """
    `x = x_0 + sigma eps` with the preconditioning of EDM (arXiv 2206.00364, table 1): EDM, Stable Video Diffusion, Cosmos
    and the models of k-diffusion.

    The model sees `c_in x` and the timestep `c_noise(sigma)`, and its output is `F` in `x_0 = c_skip x + c_out F`.

    Args:
        sigma_min, sigma_max (`float`): The noise levels that the model knows; a run starts from `sigma_max`.
        sigma_data (`float`, *optional*):
            The standard deviation of the data. `None` is for a function of `(x, sigma)` that returns the clean sample, as
            k-diffusion wraps its models: no scaling, and `c_noise(sigma) = sigma`.
        prediction_type (`"epsilon"` or `"v_prediction"`):
            The sign of `c_out`, as in [`~diffusers.EDMEulerScheduler`]: + or -.
        c_noise (`"log"` or `"atan"`): `log(sigma) / 4`, EDM's, or `2 / pi atan(sigma)`, that of Stable Audio.
        scheduler (scheduler of diffusers, *optional*): Turns the `sigmas` that a caller gives into noise levels.
    """

    def __init__(
        self,
        sigma_min: float,
        sigma_max: float,
        sigma_data: float | None = None,
        prediction_type: str = "epsilon",
        c_noise: str = "log",
        scheduler=None,
    ):
        self.sigma_min, self.sigma_max, self.sigma_data, self.scheduler = sigma_min, sigma_max, sigma_data, scheduler
        self.init_noise_sigma = sigma_max
        self.sign = -1 if prediction_type == "v_prediction" else 1
        self.c_noise = c_noise
        exponents = torch.linspace(math.log(sigma_max), math.log(sigma_min), 1000, dtype=torch.float64, device="cpu")
        self.all_timesteps = self.timesteps_at(torch.ones_like(exponents), exponents.exp()).float()
        self.timestep_range = (float(self.all_timesteps[-1]), float(self.all_timesteps[0]))

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = at_least_float32(timesteps)
        if self.sigma_data is None:
            sigma = timesteps
        else:
            sigma = (timesteps * 4).exp() if self.c_noise == "log" else (timesteps * (math.pi / 2)).tan()
        return torch.ones_like(sigma), sigma

    def timesteps_at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sigma = (b / a).clamp_max(self.sigma_max)
        if self.sigma_data is None:
            return sigma
        return sigma.log() / 4 if self.c_noise == "log" else sigma.atan() * (2 / math.pi)

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: Scale, b: Scale) -> Estimate:
        c_skip, c_out = self._output_scales(b)
        x_0 = output if self.sigma_data is None else c_skip * x + c_out * output
        return Estimate(x_0, (x - x_0) / b)

    def output(self, x_0: torch.Tensor, noise: torch.Tensor, a: Scale, b: Scale) -> torch.Tensor:
        c_skip, c_out = self._output_scales(b)
        return (x_0 - c_skip * (x_0 + b * noise)) / c_out

    def scale_input(self, x: torch.Tensor, b: Scale) -> torch.Tensor:
        return x if self.sigma_data is None else x / (b**2 + self.sigma_data**2) ** 0.5

    def undo_scale_input(self, model_input: torch.Tensor, b: Scale) -> torch.Tensor:
        return model_input if self.sigma_data is None else model_input * (b**2 + self.sigma_data**2) ** 0.5

    def discretize(self, times: Sequence[float], process: DecoupledProcess, mu: float | None = None) -> Levels:
        timesteps, a, b = super().discretize(times, process, mu)
        return timesteps, torch.ones_like(a), (b / a).clamp_max(self.sigma_max)

    def check_timesteps(self, timesteps: torch.Tensor) -> None:
        """Training draws noise levels outside of those of sampling."""

    def _output_scales(self, sigma: Scale) -> tuple[Scale, Scale]:
        if self.sigma_data is None:
            return 0.0, 1.0
        variance = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, self.sign * sigma * self.sigma_data / variance**0.5

    def custom(self, timesteps: Given, sigmas: Given, mu: float | None) -> Levels:
        _refuse(mu=mu)
        if timesteps is not None:
            given = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu")
            levels = self.scales(given)[1]
        elif self.scheduler is None:
            levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        else:
            self.scheduler.set_timesteps(sigmas=torch.as_tensor(sigmas, device="cpu"))
            levels = self.scheduler.sigmas[:-1].double()
        given = timesteps if sigmas is None else sigmas
        levels = _falling("sigmas", levels, (0, math.inf), includes_low=False, given=given)
        ones = torch.ones_like(levels)
        return self.timesteps_at(ones, levels).float(), ones, levels


class FlowMatching(Parameterization):
    """
    `a = 1 - sigma`, `b = sigma`, the straight line of flow matching (arXiv 2210.02747), and its velocity `eps - x_0`.

    Args:
        scheduler ([`~diffusers.FlowMatchEulerDiscreteScheduler`]): Places and shifts the noise levels.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler):
        if scheduler.config.get("invert_sigmas"):
            raise ValueError("`invert_sigmas` is True, but has to be False: noise has to fall along the timesteps.")
        self.scheduler = scheduler
        self.num_train_timesteps = scheduler.config.num_train_timesteps
        self.all_timesteps = scheduler.timesteps.clone()
        self.timestep_range = (0, self.num_train_timesteps)

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = at_least_float32(timesteps) / self.num_train_timesteps
        return 1 - sigma, sigma

    def timesteps_at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return b / (a + b) * self.num_train_timesteps

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: Scale, b: Scale) -> Estimate:
        return Estimate(x - b * output, x + a * output)

    def output(self, x_0: torch.Tensor, noise: torch.Tensor, a: Scale, b: Scale) -> torch.Tensor:
        return noise - x_0

    def discretize(self, times: Sequence[float], process: DecoupledProcess, mu: float | None = None) -> Levels:
        """The noise levels of the times, shifted as the model needs it."""
        line = DecoupledProcess(noise_schedule="linear")
        return self.custom(None, [line.time(process.alpha(t), process.sigma(t)) for t in times], mu)

    def custom(self, timesteps: Given, sigmas: Given, mu: float | None) -> Levels:
        """Timesteps are taken as they are, noise levels are shifted; given both, the model is told the timesteps."""
        T = self.num_train_timesteps
        if timesteps is not None:
            timesteps = _falling("timesteps", timesteps, (0, T), includes_low=sigmas is not None)
        if sigmas is None:
            return timesteps.float(), *self.scales(timesteps)
        given = list(sigmas)
        # a last level of 0 is the clean sample, which no shift moves
        ends_clean = len(given) > 1 and given[-1] == 0
        self.scheduler.set_timesteps(sigmas=given[:-1] if ends_clean else given, mu=mu)
        levels = self.scheduler.sigmas[:-1].double().cpu()
        # in float32, a shift may exceed 1 by a rounding
        levels = torch.where(levels < 1 + 1e-6, levels.clamp(max=1), levels)
        if ends_clean:
            levels = torch.cat([levels, levels.new_zeros(1)])
        levels = _falling("sigmas", levels, (0, 1), includes_low=ends_clean, given=sigmas)
        if timesteps is None:
            timesteps = levels * T
        elif len(timesteps) != len(levels):
            raise ValueError(
                f"`timesteps` has {len(timesteps)} entries and `sigmas` {len(levels)}, but they have to be equally many."
            )
        return timesteps.float(), 1 - levels, levels


def parameterization_of(config: dict) -> Parameterization:
    """
    The parameterization of a model of another process, from the numbers of the scheduler that it was trained with.

    Args:
        config (`dict`): A config of [`DDMScheduler`], with the options of that scheduler, as [`adopt_config`] makes it.

    Raises:
        ValueError: The options describe a process that is not understood.
    """
    prediction_type = config["prediction_type"]
    if prediction_type == "flow_prediction":
        # Cosmos 2 drives FlowMatchEulerDiscreteScheduler with the noise levels of x_0 + sigma eps
        if config.get("sigma_max") and config["sigma_max"] > 1:
            raise ValueError(
                f"`sigma_max` is {config['sigma_max']}, but the noise levels of flow matching are in (0, 1]: the pipeline uses"
                " its scheduler for another process."
            )
        # other options of schedulers with `use_flow_sigmas` belong to their solver
        names = ("num_train_timesteps", "shift") if config.get("use_flow_sigmas") else config.keys()
        return FlowMatching(make_scheduler("FlowMatchEulerDiscreteScheduler", {name: config[name] for name in names}))
    name = config.get("trained_with") or "DDPMScheduler"
    scheduler = make_scheduler(name, config)
    if config.get("use_flow_sigmas"):
        raise ValueError(
            f"`prediction_type` is {prediction_type!r} and `use_flow_sigmas` is True. If the model predicts a velocity, set"
            " `prediction_type='flow_prediction'` in the config; other models of that path are not understood."
        )
    # Stable Video Diffusion's is EDM's preconditioning, in diffusers' scheduler for DDPM's models
    continuous = config.get("timestep_type") == "continuous" and prediction_type == "v_prediction"
    if "sigma_data" in scheduler.config or continuous:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"`prediction_type` is {prediction_type!r}, but has to be 'epsilon' or 'v_prediction'.")
        sigmas = scheduler.sigmas[scheduler.sigmas > 0]
        return VarianceExploding(
            scheduler.config.get("sigma_min") or float(sigmas.min()),
            scheduler.config.get("sigma_max") or float(sigmas.max()),
            scheduler.config.get("sigma_data", 1.0),
            prediction_type,
            "atan" if name == "CosineDPMSolverMultistepScheduler" else "log",
            scheduler,
        )
    learned_variance = config.get("variance_type") in ("learned", "learned_range")
    return VariancePreserving(scheduler.alphas_cumprod, prediction_type, learned_variance)


def from_scheduler(scheduler) -> Parameterization:
    """The parameterization of the models that a scheduler of diffusers samples; see [`adopt_config`] for errors."""
    return parameterization_of(adopt_config({**scheduler.config, "_class_name": type(scheduler).__name__}, ()))


def adopt_config(config: dict, own_options: Collection[str]) -> dict:
    """
    The config of another scheduler as one for [`DDMScheduler`], which means the same.

    `ConfigMixin.from_config` drops what the other scheduler has left at its default and fills in its own. Here the other
    one's defaults are spelled out, so that nothing changes its meaning, on the way back either.

    Args:
        config (`dict`): A scheduler's config. That of a [`DDMScheduler`] is returned as it is.
        own_options (collection of `str`): The options of [`DDMScheduler`].

    Raises:
        ValueError: The scheduler is none of `KNOWN_SCHEDULERS`, or its keys do not tell which one it is.
    """
    if not isinstance(config, dict):
        raise ValueError(
            f"`config` is a {type(config).__name__}, but has to be a dict, such as `pipe.scheduler.config`."
        )
    name = config.get("_class_name")
    name = name[-1] if isinstance(name, (list, tuple)) else name
    if name == "DDMScheduler" or "attenuation" in config:
        return config
    config = {key: value for key, value in config.items() if key != "_use_default_values"}
    if name is None:
        name = _recognize(config, own_options)
        if name is None:
            return config
    theirs = make_scheduler(name, config).config
    adopted = {**{key: value for key, value in theirs.items() if not key.startswith("_")}, **config}
    # what the other one has no option for, it does not do
    adopted = {"clip_sample": False, "prediction_type": "epsilon", **adopted, "trained_with": name}
    if name.startswith("FlowMatch"):
        adopted |= {"clip_sample": False, "prediction_type": "flow_prediction"}
    elif adopted.get("use_flow_sigmas"):
        adopted["shift"] = adopted["flow_shift"]
    return adopted


def make_scheduler(name: str, config: dict):
    """The scheduler of diffusers with this class name, from a config that may have other keys as well."""
    if name not in KNOWN_SCHEDULERS:
        raise ValueError(f"`config` is that of a {name}, but {_accepted()}")
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None or isinstance(scheduler_class, DummyObject):
        raise ValueError(
            f"`config` is that of a {name}, but this installation of diffusers cannot make one; the page of that scheduler in"
            " the documentation of diffusers names the package that it needs."
        )
    options = inspect.signature(scheduler_class.__init__).parameters
    with torch.device("cpu"):  # whatever device a caller has made the default
        return scheduler_class(**{key: config[key] for key in options if key in config})


def _recognize(config: dict, own_options: Collection[str]) -> str | None:
    """
    The class of diffusers whose config has these keys, `None` for [`DDMScheduler`]. Only a config from a file names its
    class; one that went through several schedulers has the keys of all.
    """
    keys = {key for key in config if not key.startswith("_")}
    options = {}
    for name in dir(diffusers):
        if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers, name)):
            options[name] = inspect.signature(getattr(diffusers, name).__init__).parameters.keys() - {"self", "kwargs"}
    candidates = [name for name in options if options[name] == keys]
    if not candidates and keys <= set(own_options):
        if "prediction_type" not in keys and any("beta" in key for key in keys):
            raise ValueError(
                f"`config` is {config}, but betas need a `prediction_type` or the `_class_name` of a scheduler."
            )
        return None
    if not candidates:
        inside = [name for name in options if options[name] < keys]
        candidates = [name for name in inside if not any(options[name] < options[other] for other in inside)]
    unknown = [name for name in candidates if name not in KNOWN_SCHEDULERS]
    if not candidates:
        raise ValueError(f"`config` is {config}, but {_accepted()}")
    if len(unknown) == len(candidates):
        raise ValueError(f"`config` is that of {' or '.join(unknown)}, but {_accepted()}")
    if unknown or not _agree(candidates, config):
        raise ValueError(
            f"`config` may be that of any of {candidates}, whose models differ. Name the class of the scheduler:"
            " `DDMScheduler.from_config({**config, '_class_name': type(scheduler).__name__})`."
        )
    return min(candidates, key=len)  # DDIMScheduler, not DDIMParallelScheduler


def _agree(names: Sequence[str], config: dict) -> bool:
    """Whether schedulers sample the same models."""
    found = [parameterization_of(adopt_config({**config, "_class_name": name}, ())) for name in names]
    return all(type(each) is type(found[0]) and vars(each).get("a") == vars(found[0]).get("a") for each in found)


def check_range(name: str, timesteps: torch.Tensor, low: float, high: float) -> None:
    """
    That timesteps are in [low, high]. On a device they are not looked at, which would wait for it, nor in a compiled graph,
    nor where a subclass may hold no numbers, as in FakeTensorMode.
    """
    if type(timesteps) is not torch.Tensor or timesteps.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if timesteps.numel() == 0:
        return
    if not (timesteps.min() >= low and timesteps.max() <= high):
        raise ValueError(f"`{name}` is {timesteps.tolist()}, but has to be in [{low}, {high}].")


def _accepted() -> str:
    return (
        "has to be that of a DDMScheduler or of one of these schedulers of diffusers, whose models are understood:"
        f" {', '.join(KNOWN_SCHEDULERS)}. Other models, such as distilled ones, need their own scheduler."
    )


def _refuse(**arguments) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` is {value}, but has to be None without `prediction_type='flow_prediction'`.")


def _falling(
    name: str,
    values: Sequence[float],
    bounds: tuple[float, float],
    whole: bool = False,
    includes_low: bool = True,
    given: Sequence[float] | None = None,
) -> torch.Tensor:
    """Values that are strictly falling within bounds, as float64 on the CPU."""
    low, high = bounds
    tensor = torch.as_tensor(values, device="cpu")
    is_whole = not tensor.is_floating_point()
    tensor = tensor.double()
    # in the precision that the model is told them
    falling = tensor.ndim == 1 and len(tensor) > 0 and bool((tensor.float().diff() < 0).all())
    inside = falling and bool(tensor[0] <= high) and bool(tensor[-1] >= low if includes_low else tensor[-1] > low)
    if not inside or (whole and not is_whole):
        kind = "whole numbers" if whole else "numbers"
        shown = values if given is None else given
        raise ValueError(
            f"`{name}` is {shown}, but has to be strictly falling {kind} in {'[' if includes_low else '('}{low}, {high}]."
        )
    return tensor
