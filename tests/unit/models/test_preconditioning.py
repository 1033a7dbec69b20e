# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that the preconditioning is what its derivation says: unit variance in, and outside of the network the linear
regression of each target on the noisy image, estimated here from samples and, independently, from the definition.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DDMScheduler, DecoupledProcess
from ddm_diffusers.models.preconditioning import SLOPE_VARIANCE, precondition, precondition_velocity


PROCESSES = [(attenuation, schedule) for attenuation in ("constant", "linear") for schedule in ("sqrt", "linear")]


def test_slope_variance():
    # E[clamp(z, -1, 1)^2] of a standard normal z: the part inside, and 1 for the two tails
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    inside = math.erf(1 / math.sqrt(2)) - 2 * density
    tails = 1 - math.erf(1 / math.sqrt(2))
    assert pytest.approx(inside + tails, abs=1e-9) == SLOPE_VARIANCE


@pytest.mark.parametrize("sigma_data", [0.3, 1.0])
@pytest.mark.parametrize("t", [0.001, 0.2, 0.7, 0.99])
@pytest.mark.parametrize("attenuation, noise_schedule", PROCESSES)
def test_scales_are_the_regression_of_samples(attenuation, noise_schedule, t, sigma_data):
    num_samples = 100_000
    generator = torch.Generator().manual_seed(0)
    scheduler = DDMScheduler(attenuation=attenuation, noise_schedule=noise_schedule)
    x_0, eps = torch.randn(2, num_samples, 1, generator=generator, dtype=torch.float64)
    x_0 = sigma_data * x_0
    coefficients = scheduler.get_attenuation(x_0, generator=generator)
    x_t = scheduler.add_noise(x_0, eps, torch.tensor(1000 * t, dtype=torch.float64), coefficients)[:, 0]
    targets = torch.cat([coefficients, eps], dim=1).T

    scales = precondition(scheduler.process, torch.tensor(t, dtype=torch.float64), sigma_data)
    assert len(scales.c_skip) == len(scales.c_out) == len(targets)
    scaled = scales.c_in * x_t
    assert abs((scaled**2).mean() - 1) < 6 * (scaled**2).std() / math.sqrt(num_samples)
    for target, c_skip, c_out in zip(targets, scales.c_skip, scales.c_out, strict=True):
        residual = target - c_skip * x_t
        # the residual of the best linear guess is uncorrelated with x_t, and c_out is its size
        product, square = residual * x_t, residual**2
        assert abs(product.mean()) < 6 * product.std() / math.sqrt(num_samples)
        assert abs(square.mean() - c_out**2) < 6 * square.std() / math.sqrt(num_samples)


@given(st.sampled_from(PROCESSES), st.floats(1e-6, 1), st.floats(0.05, 3))
def test_scales_by_definition(process, t, sigma_data):
    # x_t and the targets are linear in the independent x_0, k, eps. Written as vectors over (x_0, k, eps), each in units
    # of its standard deviation, a covariance is a dot product, and regression is a projection.
    attenuation, noise_schedule = process
    slope_std = math.sqrt(SLOPE_VARIANCE) if attenuation == "linear" else 0.0
    sigma_t = math.sqrt(t) if noise_schedule == "sqrt" else t

    def vector(x_0, k, eps):
        return torch.tensor([x_0 * sigma_data, k * slope_std, eps], dtype=torch.float64)

    x_t = vector(1 - t, t**2 / 2 - t / 2, sigma_t)
    targets = [vector(-1, -0.5, 0), vector(0, 0, 1)]
    if attenuation == "linear":
        targets.insert(0, vector(0, 1, 0))
    scales = precondition(DecoupledProcess(*process), torch.tensor(t, dtype=torch.float64), sigma_data)
    assert scales.c_in.item() == pytest.approx(1 / x_t.norm().item(), rel=1e-9)
    for target, c_skip, c_out in zip(targets, scales.c_skip, scales.c_out, strict=True):
        projection = (target @ x_t) / (x_t @ x_t)
        assert c_skip.item() == pytest.approx(projection.item(), rel=1e-9, abs=1e-12)
        assert c_out.item() == pytest.approx((target - projection * x_t).norm().item(), rel=1e-7, abs=1e-9)


