# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The latents of each kind of autoencoder of diffusers: scaled as its own pipelines scale them, and back."""

import diffusers
import pytest
import torch
from stock_parts import seeded, tiny_vae

from ddm_diffusers.latents import decode_latents, encode_images, latent_scale_factor, sample_latents, scale_latents


def tiny_autoencoder():
    torch.manual_seed(0)
    options = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return diffusers.AutoencoderTiny(**options, **blocks, scaling_factor=0.7).eval()


def vector_quantized():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(**blocks, block_out_channels=(4, 8), norm_num_groups=2, scaling_factor=0.6).eval()


def deeply_compressing():
    torch.manual_seed(0)
    encoder = {
        "encoder_block_types": "ResBlock",
        "encoder_block_out_channels": (4, 8),
        "encoder_layers_per_block": (1, 1),
    }
    decoder = {
        "decoder_block_types": "ResBlock",
        "decoder_block_out_channels": (4, 8),
        "decoder_layers_per_block": (1, 1),
    }
    norms = {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    model = diffusers.AutoencoderDC(**encoder, **decoder, **norms, latent_channels=4, scaling_factor=0.4)
    return model.eval()


AUTOENCODERS = {
    "kl": lambda: tiny_vae(scaling_factor=0.3),
    "kl with a shift": lambda: tiny_vae(scaling_factor=0.5, shift_factor=0.2),
    "kl with a mean and a deviation of each channel": lambda: tiny_vae(
        scaling_factor=0.5, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 4.0]
    ),
    "tiny": tiny_autoencoder,
    "vq": vector_quantized,
    "dc": deeply_compressing,
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
@torch.no_grad()
def test_scaling_is_that_of_diffusers(kind):
    vae, images = AUTOENCODERS[kind](), torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1
    posterior = encode_images(vae, images)
    latents = scale_latents(vae, posterior.mean)
    factor = latent_scale_factor(vae)
    assert factor == 2 and latents.shape[2:] == (4, 4)
    output = vae.encode(images)
    if kind.startswith("kl"):
        raw = output.latent_dist.mean
        assert torch.equal(posterior.std, output.latent_dist.std)
    else:
        raw = output.latents if hasattr(output, "latents") else output.latent
        assert posterior.std is None
    mean, scale = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
    if vae.config.get("latents_mean"):
        mean = torch.tensor(vae.config.latents_mean).view(4, 1, 1)
        scale = scale / torch.tensor(vae.config.latents_std).view(4, 1, 1)
    torch.testing.assert_close(latents, (raw - mean) * scale)
    torch.testing.assert_close(decode_latents(vae, latents), vae.decode(raw).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_are_drawn_from_the_posterior():
    vae = tiny_vae(scaling_factor=0.3)
    posterior = encode_images(vae, torch.rand(2, 3, 8, 8, generator=seeded()))
    one = [sample_latents(vae, posterior, [seeded(i), seeded(5)]) for i in range(2)]
    assert torch.equal(one[0][1], one[1][1]) and not torch.equal(one[0][0], one[1][0])
    many = encode_images(vae, torch.rand(1, 3, 8, 8, generator=seeded()).expand(4000, -1, -1, -1))
    drawn = sample_latents(vae, many, seeded()) / 0.3
    error = (drawn.mean(0) - many.mean[0]).abs() / (many.std[0] / 4000**0.5)
    assert error.max() < 5  # standard errors
    torch.testing.assert_close(drawn.std(0), many.std[0], rtol=0.06, atol=0)
    without = sample_latents(vae, posterior._replace(std=None), seeded())
    assert torch.equal(without, scale_latents(vae, posterior.mean))


@torch.no_grad()
def test_float16_is_left_where_an_autoencoder_asks_for_it():
    vae, seen = tiny_vae(force_upcast=True).to(torch.float16), []
    vae.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].dtype))
    decode_latents(vae, torch.zeros(1, 4, 4, 4, dtype=torch.float16))
    assert seen == [torch.float32] and vae.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_an_autoencoder_that_overflows_in_float16(dtype):
    """Activations beyond 65504, as Stable Diffusion XL's autoencoder has them, under autocast and with half of the weights."""
    vae = tiny_vae(scaling_factor=0.5, force_upcast=True)
    for half in (vae.encoder, vae.decoder):
        half.conv_in.weight.data *= 3e5  # still within float16
    images = torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1
    posterior = encode_images(vae, images)
    decoded = decode_latents(vae, posterior.mean)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(encode_images(vae, images).mean.float(), posterior.mean, **tolerance)
        torch.testing.assert_close(decode_latents(vae, posterior.mean).float(), decoded, **tolerance)
        if dtype == torch.float16:
            vae.register_to_config(force_upcast=False)
            assert not decode_latents(vae, posterior.mean).isfinite().all()
            vae.register_to_config(force_upcast=True)
    vae.to(dtype)
    assert decode_latents(vae, posterior.mean).isfinite().all() and vae.dtype == dtype
