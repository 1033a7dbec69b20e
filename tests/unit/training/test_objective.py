# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that the training objective is the one of the paper, with each weighting against its formula written out, that it
stays finite over the whole of (0, 1], and that training times are drawn uniformly.
"""

import math

import pytest
import torch

from ddm_diffusers import DDMScheduler
from ddm_diffusers.models.preconditioning import precondition
from ddm_diffusers.training import WEIGHTINGS, ddm_loss, loss_weights, sample_timesteps


PROCESSES = [(attenuation, schedule) for attenuation in ("constant", "linear") for schedule in ("sqrt", "linear")]
all_processes = pytest.mark.parametrize("attenuation, noise_schedule", PROCESSES)


def draw_batch(scheduler, t, shape=(3, 4, 4), dtype=torch.float32, seed=0):
    """Images, noise, timesteps, coefficients and the noisy images, one for each time in `t`."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.as_tensor(t, dtype=dtype)
    clean = torch.rand(len(t), *shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)
    noise = torch.randn(len(t), *shape, generator=generator, dtype=torch.float64).to(dtype)
    attenuation = scheduler.get_attenuation(clean, generator=generator)
    timesteps = t * scheduler.config.num_train_timesteps
    return clean, noise, timesteps, attenuation, scheduler.add_noise(clean, noise, timesteps, attenuation)


def c_out_written_out(attenuation, noise_schedule, t, sigma_data):
    """What is left of each target once its regression on x_t is taken away, as standard deviations (process.md)."""
    sigma = t**0.5 if noise_schedule == "sqrt" else t
    alpha, image = 1 - t, sigma_data**2
    if attenuation == "constant":
        root = (alpha**2 * image + sigma**2) ** 0.5
        return [sigma_data * sigma / root, sigma_data * alpha / root]
    slope = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
    beta = (t**2 - t) / 2
    variance = alpha**2 * image + beta**2 * slope + sigma**2
    covariances = [beta * slope, -alpha * image - beta * slope / 2, sigma]
    own = [slope, image + slope / 4, 1.0]
    return [(v - c**2 / variance) ** 0.5 for v, c in zip(own, covariances, strict=True)]


def velocity_scale(attenuation, noise_schedule, t, sigma_data):
    """(alpha + sigma)^2 over the variance of x_t."""
    sigma, beta = t**0.5 if noise_schedule == "sqrt" else t, (t**2 - t) / 2
    slope = 0 if attenuation == "constant" else 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
    return (1 - t + sigma) ** 2 / (((1 - t) * sigma_data) ** 2 + beta**2 * slope + sigma**2)


def released_weights(weighting, attenuation, noise_schedule, t):
    """(weight of the attenuation, weight of the noise), in the releases' formulas."""
    if weighting == "none":
        return 1.0, 1.0
    if weighting == "inverse_time":
        return 1 / t, 1 / (1 - t + 1e-4)
    if (attenuation, noise_schedule) == ("constant", "linear"):
        return ((t - 1) / t) ** 2 + 1, (t / (1 - t + 1e-4)) ** 2 + 1
    return (t * t - t + 1) / t, (t * t - t + 1) / (1 - t + 1e-4)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_the_velocity_weighting_is_the_error_of_the_velocity(noise_schedule):
    scheduler, sd = DDMScheduler(noise_schedule=noise_schedule), 0.6
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, [0.05, 0.4, 0.97], dtype=torch.float64)
    t = (timesteps / 1000)[:, None, None, None]
    alpha, sigma = 1 - t, t**0.5 if noise_schedule == "sqrt" else t
    # estimates that agree with each other and with x_t: any error of the image is one of the noise
    error = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    output = torch.cat([coefficients - sigma * error, noise - alpha * error], dim=1)
    loss = ddm_loss(scheduler, output, clean, noise, timesteps, coefficients, weighting="velocity", sigma_data=sd)
    # the error of eps - x_0 is that of both: alpha + sigma times the drawn one, and each head has it
    velocity_error = ((alpha + sigma) * error).square().mean() / sd**2
    torch.testing.assert_close(loss, 2 * velocity_error)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@all_processes
