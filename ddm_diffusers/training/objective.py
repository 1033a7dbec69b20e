# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training objective of decoupled diffusion models and the drawing of its times (arXiv 2306.13720, section 3)."""

from collections.abc import Callable

import torch

from ..models.preconditioning import precondition
from ..process import DecoupledProcess, at_least_float32
from ..schedulers import DDMScheduler


WEIGHTINGS = ("none", "inverse_time", "adm", "unit_variance", "velocity")
TIMESTEP_DISTRIBUTIONS = ("uniform", "logit_normal")
RECONSTRUCTIONS = ("squared", "ddm", "ddm_latent", "adm", "adm_latent")

# Keeps 1 / c_out^2 finite at the ends.
WEIGHT_FLOOR = 1e-4


def sample_timesteps(
    scheduler: DDMScheduler,
    batch_size: int,
    device: str | torch.device | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    t_min: float = 1e-4,
    distribution: str = "logit_normal",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> torch.Tensor:
    """
    Draw training timesteps, `t * num_train_timesteps` with t in (0, 1].

    | `distribution` | t | from |
    | --- | --- | --- |
    | `"uniform"` | uniform in (t_min, 1] | the paper |
    | `"logit_normal"` | `log(sigma_t / alpha_t) ~ N(logit_mean, logit_std^2)` | Stable Diffusion 3 (arXiv 2403.03206) |

    On the straight path (`noise_schedule="linear"`) the second is the logit-normal density of t by which it is known; it
    is stated by the ratio of noise to image, so that it is the same for every noise schedule.

    Args:
        scheduler ([`DDMScheduler`]): Its `num_train_timesteps` is the unit.
        batch_size (`int`): How many, 1 or more.
        device (`str` or `torch.device`, *optional*): The device of the result.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
            On any device; a list has one generator for each timestep.
        t_min (`float`, defaults to 1e-4): The lower end of the uniform distribution, in [0, 1).
        distribution (`str`, defaults to `"logit_normal"`):
            A name of the table. The default trained best of those that were measured (docs/benchmarks.md).
        logit_mean (`float`, defaults to 0.0): Above 0 favours noise, below 0 details.
        logit_std (`float`, defaults to 1.0): Above 0.

    Returns:
        `torch.Tensor` of shape `(batch_size,)` and dtype float32.

    Raises:
        ValueError: an argument is outside of its range.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}, but has to be 1 or more.")
    if not 0 <= t_min < 1:
        raise ValueError(f"`t_min` is {t_min}, but has to be in [0, 1).")
    if not logit_std > 0:
        raise ValueError(f"`logit_std` is {logit_std}, but has to be above 0.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"`generator` is a list of length {len(generator)}, but `batch_size` is {batch_size}; one generator is"
            " accepted, or a list of one for each timestep."
        )

    def draw(function):
        if isinstance(generator, list):
            return torch.cat([function(1, generator=each, device=each.device) for each in generator])
        return function(batch_size, generator=generator, device=generator.device if generator else device)

    if distribution == "uniform":
        # 1 - u is in (0, 1], as torch.rand is in [0, 1)
        t = 1 - (1 - t_min) * draw(torch.rand)
    elif distribution == "logit_normal":
        log_ratio = logit_mean + logit_std * draw(torch.randn)
        t = scheduler.process.time((-log_ratio).sigmoid(), log_ratio.sigmoid())
    else:
        raise ValueError(f"`distribution` is {distribution!r}, but has to be one of {TIMESTEP_DISTRIBUTIONS}.")
    return t.to(device) * scheduler.config.num_train_timesteps


def loss_weights(
    scheduler: DDMScheduler, t: torch.Tensor, weighting: str, sigma_data: float = 1.0, t_min: float = 1e-4
) -> tuple[torch.Tensor, ...]:
    """
    The weight of each predicted quantity at times `t`.

    | `weighting` | of the attenuation coefficients | of the noise | from |
    | --- | --- | --- | --- |
    | `"none"` | 1 | 1 | the paper's plain objective |
    | `"inverse_time"` | 1 / t | 1 / (1 - t + t_min) | DDM-Public |
    | `"adm"` | (t^2 - t + 1) / t | (t^2 - t + 1) / (1 - t + t_min) | ADM-Public, `ddm_const` |
    | `"adm"`, linear noise (*) | ((1 - t) / t)^2 + 1 | (t / (1 - t + t_min))^2 + 1 | ADM-Public, `ddm_const_2` |
    | `"unit_variance"` | 1 / c_out^2 | 1 / c_out^2 | uniform on the raw output, with `precondition=True` |
    | `"velocity"` | ((alpha + sigma) c_in / c_out)^2 | ((alpha + sigma) c_in / c_out)^2 | flow matching (2210.02747) |

    (*) With constant attenuation, as in the release.

    With constant attenuation, linear noise and `sigma_data=1.0`, `"unit_variance"` is the authors' too: it is `"adm"` without
    `t_min`. With sqrt noise it shares the weight of the coefficients with `"adm"`.

    With linear attenuation the releases average the squared error over `k` and `c`. So do the weightings of the
    releases here: `k` and `c` have half of the weight in the table each.

    With constant attenuation the last one is the error of the velocity `eps - x_0`, over `sigma_data^2`, on the straight
    path, to which dividing by `alpha_t + sigma_t` brings the process. Next to `"unit_variance"` it gives up to twice the
    weight to times with as much image as noise.

    Args:
        scheduler ([`DDMScheduler`]): The process.
        t (`torch.Tensor` of any shape): Times in (0, 1].
        weighting (`str`): A name of the table.
        sigma_data (`float`, defaults to 1.0): As the model's; for `"unit_variance"` and `"velocity"`.
        t_min (`float`, defaults to 1e-4): The `eps` of the releases, which keeps the weights finite; above 0.

    Returns:
        `tuple` of `torch.Tensor`, each of the shape of `t`: for `(c, eps)`, or `(k, c, eps)` with linear attenuation.

    Raises:
        ValueError: `weighting` is not in the table.
    """
    if weighting in ("unit_variance", "velocity"):
        scales, scale = precondition(scheduler.process, t, sigma_data), 1.0
        if weighting == "velocity":
            scale = ((scheduler.process.alpha(t) + scheduler.process.sigma(t)) * scales.c_in) ** 2
        return tuple(scale / c_out.square().clamp_min(WEIGHT_FLOOR**2) for c_out in scales.c_out)
    if weighting == "none":
        of_attenuation, of_noise = torch.ones_like(t), torch.ones_like(t)
    elif weighting == "adm" and scheduler.process == DecoupledProcess(noise_schedule="linear"):
        of_attenuation, of_noise = ((1 - t) / t) ** 2 + 1, (t / (1 - t + t_min)) ** 2 + 1
    elif weighting in ("inverse_time", "adm"):
        scale = 1 if weighting == "inverse_time" else t**2 - t + 1
        of_attenuation, of_noise = scale / t, scale / (1 - t + t_min)
    else:
        raise ValueError(f"`weighting` is {weighting!r}, but has to be one of {WEIGHTINGS}.")
    num_coefficients = scheduler.process.num_coefficients
    return (of_attenuation / num_coefficients,) * num_coefficients + (of_noise,)


def ddm_loss(
    scheduler: DDMScheduler,
    model_output: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    attenuation: torch.Tensor | None = None,
    weighting: str = "velocity",
    sigma_data: float = 1.0,
    reconstruction_weight: float = 0.0,
    return_parts: bool = False,
    reconstruction: str = "squared",
    perceptual_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    use_l1: bool = False,
    t_min: float = 1e-4,
) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""
    The objective of decoupled diffusion models, the sum of the weighted squared errors of both outputs:

        E[ w_1(t) |c_hat - c|^2 + w_2(t) |eps_hat - eps|^2 + reconstruction_weight w_3(t) d(x0_hat, x0) ]

    | `reconstruction` | w_3(t) | d | from |
    | --- | --- | --- | --- |
    | `"squared"` | (1 - t)^2 | mean squared error | this package |
    | `"ddm"` | (1 - t)^2 | mean absolute error + `perceptual_loss` | DDM-Public, images |
    | `"ddm_latent"` | 1 - t | mean absolute error | DDM-Public, latents |
    | `"adm"` | -log(t) / 2 | `perceptual_loss` / number of values of an image | ADM-Public, images |
    | `"adm_latent"` | -log(t) / 2 | mean absolute error | ADM-Public, latents |

    The clean image is `x0_hat = x_t - H_t - sigma_t eps_hat`, but `-c_hat` for `"adm"` with sqrt noise. The means are over
    the values of an image. ADM-Public sums over them: its loss is this one times their number.

    Every term is one of each sample, averaged over the batch. The releases multiply a `(batch_size,)` error by
    `(batch_size, 1)` weights in the third term. So there each error meets the weight of every sample, and in ADM-Public
    the sum grows with the batch. For one sample the terms are the same.

    Args:
        scheduler ([`DDMScheduler`]): The process.
        model_output (`torch.Tensor` of shape `(batch_size, (num_coefficients + 1) * channels, ...)`):
            The model's attenuation coefficients and noise.
        clean (`torch.Tensor` of shape `(batch_size, channels, ...)`): The images.
        noise (`torch.Tensor` of the shape of `clean`): The noise that was added to them.
        timesteps (`torch.Tensor` of shape `(batch_size,)`): In (0, num_train_timesteps].
        attenuation (`torch.Tensor`, *optional*):
            What [`DDMScheduler.get_attenuation`] returned; needed for linear attenuation.
        weighting (`str`, defaults to `"velocity"`): See [`loss_weights`]; it trained best of those that were measured
            (docs/benchmarks.md). The paper's is `"none"`.
        sigma_data (`float`, defaults to 1.0): As the model's; for `"unit_variance"` and `"velocity"`.
        reconstruction_weight (`float`, defaults to 0.0): Weight of the error of the clean image; 1 in the releases.
        return_parts (`bool`, defaults to `False`): Whether to return the parts of the sum as well, for a log.
        reconstruction (`str`, defaults to `"squared"`): A name of the table.
        perceptual_loss (`Callable`, *optional*):
            `perceptual_loss(x0_hat, x0)` with one value for each image, such as `lpips.LPIPS(net="vgg")` (arXiv 1801.03924),
            the releases'. Without it `"ddm"` has the absolute error alone, and `"adm"` no third term.
        use_l1 (`bool`, defaults to `False`):
            Whether to replace the squared errors of the first two terms by the mean of squared and absolute error. The
            releases do so for some latents.
        t_min (`float`, defaults to 1e-4): See [`loss_weights`].

    Returns:
        `torch.Tensor`: the 0-d loss, in float32 or better; with `return_parts` also a `dict` of 0-d tensors without
        gradient, `attenuation_loss`, `noise_loss` and, if it has a weight, `reconstruction_loss`, whose sum is the loss.

    Raises:
        ValueError: `model_output` has a wrong shape, `weighting` or `reconstruction` is unknown, `attenuation` is missing, or
            the scheduler samples a model of another process.
    """
    if scheduler.config.prediction_type != "decoupled":
        raise ValueError(
            f"`scheduler` has prediction_type={scheduler.config.prediction_type!r}, but the objective of decoupled models needs"
            " a DDMScheduler with prediction_type='decoupled'."
        )
    process = scheduler.process
    if attenuation is None:
        if scheduler.config.attenuation == "linear":
            raise ValueError(
                "`attenuation` is None, but linear attenuation needs the coefficients that `get_attenuation` drew."
            )
        attenuation = scheduler.get_attenuation(clean)
    target = at_least_float32(torch.cat([attenuation, noise], dim=1))
    if model_output.shape != target.shape:
        raise ValueError(
            f"`model_output` has the shape {tuple(model_output.shape)}, but with attenuation"
            f" {scheduler.config.attenuation!r} images of shape {tuple(clean.shape)} need {tuple(target.shape)}."
        )
    model_output = at_least_float32(model_output)
    t = at_least_float32(timesteps) / scheduler.config.num_train_timesteps

    # the error of each image and quantity: (batch_size, num_coefficients + 1)
    errors = model_output - target
    errors = (errors.square() + errors.abs()) / 2 if use_l1 else errors.square()
    errors = errors.unflatten(1, (-1, clean.shape[1])).flatten(2).mean(dim=2)
    weights = torch.stack(loss_weights(scheduler, t, weighting, sigma_data, t_min), dim=1)
    means = (weights * errors).mean(dim=0)
    parts = {"attenuation_loss": means[:-1].sum(), "noise_loss": means[-1]}
    if reconstruction not in RECONSTRUCTIONS:
        raise ValueError(f"`reconstruction` is {reconstruction!r}, but has to be one of {RECONSTRUCTIONS}.")
    if reconstruction_weight:
        coefficients, noise_hat = model_output.split([attenuation.shape[1], noise.shape[1]], dim=1)
        if reconstruction == "adm" and process == DecoupledProcess():
            x_0 = -coefficients
        else:
            x_0 = process.predict_x0(process.marginal(clean, attenuation, noise, t), coefficients, noise_hat, t)
        errors = _reconstruction_errors(reconstruction, x_0, at_least_float32(clean), t, perceptual_loss)
        parts["reconstruction_loss"] = reconstruction_weight * errors.mean()
    loss = sum(parts.values())
    if return_parts:
        return loss, {name: part.detach() for name, part in parts.items()}
    return loss


def _reconstruction_errors(
    reconstruction: str, x_0: torch.Tensor, clean: torch.Tensor, t: torch.Tensor, perceptual_loss: Callable | None
) -> torch.Tensor:
    """The third term for each image, of shape `(batch_size,)`."""
    error = (x_0 - clean).flatten(1)
    if reconstruction == "squared":
        return (1 - t) ** 2 * error.square().mean(dim=1)
    absolute = error.abs().mean(dim=1)
    perceptual = torch.zeros_like(absolute) if perceptual_loss is None else perceptual_loss(x_0, clean).flatten()
    if reconstruction == "ddm":
        return (1 - t) ** 2 * (absolute + perceptual)
    if reconstruction == "ddm_latent":
        return (1 - t) * absolute
    return -t.log() / 2 * (perceptual / error.shape[1] if reconstruction == "adm" else absolute)


def load_lpips(
    device: str | torch.device, option: str = "--lpips"
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """
    LPIPS (arXiv 1801.03924) on the features of VGG, for images in [-1, 1] of 1 or 3 channels: one value for each.

    Args:
        device (`str` or `torch.device`): Where it runs.
        option (`str`, defaults to `"--lpips"`): What asked for it, for the message of the error.

    Raises:
        ImportError: The package lpips is not installed.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ImportError(f"`{option}` needs `pip install lpips`; `--no-lpips` leaves it out of a preset.") from error
    network = LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

    def lpips(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        grayscale = images.shape[1] == 1
        return network(*(each.expand(-1, 3, -1, -1) if grayscale else each for each in (images, others))).flatten()

    return lpips
