# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMScheduler` samples: a perfect model gives back the image exactly at any number of steps, the stochastic
step is the bridge's, and the higher orders integrate the polynomial through the estimates, all of them written out here a
second time. And that it keeps the contracts around that: one evaluation a timestep, any rank and dtype, generators, saving, and errors that change nothing.
"""

import copy
import inspect
import logging
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DDMScheduler, DDMSchedulerOutput
from ddm_diffusers.schedulers.multistep import BridgeStep, time_change


PAPER = {"solver_order": 1, "eta": 1.0, "time_grid": "uniform"}


def true_sigma(scheduler, t):
    return t**0.5 if scheduler.config.noise_schedule == "sqrt" else t


def true_attenuation(x_0, k, t):
    """H_t; without a slope k it is constant attenuation's."""
    return -x_0 * t if k is None else k * t**2 / 2 + (-x_0 - k / 2) * t


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_image(scheduler, shape=(2, 3, 4, 4), dtype=torch.float32):
    """An image in [-1, 1], its slope if the attenuation has one, and its coefficients."""
    x_0 = draw(*shape, seed=1, dtype=dtype).clamp(-1, 1)
    if scheduler.config.attenuation == "constant":
        return x_0, None, -x_0
    k = draw(*shape, seed=2, dtype=dtype).clamp(-1, 1)
    return x_0, k, torch.cat([k, -x_0 - k / 2], dim=1)


def perfect_output(scheduler, x_t, timestep, x_0, k, coefficients):
    """What a model returns that knows the image: the coefficients, and the noise that the current sample has."""
    t = float(timestep) / scheduler.config.num_train_timesteps
    exact = torch.float64 if x_t.dtype == torch.float64 else torch.float32
    x_0, k, wide = x_0.to(exact), None if k is None else k.to(exact), x_t.to(exact)
    eps = (wide - x_0 - true_attenuation(x_0, k, t)) / true_sigma(scheduler, t)
    return torch.cat([coefficients, eps.to(x_t.dtype)], dim=1)


def toy_output(x):
    """A model of nothing in particular, image by image and not linear, whose estimates disagree with each other."""
    return torch.cat([-(0.8 * x).tanh() + 0.1, (1.3 * x).sin()], dim=1)


def run(scheduler, x, model, generator=None):
    """Sample as a pipeline does; returns the result and how often the model was evaluated."""
    evaluations = 0
    for timestep in scheduler.timesteps:
        evaluations += 1
        x = scheduler.step(model(x, timestep), timestep, x, generator=generator).prev_sample
    return x, evaluations


# ---------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("time_grid", ["uniform", "power", "ratio"])
@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("attenuation, solver_order", [("constant", 1), ("constant", 3), ("linear", 1), ("linear", 2)])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 100])
def test_a_perfect_model_gives_back_the_image(num_steps, attenuation, solver_order, noise_schedule, time_grid, eta):
    scheduler = DDMScheduler(
        attenuation=attenuation, noise_schedule=noise_schedule, time_grid=time_grid, solver_order=solver_order, eta=eta
    )
    scheduler.set_timesteps(num_steps)
    x_0, k, coefficients = draw_image(scheduler)
    sample, evaluations = run(
        scheduler,
        draw(*x_0.shape),
        lambda x, t: perfect_output(scheduler, x, t, x_0, k, coefficients),
        torch.Generator().manual_seed(3),
    )
    # the last step computes x_t - H_t - sigma_t eps, a handful of roundings of numbers below about 5
    torch.testing.assert_close(sample, x_0, rtol=0, atol=32 * torch.finfo(torch.float32).eps)
    assert evaluations == num_steps


