# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The methods of the authors' two releases, DDM-Public and ADM-Public, as options of this package (docs/method.md).

Plain data. [`DDMScheduler.paper`] and [`DDMScheduler.adm`] read the samplers, `--preset` of the training scripts reads all.
"""

# The deterministic and the stochastic sampler of ADM-Public, for each noise schedule
_ADM_DETERMINISTIC = {
    "linear": {"time_grid": "uniform", "clip_sample": False},
    "sqrt": {"time_grid": "power", "rho": 1.0, "t_min": 1e-4},
}
_ADM_STOCHASTIC = {
    "linear": {"time_grid": "power", "rho": 1.0, "t_min": 1e-6},
    "sqrt": {"time_grid": "power", "rho": 1.0, "t_min": 1e-4},
}


def sampler_options(preset: str, noise_schedule: str | None = None, eta: float | None = None, **_) -> dict:
    """
    The options of [`DDMScheduler`] that make the sampler of a release.

    Args:
        preset (`"ddm"` or `"adm"`): DDM-Public or ADM-Public.
        noise_schedule (`"sqrt"` or `"linear"`, *optional*): Default: `"sqrt"` for `"ddm"`, `"linear"` for `"adm"`.
        eta (`float`, *optional*): Default: 1.0 for `"ddm"`, 0.0 for `"adm"`, which has a sampler of its own above 0.
    """
    if preset == "ddm":
        return {
            "noise_schedule": noise_schedule or "sqrt",
            "solver_order": 1,
            "eta": 1.0 if eta is None else eta,
            "time_grid": "uniform",
            "step_form": "increment",
        }
    noise_schedule, eta = noise_schedule or "linear", eta or 0.0
    variants = _ADM_STOCHASTIC if eta else _ADM_DETERMINISTIC
    return {
        "noise_schedule": noise_schedule,
        "solver_order": 1,
        "eta": eta,
        "step_form": "increment" if eta else "raw",
        **variants.get(noise_schedule, {}),  # an unknown one is the scheduler's to refuse
    }