def test_weights_are_those_of_the_table(attenuation, noise_schedule, weighting):
    scheduler = DDMScheduler(attenuation=attenuation, noise_schedule=noise_schedule)
    times = [1e-3, 0.1, 0.5, 0.9, 0.999]
    weights = loss_weights(scheduler, torch.tensor(times, dtype=torch.float64), weighting, sigma_data=0.6)
    for i, t in enumerate(times):
        if weighting in ("unit_variance", "velocity"):
            scale = 1 if weighting == "unit_variance" else velocity_scale(attenuation, noise_schedule, t, 0.6)
            expected = [scale / c_out**2 for c_out in c_out_written_out(attenuation, noise_schedule, t, 0.6)]
        else:
            of_attenuation, of_noise = released_weights(weighting, attenuation, noise_schedule, t)
            # the mean over k and c
            expected = [of_attenuation] if attenuation == "constant" else [of_attenuation / 2] * 2
            expected.append(of_noise)
        # SLOPE_VARIANCE has 10 digits, and the covariances cancel here
        assert [weight[i].item() for weight in weights] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reconstruction_weight", [0.0, 0.3])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@all_processes
def test_loss_written_out(attenuation, noise_schedule, weighting, reconstruction_weight):
    scheduler = DDMScheduler(num_train_timesteps=500, attenuation=attenuation, noise_schedule=noise_schedule)
    times = [0.05, 0.3, 0.8]
    clean, noise, timesteps, coefficients, noisy = draw_batch(scheduler, times, dtype=torch.float64)
    output = torch.cat([coefficients, noise], dim=1)
    output = output + torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    expected = 0.0
    for i, t in enumerate(times):
        if weighting in ("unit_variance", "velocity"):
            weights = [1 / c_out**2 for c_out in c_out_written_out(attenuation, noise_schedule, t, 0.6)]
            if weighting == "velocity":
                scale = velocity_scale(attenuation, noise_schedule, t, 0.6)
                weights = [scale * weight for weight in weights]
        else:
            of_attenuation, of_noise = released_weights(weighting, attenuation, noise_schedule, t)
            weights = [of_attenuation] if attenuation == "constant" else [of_attenuation / 2] * 2
            weights.append(of_noise)
        targets = [*coefficients[i].split(3), noise[i]]
        predictions = output[i].split(3)
        for weight, prediction, target in zip(weights, predictions, targets, strict=True):
            expected += weight * (prediction - target).square().mean().item()
        sigma = t**0.5 if noise_schedule == "sqrt" else t
        if attenuation == "constant":
            h = predictions[0] * t
        else:
            h = predictions[0] * t**2 / 2 + predictions[1] * t
        error = noisy[i] - h - sigma * predictions[-1] - clean[i]
        expected += reconstruction_weight * (1 - t) ** 2 * error.square().mean().item()

    arguments = {"weighting": weighting, "sigma_data": 0.6, "reconstruction_weight": reconstruction_weight}
    loss = ddm_loss(scheduler, output, clean, noise, timesteps, coefficients, **arguments)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(expected / len(times), rel=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@all_processes
def test_a_perfect_prediction_costs_nothing(attenuation, noise_schedule, weighting):
    scheduler = DDMScheduler(attenuation=attenuation, noise_schedule=noise_schedule)
    times = [1e-4, 0.3, 1.0]
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, times)
    output = torch.cat([coefficients, noise], dim=1)
    loss = ddm_loss(scheduler, output, clean, noise, timesteps, coefficients, weighting=weighting)
    assert loss == 0
    with_reconstruction = ddm_loss(
        scheduler, output, clean, noise, timesteps, coefficients, weighting=weighting, reconstruction_weight=1.0
    )
    # the image is computed back from the noisy one, with a few roundings of numbers below about 5
    assert 0 <= with_reconstruction < (32 * torch.finfo(torch.float32).eps) ** 2


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@all_processes
def test_loss_and_gradient_are_finite_up_to_the_ends(attenuation, noise_schedule, weighting):
    scheduler = DDMScheduler(attenuation=attenuation, noise_schedule=noise_schedule)
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    for t in (1e-4, 1e-3, 1 - 1e-4, 1 - 1e-6, below_one, 1.0):
        clean, noise, timesteps, coefficients, noisy = draw_batch(scheduler, [t])
        raw = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
        scales = precondition(scheduler.process, timesteps / 1000, 1.0)
        output = scales.scale_output(noisy, (raw,) * len(scales.c_out))
        loss = ddm_loss(
            scheduler,
            output,
            clean,
            noise,
            timesteps,
            coefficients,
            weighting=weighting,
            reconstruction_weight=1.0,
        )
        (gradient,) = torch.autograd.grad(loss, raw)
        assert loss.isfinite() and gradient.isfinite().all()
        # Not just finite: a preconditioned network's error at an end is c_out or the data's own size, about 1, and no
        # weight but inverse_time's and adm's 1 / t of the coefficients (10,000 at most) multiplies that up.
        bound = 2 if weighting in ("none", "unit_variance", "velocity") else 2 / max(t, 1e-4)
        assert loss < 20 * bound