@pytest.mark.parametrize("solver_order", [1, 2])
@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_without_fresh_noise_the_path_keeps_its_noise(noise_schedule, solver_order):
    # eta = 0 is a deterministic map: every sample on the way is the forward process with the very first noise
    scheduler = DDMScheduler(noise_schedule=noise_schedule, eta=0.0, solver_order=solver_order)
    scheduler.set_timesteps(7)
    x_0, k, coefficients = draw_image(scheduler)
    eps = x = draw(*x_0.shape)
    for timestep, following in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        x = scheduler.step(perfect_output(scheduler, x, timestep, x_0, k, coefficients), timestep, x).prev_sample
        torch.testing.assert_close(x, scheduler.add_noise(x_0, eps, following), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_one_step_written_out(attenuation, noise_schedule, eta, clip_sample):
    scheduler = DDMScheduler(
        attenuation=attenuation,
        noise_schedule=noise_schedule,
        solver_order=1,
        eta=eta,
        clip_sample=clip_sample,
        clip_sample_range=0.7,
    )
    scheduler.set_timesteps(timesteps=[800, 300])
    t, s = 0.8, 0.3
    x_t = draw(2, 3, 5, dtype=torch.float64)
    parts = [2 * draw(2, 3, 5, seed=seed, dtype=torch.float64) for seed in (1, 2, 3)]
    z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    sigma_s, sigma_t = true_sigma(scheduler, s), true_sigma(scheduler, t)
    if attenuation == "constant":
        c, eps = parts[:2]
        output = torch.cat([c, eps], dim=1)
        x_0 = x_t - c * t - sigma_t * eps
        if clip_sample:
            x_0 = x_0.clamp(-0.7, 0.7)
        attenuated = x_0 * (1 - s)  # c is derived again, c = -x_0
    else:
        k, c, eps = parts
        output = torch.cat([k, c, eps], dim=1)
        if clip_sample:
            k = k.clamp(-1, 1)
        x_0 = x_t - k * t**2 / 2 - c * t - sigma_t * eps
        attenuated = x_0 + k * s**2 / 2 + c * s
    v = eta**2 * sigma_s**2 * (1 - sigma_s**2 / sigma_t**2)
    expected = attenuated + math.sqrt(sigma_s**2 - v) * eps + math.sqrt(v) * z

    out = scheduler.step(output, 800.0, x_t, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(out.prev_sample, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.pred_original_sample, x_0, rtol=0, atol=1e-12)


def test_the_papers_step():
    # arXiv 2306.13720: x_s = x_t + H_s - H_t - (t - s) / sqrt(t) eps + sqrt(s (t - s) / t) z, on a uniform grid. The two
    # predictions agree on the image here, since the step re-derives the coefficients.
    scheduler = DDMScheduler(**PAPER)
    scheduler.set_timesteps(5)
    x, generator, ours = draw(2, 3, 4, dtype=torch.float64), torch.Generator(), torch.Generator()
    generator.manual_seed(4), ours.manual_seed(4)
    expected = x
    for i in range(5):
        t, s = 1 - i / 5, 1 - (i + 1) / 5
        c = -(0.8 * expected).tanh()
        eps = (expected + c * (1 - t)) / math.sqrt(t)
        model_output = torch.cat([-(0.8 * x).tanh(), (x - (0.8 * x).tanh() * (1 - t)) / math.sqrt(t)], dim=1)
        x = scheduler.step(model_output, scheduler.timesteps[i], x, generator=ours).prev_sample
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64) if i < 4 else 0
        expected = expected + c * s - c * t - (t - s) / math.sqrt(t) * eps + math.sqrt(max(s * (t - s) / t, 0)) * z
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- second order


def uniform_times(num_steps):
    return [(num_steps - i) / num_steps for i in range(num_steps)]


def power_times(num_steps, rho, t_min):
    ends = 1.0, t_min ** (1 / rho)
    return [(ends[0] + (ends[1] - ends[0]) * i / (num_steps - 1)) ** rho for i in range(num_steps)]


def integrated_step(x, times, s, estimates, noise_schedule, start=None):
    """
    One deterministic step from `start`, times[0] by default, to s whose clean image follows the polynomial through the
    estimates, in the time of the standard Wiener process; d(x / sigma) = x_0 d(alpha / sigma) integrated numerically.
    """
    start = times[0] if start is None else start

    def ratio(t):
        return (1 - t) / (t**0.5 if noise_schedule == "sqrt" else t)

    def clock(t):
        return scipy.optimize.brentq(lambda u: (1 - u) - ratio(t) * u**0.5, 0, 1, xtol=1e-15) if t < 1 else 1.0

    sigma = (lambda t: t**0.5) if noise_schedule == "sqrt" else (lambda t: t)
    nodes = [clock(t) for t in times]
    polynomials = [scipy.interpolate.lagrange(nodes, row) for row in np.eye(len(nodes))]
    # u as the variable: alpha / sigma = (1 - u) / sqrt(u)
    slope = lambda u: -(1 + u) / (2 * u**1.5)  # noqa: E731
    result = sigma(s) / sigma(start) * x
    for polynomial, estimate in zip(polynomials, estimates, strict=True):
        integral = scipy.integrate.quad(lambda u, p=polynomial: p(u) * slope(u), clock(start), clock(s), epsabs=1e-13)[
            0
        ]
        result = result + sigma(s) * integral * estimate
    return result


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("solver_order", [2, 3])
@pytest.mark.parametrize("corrector", [False, True])
def test_a_step_integrates_the_polynomial_through_the_estimates(corrector, solver_order, noise_schedule):
    times = [1.0, 0.8, 0.55, 0.3, 0.02]
    scheduler = DDMScheduler(
        noise_schedule=noise_schedule, solver_order=solver_order, corrector=corrector, eta=0.0, clip_sample=False
    )
    scheduler.set_timesteps(timesteps=[1000 * t for t in times])
    corrected = None
    x, estimates = draw(2, 3, 8, dtype=torch.float64), []
    for i, (t, timestep) in enumerate(zip(times, scheduler.timesteps, strict=True)):
        sigma_t = true_sigma(scheduler, t)
        image = (0.8 * x).tanh()
        estimates = [image, *estimates][:solver_order]
        out = scheduler.step(torch.cat([-image, (x - (1 - t) * image) / sigma_t], dim=1), timestep, x)
        if t == times[-1]:
            break
        nodes = times[i::-1][: len(estimates)]
        if corrector:
            # the last step again, now with the estimate at its end, and from there on
            corrected = x if i == 0 else integrated_step(corrected, nodes, t, estimates, noise_schedule, times[i - 1])
        expected = integrated_step(corrected if corrector else x, nodes, times[i + 1], estimates, noise_schedule)
        torch.testing.assert_close(out.prev_sample, expected, rtol=0, atol=1e-9)
        x = out.prev_sample
    # into s = 0 it is the value of the polynomial there
    nodes = [time_change(scheduler.process, t) for t in times]
    polynomial = np.polynomial.polynomial.polyfit(
        nodes[: -1 - solver_order : -1], np.stack([e.flatten().numpy() for e in estimates]), solver_order - 1
    )
    expected = torch.from_numpy(polynomial[0]).reshape(x.shape)
    torch.testing.assert_close(out.prev_sample, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "solver_order, corrector, least_ratio",
    # Twice the steps divide the error by 2 or by 4: the first step has one estimate only, and an error of h^2 with it,
    # unless it is corrected. The second order has two errors of opposite sign then, and comes near to 4 from below.
    [(1, False, 1.7), (2, False, 3.4), (3, False, 3.4), (2, True, 2.8), (3, True, 6.4)],
)
def test_the_error_falls_with_the_order(solver_order, corrector, least_ratio):
    # For normal data the best estimate is linear in x and the deterministic path is known: x_0 = sd x_1.
    sd, errors, x = 0.5, [], draw(1, 1, 64, dtype=torch.float64)
    scheduler = DDMScheduler(solver_order=solver_order, corrector=corrector, eta=0.0, clip_sample=False)
    for num_steps in (40, 80):
        scheduler.set_timesteps(timesteps=[1000 * (1 - i / num_steps) ** 2 for i in range(num_steps)])

        def model(x_t, timestep):
            t = float(timestep) / 1000
            variance = ((1 - t) * sd) ** 2 + t
            image = (1 - t) * sd**2 / variance * x_t
            return torch.cat([-image, (x_t - (1 - t) * image) / t**0.5], dim=1)

        errors.append((run(scheduler, x, model)[0] - sd * x).abs().max().item())
    assert errors[0] / errors[1] > least_ratio


@pytest.mark.parametrize("eta, churn", [(0.0, 4.0), (0.6, 1.0), (1.0, 1.0), (1.0, 4.0)])
def test_the_corrector_keeps_the_fresh_noise_of_the_step(eta, churn):
    scheduler = DDMScheduler(solver_order=2, eta=eta, churn=churn, clip_sample=False)
    scheduler.set_timesteps(timesteps=[900, 500, 200, 100])
    x, images = draw(1, 2, 8, dtype=torch.float64), [draw(1, 2, 8, seed=i, dtype=torch.float64) for i in (1, 2)]
    y, generator = x, torch.Generator().manual_seed(5)
    for timestep, image in zip(scheduler.timesteps, images, strict=False):
        t = timestep.item() / 1000
        noise = (y - (1 - t) * image) / t**0.5
        y = scheduler.step(torch.cat([-image, noise], dim=1), timestep, y, generator=generator).prev_sample

    def step(x_t, t, s, weights, fresh_noise):
        image = weights[0] * images[1] + weights[1] * images[0]
        share = ((1 - eta**2) + eta**2 * s / t) ** (churn / 2)  # of the noise, that stays
        noise = (x_t - (1 - t) * image) / t**0.5
        return (1 - s) * image + s**0.5 * (share * noise + (1 - share**2) ** 0.5 * fresh_noise)

    def weights(s, times, t=None):
        return BridgeStep(scheduler.process, s, times[0] if t is None else t, eta, churn).weights(times)

    generator = torch.Generator().manual_seed(5)
    fresh = [torch.randn(x.shape, generator=generator, dtype=x.dtype) if eta else 0 for _ in range(2)]
    corrected = step(x, 0.9, 0.5, weights(0.5, [0.5, 0.9], t=0.9), fresh[0])
    expected = step(corrected, 0.5, 0.2, weights(0.2, [0.5, 0.9]), fresh[1])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps, churn", [(3, 1.0), (5, 1.0), (8, 2.56), (10, 4.0), (40, 4.0)])
def test_noise_is_exchanged_faster_the_more_steps_there_are(num_steps, churn):
    x, results = draw(1, 2, 8), []
    for options in ({}, {"churn": churn}, {"churn": 1.5 * churn}):
        scheduler = DDMScheduler(**options)
        scheduler.set_timesteps(num_steps)
        results.append(run(scheduler, x, lambda x, t: toy_output(x), torch.Generator().manual_seed(0))[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_ratio_grid(noise_schedule):
    scheduler = DDMScheduler(time_grid="ratio", noise_schedule=noise_schedule)
    scheduler.set_timesteps(10)
    for i, timestep in enumerate(scheduler.timesteps.tolist()):
        s, t = 1 - i / 10.5, timestep / 1000
        # cross-multiplied, since alpha is 0 at t = 1
        assert true_sigma(scheduler, t) * (1 - s) ** 1.25 == pytest.approx((1 - t) * s**1.25, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("time_grid", ["uniform", "power", "ratio"])
def test_shift_multiplies_noise_over_image(time_grid, noise_schedule):
    times = []
    for shift in (1.0, 3.0):
        scheduler = DDMScheduler(time_grid=time_grid, noise_schedule=noise_schedule, shift=shift)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 1000
        times.append((scheduler.timesteps.double() / 1000).tolist())
    for plain, shifted in zip(*times, strict=True):
        ratio = 3 * true_sigma(scheduler, plain) * (1 - shifted)
        assert true_sigma(scheduler, shifted) * (1 - plain) == pytest.approx(ratio, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow_prediction"])
def test_shift_is_the_same_for_models_of_other_processes(prediction_type):
    """To the whole timesteps of a model that predicts noise, and once for one that predicts a velocity."""
    native = DDMScheduler(shift=3.0)
    swapped = DDMScheduler(prediction_type=prediction_type, shift=3.0)
    for scheduler in (native, swapped):
        scheduler.set_timesteps(5)
    tolerance = 2e-3 if prediction_type == "epsilon" else 1e-6
    scales = swapped.parameterization.scales(swapped.timesteps.double())
    times = swapped.process.time(*scales).tolist()
    assert times[1:] == pytest.approx((native.timesteps / 1000).tolist()[1:], abs=tolerance)


def test_second_order_forgets_the_former_run():
    scheduler = DDMScheduler(solver_order=2, eta=0.0)
    x = draw(1, 2, 4)
    results = []
    for _ in range(2):
        scheduler.set_timesteps(timesteps=[900, 500, 200])  # not from t = 1, where a stale estimate would weigh 0
        results.append(run(scheduler, x, lambda x, t: toy_output(x))[0])
    assert torch.equal(*results)


# ----------------------------------------------------------------------------------------------------------- timesteps


@pytest.mark.parametrize("num_train_timesteps", [1, 250, 1000])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"time_grid": "uniform"}, uniform_times),
        ({"time_grid": "power"}, lambda n: power_times(n, 2.0, 1e-4)),
        ({"time_grid": "power", "rho": 1.0, "t_min": 1e-2}, lambda n: power_times(n, 1.0, 1e-2)),
        ({"time_grid": "power", "rho": 7.0, "t_min": 1e-3}, lambda n: power_times(n, 7.0, 1e-3)),
    ],
)
def test_grids(options, expected, num_steps, num_train_timesteps):
    scheduler = DDMScheduler(num_train_timesteps, **options)
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps
    assert timesteps.shape == (num_steps,) and timesteps.dtype == torch.float32
    assert scheduler.num_inference_steps == num_steps
    assert timesteps[0] == num_train_timesteps and timesteps[-1] > 0
    assert (timesteps.diff() < 0).all()
    times = [1.0] if num_steps == 1 else expected(num_steps)
    assert timesteps.tolist() == pytest.approx([t * num_train_timesteps for t in times], rel=1e-6)


@pytest.mark.parametrize("rho", [0.25, 0.2])
def test_power_grid_of_a_small_rho_ends_at_t_min(rho):
    scheduler = DDMScheduler(time_grid="power", rho=rho, t_min=1e-4)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1].item() == pytest.approx(1e-4 * 1000, rel=1e-6)


