# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import copy
import math

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import GaussianFourierProjection, TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..process import Attenuation, DecoupledProcess, NoiseSchedule
from .dual_output import DDMUNet2DOutput, DualOutputMixin, check_class_labels, check_sample, check_trained, reject


ARCHITECTURES = ("diffusers", "released")

# The options of UNet2DModel that `architecture="released"` decides; groups and heads are set afterwards.
RELEASED_OPTIONS = {
    "time_embedding_type": "fourier",
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "act_fn": "silu",
    "norm_num_groups": 1,
    "attn_norm_num_groups": 1,
    "attention_head_dim": None,
}


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


class ReleasedSpatialAttention(nn.Module):
    """
    The spatial attention of the authors' releases (`SpatialAtt`): a map `m` with one value for each position, averaged over
    the positions by `softmax(q(m) k(m)^T)`, weighs the input: `x * softsign(m)`. `q` and `k` are one scale and shift each.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.to_map = nn.Conv2d(channels, 1, kernel_size=1)
        self.to_q = nn.Conv2d(1, 1, kernel_size=1)
        self.to_k = nn.Conv2d(1, 1, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        values = self.to_map(hidden_states)
        query, key = self.to_q(values).flatten(1), self.to_k(values).flatten(1)
        weights = (query[:, :, None] * key[:, None, :]).softmax(dim=2)
        averaged = (weights @ values.flatten(1)[:, :, None]).reshape(values.shape)
        return hidden_states * nn.functional.softsign(averaged)


class ReleasedDecoderEntry(nn.Module):
    """What stands in front of a decoder in the authors' releases: `x + attention(conv(x))`, without normalisation."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.attention = ReleasedSpatialAttention(channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.attention(self.conv(hidden_states))


