# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import torch
from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config

from ..process import Attenuation, NoiseSchedule
from .dual_output import DDMUNet2DOutput, DualOutputMixin, check_class_labels, check_sample, reject


class DDMDiTTransformer2DModel(DualOutputMixin, DiTTransformer2DModel):
    r"""
    A [`~diffusers.DiTTransformer2DModel`] (arXiv 2212.09748) that predicts both parts of a decoupled diffusion process, the
    attenuation coefficients and the noise (arXiv 2306.13720), from a noisy image or latent, a continuous timestep and a
    class. It stands in the place of a [`DDMUNet2DModel`] in training and in [`DDMPipeline`].

    It takes the options of [`~diffusers.DiTTransformer2DModel`], with the same defaults, except for those named below.

    Args:
        sample_size (`int`, defaults to 32): Height and width of the square images, a multiple of `patch_size`.
        out_channels (`int`, *optional*, defaults to `None`):
            `(num_coefficients + 1) * in_channels`, which is also what `None` stands for.
        num_class_embeds (`int`, *optional*, defaults to `None`):
            Number of classes, `num_embeds_ada_norm` there; `None` for none. The embedding has one row more: the label
            `num_class_embeds` stands for "no class", for classifier-free guidance. No label is dropped at random in here.
        id2label (`dict[int, str]`, *optional*, defaults to `None`):
            The name of each class, for the `class_labels` of [`DDMPipeline`]. Needs `num_class_embeds`, and different
            names.
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`): As the scheduler's.
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`): As the scheduler's.
        num_heads (`int`, defaults to 2):
            1 or 2 outputs of the last layer. 1 needs constant attenuation and preconditioning.
        precondition (`bool` or `"velocity"`, *optional*, defaults to `None`):
            Scales of input and outputs: `"velocity"` ([`~models.preconditioning.precondition_velocity`], for constant
            attenuation), with which networks trained better than with `True`
            ([`~models.preconditioning.precondition`], unit variance); `False` for none. `None` stands for `"velocity"`, or
            for `True` with linear attenuation or a `base_scheduler`, and is replaced by it in the config.
        sigma_data (`float`, defaults to 1.0): Root mean square of the data, for `precondition=True`.
        num_train_timesteps (`int`, defaults to 1000): The timestep at t = 1, as the scheduler's.
        base_scheduler (`dict`, *optional*, defaults to `None`):
            The process that the weights were trained on before, as of [`DDMUNet2DModel`].

    Raises:
        ValueError: an option has a value that is not accepted or contradicts another one.
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        attenuation: Attenuation = "constant",
        noise_schedule: NoiseSchedule = "sqrt",
        num_heads: int = 2,
        precondition: bool | str | None = None,
        sigma_data: float = 1.0,
        num_train_timesteps: int = 1000,
        base_scheduler: dict | None = None,
        id2label: dict[int, str] | None = None,
    ):
        if not isinstance(sample_size, int) or sample_size < 1 or sample_size % patch_size:
            reject(
                self.config, "sample_size", f"has to be a whole number, a multiple of {patch_size}, the `patch_size`"
            )
        self._init_trunk(DiTTransformer2DModel, num_embeds_ada_norm=num_class_embeds or 0)
        if self.num_channels != in_channels:
            reject(self.config, "out_channels", "has to be None or (num_coefficients + 1) * in_channels")
        for block in self.transformer_blocks:
            # who trains the model drops the labels, reproducibly
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @property
    def no_class_label(self) -> int | None:
        """The label of "no class", `num_class_embeds`; `None` for a model without classes."""
        return self.config.num_class_embeds

    @property
    def size_multiple(self) -> int:
        """What height and width of the images are multiples of."""
        return self.config.patch_size

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> DDMUNet2DOutput | tuple:
        r"""
        Predict the attenuation coefficients and the noise in `sample`.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
                The noisy images `x_t`, square, of a height that is a multiple of `patch_size`.
            timestep (`float`, `int` or `torch.Tensor`, 0-d or of shape `(batch_size,)`):
                `t * num_train_timesteps`. It is continuous: a Python float is taken as it is.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                Needed if, and only if, the model has classes.
            cross_attention_kwargs (`dict`, *optional*): For the attention processors.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMUNet2DOutput`] instead of a tuple.

        Returns:
            [`DDMUNet2DOutput`] or `(sample,)`, in the dtype of `sample`.

        Raises:
            ValueError: `sample` has a wrong shape; the labels are missing or unexpected.
        """
        check_sample(sample, self.config.in_channels)
        height, width = sample.shape[2:]
        if height != width or height % self.size_multiple:
            raise ValueError(
                f"`sample` has the height and width {(height, width)}, but they have to be equal and a multiple of"
                f" {self.size_multiple}, the `patch_size`."
            )
        check_class_labels(class_labels, self.no_class_label is not None, sample.shape[0])
        if class_labels is None:
            # the one row of "no class"
            class_labels = torch.zeros(sample.shape[0], dtype=torch.long, device=sample.device)
        trunk = super().forward

        def network(network_input, timesteps):
            return trunk(network_input, timesteps, class_labels, cross_attention_kwargs, return_dict=False)[0]

        return self._predict(network, sample, timestep, return_dict=return_dict)
