# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `sample_ddm` keeps the contract of k-diffusion's samplers: a perfect model gives back the image, in first order
it is their Euler sampler, and a run may end above 0.
"""

import pytest
import torch

from ddm_diffusers.k_diffusion import sample_ddm


SIGMAS = torch.tensor([14.6, 5.0, 1.5, 0.4, 0.03, 0.0])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def toy_model(x, sigma, gain=0.8):
    assert sigma.shape == x.shape[:1]
    return gain * (x / (1 + sigma.reshape(-1, 1, 1) ** 2) ** 0.5).tanh()


@pytest.mark.parametrize("options", [{}, {"eta": 0.0, "solver_order": 3}, {"solver_order": 1}], ids=str)
def test_a_perfect_model_gives_back_the_image(options):
    x_0 = draw(2, 3, 4, seed=1)
    result = sample_ddm(lambda x, sigma: x_0, SIGMAS[0] * draw(2, 3, 4), SIGMAS, disable=True, **options)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("last", [6, 4])
def test_first_order_without_noise_is_euler(last):
    sigmas, x = SIGMAS[:last].double(), SIGMAS[0] * draw(2, 3, 4)
    expected, seen = x, []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = toy_model(expected, sigma.expand(2), gain=0.5)
        expected = expected + (expected - denoised) / sigma * (following - sigma)
    result = sample_ddm(toy_model, x, sigmas, {"gain": 0.5}, seen.append, True, eta=0.0, solver_order=1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    assert [each["i"] for each in seen] == list(range(last - 1))
    assert all({"x", "sigma", "sigma_hat", "denoised"} <= set(each) for each in seen)


def test_a_seed_among_the_arguments_seeds_the_fresh_noise():
    def model(x, sigma, seed):
        return toy_model(x, sigma)

    results = [sample_ddm(model, SIGMAS[0] * draw(1, 2, 4), SIGMAS, {"seed": s}, disable=True) for s in (0, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_levels_that_rise(rejects):
    with rejects("`sigmas`", "[1.0, 2.0]", "falling"):
        sample_ddm(toy_model, draw(1, 2, 3), torch.tensor([1.0, 2.0, 0.0]), disable=True)
