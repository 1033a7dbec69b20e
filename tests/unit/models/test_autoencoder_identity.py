# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Proves that `IdentityAutoencoder` stands where an autoencoder is called, sliced and tiled, and changes nothing."""

import torch
from stock_parts import draw

from ddm_diffusers import IdentityAutoencoder


def test_everything_comes_back_as_it_is(tmp_path):
    IdentityAutoencoder(in_channels=4).save_pretrained(tmp_path)
    vae = IdentityAutoencoder.from_pretrained(tmp_path)
    x = draw(2, 4, 8, 8)
    vae.enable_slicing(), vae.enable_tiling()
    assert torch.equal(vae(x).sample, x) and torch.equal(vae(x, return_dict=False)[0], x)
    assert torch.equal(vae.decode(vae.encode(x).latents).sample, x)
    vae.disable_slicing(), vae.disable_tiling()
    assert torch.equal(vae(x).sample, x)
    assert vae.config.latent_channels == 4 and vae.config.scaling_factor == 1.0
