# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Preconditioning of a network that predicts attenuation and noise, after EDM (Karras et al., arXiv 2206.00364, eq. 7).

The network sees `c_in * x_t` with unit variance and its raw output `F` has a target of unit variance; the best linear
guess of each quantity from `x_t` is added outside of it:

    y_hat = c_skip * x_t + c_out * F,     c_skip = Cov(y, x_t) / Var(x_t),     c_out^2 = Var(y) - Cov(y, x_t)^2 / Var(x_t)

Or scales of the same form, with which the target of `F` is the velocity of flow matching (arXiv 2210.02747).
"""

from dataclasses import dataclass

import torch

from ..process import DecoupledProcess, at_least_float32, broadcast_time


# The slope of the linear attenuation is drawn as clamp(N(0, 1), -1, 1), whose variance is 1 - 2 pdf(1).
SLOPE_VARIANCE = 0.5160585509


@dataclass
class Preconditioning:
    """
    The scales at some times. `c_skip` and `c_out` have one entry for each predicted quantity, in the order of the
    model's output: `(c, eps)` for constant attenuation, `(k, c, eps)` for linear attenuation. Every scale has the
    shape of the times.
    """

    c_in: torch.Tensor
    c_skip: tuple[torch.Tensor, ...]
    c_out: tuple[torch.Tensor, ...]

    def scale_input(self, x_t: torch.Tensor) -> torch.Tensor:
        """`c_in * x_t`, in float32 or better."""
        return broadcast_time(self.c_in, x_t) * at_least_float32(x_t)

    def scale_output(self, x_t: torch.Tensor, raw: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """
        `c_skip * x_t + c_out * F` for each quantity, concatenated on dim 1, in float32 or better.

        Args:
            x_t (`torch.Tensor` of shape `(batch_size, channels, ...)`): The noisy image.
            raw (`tuple` of `torch.Tensor`, each of the shape of `x_t`):
                The network's outputs, one for each quantity.
        """
        x_t = at_least_float32(x_t)
        return torch.cat(
            [
                broadcast_time(c_skip, x_t) * x_t + broadcast_time(c_out, x_t) * at_least_float32(F)
                for c_skip, c_out, F in zip(self.c_skip, self.c_out, raw, strict=True)
            ],
            dim=1,
        )


def precondition(process: DecoupledProcess, t: torch.Tensor, sigma_data: float) -> Preconditioning:
    r"""
    The scales of a process at times `t`, for images of standard deviation `sigma_data` around zero.

    `x_t` is the sum of three independent parts, `alpha_t x_0 + beta_t k + sigma_t eps`, where `beta_t = (t^2 - t) / 2`
    and `k` only exists for linear attenuation. With constant attenuation the raw targets of both outputs are the same
    field, `(alpha_t sigma_data^2 eps - sigma_t x_0) / (sigma_data sqrt(Var x_t))`.

    Args:
        process ([`~process.DecoupledProcess`]): The process.
        t (`torch.Tensor` of any shape): Times in [0, 1].
        sigma_data (`float`): Root mean square of the images, above 0.

    Returns:
        [`Preconditioning`]
    """
    image_variance = sigma_data**2
    alpha, sigma = process.alpha(t), process.sigma(t)
    image_part = alpha**2 * image_variance
    if process.attenuation == "constant":
        signal = image_part
        variance = signal + sigma**2
        # c = -x_0
        c_skip = (-alpha * image_variance / variance,)
        residual = (image_variance * sigma**2 / variance,)
    else:
        beta = (t**2 - t) / 2
        signal = image_part + beta**2 * SLOPE_VARIANCE
        variance = signal + sigma**2
        # k, then c = -x_0 - k / 2
        c_skip = (
            beta * SLOPE_VARIANCE / variance,
            -(alpha * image_variance + beta * SLOPE_VARIANCE / 2) / variance,
        )
        # Var(c) Var(x_t) - Cov(c, x_t)^2 as a sum of squares (Lagrange's identity), which does not cancel near t = 0
        residual = (
            SLOPE_VARIANCE * (image_part + sigma**2) / variance,
            (
                image_variance * SLOPE_VARIANCE * (beta - alpha / 2) ** 2
                + (image_variance + SLOPE_VARIANCE / 4) * sigma**2
            )
            / variance,
        )
    return Preconditioning(
        c_in=variance.rsqrt(),
        c_skip=(*c_skip, sigma / variance),
        c_out=tuple(r.sqrt() for r in (*residual, signal / variance)),
    )


def precondition_velocity(process: DecoupledProcess, t: torch.Tensor) -> Preconditioning:
    r"""
    The scales at times `t` with which the raw target of both outputs is the velocity `F = eps - x_0` of flow matching.

    Divided by `alpha_t + sigma_t` the process with constant attenuation is the straight path at the share of noise
    `r = sigma_t / (alpha_t + sigma_t)`, on which `x_0 = x - r F` and `eps = x + (1 - r) F`. Where the noisy image tells all
    of the noise, or all of the image, this target is the same at all times, while that of [`precondition`] changes its
    size with them.

    Args:
        process ([`~process.DecoupledProcess`]): The process, with constant attenuation.
        t (`torch.Tensor` of any shape): Times in [0, 1].

    Returns:
        [`Preconditioning`]

    Raises:
        ValueError: the attenuation is linear, whose path is not a straight one.
    """
    if process.attenuation != "constant":
        raise ValueError(f"`process` has the attenuation {process.attenuation!r}, but it has to be 'constant'.")
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = 1 / (alpha + sigma)
    return Preconditioning(c_in=scale, c_skip=(-scale, scale), c_out=(sigma * scale, alpha * scale))


def precondition_ddm(process: DecoupledProcess, t: torch.Tensor, num_heads: int = 2) -> Preconditioning:
    r"""
    The scales of the authors' first release (DDM-Public) at times `t`. With two heads (`unet/uncond_unet.py`):

        c_hat = (t - 1) x_t + t / sqrt(1 + t) F_1,    eps_hat = sqrt(t) x_t + sqrt((1 - t) / (1 + t)) F_2

    With one head (`unet/uncond_unet_sd.py`) the noise follows from `c_hat`: `eps_hat = (x_t - (t - 1) c_hat) / sqrt(t)`.
    The network sees `x_t / sqrt(1 + t)`. The later release has [`precondition`] with `sigma_data=1.0`.

    Args:
        process ([`~process.DecoupledProcess`]): The standard one, with constant attenuation and sqrt noise.
        t (`torch.Tensor` of any shape): Times in [0, 1].
        num_heads (`int`, defaults to 2): 1 or 2.

    Returns:
        [`Preconditioning`]

    Raises:
        ValueError: The process is another one.
    """
    if process != DecoupledProcess():
        raise ValueError(f"`process` is {process}, but has to be {DecoupledProcess()}.")
    c_in = (1 + t).rsqrt()
    if num_heads == 1:
        skip, out = t.sqrt() * (2 - t), (1 - t) * t.sqrt() * c_in
    else:
        skip, out = t.sqrt(), (1 - t).sqrt() * c_in
    return Preconditioning(c_in=c_in, c_skip=(t - 1, skip), c_out=(t * c_in, out))