def perceptual(images, others):
    """One value for each image, in the shape of LPIPS."""
    return (images.tanh() - others.tanh()).square().amax(dim=(1, 2, 3), keepdim=True)


def released_loss(method, clean, output, noise, slope, t, eps, weighting, use_l1, with_perceptual):
    """`p_losses` of a release for one sample `(1, channels, height, width)`, over the values that ADM-Public sums up."""
    channels, flow = clean.shape[1], method == "const_2"
    sigma = t if flow else t**0.5
    target = -clean if slope is None else torch.cat([slope, -clean - slope / 2], dim=1)
    coefficients, noise_hat = output[:, :-channels], output[:, -channels:]
    h, h_hat = (
        c * t if slope is None else c[:, :channels] / 2 * t**2 + c[:, channels:] * t for c in (target, coefficients)
    )
    x_rec = clean + h + sigma * noise - h_hat - sigma * noise_hat
    w_1 = w_2 = 1.0
    if weighting and flow:
        w_1, w_2 = ((t - 1) / t) ** 2 + 1, (t / (1 - t + eps)) ** 2 + 1
    elif weighting:
        scale = t**2 - t + 1 if method.startswith("adm") else 1.0
        w_1, w_2 = scale / t, scale / (1 - t + eps)
    is_adm, is_latent = flow or method.startswith("adm"), method.endswith("latent")
    if method == "adm":
        x_rec = -coefficients
    reduce = torch.sum if is_adm else torch.mean
    loss = w_1 * reduce((coefficients - target) ** 2) + w_2 * reduce((noise_hat - noise) ** 2)
    if use_l1:
        loss = (loss + w_1 * reduce((coefficients - target).abs()) + w_2 * reduce((noise_hat - noise).abs())) / 2
    if is_adm:
        w_3 = -math.log(t) / 2
        term = reduce((x_rec - clean).abs()) if is_latent else perceptual(x_rec, clean).sum() * with_perceptual
        return (loss + w_3 * term) / clean.numel()
    w_3 = 1 - t if is_latent else (1 - t) ** 2
    term = reduce((x_rec - clean).abs())
    return loss + w_3 * (term + (perceptual(x_rec, clean).mean() if with_perceptual and not is_latent else 0))


@pytest.mark.parametrize("with_perceptual, use_l1", [(True, False), (False, True)])
@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize(
    "method, options, released_weighting, reconstruction",
    [
        ("ddm", {}, "inverse_time", "ddm"),
        ("ddm", {"attenuation": "linear"}, "inverse_time", "ddm"),
        ("ddm_latent", {}, "inverse_time", "ddm_latent"),
        ("adm", {}, "adm", "adm"),
        ("adm_latent", {}, "adm", "adm_latent"),
        ("const_2", {"noise_schedule": "linear"}, "adm", "adm"),
    ],
)
def test_the_released_losses(method, options, released_weighting, reconstruction, weighting, with_perceptual, use_l1):
    scheduler, eps = DDMScheduler(**options), 1e-3 if method == "const_2" else 1e-4
    times = [2e-3, 0.05, 0.5, 0.93, 1.0]
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, times, dtype=torch.float64)
    output = torch.cat([coefficients, noise], dim=1)
    output = output + torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    slope = coefficients[:, :3] if "attenuation" in options else None
    # for each sample by itself: the releases' third term mixes the samples of a batch
    expected = [
        released_loss(
            method,
            *(each[i : i + 1] for each in (clean, output, noise)),
            None if slope is None else slope[i : i + 1],
            t,
            eps,
            weighting,
            use_l1,
            with_perceptual,
        )
        for i, t in enumerate(times)
    ]
    loss = ddm_loss(
        scheduler,
        output,
        clean,
        noise,
        timesteps,
        coefficients,
        weighting=released_weighting if weighting else "none",
        reconstruction_weight=1.0,
        reconstruction=reconstruction,
        perceptual_loss=perceptual if with_perceptual else None,
        use_l1=use_l1,
        t_min=eps,
    )
    assert loss.item() == pytest.approx(sum(expected).item() / len(times), rel=1e-5)


