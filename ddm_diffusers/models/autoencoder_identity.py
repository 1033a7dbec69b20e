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
        # what pipelines ask an autoencoder for
        self.register_to_config(
            out_channels=in_channels,
            latent_channels=in_channels,
            block_out_channels=(1,),
            scaling_factor=1.0,
            force_upcast=False,
        )
        # a model without weights has no dtype, and no device
        self.register_buffer("one", torch.ones(()))

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple:
        """`x` of shape `(batch_size, in_channels, height, width)` as it is."""
        return VQEncoderOutput(latents=x) if return_dict else (x,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator=None) -> DecoderOutput | tuple:
        """`z` of shape `(batch_size, in_channels, height, width)` as it is."""
        return DecoderOutput(sample=z) if return_dict else (z,)
