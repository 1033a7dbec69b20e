# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `BridgeStep` is the posterior with the noise that is kept and the noise that is fresh, that its weights make a
step exact for polynomials, and that with weights in lambda it is DPM-Solver++(2M), written out here and diffusers' own.
"""

import math

import pytest
import scipy.integrate
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DecoupledProcess
from ddm_diffusers.schedulers.multistep import BridgeStep, Estimate, time_change


attenuations = st.sampled_from(["constant", "linear"])
noise_schedules = st.sampled_from(["sqrt", "linear"])
etas = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
ordered_times = st.tuples(st.floats(0.001, 0.999), st.floats(0.01, 1)).map(lambda pair: (pair[0] * pair[1], pair[1]))


def true_sigma(noise_schedule, t):
    return math.sqrt(t) if noise_schedule == "sqrt" else t


def draw(seed, shape=(3, 2, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(noise_schedules, ordered_times, etas, st.floats(0.1, 10))
def test_churn_is_a_power_of_what_is_kept(noise_schedule, s_t, eta, churn):
    process, sigma_s = DecoupledProcess("constant", noise_schedule), true_sigma(noise_schedule, s_t[0])
    plain, step = BridgeStep(process, *s_t, eta), BridgeStep(process, *s_t, eta, churn)
    assert (plain.kept, plain.std) == process.bridge_scales(*s_t, eta)
    assert step.kept / sigma_s == pytest.approx((plain.kept / sigma_s) ** churn, rel=1e-6, abs=1e-12)
    # the marginal at s does not change
    assert step.kept**2 + step.std**2 == pytest.approx(sigma_s**2)


@given(attenuations, noise_schedules, ordered_times, etas, st.floats(0.1, 10), seeds)
def test_a_step_from_the_sample_is_one_with_the_noise_in_it(attenuation, noise_schedule, s_t, eta, churn, seed):
    process = DecoupledProcess(attenuation, noise_schedule)
    x_0, k, eps = (draw(seed + i) for i in range(3))
    coefficients = process.coefficients(x_0, k)
    x_t = process.marginal(x_0, coefficients, eps, s_t[1])
    step = BridgeStep(process, *s_t, eta, churn)
    for each in [coefficients, None] if attenuation == "constant" else [coefficients]:
        expected = step.from_noise(Estimate(x_0, eps, each))
        result = step.from_sample(x_t, x_0, each)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
        # a step is linear in the image
        changed = step.from_sample(x_t, 2 * x_0, None if each is None else 2 * each)
        torch.testing.assert_close(step.add_image(result, x_0, each), changed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_time_change(noise_schedule):
    process = DecoupledProcess("constant", noise_schedule)
    assert time_change(process, 0.0) == 0 and time_change(process, 1.0) == 1
    for t in (0.01, 0.3, 0.99):
        u = time_change(process, t)
        assert (1 - u) * true_sigma(noise_schedule, t) == pytest.approx((1 - t) * u**0.5, rel=1e-12)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("num_times", [1, 2, 3])
@pytest.mark.parametrize("s", [0.0, 0.11])
@pytest.mark.parametrize("eta, churn", [(0.0, 4.0), (1.0, 1.0), (1.0, 4.0), (0.7, 3.0)])
def test_weights_are_exact_for_polynomials(num_times, s, noise_schedule, eta, churn):
    process = DecoupledProcess("constant", noise_schedule)
    times = [0.3, 0.6, 1.0][:num_times]
    weights = BridgeStep(process, s, times[0], eta, churn).weights(times)
    u = [time_change(process, t) for t in times]
    a, b = u[0], time_change(process, s)
    if s > 0:
        sigma_s, sigma_t = true_sigma(noise_schedule, s), true_sigma(noise_schedule, times[0])
        kept = ((1 - eta**2) + eta**2 * (sigma_s / sigma_t) ** 2) ** (churn / 2)
        p = (1 + math.log(kept) / math.log((b / a) ** 0.5)) / 2

    def moment(m):  # of u^m in the measure d(alpha / sigma^(1 + kappa)) = d((1 - u) / u^p)
        return scipy.integrate.quad(lambda u: u**m * (p + (1 - p) * u) / u ** (p + 1), b, a)[0]

    for power in range(num_times):
        expected = moment(power) / moment(0) if s > 0 else b**power
        assert sum(w * x**power for w, x in zip(weights, u, strict=True)) == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------------------- second order in lambda: DPM-Solver++(2M)


def dpm_solver_2m(x, times, noise_schedule, denoise):
    """
    DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, in the paper's own form x_s = (sigma_s / sigma_t) x_t
    - alpha_s (e^-h - 1) D, on the path alpha_t = 1 - t; `times` ends with the last time before 0, which is reached in
    first order. e^-h is written as the ratio it is, since lambda is minus infinity at t = 1.
    """
    previous = None
    for i, t in enumerate(times):
        s = times[i + 1] if i + 1 < len(times) else 0.0
        sigma_t, sigma_s = (t**0.5, s**0.5) if noise_schedule == "sqrt" else (t, s)
        alpha_t, alpha_s = 1 - t, 1 - s
        x_0 = denoise(x, t, sigma_t)
        combined = x_0
        if previous is not None and s > 0:
            previous_x_0, previous_lambda = previous
            if previous_lambda > -math.inf:
                lambda_t, lambda_s = math.log(alpha_t / sigma_t), math.log(alpha_s / sigma_s)
                r = (lambda_t - previous_lambda) / (lambda_s - lambda_t)
                combined = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous_x_0
        e_minus_h = alpha_t * sigma_s / (alpha_s * sigma_t)
        x = sigma_s / sigma_t * x - alpha_s * (e_minus_h - 1) * combined
        previous = x_0, (math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf)
    return x


def bridge_2m(x, times, noise_schedule, denoise):
    """The same by steps of the bridge without noise, between times below 1, with the weights of that algorithm."""
    process = DecoupledProcess(noise_schedule=noise_schedule)
    half_log_snr = {t: math.log((1 - t) / true_sigma(noise_schedule, t)) for t in times}
    history = []
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        history = [(t, denoise(x, t, true_sigma(noise_schedule, t))), *history][:2]
        x_0 = history[0][1]
        if len(history) == 2 and s > 0:
            last = half_log_snr[t] - half_log_snr[history[1][0]]
            weight = (half_log_snr[s] - half_log_snr[t]) / last / 2
            x_0 = (1 + weight) * x_0 - weight * history[1][1]
        x = BridgeStep(process, s, t, eta=0.0).from_sample(x, x_0, None)
    return x


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_in_lambda_it_is_dpm_solver_2m(noise_schedule):
    def denoise(x, t, sigma_t):
        return (0.8 * (0.9 * x).tanh() + 0.1 + sigma_t * (2 * x).sin()).clamp(-1, 1)

    x, times = draw(0), [0.9, 0.7, 0.65, 0.2, 0.05]
    expected = dpm_solver_2m(x, times, noise_schedule, denoise)
    torch.testing.assert_close(bridge_2m(x, times, noise_schedule, denoise), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [3, 8, 20])
def test_in_lambda_it_is_diffusers_multistep_solver_on_the_flow_path(num_steps):
    # sigma_t = t is the straight path of flow matching, which diffusers' solver knows
    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, final_sigmas_type="zero"
    )
    theirs.set_timesteps(num_steps)
    theirs.set_begin_index(1)  # where alpha is above 0
    x = draw(0)
    sigmas = theirs.sigmas[1:-1].double().tolist()
    expected = x
    for sigma, timestep in zip(sigmas, theirs.timesteps[1:], strict=True):
        velocity = (expected - (0.8 * expected).tanh()) / sigma
        expected = theirs.step(velocity, timestep, expected).prev_sample
    result = bridge_2m(x, sigmas, "linear", lambda x, t, sigma_t: (0.8 * x).tanh())
    # their sigmas are float32; a map that amplifies little
    torch.testing.assert_close(result, expected, rtol=0, atol=200 * torch.finfo(torch.float32).eps)
