# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The process that weights were trained on before, so that a model which starts from them starts from what they predict.

A variance-preserving process (DDPM, arXiv 2006.11239) and the decoupled one with constant attenuation hold the same
states up to a factor, `a x_0 + b eps` with `(a, b) = (cos(angle), sin(angle))`, wherever `tan(angle) = sigma_t / alpha_t`.
With `sigma_data = 1` the input of a preconditioned network has that factor, and the raw target of both outputs is
`a eps - b x_0`, the v of arXiv 2202.00512.
"""

import torch
from diffusers import DDPMScheduler

from ..process import at_least_float32, broadcast_time


PREDICTION_TYPES = ("epsilon", "v_prediction")

# What of a scheduler's config describes the process
KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)

# The least share of the image by which a predicted noise is divided. With less of it the noise says little of the image.
SMALLEST_ALPHA = 0.1


class BaseProcess:
    """
    A variance-preserving process.

    Args:
        config (`dict`): Options of [`~diffusers.DDPMScheduler`], those in `KEYS`.

    Raises:
        ValueError: an option is unknown, or the `prediction_type` another than `"epsilon"` or `"v_prediction"`.
    """

    def __init__(self, config: dict):
        if unknown := config.keys() - set(KEYS):
            raise ValueError(f"`base_scheduler` has {sorted(unknown)}, but its options have to be among {KEYS}.")
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"`base_scheduler` has the `prediction_type` {self.prediction_type!r}, but it has to be one of"
                f" {PREDICTION_TYPES}."
            )
        alphas_cumprod = DDPMScheduler(**config).alphas_cumprod.double()
        # at whole timesteps, rising from near 0 to near pi / 2
        self.angles = torch.atan2((1 - alphas_cumprod).sqrt(), alphas_cumprod.sqrt())

    @staticmethod
    def config_of(scheduler) -> dict:
        """
        What describes the process in a scheduler.

        Raises:
            ValueError: the scheduler has no betas, or betas that it does not use.
        """
        config = scheduler.config
        if "beta_schedule" not in config or config.get("use_flow_sigmas"):
            raise ValueError(
                f"`scheduler` is a {type(scheduler).__name__} with {dict(config)}, but has to be None or a scheduler of"
                " diffusers whose process is given by a `beta_schedule`."
            )
        return {key: config[key] for key in KEYS if key in config}

    def timesteps(self, angle: torch.Tensor) -> torch.Tensor:
        """The timesteps of the same share of noise, in [0, num_train_timesteps - 1]; between whole ones linear."""
        # of no module, so that half precision leaves it alone
        angles = self.angles.to(device=angle.device, dtype=angle.dtype)
        above = torch.searchsorted(angles, angle).clamp(1, len(angles) - 1)
        fraction = (angle - angles[above - 1]) / (angles[above] - angles[above - 1])
        return above - 1 + fraction.clamp(0, 1)

    def field(self, raw: torch.Tensor, x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        """
        `v = a eps - b x_0` by what the network predicts at `x = a x_0 + b eps`: `(eps - b x) / a` of a noise.

        Args:
            raw (`torch.Tensor` of shape `(batch_size, num_fields * channels, ...)`): One or more predictions.
            x (`torch.Tensor` of shape `(batch_size, channels, ...)`): The state.
            angle (`torch.Tensor` of shape `(batch_size,)`): Of the state.
        """
        if self.prediction_type == "v_prediction":
            return raw
        a, b = broadcast_time(angle.cos(), x), broadcast_time(angle.sin(), x)
        x = torch.cat([x] * (raw.shape[1] // x.shape[1]), dim=1)
        return (at_least_float32(raw) - b * x) / a.clamp_min(SMALLEST_ALPHA)