@given(st.lists(st.floats(0.125, 1000, width=32), min_size=1, max_size=20, unique=True), st.booleans())
def test_custom_timesteps_are_taken_as_they_are(timesteps, as_tensor):
    timesteps = sorted(timesteps, reverse=True)
    scheduler = DDMScheduler()
    scheduler.set_timesteps(timesteps=torch.tensor(timesteps) if as_tensor else timesteps)
    assert scheduler.timesteps.tolist() == pytest.approx(timesteps, rel=1e-6)
    _, evaluations = run(scheduler, draw(1, 2), lambda x, t: toy_output(x))
    assert evaluations == len(timesteps) == scheduler.num_inference_steps


def test_before_set_timesteps_the_timesteps_are_the_training_indices():
    scheduler = DDMScheduler(num_train_timesteps=4)
    assert scheduler.timesteps.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert len(scheduler) == 4
    assert scheduler.num_inference_steps is None


@pytest.mark.parametrize("timestep", [600, 600.0, torch.tensor(600), torch.tensor(600.0)], ids=str)
def test_the_first_step_finds_its_timestep(timestep):
    # image-to-image starts in the middle of the grid
    scheduler = DDMScheduler(time_grid="uniform")
    scheduler.set_timesteps(5)
    scheduler.step(toy_output(draw(1, 2)), timestep, draw(1, 2))
    assert scheduler.step_index == 3
    by_index = DDMScheduler(time_grid="uniform")
    by_index.set_timesteps(5)
    by_index.set_begin_index(2)
    by_index.step(toy_output(draw(1, 2)), timestep, draw(1, 2))
    assert (by_index.begin_index, by_index.step_index) == (2, 3)


