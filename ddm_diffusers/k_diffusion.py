# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The sampler as a function with the signature of k-diffusion's samplers, which ComfyUI's `KSAMPLER` and Forge take."""

from collections.abc import Callable

import torch
from tqdm.auto import trange

from .schedulers import DDMScheduler
from .schedulers.parameterizations import VarianceExploding


@torch.no_grad()
def sample_ddm(
    model: Callable,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    **options,
) -> torch.Tensor:
    """
    Sample a model of k-diffusion, `x = x_0 + sigma eps`, by the steps of [`DDMScheduler`].

    Args:
        model (`Callable`): `model(x, sigma, **extra_args)` returns the clean sample; `sigma` has shape `(batch_size,)`.
        x (`torch.Tensor` of shape `(batch_size, channels, ...)`): The noisy sample at `sigmas[0]`.
        sigmas (`torch.Tensor` of shape `(num_steps + 1,)`): Noise levels, strictly falling, to 0 or to a level above.
        extra_args (`dict`, *optional*): For the model; an integer `seed` in it also seeds the fresh noise.
        callback (`Callable`, *optional*): Called after each evaluation with a dict of `x`, `i`, `sigma`, `sigma_hat` and
            `denoised`.
        disable (`bool`, *optional*): Whether to show no progress bar.
        options: Options of [`DDMScheduler`], such as `eta`, `churn` and `solver_order`.

    Returns:
        `torch.Tensor` of the shape and dtype of `x`: the sample at `sigmas[-1]`.

    Raises:
        ValueError: `sigmas` does not fall, or an option is not accepted.
    """
    extra_args = extra_args or {}
    levels = sigmas.tolist()
    scheduler = DDMScheduler(**{"clip_sample": False, **options})
    scheduler.parameterization = VarianceExploding(sigma_min=min(levels[:-1]), sigma_max=levels[0])
    # without a final 0 the run is planned beyond the last level, and left there
    scheduler.set_timesteps(sigmas=levels[:-1] if levels[-1] == 0 else levels, device=x.device)
    seed = extra_args.get("seed")
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    for i in trange(len(levels) - 1, disable=disable):
        denoised = model(x, sigmas[i] * x.new_ones(x.shape[0]), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = scheduler.step(denoised, scheduler.timesteps[i], x, generator=generator).prev_sample.to(x.dtype)
    return x
