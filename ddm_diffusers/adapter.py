# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A decoupled model under diffusers' own samplers."""

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from .models import DDMUNet2DModel
from .process import DecoupledProcess, at_least_float32
from .schedulers import DDMScheduler
from .schedulers.parameterizations import from_scheduler


class DDMUNet2DAdapter(nn.Module):
    """
    Presents a [`DDMUNet2DModel`] as the model that another scheduler of diffusers expects, by matching the ratio of image
    and noise: the reverse of what [`DDMScheduler`] does with the models of others.

        scheduler = DPMSolverMultistepScheduler()
        pipe = DDPMPipeline(DDMUNet2DAdapter(unet, scheduler), scheduler)

    It has no parameters of its own, and no config to save: save the `unet`.

    Args:
        unet ([`DDMUNet2DModel`] or [`DDMDiTTransformer2DModel`]): A model with constant attenuation.
        scheduler (`SchedulerMixin`):
            The scheduler that will sample. Its config tells what it expects the model to return (`prediction_type`) and
            how image and noise are mixed at its timesteps.

    Raises:
        ValueError: `unet` is another model, its attenuation is not constant, or the scheduler is none that
            [`DDMScheduler.from_config`] knows.
    """

    def __init__(self, unet: DDMUNet2DModel, scheduler):
        super().__init__()
        # by what it has, since a compiled model is of another class
        if not isinstance(getattr(unet, "process", None), DecoupledProcess) or "cross_attention_dim" in unet.config:
            raise ValueError(
                f"`unet` is a {type(unet).__name__}, but has to be a DDMUNet2DModel or a DDMDiTTransformer2DModel."
            )
        if unet.config.attenuation != "constant":
            raise ValueError(
                f"`unet` has the attenuation {unet.config.attenuation!r}, but only 'constant' mixes image and noise alone."
            )
        if scheduler.config.get("prediction_type") == "decoupled":
            raise ValueError("`scheduler` is a DDMScheduler, but takes a DDMUNet2DModel as it is.")
        self.unet = unet
        self.process = unet.process
        is_ours = isinstance(scheduler, DDMScheduler)
        self.parameterization = scheduler.parameterization if is_ours else from_scheduler(scheduler)
        # seen from outside this is no decoupled model
        config = {key: unet.config[key] for key in unet.config if key not in ("attenuation", "noise_schedule")}
        self.config = FrozenDict({**config, "out_channels": unet.config.in_channels})

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple:
        """
        Predict what the scheduler expects, `epsilon`, `sample`, `v_prediction` or `flow_prediction`.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`): The scheduler's noisy images.
            timestep (`torch.Tensor`, `float` or `int`, 0-d or of shape `(batch_size,)`): The scheduler's timestep.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): As for the model.
            return_dict (`bool`, defaults to `True`): Whether to return an output object instead of a tuple.

        Returns:
            `UNet2DOutput` or `(sample,)`, of the shape and dtype of `sample`.
        """
        x = at_least_float32(sample)
        timesteps = torch.as_tensor(timestep, device=x.device).to(x.dtype).expand(len(x))
        a, b = self.parameterization.scales(timesteps)
        t = self.process.time(a, b)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        a, b, factor = (each.reshape(-1, 1, 1, 1) for each in (a, b, (alpha + sigma) / (a + b)))
        x_t = self.parameterization.undo_scale_input(x, b) * factor
        # the model's time is its own; a condition on labels is passed on
        output = self.unet(x_t.to(sample.dtype), t * self.unet.config.num_train_timesteps, class_labels)
        x_0 = self.process.predict_x0(x_t, output.attenuation, output.noise, t)
        # the noise that belongs to this image, so that whatever the scheduler derives from the output fits together
        noise = self.process.predict_noise(x_t, x_0, None, t)
        prediction = self.parameterization.output(x_0, noise, a, b).to(sample.dtype)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)
