# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput

from ..hub import HubModelMixin


class IdentityAutoencoder(HubModelMixin, ModelMixin, ConfigMixin):
    """
    An autoencoder whose latents are the images: it lets pipelines that always decode, `StableDiffusionPipeline` say, work on
    pixels.

    Args:
        in_channels (`int`, defaults to 3): Channels of the images.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.register_to_config(**self._derived_config(in_channels))
        # a model without weights has no dtype, and no device
        self.register_buffer("one", torch.ones(()))

    @staticmethod
    def _derived_config(in_channels: int) -> dict:
        """What pipelines ask an autoencoder for."""
        return {
            "out_channels": in_channels,
            "latent_channels": in_channels,
            "block_out_channels": (1,),
            "scaling_factor": 1.0,
            "force_upcast": False,
        }

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # what follows from `in_channels` is in a saved config, but is no argument, of which diffusers would warn
        derived = cls._derived_config(0)
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k not in derived}, **kwargs)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple:
        """`x` of shape `(batch_size, in_channels, height, width)` as it is."""
        return VQEncoderOutput(latents=x) if return_dict else (x,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """`sample` of shape `(batch_size, in_channels, height, width)` as it is."""
        return self.decode(sample, return_dict)

    def enable_slicing(self) -> None:
        """Nothing: there is no memory to save. The same goes for tiling."""

    disable_slicing = enable_tiling = disable_tiling = enable_slicing

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator=None) -> DecoderOutput | tuple:
        """`z` of shape `(batch_size, in_channels, height, width)` as it is."""
        return DecoderOutput(sample=z) if return_dict else (z,)
