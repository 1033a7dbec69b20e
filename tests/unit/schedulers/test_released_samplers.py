# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that the samplers of the authors' releases are reproduced. Their formulas are written out here anew, with the outputs of
a network that contradict each other and clipping that acts. And that our own step differs from theirs by what the docs say.
"""

import math

import pytest
import torch

from ddm_diffusers import DDMScheduler
from ddm_diffusers.schedulers import time_grids


EXACT = {"rtol": 0, "atol": 1e-5}


def network(x, t, num_outputs):
    """Outputs that imply different images, which are often outside of [-1, 1]."""
    outputs = [1.7 * (2 * x + 1.5 * t).sin() + 0.3 * i - (0.5 * x).tanh() * (i + 1) for i in range(num_outputs)]
    return [output + 0.4 * x for output in outputs]


def draw(generator, like=None):
    shape = (3, 2, 4, 4) if like is None else like.shape
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def released_stochastic(x, times, generator, schedule="sqrt", attenuation="constant", clip=True):
    """DDM-Public's `sample_fn` and ADM-Public's `sample_fn_s`: the state goes from `t` to `t - step`."""
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        step = t - s
        if attenuation == "constant":
            c, noise = network(x, t, 2)
            x_0 = x - c * t - (math.sqrt(t) if schedule == "sqrt" else t) * noise
            c = -(x_0.clamp(-1, 1) if clip else x_0)
            drift = -c * step
        else:
            k, c, noise = network(x, t, 3)
            k = k.clamp(-1, 1)
            drift = k / 2 * step**2 - k * t * step - c * step
        if schedule == "sqrt":
            mean = x + drift - step / math.sqrt(t) * noise
            std = math.sqrt(step * s / t)
        else:
            mean = x + drift - (2 * step * t - step**2) / t * noise
            std = math.sqrt(2 * step * t - step**2) * s / t
        x = mean if s == 0 else mean + std * draw(generator, x)
    return x


def released_deterministic(x, times, schedule, clip):
    """ADM-Public's `sample_fn_d`."""
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        c, noise = network(x, t, 2)
        sigma_t, sigma_s = (math.sqrt(t), math.sqrt(s)) if schedule == "sqrt" else (t, s)
        x_0 = x - c * t - noise * sigma_t
        x = (x_0.clamp(-1, 1) if clip else x_0) + c * s + noise * sigma_s
    return x


def sample(scheduler, x, generator=None):
    num_outputs = 2 if scheduler.config.attenuation == "constant" else 3
    for timestep in scheduler.timesteps:
        # the time in double precision, as the releases count it
        t = scheduler._runs[0].times[scheduler.index_for_timestep(timestep)]
        output = torch.cat(network(x, t, num_outputs), dim=1)
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    return x


def equal_steps(num_steps, t_min):
    return [1 + i / (num_steps - 1) * (t_min - 1) for i in range(num_steps)]


