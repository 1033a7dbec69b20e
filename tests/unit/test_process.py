# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that the closed forms of `DecoupledProcess` are right: against simulated paths (Monte Carlo), against each other
(marginalising the posterior gives the marginal), and against the paper's formulas, written out here a second time.

Every Monte Carlo tolerance is 6 standard errors, a chance of about 2e-9 to fail by accident.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DecoupledProcess


attenuations = st.sampled_from(["constant", "linear"])
noise_schedules = st.sampled_from(["sqrt", "linear"])
etas = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
# s < t, with s = 0 and t = 1 among them
ordered_times = st.tuples(st.floats(0, 0.999), st.floats(0.01, 1)).map(lambda pair: (pair[0] * pair[1], pair[1]))
ALL_PROCESSES = [(attenuation, schedule) for attenuation in ("constant", "linear") for schedule in ("sqrt", "linear")]


def true_sigma(noise_schedule, t):
    return math.sqrt(t) if noise_schedule == "sqrt" else t


def true_h(attenuation, x_0, k, t):
    """h_t, the attenuation's rate, from the end condition that its integral over [0, 1] is -x_0."""
    return -x_0 if attenuation == "constant" else k * t + (-x_0 - k / 2)


def draw_images(seed, shape=(3, 2, 4)):
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    k = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-1, 1)
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x_0, k, eps


