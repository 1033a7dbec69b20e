# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import copy
import inspect
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..hub import HubModelMixin
from ..process import Attenuation, DecoupledProcess, NoiseSchedule
from .preconditioning import precondition


@dataclass
class DDMUNet2DOutput(BaseOutput):
    """
    The output of [`DDMUNet2DModel`].

    Args:
        sample (`torch.Tensor` of shape `(batch_size, (num_coefficients + 1) * in_channels, height, width)`):
            Attenuation coefficients and noise, concatenated on dim 1: what [`DDMScheduler.step`] takes.
        attenuation (`torch.Tensor` of shape `(batch_size, num_coefficients * in_channels, height, width)`):
            The attenuation coefficients, a view of `sample`.
        noise (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
            The noise, a view of `sample`.
    """

    sample: torch.Tensor
    attenuation: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class SpatialAttention(nn.Module):
    """One weight in (0, 1) for each position, shared by all channels: `x * sigmoid(conv(x))`."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_weight = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.to_weight(hidden_states).sigmoid()


class DecoderEntry(nn.Module):
    """
    What stands between the shared encoder and each of the two decoders (arXiv 2306.13720, section 4): a 3x3
    convolution and a spatial attention, on a residual branch that starts at zero.
    """

    def __init__(self, channels: int, norm_num_groups: int, norm_eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.attention = SpatialAttention(channels)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.attention(self.conv(self.norm(hidden_states)))


class DDMUNet2DModel(HubModelMixin, UNet2DModel):
    r"""
    A [`~diffusers.UNet2DModel`] that predicts both parts of a decoupled diffusion process, the attenuation coefficients
    and the noise (arXiv 2306.13720), from a noisy image and a continuous timestep.

    It takes the options of [`~diffusers.UNet2DModel`], with the same defaults, except for those named below. There are
    three variants, from the cheapest to the largest:

    | `num_decoders` | `num_heads` | the network |
    | --- | --- | --- |
    | 1 | 1 | a plain UNet; both outputs are affine maps of one field, so that they satisfy the forward equation exactly |
    | 1 | 2 | one more output convolution |
    | 2 | 2 | the paper's: one encoder, one decoder for each output |

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `None`):
            Height and width of the images, multiples of `2 ** (len(block_out_channels) - 1)`.
        in_channels (`int`, defaults to 3): Channels of the noisy image, without those of the condition.
        out_channels (`int`, *optional*, defaults to `None`):
            `(num_coefficients + 1) * in_channels`, which is also what `None` stands for.
        num_class_embeds (`int`, *optional*, defaults to `None`):
            Number of classes. The embedding has one row more: the label `num_class_embeds` stands for "no class", for
            classifier-free guidance.
        num_train_timesteps (`int`, defaults to 1000): The timestep at t = 1, as the scheduler's.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`): As the scheduler's.
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): As the scheduler's.
        num_decoders (`int`, defaults to 1): 1, or 2 for one decoder per output.
        num_heads (`int`, defaults to 2):
            1 or 2 output convolutions. 1 needs constant attenuation, preconditioning and one decoder.
        precondition (`bool`, defaults to `True`):
            Whether to scale input and outputs as [`~models.preconditioning.precondition`] derives.
        sigma_data (`float`, defaults to 1.0):
            Root mean square of the data, for preconditioning. Images in [-1, 1] lie between 0.3 and 1.
        conditioning_channels (`int`, defaults to 0):
            Channels of an image condition that is concatenated to the input.

    Raises:
        ValueError: an option has a value that is not accepted or contradicts another one.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int | None = None,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int = 1000,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        num_decoders: int = 1,
        num_heads: int = 2,
        precondition: bool = True,
        sigma_data: float = 1.0,
        conditioning_channels: int = 0,
    ):
        process = DecoupledProcess(attenuation, noise_schedule)
        config = dict(self.config)
        _check_options(config, process)

        # UNet2DModel registers its arguments as well: ours are put back below.
        options = {name: config[name] for name in inspect.signature(UNet2DModel).parameters}
        options["in_channels"] = in_channels + conditioning_channels
        if num_heads == 1:
            num_fields = 1
        else:  # two decoders: the first one is that of the attenuation
            num_fields = process.num_coefficients + (num_decoders == 1)
        options["out_channels"] = in_channels * num_fields
        if num_class_embeds is not None:
            options["num_class_embeds"] = num_class_embeds + 1
        super().__init__(**options)
        config["out_channels"] = (process.num_coefficients + 1) * in_channels
        self.register_to_config(**config)

        self.process = process
        if num_decoders == 2:
            self.attenuation_entry = DecoderEntry(block_out_channels[-1], norm_num_groups, norm_eps)
            self.noise_entry = DecoderEntry(block_out_channels[-1], norm_num_groups, norm_eps)
            self.noise_up_blocks = _reinitialized(self.up_blocks)
            self.noise_conv_norm_out = _reinitialized(self.conv_norm_out)
            self.noise_conv_out = nn.Conv2d(block_out_channels[0], in_channels, kernel_size=3, padding=1)

    @property
    def no_class_label(self) -> int | None:
        """The label of "no class", `num_class_embeds`; `None` for a model without classes."""
        return self.config.num_class_embeds

    @classmethod
    def from_unet2d(cls, unet: UNet2DModel, **options) -> "DDMUNet2DModel":
        """
        Build the model that starts from the weights of a trained [`~diffusers.UNet2DModel`].

        Every output starts from the trained output convolution, both decoders from the trained decoder, the weights of
        a condition at zero, and the embedding of "no class" at the mean of the classes.

        Args:
            unet ([`~diffusers.UNet2DModel`]): The trained model. Its first `in_channels` outputs are used.
            options: The options of [`DDMUNet2DModel`] that the trained model does not have, or that are to differ.

        Raises:
            ValueError: an option changes the shape of a trained weight.
        """
        config = {name: unet.config[name] for name in inspect.signature(UNet2DModel).parameters}
        if config["num_train_timesteps"] is None:
            del config["num_train_timesteps"]
        model = cls(**{**config, "out_channels": None, **options})

        trained = unet.state_dict()
        if model.config.num_decoders == 2:
            for name in [name for name in trained if name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))]:
                trained[f"noise_{name}"] = trained[name]
        weights = model.state_dict()
        for name, weight in trained.items():
            if name == "conv_in.weight":
                # the channels of a condition start without any influence
                condition = weight.new_zeros(len(weight), model.config.conditioning_channels, *weight.shape[2:])
                weight = torch.cat([weight, condition], dim=1)
            elif name.removeprefix("noise_").startswith("conv_out."):
                num_fields = len(weights[name]) // model.config.in_channels
                weight = weight[: model.config.in_channels].repeat(num_fields, *(1 for _ in weight.shape[1:]))
            elif name == "class_embedding.weight" and name in weights:
                weight = torch.cat([weight, weight.mean(dim=0, keepdim=True)])
            if name not in weights or weights[name].shape != weight.shape:
                shape = tuple(weights[name].shape) if name in weights else None
                raise ValueError(
                    f"`options` is {options}, but with them the trained weight `{name}` of shape {tuple(weight.shape)}"
                    f" does not fit the model, which has {shape} there. Leave the options of the trunk as they are."
                )
            weights[name] = weight
        model.load_state_dict(weights)
        model = model.to(unet.device)
        return model if model.dtype == unet.dtype else model.to(unet.dtype)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        conditioning: torch.Tensor | None = None,
    ) -> DDMUNet2DOutput | tuple:
        r"""
        Predict the attenuation coefficients and the noise in `sample`.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
                The noisy images `x_t`. Height and width are multiples of `2 ** (len(block_out_channels) - 1)`.
            timestep (`float`, `int` or `torch.Tensor`, 0-d or of shape `(batch_size,)`):
                `t * num_train_timesteps`. It is continuous: a Python float is taken as it is.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                Needed if, and only if, the model has a class embedding.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMUNet2DOutput`] instead of a tuple.
            conditioning (`torch.Tensor` of shape `(batch_size, conditioning_channels, height, width)`, *optional*):
                Needed if, and only if, the model has `conditioning_channels`.

        Returns:
            [`DDMUNet2DOutput`] or `(sample,)`, in the dtype of `sample`.

        Raises:
            ValueError: `sample` or `conditioning` has a wrong shape; a label or condition is missing or unexpected.
        """
        self._check_inputs(sample, class_labels, conditioning)

        # 1. time, as float32 (float64 where the sample is) so that no part of it is lost
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if torch.is_tensor(timestep):
            timesteps = timestep.to(device=sample.device, dtype=dtype).expand(sample.shape[0])
        else:
            timesteps = torch.full((sample.shape[0],), timestep, device=sample.device, dtype=dtype)
        scales = None
        network_input = sample
        if self.config.precondition:
            t = timesteps / self.config.num_train_timesteps
            scales = precondition(self.process, t, self.config.sigma_data)
            network_input = scales.scale_input(sample)
        if conditioning is not None:
            network_input = torch.cat([network_input, conditioning.to(network_input.dtype)], dim=1)

        # 2. the network
        emb = self._embed(timesteps, class_labels)
        hidden_states, skips = self._encode(network_input.to(self.dtype), emb)
        if self.config.num_decoders == 1:
            raw = self._decode(hidden_states, skips, emb, self.up_blocks, self.conv_norm_out, self.conv_out)
        else:
            attenuation = self._decode(
                self.attenuation_entry(hidden_states), skips, emb, self.up_blocks, self.conv_norm_out, self.conv_out
            )
            noise = self._decode(
                self.noise_entry(hidden_states),
                skips,
                emb,
                self.noise_up_blocks,
                self.noise_conv_norm_out,
                self.noise_conv_out,
            )
            raw = torch.cat([attenuation, noise], dim=1)

        # 3. its outputs as attenuation and noise
        if scales is not None:
            num_outputs = self.process.num_coefficients + 1
            fields = (raw,) * num_outputs if self.config.num_heads == 1 else raw.chunk(num_outputs, dim=1)
            raw = scales.scale_output(sample, fields)
        output = raw.to(sample.dtype)

        if not return_dict:
            return (output,)
        return DDMUNet2DOutput(
            sample=output,
            attenuation=output[:, : -self.config.in_channels],
            noise=output[:, -self.config.in_channels :],
        )

    def _embed(self, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        emb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))
        if self.class_embedding is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(self.dtype)
            emb = emb + self.class_embedding(class_labels).to(self.dtype)
        return emb

    def _encode(self, sample: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hidden_states = self.conv_in(sample)
        skips = (hidden_states,)
        for block in self.down_blocks:
            hidden_states, block_skips = block(hidden_states=hidden_states, temb=emb)
            skips += block_skips
        if self.mid_block is not None:
            hidden_states = self.mid_block(hidden_states, emb)
        return hidden_states, skips

    def _decode(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        emb: torch.Tensor,
        up_blocks: nn.ModuleList,
        conv_norm_out: nn.Module,
        conv_out: nn.Module,
    ) -> torch.Tensor:
        for block in up_blocks:
            num_skips = len(block.resnets)
            skips, block_skips = skips[:-num_skips], skips[-num_skips:]
            hidden_states = block(hidden_states, block_skips, emb)
        return conv_out(self.conv_act(conv_norm_out(hidden_states)))

    def _check_inputs(self, sample, class_labels, conditioning):
        config = self.config
        if sample.ndim != 4 or sample.shape[1] != config.in_channels:
            raise ValueError(
                f"`sample` has the shape {tuple(sample.shape)}, but has to be of shape"
                f" (batch_size, {config.in_channels}, height, width)."
            )
        _check_resolution("sample", tuple(sample.shape[2:]), len(config.block_out_channels))
        if (conditioning is None) != (config.conditioning_channels == 0):
            given = "None" if conditioning is None else f"a tensor of shape {tuple(conditioning.shape)}"
            raise ValueError(
                f"`conditioning` is {given}, but the model has {config.conditioning_channels} `conditioning_channels`."
            )
        if conditioning is not None:
            expected = (sample.shape[0], config.conditioning_channels, *sample.shape[2:])
            if tuple(conditioning.shape) != expected:
                raise ValueError(
                    f"`conditioning` has the shape {tuple(conditioning.shape)}, but has to be {expected}."
                )
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError(
                "`class_labels` is None, but the model has a class embedding and needs a label for each image."
                if class_labels is None
                else "`class_labels` is given, but the model has no class embedding and accepts only None."
            )
        if class_labels is not None and class_labels.shape[0] != sample.shape[0]:
            raise ValueError(
                f"`class_labels` has the shape {tuple(class_labels.shape)}, but needs a label for each of the"
                f" {sample.shape[0]} images."
            )


def _reinitialized(module: nn.Module) -> nn.Module:
    """A copy with weights of its own: identical decoders would get identical gradients and never part."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


def _check_resolution(name: str, size: tuple[int, ...], num_blocks: int) -> None:
    multiple = 2 ** (num_blocks - 1)
    if any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"`{name}` has the height and width {size}, but each has to be a multiple of {multiple}, since a UNet of"
            f" {num_blocks} blocks halves it {num_blocks - 1} times."
        )


def _check_options(config: dict, process: DecoupledProcess) -> None:
    def reject(name, accepted):
        raise ValueError(f"`{name}` is {config[name]!r}, but {accepted}.")

    if config["sample_size"] is not None:
        size = config["sample_size"]
        size = (size, size) if isinstance(size, int) else tuple(size)
        _check_resolution("sample_size", size, len(config["block_out_channels"]))
    if config["num_decoders"] not in (1, 2):
        reject("num_decoders", "has to be 1 or 2")
    if config["num_heads"] not in (1, 2):
        reject("num_heads", "has to be 1 or 2")
    if config["num_heads"] == 1 and config["num_decoders"] == 2:
        reject("num_heads", "has to be 2 with `num_decoders=2`, since each decoder has its own")
    if config["num_heads"] == 1 and not config["precondition"]:
        reject(
            "num_heads", "has to be 2 with `precondition=False`, since its affine maps make two outputs of one head"
        )
    if config["num_heads"] == 1 and process.attenuation == "linear":
        reject("num_heads", "has to be 2 with `attenuation='linear'`, which leaves more than one field unknown")
    if not config["sigma_data"] > 0:
        reject("sigma_data", "has to be above 0")
    if config["conditioning_channels"] < 0:
        reject("conditioning_channels", "has to be 0 or more")
    if not config["num_train_timesteps"] or config["num_train_timesteps"] < 1:
        reject("num_train_timesteps", "has to be 1 or more, since timesteps are t * num_train_timesteps")
    if config["time_embedding_type"] not in ("positional", "fourier"):
        reject("time_embedding_type", "has to be 'positional' or 'fourier', since timesteps are continuous")
    if config["center_input_sample"]:
        reject("center_input_sample", "has to be False: images are in [-1, 1]")
    for name in ("down_block_types", "up_block_types"):
        if any("Skip" in block for block in config[name]):
            reject(name, "skip blocks are not accepted: they add to an image, which is not what this model returns")
    out_channels = (process.num_coefficients + 1) * config["in_channels"]
    if config["out_channels"] not in (None, out_channels):
        reject("out_channels", f"has to be None or {out_channels}: (num_coefficients + 1) * in_channels")
