# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The decoupled diffusion process in closed form (Huang et al., "Decoupled Diffusion Models", arXiv 2306.13720).

    x_t = x_0 + H_t + sigma_t * eps,      eps ~ N(0, I),      t in [0, 1]

The attenuation `H_t` takes the image to zero (`H_1 = -x_0`) while a Wiener process on the clock `sigma_t ** 2` takes
zero to noise. Both are analytic, so the marginal, the posterior and one reverse step of any size are closed formulas.

Conventions of this module: a time is a float or 0-d tensor (one time for all), or a `(batch_size,)` tensor; images are
`(batch_size, channels, ...)` of any rank of 2 or more. Half precision is raised to float32 and stays there; float64
stays float64. Float times are the fastest: their formulas run in Python, in double precision, and the device gets scalars.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch


Attenuation = Literal["constant", "linear"]
NoiseSchedule = Literal["sqrt", "linear"]
Extrapolation = Literal["time", "log_snr"]

ATTENUATIONS = ("constant", "linear")
NOISE_SCHEDULES = ("sqrt", "linear")
EXTRAPOLATIONS = ("time", "log_snr")


def broadcast_time(t: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
    """Shape times `(batch_size,)` as `(batch_size, 1, ...)`, so that they multiply `x` image by image."""
    if not torch.is_tensor(t) or t.ndim == 0:
        return t
    return t.reshape(-1, *(1 for _ in x.shape[1:]))


def add_scaled(x: torch.Tensor, scale: float | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x + scale y` in float32 or better, where `scale` is a number, or one for each image; one kernel for a number."""
    x, y = at_least_float32(x), at_least_float32(y)
    if not torch.is_tensor(scale):
        return torch.add(x, y, alpha=scale)
    return x + broadcast_time(scale, y) * y


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Raise half precision to float32; float32 and float64 stay as they are."""
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
            `sigma_t = sqrt(t)`, the standard Wiener process of the paper, or `sigma_t = t`, the authors' later choice,
            which makes the constant attenuation's path the straight line of flow matching.

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
        """`alpha_t = 1 - t`, the factor of `x_0` in `x_t` (for linear attenuation: of the part that `k` leaves)."""
        return 1 - t

    def sigma(self, t: float | torch.Tensor) -> float | torch.Tensor:
        """`sigma_t`, the standard deviation of the noise at time `t`: `sqrt(t)` or `t`."""
        return t**0.5 if self.noise_schedule == "sqrt" else t

    def half_log_snr(self, t: torch.Tensor) -> torch.Tensor:
        """`lambda_t = log(alpha_t / sigma_t)` for constant attenuation; minus infinity at t = 1, plus at t = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, alpha: float | torch.Tensor, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """The time at which image and noise are mixed as `alpha : sigma`, neither of them negative, not both 0."""
        if self.noise_schedule == "sqrt":
            return (2 * sigma / (alpha + (alpha**2 + 4 * sigma**2) ** 0.5)) ** 2
        return sigma / (alpha + sigma)

    def clock(self, t: float | torch.Tensor) -> float | torch.Tensor:
        """
        The time `u` at which the standard Wiener process (`noise_schedule="sqrt"`) mixes image and noise as this one
        does at time `t`. It runs from 0 at t = 0 to 1 at t = 1, where `lambda_t` is infinite.
        """
        if self.noise_schedule == "sqrt":
            return t
        return DecoupledProcess().time(self.alpha(t), self.sigma(t))

    def coefficients(self, x_0: torch.Tensor, slope: torch.Tensor | None = None) -> torch.Tensor:
        """
        The attenuation coefficients that end at zero, `H_1 = -x_0`: what a model is trained to predict.

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
        `H_t`, what the attenuation has added to the image by time `t` (arXiv 2306.13720, table 1).

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

    def image(self, x_0: torch.Tensor, coefficients: torch.Tensor | None, t: float | torch.Tensor) -> torch.Tensor:
        """
        `x_0 + H_t`, what is left of the image at time `t`. For constant attenuation the coefficients may be `None`: they
        are then the image's own, `c = -x_0`, and `alpha_t x_0` is left.
        """
        if coefficients is None:
            return at_least_float32(x_0) * broadcast_time(self.alpha(t), x_0)
        return at_least_float32(x_0) + self.attenuate(coefficients, t)

    def marginal(
        self, x_0: torch.Tensor, coefficients: torch.Tensor | None, eps: torch.Tensor, t: float | torch.Tensor
    ) -> torch.Tensor:
        """`x_t = x_0 + H_t + sigma_t eps`, a draw of `q(x_t | x_0, H)` for `eps ~ N(0, I)`. Shapes as `x_0`."""
        return add_scaled(self.image(x_0, coefficients, t), self.sigma(t), eps)

    def clean(
        self, x_t: torch.Tensor, coefficients: torch.Tensor, eps: torch.Tensor, t: float | torch.Tensor
    ) -> torch.Tensor:
        """
        `x_0 = x_t - H_t - sigma_t eps`, the forward equation solved for the image.

        For estimates and constant attenuation this is the blend `(1 - t) x_0(eps) + t (-c)` of the images that the
        two estimates imply by themselves.
        """
        if self.attenuation == "constant":
            attenuated = add_scaled(x_t, -t, coefficients)
        else:
            attenuated = at_least_float32(x_t) - self.attenuate(coefficients, t)
        return add_scaled(attenuated, -self.sigma(t), eps)

    def noise(
        self, x_t: torch.Tensor, x_0: torch.Tensor, coefficients: torch.Tensor | None, t: float | torch.Tensor
    ) -> torch.Tensor:
        """`eps = (x_t - x_0 - H_t) / sigma_t`, the forward equation solved for the noise, for t > 0."""
        return (at_least_float32(x_t) - self.image(x_0, coefficients, t)) / broadcast_time(self.sigma(t), x_t)

    def reconstruction_guidance(
        self, x_0: torch.Tensor, x_t: torch.Tensor, known: torch.Tensor, is_known: torch.Tensor, t: float
    ) -> torch.Tensor:
        r"""
        What to add to an estimate of the image, so that it goes by what is known of the image: for `x_t = alpha_t x_0 +
        sigma_t eps`,

            sigma_t^2 / alpha_t * grad log p(known | x_t) = (alpha_t^2 + sigma_t^2) / alpha_t * grad -|known - x_0|^2 / 2

        with the gradient by `x_t` and the norm over the known pixels. The left side is Tweedie's formula, which turns a change
        of the score into one of the estimate. What is known is taken for Gaussian around the estimate, of the variance
        `sigma_t^2 / (alpha_t^2 + sigma_t^2)` that an image of unit variance has, given `x_t`: Song et al., "Pseudoinverse-Guided
        Diffusion Models for Inverse Problems", ICLR 2023. In another scale this is the reconstruction guidance of arXiv 2204.03458.

        Args:
            x_0 (`torch.Tensor` of shape `(batch_size, channels, ...)`):
                The estimate, a differentiable function of `x_t`. The graph is freed.
            x_t (`torch.Tensor` of the shape of `x_0`): The noisy images, which require their gradient.
            known (`torch.Tensor` of the shape of `x_0`): The image, whose other pixels do not matter.
            is_known (`torch.Tensor`, which broadcasts against `x_0`): Booleans, where it is known.
            t (`float`): Time in [0, 1): at t = 1 there is nothing of the image in `x_t`.

        Returns:
            `torch.Tensor` of the shape of `x_0`.
        """
        distance = torch.where(is_known, known - x_0, 0).square().sum() / 2
        (gradient,) = torch.autograd.grad(distance, x_t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        return -(alpha**2 + sigma**2) / alpha * gradient

    def extrapolation_weights(
        self,
        s: float,
        times: Sequence[float],
        variable: Extrapolation = "time",
        t: float | None = None,
        eta: float = 0.0,
        churn: float = 1.0,
    ) -> list[float]:
        r"""
        The weights of the last estimates of the clean image in the one that stands for a whole step from t to s.

        With constant attenuation a step that keeps `(sigma_s / sigma_t)^kappa` of the noise is the solution of
        `d(x / sigma^(1 + kappa)) = x_0_hat d(alpha / sigma^(1 + kappa)) + fresh noise`: without fresh noise, `kappa = 0`,
        that is DPM-Solver++'s (arXiv 2211.01095, proposition 4.1), and the Brownian bridge has `kappa = 1`. So a step is
        exact with the mean of `x_0_hat` over it in the measure `d(alpha / sigma^(1 + kappa))`. The estimates so far are
        continued by the polynomial through them:

        - `"time"`: in the `clock` `u` of the process, in closed form. It is finite at t = 1, where lambda is not, and into
          s = 0 it is the value of the polynomial there.
        - `"log_snr"`: in lambda, to its first term and for `kappa = 0`, which is DPM-Solver++(2M) (algorithm 2 there). The
          steps that begin or end where lambda is infinite stay first-order.

        Args:
            s (`float`): The time the step goes to.
            times (sequence of 1 to 3 `float`):
                The times of the estimates, the newest first. One more gives one more order.
            variable (`"time"` or `"log_snr"`, defaults to `"time"`): See above. Of `"log_snr"` two times at most.
            t (`float`, *optional*):
                The time the step comes from, that of the newest estimate by default. With `"time"` it may be an older one:
                the step is then known at both of its ends, and the polynomial interpolates.
            eta, churn (`float`, default to 0.0 and 1.0):
                How much noise the step keeps, see [`~DecoupledProcess.bridge_scales`].

        Returns:
            `list[float]`: as many as there are times, of sum 1.
        """
        if len(times) == 1:
            return [1.0]
        if variable == "log_snr":
            lambda_s, lambda_t, lambda_previous = self.half_log_snr(
                torch.tensor([s, *times], dtype=torch.float64)
            ).tolist()
            weight = (lambda_s - lambda_t) / (lambda_t - lambda_previous) / 2 if s > 0 else 0.0
            return [1 + weight, -weight]
        mean, mean_square = self._mean_times(s, times[0] if t is None else t, eta, churn)
        nodes = [self.clock(time) for time in times]
        weights = []
        for i, node in enumerate(nodes):
            # the mean of Lagrange's polynomial, the product of (u - other) / (node - other)
            others = nodes[:i] + nodes[i + 1 :]
            if len(others) == 1:
                numerator = mean - others[0]
            else:
                numerator = mean_square - sum(others) * mean + math.prod(others)
            weights.append(numerator / math.prod(node - other for other in others))
        return weights

    def _mean_times(self, s: float, t: float, eta: float, churn: float) -> tuple[float, float]:
        """The means of `u` and `u^2` over a step in `d(alpha / sigma^(1 + kappa)) = d((1 - u) u^(-(1 + kappa) / 2))`."""
        if s == 0:
            return 0.0, 0.0
        u_s, log_ratio = self.clock(s), math.log(self.clock(t) / self.clock(s))
        kept, _ = self.bridge_scales(s, t, eta, churn)
        kappa = -2 * math.log(kept / self.sigma(s)) / log_ratio

        def integral(power):  # of u^power from u_s to u_t, over u_s^(power + 1)
            exponent = (power + 1) * log_ratio
            return log_ratio * (math.expm1(exponent) / exponent if exponent else 1.0)

        moments = [
            u_s**m * ((1 + kappa) * integral(m - (3 + kappa) / 2) + (1 - kappa) * u_s * integral(m - (1 + kappa) / 2))
            for m in range(3)
        ]
        return moments[1] / moments[0], moments[2] / moments[0]

    def bridge_scales(
        self, s: float | torch.Tensor, t: float | torch.Tensor, eta: float = 1.0, churn: float = 1.0
    ) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """
        The factors of `eps` and of the fresh noise in the posterior `q(x_s | x_t, x_0, H)`.

        A Wiener path that is known at 0 and t is a Brownian bridge in between, of variance
        `v = sigma_s^2 (1 - sigma_s^2 / sigma_t^2)`; `eta` scales its standard deviation, as DDIM's eta does. With `churn`
        what is kept of the noise is the power of that number: `(sigma_s / sigma_t)^churn` of it for `eta = 1`, as if the
        path were exchanged for a new one `churn` times as fast. The marginal at s is the same in any case.

        Args:
            s, t (`float` or `torch.Tensor`): Times with 0 <= s < t <= 1.
            eta (`float`, defaults to 1.0): 1 for the exact posterior (the paper's step) ... 0 for no fresh noise.
            churn (`float`, defaults to 1.0): Above 0; 1 for the formula above.

        Returns:
            `(sqrt(sigma_s^2 - eta^2 v), eta sqrt(v))` for `churn = 1`, each of the broadcast shape of `s` and `t`.
        """
        variance_s, ratio = self.sigma(s) ** 2, (self.sigma(s) / self.sigma(t)) ** 2
        # sigma_s^2 - eta^2 v without the cancellation near s = t
        kept, fresh = (1 - eta**2) + eta**2 * ratio, eta**2 * (1 - ratio)
        if churn != 1:
            kept = kept**churn
            fresh = 1 - kept
        return (variance_s * kept) ** 0.5, (variance_s * fresh) ** 0.5

    def transition(
        self, x_s: torch.Tensor, coefficients: torch.Tensor, s: float | torch.Tensor, t: float | torch.Tensor
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """
        Mean and standard deviation of the forward step from s to t, `q(x_t | x_s, H) = N(x_s + H_t - H_s, (sigma_t^2 -
        sigma_s^2) I)`: attenuation goes on, and so does the Wiener process.

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

    def posterior(
        self,
        x_0: torch.Tensor,
        coefficients: torch.Tensor | None,
        eps: torch.Tensor,
        s: float | torch.Tensor,
        t: float | torch.Tensor,
        eta: float = 1.0,
        churn: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and standard deviation of the reverse step from t to s, of any size.

            q(x_s | x_t, x_0, H) = N(x_0 + H_s + sqrt(sigma_s^2 - eta^2 v) eps,  eta^2 v I)

        With `eta = 1` and `noise_schedule="sqrt"` this is the paper's `x_t + H_s - H_t - (t - s) / sqrt(t) eps` with
        the variance `s (t - s) / t` (arXiv 2306.13720, section 3). At s = 0 it is the image itself, without noise.

        Args:
            x_0, eps (`torch.Tensor` of shape `(batch_size, channels, ...)`): Image and noise that make up `x_t`.
            coefficients (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, ...)`):
                Attenuation coefficients; see [`~DecoupledProcess.image`] for `None`.
            s, t (`float` or `torch.Tensor`): Times with 0 <= s < t <= 1.
            eta, churn (`float`, default to 1.0): See [`~DecoupledProcess.bridge_scales`].

        Returns:
            The mean, of the shape of `x_0`, and the standard deviation, which broadcasts against it.
        """
        eps_scale, std = self.bridge_scales(s, t, eta, churn)
        return add_scaled(self.image(x_0, coefficients, s), eps_scale, eps), broadcast_time(std, x_0)

    def reverse(
        self,
        x_t: torch.Tensor,
        x_0: torch.Tensor,
        coefficients: torch.Tensor | None,
        s: float,
        t: float,
        eta: float = 1.0,
        churn: float = 1.0,
    ) -> tuple[torch.Tensor, float]:
        """
        [`~DecoupledProcess.posterior`] with the noise that image and coefficients leave in `x_t`, for t > 0:
        `x_0 + H_s + kept (x_t - x_0 - H_t)`, where `kept` is the factor of `eps` over `sigma_t`.
        """
        eps_scale, std = self.bridge_scales(s, t, eta, churn)
        shrunk = at_least_float32(x_t) * (eps_scale / self.sigma(t))
        return self.correct(shrunk, x_0, coefficients, s, t, eta, churn), std

    def correct(
        self,
        x_s: torch.Tensor,
        x_0: torch.Tensor,
        coefficients: torch.Tensor | None,
        s: float,
        t: float,
        eta: float = 1.0,
        churn: float = 1.0,
    ) -> torch.Tensor:
        """
        What [`~DecoupledProcess.reverse`] would have returned instead of `x_s`, from the same `x_t` and with the same fresh
        noise, for an image and coefficients that differ by these: `x_s + x_0 + H_s - kept (x_0 + H_t)`. All tensors are of the
        shapes that `reverse` takes, the result in float32 or better.
        """
        kept = self.bridge_scales(s, t, eta, churn)[0] / self.sigma(t)
        if coefficients is None:  # in one kernel
            return add_scaled(x_s, self.alpha(s) - kept * self.alpha(t), x_0)
        return add_scaled(x_s + self.image(x_0, coefficients, s), -kept, self.image(x_0, coefficients, t))
