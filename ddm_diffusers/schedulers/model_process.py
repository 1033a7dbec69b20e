# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The processes that other models were trained on, as [`DDMScheduler`] needs them to walk the decoupled path.

Every one of them mixes image and noise as `x = a x_0 + b eps`, so its states and those of the decoupled process are the
same up to a factor wherever `a / b = alpha_t / sigma_t`. A model is asked at its own timestep and its own scale; the step
between two states is the decoupled one.
"""

import inspect
from collections.abc import Collection, Sequence

import diffusers
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ..process import DecoupledProcess, at_least_float32, broadcast_time


FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

# How much of image and noise a state holds, `(a, b)`
Scales = tuple[float, float]


class VariancePreservingProcess:
    """
    `a^2 + b^2 = 1`, with `a^2 = alphas_cumprod` at whole timesteps: models of DDPM (arXiv 2006.11239) and its kind.

    Args:
        prediction_type (`"epsilon"`, `"sample"` or `"v_prediction"`): What the model returns.
        config (`dict`): Options of [`~diffusers.DDPMScheduler`] that describe the betas and the thresholding.

    Raises:
        ValueError: the model would have to tell the image from its noise where there is no image.
    """

    def __init__(self, prediction_type: str, config: dict):
        self.prediction_type = prediction_type
        # the betas of every `beta_schedule`, and the dynamic thresholding, are that scheduler's
        self.scheduler = DDPMScheduler(**config)
        alphas_cumprod = self.scheduler.alphas_cumprod.double()
        self.a, self.b = alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()
        if prediction_type == "epsilon" and self.a[-1] == 0:
            raise ValueError(
                "`rescale_betas_zero_snr` is True, but has to be False with `prediction_type='epsilon'`: at the last"
                " timestep the noise says nothing about the image."
            )

    @property
    def all_timesteps(self) -> torch.Tensor:
        """All timesteps of the model, falling."""
        return torch.arange(len(self.a) - 1, -1, -1)

    def discretize(
        self, times: list[float] | None, process: DecoupledProcess, timesteps: Sequence[int] | None, **unknown
    ) -> tuple[torch.Tensor, list[Scales]]:
        """
        The model's timesteps nearest to times of the decoupled process, or the given ones, and their scales.

        Where the process starts, at pure noise, the first is the model's last timestep. But for models that predict noise:
        little of it tells them the image there, and dividing by `a` makes much of their error. They are asked in the middle
        of the first step, in the measure `d(a / b)` in which the reverse process is linear, where a midpoint rule would
        ask; the state is pure noise all the same. No timestep occurs twice.
        """
        _refuse(unknown, "a scheduler with `prediction_type='flow_prediction'`")
        T = len(self.a)
        if timesteps is None:
            if len(times) > T:
                raise ValueError(f"`num_inference_steps` is {len(times)}, but has to be at most {T}.")
            times = list(times)
            if self.prediction_type == "epsilon" and len(times) > 1:
                times[0] = process.time(process.alpha(times[1]) / process.sigma(times[1]) / 2, 1.0)
            # in the standard deviation of the noise on the path of the standard Wiener process
            own = torch.tensor([DecoupledProcess().time(a, b) ** 0.5 for a, b in zip(self.a, self.b, strict=True)])
            wanted = torch.tensor([process.clock(t) ** 0.5 for t in times])
            nearest = (own - wanted[:, None]).abs().argmin(dim=1).tolist()
            timesteps = []
            for i, index in enumerate(nearest):
                highest = timesteps[-1] - 1 if timesteps else T - 1
                timesteps.append(min(max(index, len(times) - 1 - i), highest))
        else:
            given = torch.as_tensor(timesteps, device="cpu")
            falling = given.ndim == 1 and len(given) > 0 and bool((given.diff() < 0).all())
            if not (falling and not given.is_floating_point() and 0 <= given[-1] and given[0] < T):
                raise ValueError(
                    f"`timesteps` is {timesteps}, but has to be strictly falling whole numbers in [0, {T - 1}]."
                )
            timesteps = given.tolist()
        return torch.tensor(timesteps), [(self.a[k], self.b[k]) for k in timesteps]

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean sample and the noise that the output stands for at `x = a x_0 + b eps`."""
        if self.prediction_type == "epsilon":
            return (x - b * output) / a, output
        if self.prediction_type == "sample":
            return output, (x - a * output) / b
        # v = a eps - b x_0 (arXiv 2202.00512)
        return a * x - b * output, a * output + b * x

    def prediction(self, x_0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """What a model returns that sees this clean sample and this noise: the inverse of `estimate`."""
        return {"epsilon": noise, "sample": x_0}.get(self.prediction_type, a * noise - b * x_0)

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`a` and `b` at timesteps of any kind; between whole ones `log(a / b)` is linear, as in k-diffusion's samplers."""
        half_log_snr = (
            torch.tensor(self.a, dtype=torch.float64).log() - torch.tensor(self.b, dtype=torch.float64).log()
        )
        half_log_snr = half_log_snr.to(device=timesteps.device, dtype=timesteps.dtype)
        below = timesteps.floor().clamp(0, len(self.a) - 1)
        above = timesteps.ceil().clamp(0, len(self.a) - 1)
        lower, upper = half_log_snr[below.long()], half_log_snr[above.long()]
        # -infinity at the last timestep, where there may be no image, does not survive a subtraction from itself
        half_log_snr = torch.where(below == above, lower, lower + (timesteps - below) * (upper - lower))
        return (2 * half_log_snr).sigmoid() ** 0.5, (-2 * half_log_snr).sigmoid() ** 0.5

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(original_samples, noise, timesteps)

    def threshold(self, x_0: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding (arXiv 2205.11487)."""
        return self.scheduler._threshold_sample(x_0)


class FlowProcess:
    """
    `a = 1 - sigma`, `b = sigma`, the straight line of flow matching: the models of Stable Diffusion 3, Flux, Sana.

    Args:
        config (`dict`): Options of [`~diffusers.FlowMatchEulerDiscreteScheduler`], which places the noise levels.
    """

    def __init__(self, config: dict):
        options = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
        self.scheduler = FlowMatchEulerDiscreteScheduler(**{key: config[key] for key in options if key in config})

    @property
    def all_timesteps(self) -> torch.Tensor:
        """All timesteps of the model, falling."""
        return self.scheduler.timesteps.clone()

    def discretize(
        self,
        times: list[float] | None,
        process: DecoupledProcess,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> tuple[torch.Tensor, list[Scales]]:
        """
        The timesteps at times of the decoupled process or at the given `sigmas`, both shifted as the model wants it, or
        at the given timesteps, which are not, and their scales.
        """
        T = self.scheduler.config.num_train_timesteps
        if timesteps is not None:
            levels = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu") / T
            name, highest, given = "timesteps", T, timesteps
        else:
            if sigmas is None:
                line = DecoupledProcess(noise_schedule="linear")
                sigmas = [line.time(process.alpha(t), process.sigma(t)) for t in times]
            self.scheduler.set_timesteps(sigmas=list(sigmas), mu=mu)
            levels = self.scheduler.sigmas[:-1].double()
            name, highest, given = "sigmas", 1, sigmas
        falling = levels.ndim == 1 and len(levels) > 0 and bool((levels.diff() < 0).all())
        # a shift in float32 may exceed 1 by a rounding
        if not (falling and levels[0] < 1 + 1e-6 and levels[-1] > 0):
            raise ValueError(f"`{name}` is {given}, but has to be strictly falling numbers in (0, {highest}].")
        levels = levels.clamp(max=1)
        return (levels * T).float(), [(1 - sigma, sigma) for sigma in levels.tolist()]

    def estimate(self, output: torch.Tensor, x: torch.Tensor, a: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean sample and the noise that the velocity `eps - x_0` stands for at `x = a x_0 + b eps`."""
        return x - b * output, x + a * output

    def prediction(self, x_0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """What a model returns that sees this clean sample and this noise: the inverse of `estimate`."""
        return noise - x_0

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`a` and `b` at timesteps of any kind."""
        sigma = timesteps / self.scheduler.config.num_train_timesteps
        return 1 - sigma, sigma

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        a, b = self.scales(at_least_float32(timesteps).to(original_samples.device))
        a, b = broadcast_time(a, original_samples), broadcast_time(b, original_samples)
        return (a * original_samples + b * noise).to(original_samples.dtype)


def adopt_config(config: dict, own_options: Collection[str]) -> dict:
    """
    The config of another scheduler as one for [`DDMScheduler`], which means the same.

    `ConfigMixin.from_config` drops what the other scheduler has left at its default and fills in its own. Here the other
    one's defaults are spelled out, so that nothing changes its meaning, on the way back either.

    Args:
        config (`dict`): A scheduler's config. That of a [`DDMScheduler`] is returned as it is.
        own_options (collection of `str`): The options of [`DDMScheduler`].

    Raises:
        ValueError: the config is that of a scheduler whose models [`DDMScheduler`] does not know.
    """
    # only a config that was loaded from a file names its class
    name = config.get("_class_name")
    name = name[-1] if isinstance(name, (list, tuple)) else name
    if name == "DDMScheduler" or "attenuation" in config:
        return config
    other = getattr(diffusers, name or "", None)
    parameters = inspect.signature(other.__init__).parameters if inspect.isclass(other) else {}
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    adopted = {**defaults, **{key: value for key, value in config.items() if key != "_use_default_values"}}
    # What these options are called there. What the other one has no option for, it does not do.
    if "beta_schedule" in adopted:
        adopted = {"clip_sample": False, "prediction_type": "epsilon", **adopted}
        if adopted.get("use_flow_sigmas"):
            if adopted["prediction_type"] != "flow_prediction":
                raise ValueError(
                    f"`prediction_type` is {adopted['prediction_type']!r} and `use_flow_sigmas` is True, but only models"
                    " with `prediction_type='flow_prediction'` are known on that path."
                )
            adopted["shift"] = adopted["flow_shift"]
    elif "shift" in adopted and name in (None, *FLOW_SCHEDULERS):
        adopted |= {"clip_sample": False, "prediction_type": "flow_prediction"}
    elif name is None and adopted.keys() <= set(own_options) and not _is_ipndm(adopted):
        return config
    else:
        raise ValueError(
            f"`config` is {dict(config)}, but has to be that of a DDMScheduler, or of a scheduler of diffusers with a"
            " `beta_schedule` or for flow matching: how the models of others mix image and noise is not known."
        )
    if adopted.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"`timestep_type` is {adopted['timestep_type']!r}, but has to be 'discrete': models that are told noise levels in"
            " place of timesteps are not known."
        )
    if adopted.get("invert_sigmas"):
        raise ValueError("`invert_sigmas` is True, but has to be False: noise has to fall along the timesteps.")
    return adopted


def _is_ipndm(config: dict) -> bool:
    """Whether a config may be that of [`~diffusers.IPNDMScheduler`], which holds nothing that [`DDMScheduler`] has not."""
    return "trained_betas" in config and "prediction_type" not in config


def _refuse(arguments: dict, where: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` is {value}, but is only accepted by {where}.")
