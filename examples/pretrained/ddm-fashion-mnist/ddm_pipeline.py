"""Loads DDMPipeline from the installed package."""

try:
    from ddm_diffusers import DDMPipeline
except ImportError as error:
    raise ImportError(
        "DDMPipeline is part of the package ddm-diffusers: `pip install ddm-diffusers`, then load again."
    ) from error