class DDMUNet2DModel(DualOutputMixin, UNet2DModel):
    r"""
    A [`~diffusers.UNet2DModel`] that predicts both parts of a decoupled diffusion process, the attenuation coefficients
    and the noise (arXiv 2306.13720), from a noisy image and a continuous timestep.

    It takes the options of [`~diffusers.UNet2DModel`], with the same defaults, except for those named below. There are
    three variants, from the cheapest to the largest:

    | `num_decoders` | `num_heads` | the network |
    | --- | --- | --- |
    | 1 | 1 | a plain UNet; both outputs are affine maps of one field, so that they satisfy the forward equation exactly |
    | 1 | 2 | one more output convolution |
    | 2 | 2 | one encoder, one decoder for each output, as in the paper |

    `architecture="released"` builds the networks of the authors' releases, DDM-Public (two decoders) and ADM-Public (one).
    They are EDM's version (arXiv 2206.00364) of the UNet of arXiv 2105.05233. Every decoder has an entry of its own
    (a 3x3 convolution and a spatial attention) and middle blocks of its own. `architecture="diffusers"` has one middle
    block in front of both decoders, and an entry, of another kind, only with two decoders.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `None`):
            Height and width of the images, multiples of `2 ** (len(block_out_channels) - 1)`.
        in_channels (`int`, defaults to 3): Channels of the noisy image, without those of the condition.
        out_channels (`int`, *optional*, defaults to `None`):
            `(num_coefficients + 1) * in_channels`, which is also what `None` stands for.
        num_class_embeds (`int`, *optional*, defaults to `None`):
            Number of classes. The embedding has one row more: the label `num_class_embeds` stands for "no class", for
            classifier-free guidance.
        id2label (`dict[int, str]`, *optional*, defaults to `None`):
            The name of each class, for the `class_labels` of [`DDMPipeline`]. Needs `num_class_embeds`, and different
            names.
        num_train_timesteps (`int`, defaults to 1000): The timestep at t = 1, as the scheduler's.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`): As the scheduler's.
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): As the scheduler's.
        num_decoders (`int`, defaults to 1): 1, or 2 for one decoder per output.
        num_heads (`int`, defaults to 2):
            1 or 2 output convolutions. 1 needs constant attenuation, preconditioning and one decoder.
        precondition (`bool` or `"velocity"`, *optional*, defaults to `None`):
            Scales of input and outputs: `"velocity"` ([`~models.preconditioning.precondition_velocity`], for constant
            attenuation), with which networks trained better than with `True`
            ([`~models.preconditioning.precondition`], unit variance); `False` for none. `None` stands for `"velocity"`, or
            for `True` with linear attenuation or a `base_scheduler`, and is replaced by it in the config. `"ddm"`: the
            scales of the first release ([`~models.preconditioning.precondition_ddm`]), for the standard process.
        sigma_data (`float`, defaults to 1.0):
            Root mean square of the data, for `precondition=True`. Images in [-1, 1] lie between 0.3 and 1.
        conditioning_channels (`int`, defaults to 0):
            Channels of an image condition that is concatenated to the input.
        base_scheduler (`dict`, *optional*, defaults to `None`):
            The process that the weights were trained on before, see [`~DDMUNet2DModel.from_unet2d`], which sets it.
        architecture (`"diffusers"` or `"released"`, defaults to `"diffusers"`):
            Which blocks make the network, see above. `"released"` decides these options itself: how time is embedded
            (`log(t)`, sines and cosines), `resnet_time_scale_shift`, up- and downsampling, the groups of the norms
            (`min(32, channels // 4)`, or fewer that divide the channels) and the attention heads (`channels // 64`, at least 1). It starts each residual
            branch at zero.
        augment_dim (`int`, defaults to 0):
            Labels of the augmentation in training ([`~training.augment`]), with `architecture="released"` alone. 0 for none.

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
        precondition: bool | str | None = None,
        sigma_data: float = 1.0,
        conditioning_channels: int = 0,
        base_scheduler: dict | None = None,
        architecture: str = "diffusers",
        augment_dim: int = 0,
        id2label: dict[int, str] | None = None,
    ):
        _check_options(self.config)
        changes = {"in_channels": in_channels + conditioning_channels}
        if num_class_embeds is not None:
            changes["num_class_embeds"] = num_class_embeds + 1
        if num_decoders == 2:  # the first one is that of the attenuation
            changes["out_channels"] = in_channels * DecoupledProcess(attenuation, noise_schedule).num_coefficients
        released = architecture == "released"
        if released:
            changes |= RELEASED_OPTIONS
            for name, plain, resampling in (
                ("down_block_types", "DownBlock2D", "ResnetDownsampleBlock2D"),
                ("up_block_types", "UpBlock2D", "ResnetUpsampleBlock2D"),
            ):
                changes[name] = tuple(resampling if each == plain else each for each in self.config[name])
        self._init_trunk(UNet2DModel, **changes)
        channels = block_out_channels[-1]
        if released:
            self.attenuation_entry = ReleasedDecoderEntry(channels)
            self._init_as_released(block_out_channels[0])
        if num_decoders == 2:
            if released:
                self.noise_entry = ReleasedDecoderEntry(channels)
                self.noise_mid_block = _reinitialized(self.mid_block)
            else:
                self.attenuation_entry = DecoderEntry(channels, norm_num_groups, norm_eps)
                self.noise_entry = DecoderEntry(channels, norm_num_groups, norm_eps)
            self.noise_up_blocks = _reinitialized(self.up_blocks)
            self.noise_conv_norm_out = _reinitialized(self.conv_norm_out)
            self.noise_conv_out = nn.Conv2d(block_out_channels[0], in_channels, kernel_size=3, padding=1)
        if released:
            _zero_residual_branches(self)
        self.augment_embedding = None
        if augment_dim:
            self.augment_embedding = nn.Linear(augment_dim, block_out_channels[0], bias=False)
            nn.init.zeros_(self.augment_embedding.weight)

    def _init_as_released(self, channels: int) -> None:
        """Give the trunk the releases' time embedding, groups and heads."""
        self.time_proj = GaussianFourierProjection(channels // 2, set_W_to_weight=False, flip_sin_to_cos=True)
        exponents = torch.arange(channels // 2) / (channels // 2)
        with torch.no_grad():
            self.time_proj.weight.copy_(1e4**-exponents / (2 * math.pi))  # the projection multiplies by 2 pi
        self.time_embedding = TimestepEmbedding(channels, 4 * channels)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = max(1, math.gcd(min(32, module.num_channels // 4), module.num_channels))
            elif isinstance(module, Attention):
                module.heads = max(1, module.inner_dim // 64)
                module.scale = (module.inner_dim // module.heads) ** -0.5

    @property
    def no_class_label(self) -> int | None:
        """The label of "no class", `num_class_embeds`; `None` for a model without classes."""
        return self.config.num_class_embeds

    @property
    def size_multiple(self) -> int:
        """What height and width of the images are multiples of."""
        return _size_multiple(self.config)

    @classmethod
    def from_unet2d(cls, unet: UNet2DModel, scheduler=None, **options) -> "DDMUNet2DModel":
        """
        Build the model that starts from the weights of a trained [`~diffusers.UNet2DModel`].

        Every output starts from the trained output convolution, both decoders from the trained decoder, the weights of
        a condition at zero, and the embedding of "no class" at the mean of the classes.

        Args:
            unet ([`~diffusers.UNet2DModel`]): The trained model. Its first `in_channels` outputs are used.
            scheduler (a scheduler of diffusers, *optional*):
                The scheduler of a trained model that predicts epsilon or v. With it both outputs start from what that
                model predicts: it is told its own timestep of the same share of noise, and what it returns is taken for
                what it is. That saves most of the training (examples/benchmarks/warm_start.py). Needs constant attenuation,
                preconditioning and `sigma_data=1.0`.
            options: The options of [`DDMUNet2DModel`] that the trained model does not have, or that are to differ.

        Raises:
            ValueError: `unet` is another model, an option changes the shape of a trained weight, or the scheduler's process
                is not known.
        """
        check_trained(unet, UNet2DModel)

        def adapt(model, trained):
            if model.config.num_decoders == 2:
                decoder = ("up_blocks.", "conv_norm_out.", "conv_out.")
                trained |= {f"noise_{name}": trained[name] for name in trained if name.startswith(decoder)}
            # the channels of a condition start without any influence
            weight = trained["conv_in.weight"]
            condition = weight.new_zeros(len(weight), model.config.conditioning_channels, *weight.shape[2:])
            trained["conv_in.weight"] = torch.cat([weight, condition], dim=1)
            if "class_embedding.weight" in trained and model.class_embedding is not None:
                weight = trained["class_embedding.weight"]
                trained["class_embedding.weight"] = torch.cat([weight, weight.mean(dim=0, keepdim=True)])
            return trained

        return cls._from_trained(unet, UNet2DModel, scheduler, options, adapt)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        conditioning: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
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
            augment_labels (`torch.Tensor` of shape `(batch_size, augment_dim)`, *optional*):
                How the images were augmented. Default: not at all, as when sampling.

        Returns:
            [`DDMUNet2DOutput`] or `(sample,)`, in the dtype of `sample`.

        Raises:
            ValueError: `sample` or `conditioning` has a wrong shape; a label or condition is missing or unexpected.
        """
        self._check_inputs(sample, class_labels, conditioning)
        if augment_labels is not None and augment_labels.shape != (sample.shape[0], self.config.augment_dim):
            raise ValueError(
                f"`augment_labels` has the shape {tuple(augment_labels.shape)}, but has to be"
                f" {(sample.shape[0], self.config.augment_dim)}."
            )

        def network(network_input, timesteps):
            return self._raw_outputs(network_input, self._embed(timesteps, class_labels, augment_labels))

        return self._predict(network, sample, timestep, conditioning, return_dict)

    def _raw_outputs(self, network_input: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        hidden_states, skips = self._encode(network_input, emb)
        released = self.config.architecture == "released"
        if released:
            first = self.mid_block(self.attenuation_entry(hidden_states), emb)
        else:
            hidden_states = first = hidden_states if self.mid_block is None else self.mid_block(hidden_states, emb)
        if self.config.num_decoders == 1:
            return self._decode(first, skips, emb, self.up_blocks, self.conv_norm_out, self.conv_out)
        if released:
            second = self.noise_mid_block(self.noise_entry(hidden_states), emb)
        else:
            first, second = self.attenuation_entry(first), self.noise_entry(hidden_states)
        attenuation = self._decode(first, skips, emb, self.up_blocks, self.conv_norm_out, self.conv_out)
        noise = self._decode(second, skips, emb, self.noise_up_blocks, self.noise_conv_norm_out, self.noise_conv_out)
        return torch.cat([attenuation, noise], dim=1)

    def _embed(
        self,
        timesteps: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.config.architecture == "released":
            timesteps = timesteps / self.config.num_train_timesteps  # the projection takes the logarithm
        emb = self.time_proj(timesteps).to(self.dtype)
        if augment_labels is not None:
            emb = emb + self.augment_embedding(augment_labels.to(self.dtype))
        emb = self.time_embedding(emb)
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
        check_sample(sample, config.in_channels)
        _check_resolution("sample", tuple(sample.shape[2:]), config)
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
        check_class_labels(class_labels, self.class_embedding is not None, sample.shape[0])


def _reinitialized(module: nn.Module) -> nn.Module:
    """A copy with weights of its own: identical decoders would get identical gradients and never part."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


def _zero_residual_branches(model: nn.Module) -> None:
    """Start every residual branch at zero, as EDM does; PyTorch's own initialisation is EDM's for the other layers."""
    for module in model.modules():
        branch = None
        if isinstance(module, ResnetBlock2D):
            branch = module.conv2
        elif isinstance(module, Attention):
            branch = module.to_out[0]
        if branch is not None:
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)


def _size_multiple(config: dict) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _check_resolution(name: str, size: tuple[int, ...], config: dict) -> None:
    multiple, num_blocks = _size_multiple(config), len(config["block_out_channels"])
    if any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"`{name}` has the height and width {size}, but each has to be a multiple of {multiple}, since a UNet of"
            f" {num_blocks} blocks halves it {num_blocks - 1} times."
        )


def _check_options(config: dict) -> None:
    """The options that the other models do not have."""
    if config["sample_size"] is not None:
        size = config["sample_size"]
        size = (size, size) if isinstance(size, int) else tuple(size)
        _check_resolution("sample_size", size, config)
    if config["architecture"] not in ARCHITECTURES:
        reject(config, "architecture", f"has to be one of {ARCHITECTURES}")
    if config["architecture"] == "released" and config["mid_block_type"] != "UNetMidBlock2D":
        reject(config, "mid_block_type", "has to be 'UNetMidBlock2D' with `architecture='released'`")
    if config["architecture"] == "released" and config["base_scheduler"] is not None:
        reject(config, "base_scheduler", "has to be None with `architecture='released'`")
    if config["augment_dim"] and config["architecture"] != "released":
        reject(config, "augment_dim", "has to be 0 without `architecture='released'`")
    if config["num_decoders"] not in (1, 2):
        reject(config, "num_decoders", "has to be 1 or 2")
    if config["num_heads"] == 1 and config["num_decoders"] == 2:
        reject(config, "num_heads", "has to be 2 with `num_decoders=2`, since each decoder has its own")
    if config["conditioning_channels"] < 0:
        reject(config, "conditioning_channels", "has to be 0 or more")
    num_outputs = DecoupledProcess(config["attenuation"], config["noise_schedule"]).num_coefficients + 1
    out_channels = num_outputs * config["in_channels"]
    if config["out_channels"] not in (None, out_channels):
        reject(config, "out_channels", f"has to be None or {out_channels}: (num_coefficients + 1) * in_channels")
    for name in ("down_block_types", "up_block_types"):
        if any("Skip" in block for block in config[name]):
            accepted = "skip blocks are not accepted: they add to an image, which is not what this model returns"
            reject(config, name, accepted)
