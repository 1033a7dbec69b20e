# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import peft

from ..process import Attenuation, NoiseSchedule
from .dual_output import DDMUNet2DOutput, DualOutputMixin, check_sample, check_trained


class DDMUNet2DConditionModel(DualOutputMixin, UNet2DConditionModel):
    r"""
    A [`~diffusers.UNet2DConditionModel`] that predicts both parts of a decoupled diffusion process, the attenuation
    coefficients and the noise (arXiv 2306.13720), from a noisy image or latent, a continuous timestep, and a text or
    another sequence that it attends to.

    It takes the options of [`~diffusers.UNet2DConditionModel`], with the same defaults, except for those named below, and
    is used in its place: `StableDiffusionPipeline` and its kind need nothing else than a [`DDMScheduler`]. LoRA,
    IP-Adapter, FreeU and the residuals of a ControlNet act on the network as they do there.

    Args:
        in_channels (`int`, defaults to 4):
            Channels of the input: those of the noisy latents, and behind them those of a condition that is concatenated, as
            models for inpainting have (9: latents, mask, masked latents). Only the latents are scaled.
        out_channels (`int`, *optional*, defaults to `None`):
            `(num_coefficients + 1)` times the channels of the latents, by which they are known. `None` stands for
            `(num_coefficients + 1) * in_channels`, an input without a condition.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`): As the scheduler's.
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): As the scheduler's.
        num_heads (`int`, defaults to 2):
            1 or 2 output convolutions. 1 needs constant attenuation and preconditioning.
        precondition (`bool` or `"velocity"`, *optional*, defaults to `None`):
            Scales of input and outputs: `"velocity"` ([`~models.preconditioning.precondition_velocity`], for constant
            attenuation), with which networks trained better than with `True`
            ([`~models.preconditioning.precondition`], unit variance); `False` for none. `None` stands for `"velocity"`, or
            for `True` with linear attenuation or a `base_scheduler`, and is replaced by it in the config.
        sigma_data (`float`, defaults to 1.0):
            Root mean square of the data, for `precondition=True`. Latents times the `scaling_factor` of their autoencoder are
            near 1.
        num_train_timesteps (`int`, defaults to 1000): The timestep at t = 1, as the scheduler's.
        base_scheduler (`dict`, *optional*, defaults to `None`):
            The process that the weights were trained on before, see
            [`~DDMUNet2DConditionModel.from_unet2d_condition`], which sets it.

    Raises:
        ValueError: an option has a value that is not accepted or contradicts another one.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int | None = None,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int] = 1280,
        transformer_layers_per_block: int | tuple[int] | tuple[tuple] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int]] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int] = 8,
        num_attention_heads: int | tuple[int] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        num_heads: int = 2,
        precondition: bool | str | None = None,
        sigma_data: float = 1.0,
        num_train_timesteps: int = 1000,
        base_scheduler: dict | None = None,
    ):
        self._init_trunk(UNet2DConditionModel)

    @classmethod
    def from_unet2d_condition(cls, unet: UNet2DConditionModel, scheduler=None, **options) -> "DDMUNet2DConditionModel":
        """
        Build the model that starts from the weights of a trained [`~diffusers.UNet2DConditionModel`], Stable Diffusion's
        say. Every output starts from the trained output convolution.

        Args:
            unet ([`~diffusers.UNet2DConditionModel`]):
                The trained model. Of its outputs as many are used as its latents have channels (more than those are a
                learned variance).
            scheduler (a scheduler of diffusers, *optional*):
                The scheduler of a trained model that predicts epsilon or v, `pipe.scheduler` say. With it both outputs
                start from what that model predicts, see [`DDMUNet2DModel.from_unet2d`]. Needs constant attenuation,
                preconditioning and `sigma_data=1.0`.
            options: The options of [`DDMUNet2DConditionModel`] that the trained model does not have, or that are to differ.

        Raises:
            ValueError: `unet` is another model, an option changes the shape of a trained weight, or the scheduler's process
                is not known.
        """
        check_trained(unet, UNet2DConditionModel)
        channels = min(unet.config.out_channels, unet.config.in_channels)
        num_outputs = 3 if options.get("attenuation") == "linear" else 2
        options = {"out_channels": num_outputs * channels, **options}
        return cls._from_trained(unet, UNet2DConditionModel, scheduler, options)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: tuple[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDMUNet2DOutput | tuple:
        r"""
        Predict the attenuation coefficients and the noise in `sample`.

        The arguments that are not named here are those of [`~diffusers.UNet2DConditionModel.forward`].

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
                The noisy latents `x_t`, and behind them, on dim 1, a condition if the model has one.
            timestep (`float`, `int` or `torch.Tensor`, 0-d or of shape `(batch_size,)`):
                `t * num_train_timesteps`. It is continuous: a Python float is taken as it is.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, cross_attention_dim)`):
                The embedded text.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMUNet2DOutput`] instead of a tuple.

        Returns:
            [`DDMUNet2DOutput`] or `(sample,)`, in the dtype of `sample`.

        Raises:
            ValueError: `sample` has a wrong shape.
        """
        check_sample(sample, self.config.in_channels)
        conditioning = None
        if self.config.in_channels > self.num_channels:
            sample, conditioning = sample[:, : self.num_channels], sample[:, self.num_channels :]
        trunk = super().forward

        def network(network_input, timesteps):
            return trunk(
                network_input,
                timesteps,
                encoder_hidden_states,
                class_labels=class_labels,
                timestep_cond=timestep_cond,
                attention_mask=attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
                added_cond_kwargs=added_cond_kwargs,
                down_block_additional_residuals=down_block_additional_residuals,
                mid_block_additional_residual=mid_block_additional_residual,
                down_intrablock_additional_residuals=down_intrablock_additional_residuals,
                encoder_attention_mask=encoder_attention_mask,
                return_dict=False,
            )[0]

        return self._predict(network, sample, timestep, conditioning, return_dict)


# diffusers looks up by name which models understand scales of a LoRA for each of their blocks. Where it has no such table,
# everything but these scales works.
_scale_functions = getattr(peft, "_SET_ADAPTER_SCALE_FN_MAPPING", {})
if UNet2DConditionModel.__name__ in _scale_functions:
    _scale_functions[DDMUNet2DConditionModel.__name__] = _scale_functions[UNet2DConditionModel.__name__]
