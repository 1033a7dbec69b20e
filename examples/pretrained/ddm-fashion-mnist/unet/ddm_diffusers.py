"""Loads DDMUNet2DModel from the installed package."""

try:
    from ddm_diffusers import DDMUNet2DModel
except ImportError as error:
    raise ImportError(
        "DDMUNet2DModel is part of the package ddm-diffusers: `pip install ddm-diffusers`, then load again."
    ) from error
