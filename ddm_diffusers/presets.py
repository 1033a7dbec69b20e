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


# The options of the training scripts for each release, as its config for CIFAR-10 and its code have them. Not among them:
# the optimizer and the average of the weights.
PRESETS = {
    "ddm": {
        "attenuation": "constant",
        "noise_schedule": "sqrt",
        "architecture": "released",
        "num_decoders": 2,
        "num_heads": 2,
        "precondition": "ddm",
        "sigma_data": 1.0,
        "block_out_channels": [192, 384, 384, 384],
        "layers_per_block": 3,
        "attention_resolutions": [16, 8],
        "dropout": 0.1,
        "weighting": "inverse_time",
        "reconstruction": "ddm",
        "reconstruction_weight": 1.0,
        "lpips": True,
        "timestep_distribution": "uniform",
        "t_min": 1e-4,
        "random_flip": True,
        "augment_prob": 0.12,
    },
    "adm": {
        "attenuation": "constant",
        "noise_schedule": "linear",
        "architecture": "released",
        "num_decoders": 1,
        "num_heads": 1,
        "precondition": "unit_variance",
        "sigma_data": 1.0,
        "block_out_channels": [160, 320, 320, 320],
        "layers_per_block": 3,
        "attention_resolutions": [16, 8],
        "dropout": 0.12,
        "weighting": "adm",
        "reconstruction": "adm",
        "reconstruction_weight": 1.0,
        "lpips": True,
        "timestep_distribution": "uniform",
        "t_min": 1e-3,
        "random_flip": True,
        "augment_prob": 0.12,
    },
}
RELEASES = {"ddm": "DDM-Public", "adm": "ADM-Public"}


def training_options(preset: str, latents: bool = False) -> dict:
    """
    The options of the training scripts that make the method of a release.

    Args:
        preset (`"ddm"` or `"adm"`): DDM-Public or ADM-Public.
        latents (`bool`, defaults to `False`):
            Whether latents are trained on. The releases have another third term of the loss for them, without LPIPS, and no
            augmentation with labels.
    """
    options = dict(PRESETS[preset])
    if latents:
        options |= {"reconstruction": f"{preset}_latent", "lpips": False, "augment_prob": 0.0}
    return options


def describe(preset: str, options: dict, latents: bool = False) -> str:
    """What a run with a preset has in its model card: the release, and which options differ from it."""
    changed = [
        f"{name} {options[name]}"
        for name, value in training_options(preset, latents).items()
        if name in options and options[name] != value
    ]
    return f"{preset}, the method of {RELEASES[preset]}" + (f", but {', '.join(changed)}" if changed else "")