def test_unit_variance_is_the_later_releases_loss_but_for_its_floor():
    scheduler = DDMScheduler(noise_schedule="linear")
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    ours = loss_weights(scheduler, t, "unit_variance")
    for each, released in zip(ours, loss_weights(scheduler, t, "adm", t_min=1e-12), strict=True):
        torch.testing.assert_close(each, released, rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_unit_variance_is_plain_mse_on_the_raw_network(noise_schedule, num_heads, tiny_unet):
    scheduler = DDMScheduler(noise_schedule=noise_schedule)
    unet = tiny_unet(noise_schedule=noise_schedule, num_heads=num_heads, precondition=True, sigma_data=0.6)
    raw = []
    unet.conv_out.register_forward_hook(lambda module, inputs, output: raw.append(output))
    times = [0.01, 0.3, 0.7, 0.99]
    clean, noise, timesteps, coefficients, noisy = draw_batch(scheduler, times, shape=(3, 8, 8))
    output = unet(noisy, timesteps).sample
    loss = ddm_loss(scheduler, output, clean, noise, timesteps, weighting="unit_variance", sigma_data=0.6)

    # process.md: the best raw output is the field (alpha sd^2 eps - sigma x_0) / (sd sqrt(V)), for both heads
    t = torch.tensor(times).reshape(-1, 1, 1, 1)
    sigma = t.sqrt() if noise_schedule == "sqrt" else t
    field = ((1 - t) * 0.36 * noise - sigma * clean) / (0.6 * ((1 - t) ** 2 * 0.36 + sigma**2).sqrt())
    first, second = (raw[0], raw[0]) if num_heads == 1 else raw[0].chunk(2, dim=1)
    expected = (first - field).square().mean() + (second - field).square().mean()
    # dividing by c_out (0.01 here at the least) and multiplying by it again
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_half_outputs_are_compared_in_float32(dtype, weighting):
    scheduler = DDMScheduler()
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, [0.1, 0.9])
    output = (torch.cat([coefficients, noise], dim=1) + 0.3).to(dtype)
    loss = ddm_loss(scheduler, output, clean, noise, timesteps, coefficients, weighting=weighting)
    assert loss.dtype == torch.float32
    assert loss == ddm_loss(scheduler, output.float(), clean, noise, timesteps, coefficients, weighting=weighting)


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
def test_any_rank(attenuation, shape):
    scheduler = DDMScheduler(attenuation=attenuation)
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, [0.2, 0.9], shape)
    output = torch.cat([coefficients, noise], dim=1)
    loss = ddm_loss(scheduler, output + 0.5, clean, noise, timesteps, coefficients, weighting="none")
    # with linear attenuation that of the coefficients is the mean over k and c
    assert loss.item() == pytest.approx(0.25 * 2, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------- the times


def kolmogorov_smirnov(levels):
    """Whether numbers that should be uniform in [0, 1] are."""
    steps = torch.arange(len(levels) + 1) / len(levels)
    levels = levels.double().sort().values
    distance = torch.maximum((steps[1:] - levels).abs(), (levels - steps[:-1]).abs()).max()
    # the largest distance of the empirical distribution from the true one exceeds sqrt(log(2 / p) / 2n) with
    # probability p at most (Dvoretzky-Kiefer-Wolfowitz), here one in a billion
    return distance < math.sqrt(math.log(2 / 1e-9) / (2 * len(levels)))


@pytest.mark.parametrize("num_train_timesteps, t_min", [(1000, 1e-4), (250, 0.0), (1000, 0.4)])
def test_times_are_uniform(num_train_timesteps, t_min):
    num_samples = 1_000_000
    scheduler = DDMScheduler(num_train_timesteps)
    timesteps = sample_timesteps(
        scheduler, num_samples, generator=torch.Generator().manual_seed(0), t_min=t_min, distribution="uniform"
    )
    assert timesteps.shape == (num_samples,) and timesteps.dtype == torch.float32
    assert timesteps.min() > t_min * num_train_timesteps and timesteps.max() <= num_train_timesteps
    assert kolmogorov_smirnov((timesteps.double() / num_train_timesteps - t_min) / (1 - t_min))


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.7, 1.5)])
def test_times_are_logit_normal(noise_schedule, mean, std):
    scheduler = DDMScheduler(500, noise_schedule=noise_schedule)
    options = {"distribution": "logit_normal", "logit_mean": mean, "logit_std": std}
    timesteps = sample_timesteps(scheduler, 1_000_000, generator=torch.Generator().manual_seed(0), **options)
    assert timesteps.dtype == torch.float32 and 0 < timesteps.min() and timesteps.max() <= 500
    t = timesteps.double() / 500
    # by the definition, not by the inverse that the function uses
    log_ratio = (t**0.5 if noise_schedule == "sqrt" else t).log() - (1 - t).log()
    assert kolmogorov_smirnov(torch.distributions.Normal(mean, std).cdf(log_ratio))
    other = torch.distributions.Normal(mean + 0.01, std).cdf(log_ratio)
    assert not kolmogorov_smirnov(other)