@pytest.mark.parametrize("num_steps", [3, 7, 10, 999, 10_000])
def test_every_float32_timestep_is_found(num_steps):
    scheduler = DDMScheduler(eta=0.0)
    for index in {0, 1, num_steps // 2, num_steps - 1}:
        scheduler.set_timesteps(num_steps)
        scheduler.step(toy_output(draw(1, 2)), scheduler.timesteps[index], draw(1, 2))
        assert scheduler.step_index == index + 1


# ------------------------------------------------------------------------------------------------------ ranks and dtypes


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize(
    "attenuation, solver_order", [("constant", 1), ("constant", 2), ("constant", 3), ("linear", 1), ("linear", 2)]
)
def test_any_rank(shape, attenuation, solver_order):
    # only dim 0 and dim 1 have a meaning: the same numbers in another shape give the same result
    scheduler = DDMScheduler(attenuation=attenuation, solver_order=solver_order)
    x_0, k, coefficients = draw_image(scheduler, shape)
    noise, timesteps = draw(*shape), torch.tensor([400.0, 900.0])

    def flat(x):
        return x.reshape(x.shape[0], x.shape[1], -1)

    noisy = scheduler.add_noise(x_0, noise, timesteps, coefficients)
    assert noisy.shape == shape
    assert torch.equal(flat(noisy), scheduler.add_noise(flat(x_0), flat(noise), timesteps, flat(coefficients)))
    assert scheduler.get_attenuation(x_0).shape == coefficients.shape

    def model(x, t):
        return torch.cat([coefficients.reshape(x.shape[0], -1, *x.shape[2:]), x.sin()], dim=1)

    results = []
    for x in (noise, flat(noise)):
        scheduler.set_timesteps(4)
        results.append(run(scheduler, x, model, torch.Generator().manual_seed(0))[0])
    assert results[0].shape == shape
    assert torch.equal(flat(results[0]), results[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "attenuation, solver_order", [("constant", 1), ("constant", 2), ("constant", 3), ("linear", 1), ("linear", 2)]
)
def test_a_half_step_is_a_float32_step_rounded_once(dtype, attenuation, solver_order):
    half, full = (DDMScheduler(attenuation=attenuation, solver_order=solver_order) for _ in range(2))
    half.set_timesteps(5), full.set_timesteps(5)
    x = draw(2, 3, 4, dtype=dtype)
    x_0, k, coefficients = draw_image(half, (2, 3, 4), dtype)
    for timestep in half.timesteps:
        output = torch.cat([coefficients, x.sin()], dim=1)
        out = half.step(output, timestep, x, generator=torch.Generator().manual_seed(0))
        reference = full.step(output.float(), timestep, x.float(), generator=torch.Generator().manual_seed(0))
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        assert torch.equal(out.prev_sample, reference.prev_sample.to(dtype))
        assert torch.equal(out.pred_original_sample, reference.pred_original_sample.to(dtype))
        x = out.prev_sample
    noisy = half.add_noise(x_0, x, torch.tensor([3.0, 700.0]), coefficients)
    assert noisy.dtype == dtype
    reference = half.add_noise(x_0.float(), x.float(), torch.tensor([3.0, 700.0]), coefficients.float())
    assert torch.equal(noisy, reference.to(dtype))
    assert half.get_attenuation(x_0).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@pytest.mark.parametrize("num_steps", [1, 10, 100])
def test_a_half_run_agrees_with_the_image_within_its_precision(dtype, attenuation, num_steps):
    scheduler = DDMScheduler(attenuation=attenuation)
    scheduler.set_timesteps(num_steps)
    x_0, k, coefficients = draw_image(scheduler, dtype=dtype)
    sample, _ = run(
        scheduler,
        draw(*x_0.shape, dtype=dtype),
        lambda x, t: perfect_output(scheduler, x, t, x_0, k, coefficients),
        torch.Generator().manual_seed(3),
    )
    assert sample.dtype == dtype
    # The last step rounds, each by eps / 2 of its size: noise (below 5) times sigma_t, coefficients (below 1.5) times t,
    # and the result. The errors of former steps have become part of the noise.
    sigma_t = math.sqrt(1 / num_steps)
    tolerance = torch.finfo(dtype).eps / 2 * (5 * sigma_t + 2 / num_steps + 1)
    torch.testing.assert_close(sample.float(), x_0.float(), rtol=0, atol=tolerance)


def test_float64_stays_float64():
    scheduler = DDMScheduler()
    scheduler.set_timesteps(3)
    sample, _ = run(scheduler, draw(1, 2, dtype=torch.float64), lambda x, t: toy_output(x))
    assert sample.dtype == torch.float64


# ---------------------------------------------------------------------------------------------------------- randomness


def test_a_list_of_generators_equals_one_by_one():
    scheduler = DDMScheduler()
    x = draw(3, 2, 4)
    scheduler.set_timesteps(4)
    together, _ = run(scheduler, x, lambda x, t: toy_output(x), [torch.Generator().manual_seed(i) for i in range(3)])
    for i in range(3):
        scheduler.set_timesteps(4)
        alone, _ = run(scheduler, x[i : i + 1], lambda x, t: toy_output(x), torch.Generator().manual_seed(i))
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize(
    "solver_order, eta, num_draws", [(1, 1.0, 3), (1, 0.5, 3), (1, 0.0, 0), (2, 1.0, 2), (3, 0.5, 2), (2, 0.0, 0)]
)
def test_noise_is_drawn_up_to_the_end_unless_deterministic(solver_order, eta, num_draws):
    scheduler = DDMScheduler(solver_order=solver_order, eta=eta)
    scheduler.set_timesteps(4)
    generator, reference = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    x = draw(2, 3, 4)
    run(scheduler, x, lambda x, t: toy_output(x), generator)
    for _ in range(num_draws):
        torch.randn(x.shape, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_linear_attenuation_draws_its_slope():
    scheduler = DDMScheduler(attenuation="linear")
    clean = draw(2, 3, 4).clamp(-1, 1)
    first, again, other = (
        scheduler.get_attenuation(clean, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    k, c = first.chunk(2, dim=1)
    expected = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(k, expected)
    torch.testing.assert_close(k / 2 + c, -clean)
    assert torch.equal(DDMScheduler().get_attenuation(clean), -clean)


# ---------------------------------------------------------------------------------------------------- the forward process


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
def test_add_noise_is_the_forward_process(attenuation, noise_schedule):
    scheduler = DDMScheduler(num_train_timesteps=500, attenuation=attenuation, noise_schedule=noise_schedule)
    x_0, k, coefficients = draw_image(scheduler)
    noise = draw(*x_0.shape, seed=5)
    for timesteps in (torch.tensor([125.0, 500.0]), torch.tensor([125, 500]), torch.tensor(125.0), 125.0, 125):
        noisy = scheduler.add_noise(x_0, noise, timesteps, coefficients)
        t = torch.as_tensor(timesteps).double().reshape(-1, 1, 1, 1) / 500
        wide = (None if k is None else k.double()) if attenuation == "linear" else None
        expected = x_0.double() + true_attenuation(x_0.double(), wide, t) + true_sigma(scheduler, t) * noise.double()
        torch.testing.assert_close(noisy, expected.float(), rtol=0, atol=1e-6)
        if attenuation == "constant":
            assert torch.equal(noisy, scheduler.add_noise(x_0, noise, timesteps))


# ------------------------------------------------------------------------------------------------------------- contracts


def test_what_stock_pipelines_rely_on():
    scheduler = DDMScheduler()
    x = draw(1, 2)
    assert scheduler.init_noise_sigma == 1.0 and scheduler.order == 1
    assert scheduler.scale_model_input(x, 3.0) is x
    # pipelines that find an argument `eta` pass 0.0 without being asked
    assert "eta" not in inspect.signature(scheduler.step).parameters
    scheduler.set_timesteps(2)
    out = scheduler.step(toy_output(x), 1000.0, x, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(2)
    as_tuple = scheduler.step(toy_output(x), 1000.0, x, generator=torch.Generator().manual_seed(0), return_dict=False)
    assert isinstance(out, DDMSchedulerOutput) and isinstance(as_tuple, tuple)
    assert torch.equal(out.prev_sample, as_tuple[0]) and torch.equal(out.pred_original_sample, as_tuple[1])


def test_the_input_is_not_changed_in_place():
    scheduler = DDMScheduler(solver_order=2)
    scheduler.set_timesteps(3)
    x, output = draw(1, 2), toy_output(draw(1, 2))
    copies = x.clone(), output.clone()
    for timestep in scheduler.timesteps:
        scheduler.step(output, timestep, x)
    assert torch.equal(x, copies[0]) and torch.equal(output, copies[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver_order": 2, "eta": 0.25, "time_grid": "power", "rho": 1.5, "t_min": 0.01, "noise_schedule": "linear"},
        {"solver_order": 3, "corrector": False, "time_grid": "ratio"},
        {"attenuation": "linear", "num_train_timesteps": 300, "clip_sample": False, "clip_sample_range": 2.0},
    ],
)
def test_save_and_load(options, tmp_path):
    scheduler = DDMScheduler(**options)
    scheduler.save_pretrained(tmp_path)
    loaded = DDMScheduler.from_pretrained(tmp_path)
    from_config = DDMScheduler.from_config(scheduler.config)
    assert all(loaded.config[name] == value for name, value in options.items())
    x = draw(1, 2, 4)
    results = []
    for each in (scheduler, loaded, from_config):
        names = set(inspect.signature(DDMScheduler).parameters)
        assert {name: each.config[name] for name in names} == {name: scheduler.config[name] for name in names}
        each.set_timesteps(4)
        model_channels = each.process.num_coefficients + 1
        model = lambda x, t, n=model_channels: torch.cat([x.sin()] * n, dim=1)  # noqa: E731
        results.append(run(each, x, model, torch.Generator().manual_seed(0))[0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"eta": 1.5}, ("`eta`", "1.5", "[0, 1]")),
        ({"eta": -0.1}, ("`eta`", "-0.1", "[0, 1]")),
        ({"eta": math.nan}, ("`eta`", "nan", "[0, 1]")),
        ({"churn": 0.0}, ("`churn`", "0.0", "None or in (0, 10]")),
        ({"shift": 0.0}, ("`shift`", "0.0", "above 0")),
        ({"churn": 1e3}, ("`churn`", "1000.0", "None or in (0, 10]")),
        ({"attenuation": "cosine"}, ("`attenuation`", "'cosine'", "'constant'", "'linear'")),
        ({"noise_schedule": "cosine"}, ("`noise_schedule`", "'cosine'", "'sqrt'", "'linear'")),
        ({"time_grid": "karras"}, ("`time_grid`", "'karras'", "'uniform'", "'power'")),
        ({"prediction_type": "score"}, ("`prediction_type`", "'score'", "'decoupled'")),
        ({"solver_order": 4}, ("`solver_order`", "4", "1, 2 or 3")),
        ({"shift": math.inf}, ("`shift`", "inf", "finite", "above 0")),
        ({"eta": None}, ("`eta`", "None", "[0, 1]")),
        ({"attenuation": "linear", "prediction_type": "epsilon"}, ("`prediction_type`", "'epsilon'", "'decoupled'")),
        ({"attenuation": "linear", "thresholding": True}, ("`thresholding`", "True", "False")),
        ({"rho": 0.0}, ("`rho`", "0.0", "above 0")),
        ({"t_min": 0.0}, ("`t_min`", "0.0", "(0, 1)")),
        ({"t_min": 1.0}, ("`t_min`", "1.0", "(0, 1)")),
        ({"num_train_timesteps": 0}, ("`num_train_timesteps`", "0", "1 or more")),
        ({"num_train_timesteps": 10.5}, ("`num_train_timesteps`", "10.5", "whole")),
        ({"clip_sample_range": -1.0}, ("`clip_sample_range`", "-1.0", "above 0")),
    ],
)
def test_bad_options(options, parts, rejects):
    with rejects(*parts):
        DDMScheduler(**options)


def state(scheduler):
    """Everything that the scheduler remembers, comparable with ==."""
    runs = [
        (run.values, run.times, run.path_scales, run.solver and repr(run.solver.history)) for run in scheduler._runs
    ]
    return runs, scheduler.step_index, scheduler.begin_index, scheduler.num_inference_steps, dict(scheduler.config)


@pytest.fixture
def running_scheduler():
    """A second-order scheduler in the middle of a run of 4 steps."""
    scheduler = DDMScheduler(solver_order=2)
    scheduler.set_timesteps(4)
    scheduler.step(toy_output(draw(2, 3)), 1000.0, draw(2, 3))
    return scheduler


def still_runs(scheduler):
    x = draw(2, 3)
    for timestep in scheduler.timesteps[1:]:
        x = scheduler.step(toy_output(x), timestep, x).prev_sample
    assert x.isfinite().all()
    return True


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({"num_inference_steps": 0}, ("`num_inference_steps`", "0", "whole number of 1 or more")),
        ({"num_inference_steps": -3}, ("`num_inference_steps`", "-3", "whole number of 1 or more")),
        ({"num_inference_steps": 2.5}, ("`num_inference_steps`", "2.5", "whole number of 1 or more")),
        ({"num_inference_steps": "ten"}, ("`num_inference_steps`", "ten", "whole number of 1 or more")),
        ({"num_inference_steps": True}, ("`num_inference_steps`", "True", "whole number of 1 or more")),
        ({"timesteps": [100, 500]}, ("`timesteps`", "[100, 500]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [500, 500]}, ("`timesteps`", "[500, 500]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [500, 0]}, ("`timesteps`", "[500, 0]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [1000.5, 10]}, ("`timesteps`", "[1000.5, 10]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [10, -10]}, ("`timesteps`", "[10, -10]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [math.nan]}, ("`timesteps`", "nan", "strictly falling", "(0, 1000]")),
        ({"timesteps": []}, ("`timesteps`", "[]", "strictly falling", "(0, 1000]")),
        ({"timesteps": [[10.0]]}, ("`timesteps`", "[[10.0]]", "strictly falling", "(0, 1000]")),
        ({}, ("`num_inference_steps`", "`timesteps`", "None", "exactly one")),
        ({"num_inference_steps": 2, "timesteps": [5]}, ("`num_inference_steps`", "2", "`timesteps`", "[5]")),
    ],
)
def test_bad_timesteps_change_nothing(arguments, parts, running_scheduler, rejects):
    before = state(running_scheduler)
    with rejects(*parts):
        running_scheduler.set_timesteps(**arguments)
    assert state(running_scheduler) == before
    assert still_runs(running_scheduler)


@pytest.mark.parametrize("channels", [3, 5, 9])
def test_wrong_channels_change_nothing(channels, running_scheduler, rejects):
    before = state(running_scheduler)
    with rejects("`model_output`", f"(2, {channels})", "(2, 3)", "(2, 6)", "prediction_type='decoupled'"):
        running_scheduler.step(draw(2, channels), 750.0, draw(2, 3))
    assert state(running_scheduler) == before
    assert still_runs(running_scheduler)


def test_a_model_of_another_process_is_told_of_from_config(running_scheduler, rejects):
    with rejects("`model_output`", "(2, 3)", "`DDMScheduler.from_config(config)`", "trained with"):
        running_scheduler.step(draw(2, 3), 750.0, draw(2, 3))


def test_wrong_number_of_generators_changes_nothing(running_scheduler, rejects):
    before = state(running_scheduler)
    with rejects("`generator`", "3", "2 samples"):
        running_scheduler.step(toy_output(draw(2, 3)), 750.0, draw(2, 3), generator=[torch.Generator()] * 3)
    assert state(running_scheduler) == before
    assert still_runs(running_scheduler)


def test_a_sample_without_channels_is_rejected(running_scheduler, rejects):
    before = state(running_scheduler)
    with rejects("`sample`", "(4,)", "(batch_size, channels, ...)"):
        running_scheduler.step(draw(4), 750.0, draw(4))
    assert state(running_scheduler) == before


def test_step_before_set_timesteps(rejects):
    scheduler = DDMScheduler()
    before = state(scheduler)
    with rejects("`num_inference_steps`", "None", "`set_timesteps`"):
        scheduler.step(toy_output(draw(1, 2)), 1000.0, draw(1, 2))
    assert state(scheduler) == before


def test_a_timestep_that_is_none_of_the_grid(rejects):
    scheduler = DDMScheduler(time_grid="uniform")
    scheduler.set_timesteps(4)
    before = state(scheduler)
    with rejects("`timestep`", "600.0", "1000.0, 750.0, 500.0, 250.0"):
        scheduler.step(toy_output(draw(1, 2)), 600, draw(1, 2))
    assert state(scheduler) == before


def test_a_step_may_be_taken_again(running_scheduler):
    """Of the estimates the solver keeps only those from before: the same step gives the same sample."""
    x, results = draw(2, 3), []
    second, third = running_scheduler.timesteps[1:3]
    for seed in (1, 1):
        generator = torch.Generator().manual_seed(seed)
        y = running_scheduler.step(toy_output(x), second, x, generator=generator).prev_sample
        results.append(running_scheduler.step(toy_output(y), third, y, generator=generator).prev_sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_a_part_of_the_timesteps(solver_order):
    """Timesteps that are cut or left out are those of a run over the rest, whoever does it."""
    timesteps = [900.0, 700.0, 500.0, 300.0, 100.0]
    for part in (slice(2, None), slice(0, None, 2), slice(0, 0)):
        whole, rest = (DDMScheduler(solver_order=solver_order, eta=0.0) for _ in range(2))
        whole.set_timesteps(timesteps=timesteps)
        whole.timesteps = whole.timesteps[part]
        x = draw(2, 3, dtype=torch.float64)
        result = run(whole, x, lambda x, t: toy_output(x))[0]
        if not timesteps[part]:
            assert torch.equal(result, x)
            continue
        rest.set_timesteps(timesteps=timesteps[part])
        torch.testing.assert_close(result, run(rest, x, lambda x, t: toy_output(x))[0], rtol=0, atol=1e-12)


def test_timesteps_that_were_not_made_cannot_be_assigned(rejects):
    scheduler = DDMScheduler(time_grid="uniform")
    scheduler.set_timesteps(4)
    for timesteps in (torch.tensor([1000.0, 600.0]), torch.tensor([500.0, 750.0])):
        with rejects("`timestep", "1000.0" if timesteps[0] == 1000 else "750.0"):
            scheduler.timesteps = timesteps


@pytest.mark.parametrize("solver_order", [1, 2])
def test_after_a_timestep_that_was_left_out_the_solver_starts_anew(solver_order):
    scheduler = DDMScheduler(solver_order=solver_order, eta=0.0)
    x, results = draw(1, 2, 4), []
    for first in ([], [900.0]):
        scheduler.set_timesteps(timesteps=[900.0, 700.0, 500.0, 300.0])
        for timestep in [*first, 500.0]:
            result = scheduler.step(toy_output(x), timestep, x).prev_sample
        results.append(result)
    assert torch.equal(*results)


def test_a_run_inside_a_run():
    """A callback that draws with the same scheduler changes nothing."""
    results = []
    for nested in (False, True):
        scheduler = DDMScheduler(solver_order=3, eta=0.0)
        scheduler.set_timesteps(6)
        x = draw(1, 2, 4)
        for timestep in scheduler.timesteps:
            x = scheduler.step(toy_output(x), timestep, x).prev_sample
            if nested:
                scheduler.set_timesteps(4)
                run(scheduler, draw(3, 2), lambda x, t: toy_output(x))
        results.append(x)
    assert torch.equal(*results)
    assert len(scheduler._runs) <= 2  # those that have ended are forgotten


def test_a_copy_leaves_the_original_alone(running_scheduler):
    expected = still_runs(copy.copy(running_scheduler)) and state(running_scheduler)
    still_runs(copy.copy(running_scheduler))
    assert state(running_scheduler) == expected


def test_after_a_run_nothing_of_it_is_kept():
    scheduler = DDMScheduler()
    scheduler.set_timesteps(3)
    x = draw(1, 2).requires_grad_()
    y = run(scheduler, x, lambda x, t: toy_output(x))[0]
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    copy.deepcopy(scheduler)  # which a graph of tensors would forbid
    assert not scheduler._runs[0].solver.history


def test_what_is_returned_may_be_changed_in_place():
    results = []
    for change in (False, True):
        scheduler = DDMScheduler(solver_order=3, eta=0.0)
        scheduler.set_timesteps(5)
        x = draw(1, 2, 4)
        for timestep in scheduler.timesteps:
            out = scheduler.step(toy_output(x), timestep, x)
            x = out.prev_sample
            if change:
                out.pred_original_sample.zero_()
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_step_compiles_as_one_graph(solver_order):
    # the eager backend traces as the others do
    plain, compiled = (DDMScheduler(solver_order=solver_order, eta=0.0) for _ in range(2))
    torch._dynamo.reset()
    step = torch.compile(compiled.step, fullgraph=True, backend="eager")
    x = draw(2, 3)
    for scheduler in (plain, compiled):
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(0)
    for timestep in plain.timesteps:
        output = toy_output(x)
        expected = plain.step(output, timestep, x, return_dict=False)[0]
        torch.testing.assert_close(step(output, timestep, x, return_dict=False)[0], expected)
        x = expected


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_the_result_has_the_higher_dtype(dtypes):
    """A float32 output of a half-precision pipeline is not rounded away, as in diffusers' schedulers."""
    scheduler = DDMScheduler()
    scheduler.set_timesteps(2)
    x = draw(1, 2, dtype=dtypes[0])
    assert scheduler.step(toy_output(x).to(dtypes[1]), 1000.0, x).prev_sample.dtype == torch.float32


@pytest.mark.parametrize(
    "call, parts",
    [
        (lambda s: s.set_begin_index(-1), ("`begin_index`", "-1", "[0, 4]")),
        (lambda s: s.set_begin_index(5), ("`begin_index`", "5", "[0, 4]")),
        (lambda s: s.step(draw(2, 6), 1000.0, torch.ones(2, 3, dtype=torch.int64)), ("`sample`", "int64")),
        (lambda s: s.step(torch.ones(2, 6, dtype=torch.bool), 1000.0, draw(2, 3)), ("`model_output`", "bool")),
        (lambda s: s.step(draw(2, 6), 1000.0, draw(2, 3), generator=[None, None]), ("`generator`", "None")),
        (lambda s: s.step(draw(2, 6), 1000.0, draw(2, 3), prev_timestep=1000.0), ("`prev_timestep`", "1000.0")),
        (
            lambda s: s.step(draw(2, 6), 1000.0, draw(2, 3), per_token_timesteps=torch.ones(2, 3)),
            ("`per_token_timesteps`", "flow matching"),
        ),
        (lambda s: s.set_timesteps(4, original_inference_steps=50), ("`original_inference_steps`", "50", "None")),
        (lambda s: s.add_noise(draw(2, 3), draw(2, 3), torch.tensor([1.0, 1001.0])), ("`timesteps`", "1001.0")),
        (lambda s: s.add_noise(draw(2, 3), draw(2, 3), torch.tensor([-1.0, 1.0])), ("`timesteps`", "-1.0")),
    ],
)
def test_bad_arguments_change_nothing(call, parts, running_scheduler, rejects):
    before = state(running_scheduler)
    with rejects(*parts):
        call(running_scheduler)
    assert state(running_scheduler) == before


def test_a_misspelt_option_is_a_warning_that_names_it(caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        DDMScheduler.from_config(DDMScheduler().config, shfit=2.0)
    finally:
        logger.removeHandler(caplog.handler)
    assert "`shfit`" in caplog.text and "`shift`" in caplog.text


@pytest.mark.parametrize("extrapolation", ["time", "log_snr"])
def test_a_config_of_release_0_1_0(extrapolation):
    config = {**DDMScheduler(eta=0.5).config, "extrapolation": extrapolation, "_class_name": "DDMScheduler"}
    scheduler = DDMScheduler.from_config(config)
    assert scheduler.config.eta == 0.5 and "extrapolation" not in scheduler.config


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"attenuation": None}, ("`attenuation`", "None", "`get_attenuation`")),
        ({"attenuation": draw(2, 3)}, ("`attenuation`", "(2, 3)", "(2, 6)")),
        ({"noise": draw(2, 1)}, ("`noise`", "(2, 1)", "(2, 3)")),
        ({"timesteps": torch.ones(3)}, ("`timesteps`", "(3,)", "(2,)")),
    ],
    ids=lambda change: str(list(change)) if isinstance(change, dict) else "",
)
def test_bad_input_of_add_noise(change, parts, rejects):
    scheduler = DDMScheduler(attenuation="linear")
    arguments = {"noise": draw(2, 3), "timesteps": torch.ones(2), "attenuation": draw(2, 6)}
    with rejects(*parts):
        scheduler.add_noise(draw(2, 3), **{**arguments, **change})