def simulate_path(attenuation, noise_schedule, x_0, k, times, num_paths, seed):
    """
    Walk the forward process through `times`, a list that starts at 0: the rate h at the midpoint of each interval (which
    integrates a linear function exactly) plus an independent Gaussian increment of the variance that the clock advanced.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((num_paths, 1), float(x_0), dtype=torch.float64)
    path = [x]
    for before, after in zip(times[:-1], times[1:], strict=True):
        advance = true_sigma(noise_schedule, after) ** 2 - true_sigma(noise_schedule, before) ** 2
        increment = torch.randn(x.shape, generator=generator, dtype=torch.float64) * math.sqrt(max(advance, 0))
        x = x + true_h(attenuation, x_0, k, (before + after) / 2) * (after - before) + increment
        path.append(x)
    return path


def scalar_images(x_0, k, like):
    """The same scalar image and slope for each path."""
    return torch.full_like(like, x_0), torch.full_like(like, k)


@given(attenuations, noise_schedules, st.floats(0.01, 1), st.floats(-1, 1), st.floats(-1, 1), seeds)
def test_marginal_is_the_law_of_a_simulated_path(attenuation, noise_schedule, t, x_0, k, seed):
    num_paths = 20_000
    times = [t * i / 8 for i in range(9)]
    x_t = simulate_path(attenuation, noise_schedule, x_0, k, times, num_paths, seed)[-1]

    process = DecoupledProcess(attenuation, noise_schedule)
    image, slope = scalar_images(x_0, k, x_t[:1])
    coefficients = process.coefficients(image, slope)
    mean = process.marginal(image, coefficients, torch.zeros_like(image), t).item()
    std = process.marginal(image, coefficients, torch.ones_like(image), t).item() - mean
    assert abs(x_t.mean().item() - mean) < 6 * std / math.sqrt(num_paths)
    assert abs(x_t.var().item() - std**2) < 6 * std**2 * math.sqrt(2 / num_paths)


@given(attenuations, noise_schedules, ordered_times, seeds)
def test_the_transition_makes_the_marginal_of_the_later_time(attenuation, noise_schedule, s_t, seed):
    """The forward step of the mean of x_s is the mean of x_t, and what it adds to the variance is what is missing."""
    s, t = s_t
    process = DecoupledProcess(attenuation, noise_schedule)
    x_0, k, _ = draw_images(seed)
    coefficients = process.coefficients(x_0, k)
    zeros = torch.zeros_like(x_0)
    mean, std = process.transition(process.marginal(x_0, coefficients, zeros, s), coefficients, s, t)
    torch.testing.assert_close(mean, process.marginal(x_0, coefficients, zeros, t), rtol=0, atol=1e-12)
    variances = (true_sigma(noise_schedule, each) ** 2 for each in (s, t))
    assert float(std) ** 2 == pytest.approx(-next(variances) + next(variances), abs=1e-12)


@given(attenuations, noise_schedules, ordered_times, st.floats(-1, 1), st.floats(-1, 1), seeds)
def test_posterior_is_the_bridge_of_a_simulated_path(attenuation, noise_schedule, s_t, x_0, k, seed):
    # Nothing here knows what a bridge is: the path is walked forwards through s to t, and x_s minus the posterior's
    # mean given x_t has to be uncorrelated with x_t and of the posterior's variance. For Gaussians that is the proof.
    num_paths = 20_000
    s, t = s_t
    times = [s * i / 4 for i in range(5)] + [s + (t - s) * i / 4 for i in range(1, 5)]
    path = simulate_path(attenuation, noise_schedule, x_0, k, times, num_paths, seed)
    x_s, x_t = path[4], path[-1]

    process = DecoupledProcess(attenuation, noise_schedule)
    image, slope = scalar_images(x_0, k, x_t)
    walked = sum(
        true_h(attenuation, x_0, k, (a + b) / 2) * (b - a) for a, b in zip(times[:-1], times[1:], strict=True)
    )
    eps = (x_t - x_0 - walked) / true_sigma(noise_schedule, t)
    mean, std = process.posterior(image, process.coefficients(image, slope), eps, s, t)
    std = float(std)
    residual = x_s - mean
    rounding = 1e-12  # for s = 0, where everything is exact
    assert abs(residual.mean().item()) <= 6 * std / math.sqrt(num_paths) + rounding
    assert abs(residual.var().item() - std**2) <= 6 * std**2 * math.sqrt(2 / num_paths) + rounding
    assert abs((residual * eps).mean().item()) <= 6 * std / math.sqrt(num_paths) + rounding


@given(attenuations, noise_schedules, ordered_times, etas, seeds)
def test_marginalised_posterior_is_the_marginal_in_closed_form(attenuation, noise_schedule, s_t, eta, seed):
    s, t = s_t
    x_0, k, eps = draw_images(seed)
    process = DecoupledProcess(attenuation, noise_schedule)
    coefficients = process.coefficients(x_0, k)
    # the posterior's mean is affine in eps ~ N(0, I): its value at 0 is the mean over x_t, its slope adds variance
    mean_at_0, std = process.posterior(x_0, coefficients, torch.zeros_like(eps), s, t, eta)
    mean, _ = process.posterior(x_0, coefficients, eps, s, t, eta)
    slope = (mean - mean_at_0) / eps
    torch.testing.assert_close(mean_at_0, process.marginal(x_0, coefficients, torch.zeros_like(eps), s))
    # dividing by an eps near 0 loses digits, about one per decade
    variance = torch.full_like(slope, true_sigma(noise_schedule, s) ** 2)
    tolerance = 1e-14 / eps.abs().min().item() + 1e-12
    torch.testing.assert_close(slope**2 + std**2, variance, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("attenuation, noise_schedule", ALL_PROCESSES)
def test_marginalised_posterior_is_the_marginal_by_sampling(attenuation, noise_schedule, eta):
    s, t, x_0, k, num_paths = 0.3, 0.8, 0.7, -0.4, 200_000
    process = DecoupledProcess(attenuation, noise_schedule)
    generator = torch.Generator().manual_seed(0)
    eps, z = torch.randn(2, num_paths, 1, generator=generator, dtype=torch.float64)
    image, slope = scalar_images(x_0, k, eps)
    coefficients = process.coefficients(image, slope)
    x_t = process.marginal(image, coefficients, eps, t)
    recovered = (x_t - image - process.attenuate(coefficients, t)) / true_sigma(noise_schedule, t)
    mean, std = process.posterior(image, coefficients, recovered, s, t, eta)
    x_s = mean + std * z

    expected_mean = process.marginal(image[:1], coefficients[:1], torch.zeros(1, 1, dtype=torch.float64), s).item()
    sigma_s = true_sigma(noise_schedule, s)
    assert abs(x_s.mean().item() - expected_mean) < 6 * sigma_s / math.sqrt(num_paths)
    assert abs(x_s.var().item() - sigma_s**2) < 6 * sigma_s**2 * math.sqrt(2 / num_paths)


@given(noise_schedules, st.lists(st.floats(0.01, 1), min_size=3, max_size=3, unique=True).map(sorted))
def test_two_exact_steps_are_one(noise_schedule, times):
    # the bridge is a Markov chain backwards in time: t -> u -> s has the law of t -> s, for eta = 1
    s, u, t = times
    process = DecoupledProcess("constant", noise_schedule)
    kept_ut, std_ut = process.bridge_scales(u, t)
    kept_su, std_su = process.bridge_scales(s, u)
    kept_st, std_st = process.bridge_scales(s, t)
    gain = kept_su / true_sigma(noise_schedule, u)  # d x_s / d x_u
    torch.testing.assert_close(gain * kept_ut, kept_st, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(std_su**2 + gain**2 * std_ut**2, std_st**2, rtol=1e-9, atol=1e-12)


@given(attenuations, ordered_times, seeds)
def test_posterior_is_the_papers_formula(attenuation, s_t, seed):
    # arXiv 2306.13720: mean x_t + H_s - H_t - (t - s) / sqrt(t) eps, variance s (t - s) / t, for sigma_t = sqrt(t)
    s, t = s_t
    x_0, k, eps = draw_images(seed)
    if attenuation == "constant":
        h_s, h_t = -x_0 * s, -x_0 * t
    else:
        c = -x_0 - k / 2
        h_s, h_t = k * s * s / 2 + c * s, k * t * t / 2 + c * t
    x_t = x_0 + h_t + math.sqrt(t) * eps
    expected_mean = x_t + h_s - h_t - (t - s) / math.sqrt(t) * eps
    expected_variance = s * (t - s) / t

    process = DecoupledProcess(attenuation, "sqrt")
    coefficients = process.coefficients(x_0, k)
    mean, std = process.posterior(x_0, coefficients, eps, s, t)
    torch.testing.assert_close(process.marginal(x_0, coefficients, eps, t), x_t, rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-6)
    assert mean.dtype == torch.float64
    assert abs(float(std) ** 2 - expected_variance) < 1e-6


@given(noise_schedules, st.tuples(st.floats(0.05, 0.95), st.floats(0.1, 0.95)).map(lambda p: (p[0] * p[1], p[1])))
def test_posterior_is_not_that_of_ddpm(noise_schedule, s_t):
    # DDPM's path has the same marginals, x_t = alpha_t x_0 + sigma_t eps, but couples image and noise: from s to t it
    # scales the whole of x_s by alpha_t / alpha_s and adds fresh noise. Bayes' rule then gives its posterior variance.
    s, t = s_t
    sigma_s, sigma_t = true_sigma(noise_schedule, s), true_sigma(noise_schedule, t)
    scale = (1 - t) / (1 - s)
    fresh = sigma_t**2 - scale**2 * sigma_s**2
    ddpm_variance = 1 / (1 / sigma_s**2 + scale**2 / fresh)
    std = DecoupledProcess("constant", noise_schedule).bridge_scales(s, t)[1]
    # process.md: DDPM multiplies sigma_s^2 / sigma_t^2 by alpha_t^2 / alpha_s^2, and so injects more noise
    assert ddpm_variance == pytest.approx(sigma_s**2 * (1 - scale**2 * sigma_s**2 / sigma_t**2))
    assert ddpm_variance - std**2 == pytest.approx(sigma_s**4 / sigma_t**2 * (1 - scale**2))
    assert std**2 < ddpm_variance


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@given(ordered_times, etas)
def test_eta_scales_the_standard_deviation_of_the_bridge(noise_schedule, s_t, eta):
    s, t = s_t
    sigma_s, sigma_t = true_sigma(noise_schedule, s), true_sigma(noise_schedule, t)
    v = sigma_s**2 * (1 - sigma_s**2 / sigma_t**2)
    kept, std = DecoupledProcess("constant", noise_schedule).bridge_scales(s, t, eta)
    assert float(std) == pytest.approx(eta * math.sqrt(v), abs=1e-12)
    assert kept == pytest.approx(math.sqrt(sigma_s**2 - eta**2 * v), rel=1e-6, abs=1e-12)


@given(attenuations, noise_schedules, st.floats(0.001, 1), seeds)
def test_predict_x0_inverts_marginal(attenuation, noise_schedule, t, seed):
    x_0, k, eps = draw_images(seed)
    process = DecoupledProcess(attenuation, noise_schedule)
    coefficients = process.coefficients(x_0, k)
    x_t = process.marginal(x_0, coefficients, eps, t)
    torch.testing.assert_close(process.predict_x0(x_t, coefficients, eps, t), x_0, rtol=0, atol=1e-12)


@given(attenuations, st.floats(0, 1), seeds)
def test_attenuation_is_the_integral_of_its_rate_and_ends_the_image(attenuation, t, seed):
    x_0, k, _ = draw_images(seed)
    process = DecoupledProcess(attenuation)
    coefficients = process.coefficients(x_0, k)
    torch.testing.assert_close(process.attenuate(coefficients, 1.0), -x_0)
    assert not process.attenuate(coefficients, 0.0).any()
    time = torch.tensor(t, dtype=torch.float64)
    rate = torch.func.jacfwd(lambda time: process.attenuate(coefficients, time))(time)
    torch.testing.assert_close(rate, true_h(attenuation, x_0, k, t))


@pytest.mark.parametrize("attenuation, noise_schedule", ALL_PROCESSES)
def test_step_to_zero_is_the_image_without_noise(attenuation, noise_schedule):
    x_0, k, eps = draw_images(0)
    process = DecoupledProcess(attenuation, noise_schedule)
    mean, std = process.posterior(x_0, process.coefficients(x_0, k), eps, 0.0, 0.37)
    assert torch.equal(mean, x_0)
    assert std == 0


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_step_stays_finite(noise_schedule, dtype):
    # s and t that are neighbours in floating point: a difference of squares would be rounded to below zero here
    t = torch.linspace(0.01, 1, 500, dtype=dtype)
    s = torch.nextafter(t, torch.zeros(1, dtype=dtype))
    for eta in (0.0, 0.5, 1.0):
        kept, std = DecoupledProcess("constant", noise_schedule).bridge_scales(s, t, eta)
        assert kept.isfinite().all() and std.isfinite().all()
        torch.testing.assert_close(kept, DecoupledProcess("constant", noise_schedule).sigma(t))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 7), (3, 2, 4, 5), (3, 2, 2, 4, 3)], ids=str)
@pytest.mark.parametrize("attenuation, noise_schedule", ALL_PROCESSES)
def test_a_time_for_each_image_equals_one_by_one(attenuation, noise_schedule, shape):
    x_0, k, eps = draw_images(0, shape)
    process = DecoupledProcess(attenuation, noise_schedule)
    coefficients = process.coefficients(x_0, k)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    s = torch.tensor([0.0, 0.4, 0.7], dtype=torch.float64)
    x_t = process.marginal(x_0, coefficients, eps, t)
    mean, std = process.posterior(x_0, coefficients, eps, s, t, 0.5)
    clean = process.predict_x0(x_t, coefficients, eps, t)
    assert x_t.shape == mean.shape == clean.shape == shape
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(x_t[one], process.marginal(x_0[one], coefficients[one], eps[one], t[i].item()))
        mean_i, std_i = process.posterior(x_0[one], coefficients[one], eps[one], s[i].item(), t[i].item(), 0.5)
        torch.testing.assert_close(mean[one], mean_i)
        assert std.flatten()[i].item() == pytest.approx(std_i, abs=1e-12)


@pytest.mark.parametrize(
    "given_dtype, inner_dtype",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_arithmetic_runs_in_float32_or_better(given_dtype, inner_dtype):
    x_0, k, eps = (x.to(given_dtype) for x in draw_images(0))
    process = DecoupledProcess("linear", "sqrt")
    coefficients = process.coefficients(x_0, k)
    inner = [x.to(inner_dtype) for x in (x_0, coefficients, eps)]
    for t in (0.3, torch.tensor(0.3, dtype=torch.float64)):  # a 0-d time does not promote what it multiplies
        x_t = process.marginal(x_0, coefficients, eps, t)
        assert x_t.dtype == inner_dtype
        assert torch.equal(x_t, process.marginal(*inner, t))
        assert process.predict_x0(x_0, coefficients, eps, t).dtype == inner_dtype
        assert process.posterior(x_0, coefficients, eps, 0.1, t)[0].dtype == inner_dtype


@pytest.mark.parametrize("name", ["attenuation", "noise_schedule"])
@pytest.mark.parametrize("value", ["cosine", None])
def test_unknown_process_is_rejected(name, value, rejects):
    with rejects(f"`{name}`", repr(value), "'linear'", "'constant'" if name == "attenuation" else "'sqrt'"):
        DecoupledProcess(**{name: value})


def test_linear_coefficients_without_slope_are_rejected(rejects):
    with rejects("`slope`", "None", "shape of `x_0`"):
        DecoupledProcess("linear").coefficients(torch.zeros(1, 1))


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_time_undoes_alpha_and_sigma_whatever_their_scale(noise_schedule):
    process, t = DecoupledProcess("constant", noise_schedule), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(process.time(3 * (1 - t), 3 * process.sigma(t)), t, rtol=0, atol=1e-12)