def test_times_are_reproducible():
    scheduler = DDMScheduler()
    first, again, other = (
        sample_timesteps(scheduler, 5, device="cpu", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    first = sample_timesteps(scheduler, 5)
    torch.manual_seed(3)
    assert torch.equal(first, sample_timesteps(scheduler, 5))


# ----------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({"batch_size": 0}, ("`batch_size`", "0", "1 or more")),
        ({"batch_size": -2}, ("`batch_size`", "-2", "1 or more")),
        ({"batch_size": 2, "t_min": 1.0}, ("`t_min`", "1.0", "[0, 1)")),
        ({"batch_size": 2, "t_min": -0.1}, ("`t_min`", "-0.1", "[0, 1)")),
        ({"batch_size": 2, "logit_std": 0.0}, ("`logit_std`", "0.0", "above 0")),
        ({"batch_size": 2, "distribution": "beta"}, ("`distribution`", "'beta'", "'uniform'", "'logit_normal'")),
    ],
)
def test_bad_input_of_sample_timesteps(arguments, parts, rejects):
    with rejects(*parts):
        sample_timesteps(DDMScheduler(), **arguments)


def test_unknown_reconstruction(rejects):
    clean = torch.zeros(1, 1, 2, 2)
    with rejects("`reconstruction`", "'l1'", "squared"):
        ddm_loss(DDMScheduler(), torch.zeros(1, 2, 2, 2), clean, clean, torch.ones(1), reconstruction="l1")


@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@pytest.mark.parametrize("weighting", ["snr", None])
def test_unknown_weighting(attenuation, weighting, rejects):
    scheduler = DDMScheduler(attenuation=attenuation)
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, [0.5])
    output = torch.cat([coefficients, noise], dim=1)
    with rejects("`weighting`", repr(weighting), *map(repr, WEIGHTINGS)):
        ddm_loss(scheduler, output, clean, noise, timesteps, coefficients, weighting=weighting)


def test_linear_attenuation_without_its_coefficients(rejects):
    scheduler = DDMScheduler(attenuation="linear")
    clean, noise, timesteps, coefficients, _ = draw_batch(scheduler, [0.5])
    with rejects("`attenuation`", "None", "`get_attenuation`"):
        ddm_loss(scheduler, torch.cat([coefficients, noise], dim=1), clean, noise, timesteps)


@pytest.mark.parametrize("channels", [3, 9])
def test_wrong_channels(channels, rejects):
    scheduler = DDMScheduler()
    clean, noise, timesteps, _, _ = draw_batch(scheduler, [0.5])
    with rejects("`model_output`", f"(1, {channels}, 4, 4)", "(1, 6, 4, 4)", "'constant'"):
        ddm_loss(scheduler, torch.zeros(1, channels, 4, 4), clean, noise, timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow_prediction"])
def test_a_scheduler_of_another_process(prediction_type, rejects):
    x = torch.zeros(2, 3)
    with rejects("`scheduler`", repr(prediction_type), "'decoupled'"):
        ddm_loss(DDMScheduler(prediction_type=prediction_type), torch.zeros(2, 6), x, x, torch.ones(2))