@given(st.sampled_from(["sqrt", "linear"]), st.floats(1e-3, 0.999), st.floats(0.1, 2))
def test_with_constant_attenuation_both_raw_targets_are_one_field(noise_schedule, t, sigma_data):
    x_0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma_t = math.sqrt(t) if noise_schedule == "sqrt" else t
    x_t = (1 - t) * x_0 + sigma_t * eps
    scales = precondition(
        DecoupledProcess("constant", noise_schedule), torch.tensor(t, dtype=torch.float64), sigma_data
    )
    of_attenuation = (-x_0 - scales.c_skip[0] * x_t) / scales.c_out[0]
    of_noise = (eps - scales.c_skip[1] * x_t) / scales.c_out[1]
    variance = (1 - t) ** 2 * sigma_data**2 + sigma_t**2
    field = ((1 - t) * sigma_data**2 * eps - sigma_t * x_0) / (sigma_data * math.sqrt(variance))
    torch.testing.assert_close(of_attenuation, field, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(of_noise, field, rtol=1e-8, atol=1e-8)


@given(st.sampled_from(["sqrt", "linear"]), st.floats(1e-3, 0.999))
def test_the_raw_target_of_the_velocity_scales_is_the_velocity(noise_schedule, t):
    x_0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma_t = math.sqrt(t) if noise_schedule == "sqrt" else t
    x_t = (1 - t) * x_0 + sigma_t * eps
    time = torch.tensor(t, dtype=torch.float64)
    scales = precondition_velocity(DecoupledProcess("constant", noise_schedule), time)
    for target, c_skip, c_out in zip((-x_0, eps), scales.c_skip, scales.c_out, strict=True):
        torch.testing.assert_close((target - c_skip * x_t) / c_out, eps - x_0, rtol=1e-8, atol=1e-8)
    # the input of a network for flow matching, which is where share of noise and time are the same
    r = sigma_t / (1 - t + sigma_t)
    torch.testing.assert_close(scales.scale_input(x_t), (1 - r) * x_0 + r * eps, rtol=1e-12, atol=1e-12)


def test_the_velocity_scales_need_a_straight_path(rejects):
    with rejects("`process`", "'linear'", "'constant'"):
        precondition_velocity(DecoupledProcess("linear", "sqrt"), torch.tensor(0.5))


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@given(st.floats(1e-6, 1), st.none() | st.floats(0.1, 2), st.integers(0, 1000))
def test_one_head_satisfies_the_forward_equation(noise_schedule, t, sigma_data, seed):
    # whatever the network says: the image -c and the noise that come out make up exactly the x_t that went in
    x_t, raw = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    time, process = torch.tensor(t, dtype=torch.float64), DecoupledProcess("constant", noise_schedule)
    scales = precondition(process, time, sigma_data) if sigma_data else precondition_velocity(process, time)
    c, eps = scales.scale_output(x_t, (raw, raw)).chunk(2, dim=1)
    sigma_t = math.sqrt(t) if noise_schedule == "sqrt" else t
    torch.testing.assert_close((1 - t) * -c + sigma_t * eps, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attenuation, noise_schedule", PROCESSES)
def test_finite_at_the_ends(attenuation, noise_schedule, dtype):
    t = torch.tensor([0.0, 1e-6, 1e-4, 1 - 1e-4, 1 - 1e-7, 1.0], dtype=dtype)
    process = DecoupledProcess(attenuation, noise_schedule)
    x_t = torch.ones(len(t), 2, dtype=dtype)
    every = [precondition(process, t, 0.5)]
    if attenuation == "constant":
        every.append(precondition_velocity(process, t))
    for scales in every:
        output = scales.scale_output(x_t, (x_t,) * (process.num_coefficients + 1))
        for values in (scales.c_in, *scales.c_skip, *scales.c_out, output):
            assert values.isfinite().all()
            assert values.dtype == dtype
        # at t = 1 the input is the noise: it is passed through, and nothing is left for the network to add
        assert scales.c_skip[-1][-1] == 1 and scales.c_out[-1][-1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    scales = precondition(DecoupledProcess(), torch.tensor([0.2, 0.9]), 0.5)
    x_t, raw = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(scales.scale_input(x_t), scales.scale_input(x_t.float()))
    assert torch.equal(scales.scale_output(x_t, (raw, raw)), scales.scale_output(x_t.float(), (raw.float(),) * 2))


def test_a_missing_head_is_noticed():
    scales = precondition(DecoupledProcess(), torch.tensor(0.5), 1.0)
    with pytest.raises(ValueError):
        scales.scale_output(torch.ones(1, 1), (torch.ones(1, 1),))