@pytest.mark.parametrize("num_steps", [5, 10, 50])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
def test_the_first_releases_sampler(attenuation, extra, num_steps):
    scheduler = DDMScheduler.paper(attenuation=attenuation)
    times = [(num_steps - i) / num_steps for i in range(num_steps)]
    if extra:  # `denoise=True`, the release's default: one evaluation more
        times.append(1e-4)
        scheduler.set_timesteps(timesteps=[1000 * t for t in time_grids.uniform(num_steps, t_end=1e-4)])
    else:
        scheduler.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == len(times)
    x = draw(torch.Generator().manual_seed(0))
    expected = released_stochastic(x, times, torch.Generator().manual_seed(1), attenuation=attenuation)
    result = sample(scheduler, x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(result, expected, **EXACT)


@pytest.mark.parametrize("num_steps", [5, 10, 50])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@pytest.mark.parametrize("schedule, t_min", [("sqrt", 1e-4), ("linear", 1e-6)])
def test_the_later_releases_stochastic_sampler(schedule, t_min, attenuation, num_steps):
    scheduler = DDMScheduler.adm(noise_schedule=schedule, attenuation=attenuation, eta=1.0)
    scheduler.set_timesteps(num_steps)
    x = draw(torch.Generator().manual_seed(0))
    times = equal_steps(num_steps, t_min)
    expected = released_stochastic(x, times, torch.Generator().manual_seed(1), schedule, attenuation)
    result = sample(scheduler, x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(result, expected, **EXACT)


@pytest.mark.parametrize("num_steps", [5, 10, 50])
@pytest.mark.parametrize("clip", [None, True, False])
@pytest.mark.parametrize("schedule", ["sqrt", "linear"])
def test_the_later_releases_deterministic_sampler(schedule, clip, num_steps):
    options = {} if schedule == "linear" else {"noise_schedule": "sqrt"}  # linear noise is what `adm` stands for
    scheduler = DDMScheduler.adm(**options, **({} if clip is None else {"clip_sample": clip}))
    scheduler.set_timesteps(num_steps)
    x = draw(torch.Generator().manual_seed(0))
    times = equal_steps(num_steps, 1e-4 if schedule == "sqrt" else 1 / num_steps)
    expected = released_deterministic(x, times, schedule, schedule == "sqrt" if clip is None else clip)
    torch.testing.assert_close(sample(scheduler, x), expected, **EXACT)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_our_step_differs_by_what_the_predictions_disagree(noise_schedule):
    # without clipping the difference is t (c_hat + x0_hat); with predictions that agree there is none
    x = draw(torch.Generator().manual_seed(0))
    options = {"solver_order": 1, "clip_sample": False, "noise_schedule": noise_schedule, "time_grid": "uniform"}
    t, c, noise = 0.8, *network(x, 0.8, 2)

    def step(form, c):
        scheduler = DDMScheduler(**options, step_form=form)
        scheduler.set_timesteps(5)
        generator = torch.Generator().manual_seed(1)
        output = torch.cat([c, noise], dim=1)
        return scheduler.step(output, scheduler.timesteps[1], x, generator=generator).prev_sample

    x_0 = x - c * t - (math.sqrt(t) if noise_schedule == "sqrt" else t) * noise
    disagreement = t * (c + x_0)
    assert disagreement.abs().max() > 1
    torch.testing.assert_close(step("increment", c) - step("posterior", c), disagreement, rtol=0, atol=1e-6)
    c = -(x - (math.sqrt(t) if noise_schedule == "sqrt" else t) * noise) / (1 - t)  # which the noise implies
    for form in ("increment", "raw"):
        torch.testing.assert_close(step(form, c), step("posterior", c), rtol=0, atol=1e-6)


def test_the_whole_sampler_is_saved(tmp_path):
    for scheduler in (DDMScheduler.paper(), DDMScheduler.adm(), DDMScheduler.adm(eta=0.5, noise_schedule="sqrt")):
        scheduler.save_pretrained(tmp_path)
        loaded = DDMScheduler.from_pretrained(tmp_path).config
        options = [name for name in scheduler.config if not name.startswith("_")]
        assert [loaded[name] for name in options] == [scheduler.config[name] for name in options]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_form": "released"}, "`step_form` is 'released', but has to be one of"),
        ({"step_form": "raw", "solver_order": 2}, "`step_form` is 'raw', but has to be 'posterior' with"),
        ({"step_form": "increment", "solver_order": 1, "prediction_type": "epsilon"}, "has to be 'posterior' with"),
    ],
)
def test_wrong_forms_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDMScheduler(**options)


def test_wrong_last_times_are_refused():
    for t_end in (0.0, 0.1, 0.2):
        with pytest.raises(ValueError, match=r"`t_end` is .*, but has to be in \(0, 0.1"):
            time_grids.uniform(10, t_end=t_end)
    with pytest.raises(ValueError, match="`noise_schedule` is 'cosine'"):
        DDMScheduler.adm(noise_schedule="cosine")
