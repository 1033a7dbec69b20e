"""Loads DDMScheduler from the installed package."""

try:
    from ddm_diffusers import DDMScheduler
except ImportError as error:
    raise ImportError(
        "DDMScheduler is part of the package ddm-diffusers: `pip install ddm-diffusers`, then load again."
    ) from error
