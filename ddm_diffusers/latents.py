# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The latent spaces of diffusers' autoencoders: from images in [-1, 1] to the latents that a model sees, and back.

Autoencoders differ in what encoding returns (a Gaussian posterior, or the latents themselves) and in which numbers of their
config bring latents to a deviation of about 1: `scaling_factor`, with `shift_factor` or with a mean and a deviation of
each channel. These are the conventions of diffusers' own pipelines, in one place.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor


class Posterior(NamedTuple):
    """
    What an autoencoder makes of images, before it is scaled.

    Args:
        mean (`torch.Tensor` of shape `(batch_size, latent_channels, height, width)`): The latents, or their mean.
        std (`torch.Tensor` of the shape of `mean`, *optional*): Their deviation, of a variational autoencoder.
    """

    mean: torch.Tensor
    std: torch.Tensor | None = None


def latent_scale_factor(vae: ModelMixin) -> int:
    """How many times smaller than the images the latents are, in height and width."""
    if hasattr(vae, "spatial_compression_ratio"):  # AutoencoderDC
        return int(vae.spatial_compression_ratio)
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode_images(vae: ModelMixin, images: torch.Tensor) -> Posterior:
    """
    What an autoencoder makes of images, not yet scaled.

    Args:
        vae ([`~diffusers.ModelMixin`]): `AutoencoderKL`, `AutoencoderTiny`, `VQModel`, `AutoencoderDC` or one like them.
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): In [-1, 1].
    """
    with float32_if_needed(vae):
        output = vae.encode(images.to(vae.dtype))
    if hasattr(output, "latent_dist"):
        return Posterior(output.latent_dist.mean, output.latent_dist.std)
    return Posterior(output.latents if hasattr(output, "latents") else output.latent)


def sample_latents(
    vae: ModelMixin, posterior: Posterior, generator: torch.Generator | list[torch.Generator] | None = None
) -> torch.Tensor:
    """Scaled latents, drawn from the posterior with a generator (one for each image, if it is a list)."""
    latents, std = posterior
    if std is not None:
        latents = latents + std * randn_tensor(latents.shape, generator, latents.device, latents.dtype)
    return scale_latents(vae, latents)


def scale_latents(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """What the autoencoder returns, of shape `(batch_size, latent_channels, height, width)`, with a deviation of about 1."""
    shift, scale = _shift_and_scale(vae, latents)
    return (latents - shift) * scale


def decode_latents(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """Images of scaled latents, `(batch_size, channels, height, width)`, in [-1, 1] but for what the decoder overshoots."""
    shift, scale = _shift_and_scale(vae, latents)
    with float32_if_needed(vae):
        return vae.decode((latents / scale + shift).to(vae.dtype)).sample


def _shift_and_scale(vae: ModelMixin, latents: torch.Tensor):
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (torch.tensor(each, device=latents.device, dtype=latents.dtype).view(-1, 1, 1) for each in (mean, std))
    return mean, config.scaling_factor / std


@contextmanager
def float32_if_needed(vae: ModelMixin):
    """Runs an autoencoder that overflows in float16, which its config says by `force_upcast`, in float32, under autocast too."""
    device_type, dtype = vae.device.type, vae.dtype
    autocast = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
    if not vae.config.get("force_upcast") or not (autocast or dtype == torch.float16):
        yield
        return
    vae.to(torch.float32)
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        vae.to(dtype)
