# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The decoupled diffusion process in closed form (Huang et al., "Decoupled Diffusion Models", arXiv 2306.13720, section 3).

    x_t = x_0 + H_t + sigma_t * eps,      eps ~ N(0, I),      t in [0, 1]

The attenuation `H_t` takes the image to zero (`H_1 = -x_0`). A Wiener process on the clock `sigma_t ** 2` takes zero to
noise. Both are analytic, so the marginal, the posterior and one reverse step of any size are closed formulas.

Conventions of this module:

- A time is a float or a 0-d tensor (one time for all images), or a `(batch_size,)` tensor.
- Images are `(batch_size, channels, ...)` tensors of any rank of 2 or more.
- Half precision is raised to float32, and the result is float32. float64 stays float64.
- Float times are the fastest: Python computes their formulas in double precision, and the device gets scalars.
"""

from dataclasses import dataclass
from typing import Literal

import torch


Attenuation = Literal["constant", "linear"]
NoiseSchedule = Literal["sqrt", "linear"]

ATTENUATIONS = ("constant", "linear")
NOISE_SCHEDULES = ("sqrt", "linear")


def broadcast_time(t: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
    """Shape times `(batch_size,)` as `(batch_size, 1, ...)`, so that they multiply `x` image by image."""
    if not torch.is_tensor(t) or t.ndim == 0:
        return t
    return t.reshape(-1, *(1 for _ in x.shape[1:]))


def add_scaled(x: torch.Tensor, scale: float | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x + scale y` in float32 or better. `scale` is a number or one number for each image; a number costs one kernel."""
    x, y = at_least_float32(x), at_least_float32(y)
    if not torch.is_tensor(scale):
        return torch.add(x, y, alpha=scale)
    return x + broadcast_time(scale, y) * y


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Raise half precision and integers to float32; float32 and float64 stay as they are."""
    if x.dtype in (torch.float32, torch.float64):  # no call into torch, as this is a good part of a small step
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class DecoupledProcess:
    r"""
    The decoupled forward process, its posterior and its inversion.

    | `attenuation` | `H_t` | coefficients | end condition `H_1 = -x_0` |
    | --- | --- | --- | --- |
    | `"constant"` | `c t` | `c`, as many channels as the image | `c = -x_0` |
    | `"linear"` | `k t^2 / 2 + c t` | `k` and `c`, concatenated on dim 1 in this order | `c = -x_0 - k / 2`, `k` free |

    Args:
        attenuation (`"constant"` or `"linear"`, defaults to `"constant"`):
            The attenuation function `h_t`, whose integral is `H_t`.
        noise_schedule (`"sqrt"` or `"linear"`, defaults to `"sqrt"`):
            `sigma_t = sqrt(t)`, the standard Wiener process of the paper, or `sigma_t = t`, the authors' later choice. With
            constant attenuation the path of the later choice is the straight line of flow matching.

    Raises:
        ValueError: `attenuation` or `noise_schedule` is not one of the above.
    """

    attenuation: Attenuation = "constant"
    noise_schedule: NoiseSchedule = "sqrt"

    def __post_init__(self):
        if self.attenuation not in ATTENUATIONS:
            raise ValueError(f"`attenuation` is {self.attenuation!r}, but has to be one of {ATTENUATIONS}.")
        if self.noise_schedule not in NOISE_SCHEDULES:
            raise ValueError(f"`noise_schedule` is {self.noise_schedule!r}, but has to be one of {NOISE_SCHEDULES}.")

    @property
    def num_coefficients(self) -> int:
        """How many coefficients describe the attenuation of one channel: 1 (`c`) or 2 (`k` and `c`)."""
        return 1 if self.attenuation == "constant" else 2

    def alpha(self, t: float | torch.Tensor) -> float | torch.Tensor:
        """`alpha_t = 1 - t`, the factor of `x_0` in `x_t`: `x_0 + H_t = alpha_t x_0` for `c = -x_0` (and `k = 0`)."""
        return 1 - t

    def sigma(self, t: float | torch.Tensor) -> float | torch.Tensor:
        """`sigma_t`, the standard deviation of the noise at time `t`: `sqrt(t)` or `t`."""
        return t**0.5 if self.noise_schedule == "sqrt" else t

    def time(self, alpha: float | torch.Tensor, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """
        The time `t` with `alpha_t : sigma_t = alpha : sigma`, both 0 or more and not both 0: the positive root of the
        quadratic equation `(1 - t) sigma = sigma_t alpha` in `sigma_t`.
        """
        if self.noise_schedule == "sqrt":
            return (2 * sigma / (alpha + (alpha**2 + 4 * sigma**2) ** 0.5)) ** 2
        return sigma / (alpha + sigma)

    def coefficients(self, x_0: torch.Tensor, slope: torch.Tensor | None = None) -> torch.Tensor:
        """
        The attenuation coefficients that end at zero, `H_1 = -x_0` (table 1 of the paper): the target of a model.

        Args:
            x_0 (`torch.Tensor` of shape `(batch_size, channels, ...)`): The images.
            slope (`torch.Tensor` of the shape of `x_0`, *optional*):
                `k`, needed for linear attenuation, where it is free.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`.
        """
        if self.attenuation == "constant":
            return -x_0
        if slope is None:
            raise ValueError("`slope` is None, but linear attenuation needs a tensor of the shape of `x_0`.")
        return torch.cat([slope, -x_0 - slope / 2], dim=1)

    def attenuate(self, coefficients: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        """
        `H_t`, what the attenuation has added to the image by time `t` (table 1 of the paper).

        Args:
            coefficients (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`): `c`, or `k` and `c`.
            t (`float` or `torch.Tensor`): Time in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, channels, ...)`.
        """
        t = broadcast_time(t, coefficients)
        coefficients = at_least_float32(coefficients)
        if self.attenuation == "constant":
            return coefficients * t
        k, c = coefficients.chunk(2, dim=1)
        return k * (t**2 / 2) + c * t

    def mean(self, x_0: torch.Tensor, coefficients: torch.Tensor | None, t: float | torch.Tensor) -> torch.Tensor:
        """
        `x_0 + H_t`, the mean of `q(x_t | x_0, H)`. Coefficients of `None` stand for `c = -x_0`, with which the mean is
        `alpha_t x_0`.
        """
        if coefficients is None:
            return at_least_float32(x_0) * broadcast_time(self.alpha(t), x_0)
        return at_least_float32(x_0) + self.attenuate(coefficients, t)

    def marginal(
        self, x_0: torch.Tensor, coefficients: torch.Tensor | None, eps: torch.Tensor, t: float | torch.Tensor
    ) -> torch.Tensor:
        """`x_t = x_0 + H_t + sigma_t eps`, a draw of `q(x_t | x_0, H)` for `eps ~ N(0, I)`. Shapes as `x_0`."""
        return add_scaled(self.mean(x_0, coefficients, t), self.sigma(t), eps)

    def predict_x0(
        self, x_t: torch.Tensor, coefficients: torch.Tensor, eps: torch.Tensor, t: float | torch.Tensor
    ) -> torch.Tensor:
        """
        `x_0 = x_t - H_t - sigma_t eps`, the marginal solved for the image.

        For estimates and constant attenuation this is the blend `(1 - t) x_0(eps) + t (-c)` of the images that the
        two estimates imply by themselves.
        """
        if self.attenuation == "constant":
            attenuated = add_scaled(x_t, -t, coefficients)
        else:
            attenuated = at_least_float32(x_t) - self.attenuate(coefficients, t)
        return add_scaled(attenuated, -self.sigma(t), eps)

    def predict_noise(
        self, x_t: torch.Tensor, x_0: torch.Tensor, coefficients: torch.Tensor | None, t: float | torch.Tensor
    ) -> torch.Tensor:
        """`eps = (x_t - x_0 - H_t) / sigma_t`, the marginal solved for the noise, for t > 0."""
        return (at_least_float32(x_t) - self.mean(x_0, coefficients, t)) / broadcast_time(self.sigma(t), x_t)

    def transition(
        self, x_s: torch.Tensor, coefficients: torch.Tensor, s: float | torch.Tensor, t: float | torch.Tensor
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """
        Mean and standard deviation of the forward step from s to t, `q(x_t | x_s, H) = N(x_s + H_t - H_s, (sigma_t^2 -
        sigma_s^2) I)`: both integrals of the forward process run on from s.

        Args:
            x_s (`torch.Tensor` of shape `(batch_size, channels, ...)`): The noisy images at s.
            coefficients (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`):
                Attenuation coefficients.
            s, t (`float` or `torch.Tensor`): Times with 0 <= s < t <= 1.

        Returns:
            The mean, of the shape of `x_s`, and the standard deviation, which broadcasts against it.
        """
        mean = at_least_float32(x_s) + self.attenuate(coefficients, t) - self.attenuate(coefficients, s)
        return mean, broadcast_time((self.sigma(t) ** 2 - self.sigma(s) ** 2) ** 0.5, x_s)

    def bridge_scales(
        self, s: float | torch.Tensor, t: float | torch.Tensor, eta: float = 1.0
    ) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """
        The factors of `eps` and of the fresh noise in the posterior `q(x_s | x_t, x_0, H)`.

        A Wiener path that is known at 0 and t is a Brownian bridge in between, of variance
        `v = sigma_s^2 (1 - sigma_s^2 / sigma_t^2)`. `eta` scales its standard deviation, as DDIM's eta does
        (arXiv 2010.02502, equation 16). The marginal at s is the same for every `eta`.

        Args:
            s, t (`float` or `torch.Tensor`): Times with 0 <= s < t <= 1.
            eta (`float`, defaults to 1.0): 1 for the exact posterior (the paper's step) ... 0 for no fresh noise.

        Returns:
            `(sqrt(sigma_s^2 - eta^2 v), eta sqrt(v))`, each of the broadcast shape of `s` and `t`.
        """
        sigma_s, ratio = self.sigma(s), (self.sigma(s) / self.sigma(t)) ** 2
        # sigma_s^2 - eta^2 v without the cancellation near s = t
        kept = (1 - eta**2) + eta**2 * ratio
        return sigma_s * kept**0.5, sigma_s * eta * (1 - ratio) ** 0.5

    def posterior(
        self,
        x_0: torch.Tensor,
        coefficients: torch.Tensor | None,
        eps: torch.Tensor,
        s: float | torch.Tensor,
        t: float | torch.Tensor,
        eta: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and standard deviation of the reverse step from t to s, of any size.

            q(x_s | x_t, x_0, H) = N(x_0 + H_s + sqrt(sigma_s^2 - eta^2 v) eps,  eta^2 v I)

        With `eta = 1` and `noise_schedule="sqrt"` this is the paper's `x_t + H_s - H_t - (t - s) / sqrt(t) eps` with
        the variance `s (t - s) / t`. At s = 0 it is the image itself, without noise.

        Args:
            x_0, eps (`torch.Tensor` of shape `(batch_size, channels, ...)`): Image and noise that make up `x_t`.
            coefficients (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`):
                Attenuation coefficients; see [`~DecoupledProcess.mean`] for `None`.
            s, t (`float` or `torch.Tensor`): Times with 0 <= s < t <= 1.
            eta (`float`, defaults to 1.0): See [`~DecoupledProcess.bridge_scales`].

        Returns:
            The mean, of the shape of `x_0`, and the standard deviation, which broadcasts against it.
        """
        eps_scale, std = self.bridge_scales(s, t, eta)
        return add_scaled(self.mean(x_0, coefficients, s), eps_scale, eps), broadcast_time(std, x_0)

    def increment(
        self,
        x_t: torch.Tensor,
        x_0: torch.Tensor,
        coefficients: torch.Tensor | None,
        eps: torch.Tensor,
        s: float | torch.Tensor,
        t: float | torch.Tensor,
        eta: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and standard deviation of the reverse step from t to s as the authors' releases take it: a change of `x_t`.

            mean = x_t + H_s - H_t - (sigma_t - sqrt(sigma_s^2 - eta^2 v)) eps

        For constant attenuation the releases set `c = -x_0`. With `eta = 1` and `noise_schedule="sqrt"` the mean is
        `x_t + (t - s) x_0 - (t - s) / sqrt(t) eps`, the step of arXiv 2306.13720 (`pred_xtms_from_xt` in
        DDM-Public and ADM-Public). It equals [`~DecoupledProcess.posterior`] where `x_t = x_0 + H_t + sigma_t eps`. Where
        two estimates disagree, or `x_0` was clipped, it differs by `x_t - x_0 - H_t - sigma_t eps`.

        Args:
            x_t, x_0, eps (`torch.Tensor` of shape `(batch_size, channels, ...)`): Noisy image, clean image and noise.
            coefficients, s, t, eta: As for [`~DecoupledProcess.posterior`].

        Returns:
            The mean, of the shape of `x_t`, and the standard deviation, which broadcasts against it.
        """
        kept, std = self.bridge_scales(s, t, eta)
        if coefficients is None:
            mean = add_scaled(x_t, self.alpha(s) - self.alpha(t), x_0)
        else:
            mean = at_least_float32(x_t) + self.attenuate(coefficients, s) - self.attenuate(coefficients, t)
        return add_scaled(mean, kept - self.sigma(t), eps), broadcast_time(std, x_t)
