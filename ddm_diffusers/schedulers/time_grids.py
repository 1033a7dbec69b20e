# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The times at which a sampler evaluates the model: lists of floats, strictly falling from 1, all above 0. The last step of a
run goes from the last of them to 0.
"""

from ..process import DecoupledProcess


# Places a little more of the steps near both ends than steps of equal size on flow matching's straight path, whose exponent
# is 1 (docs/benchmarks.md has the grids that were measured).
RATIO_EXPONENT = 1.25


def uniform(num_steps: int, t_end: float | None = None) -> list[float]:
    """
    `t_i = 1 - i / N`, the paper's grid. With `t_end` that time is appended, in (0, 1 / N), and so one evaluation more.

    The first release of the authors (`sample_fn` in DDM-Public) asked for N steps evaluates `uniform(N, t_end=1e-4)`, N + 1
    times: `pipe(timesteps=[1000 * t for t in uniform(10, t_end=1e-4)])`.
    """
    times = [1 - i / num_steps for i in range(num_steps)]
    if t_end is None:
        return times
    if not 0 < t_end < 1 / num_steps:
        raise ValueError(f"`t_end` is {t_end}, but has to be in (0, {1 / num_steps}) with `num_steps={num_steps}`.")
    return [*times, t_end]


def power(num_steps: int, rho: float, t_min: float) -> list[float]:
    """`t_i = (1 + i / (N - 1) (t_min^(1 / rho) - 1))^rho`, after EDM (arXiv 2206.00364, equation 5), from 1 to `t_min`."""
    fractions = [i / max(num_steps - 1, 1) for i in range(num_steps)]
    # as a blend, which ends at t_min even where t_min^(1 / rho) is lost beside 1
    return [((1 - fraction) + fraction * t_min ** (1 / rho)) ** rho for fraction in fractions]


def ratio(num_steps: int, process: DecoupledProcess) -> list[float]:
    """The times with `sigma_t / alpha_t = (u / (1 - u))^1.25` for `u = 1 - i / (N + 1/2)`."""
    fractions = [1 - i / (num_steps + 0.5) for i in range(num_steps)]
    return [process.time((1 - u) ** RATIO_EXPONENT, u**RATIO_EXPONENT) for u in fractions]


def shifted(times: list[float], process: DecoupledProcess, shift: float) -> list[float]:
    """The times with `shift` times the `sigma_t / alpha_t`, as Stable Diffusion 3 shifts its grid (arXiv 2403.03206, 23)."""
    if shift == 1:
        return times
    return [process.time(process.alpha(t), shift * process.sigma(t)) for t in times]
