# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoupled diffusion models (arXiv 2306.13720) for the diffusers ecosystem."""

from .adapter import DDMUNet2DAdapter
from .hub import register_with_diffusers
from .models import (
    DDMDiTTransformer2DModel,
    DDMUNet2DConditionModel,
    DDMUNet2DModel,
    DDMUNet2DOutput,
    IdentityAutoencoder,
)
from .pipelines import (
    DDMImageToImagePipeline,
    DDMImageToImagePipelineOutput,
    DDMInpaintPipeline,
    DDMPipeline,
)
from .process import DecoupledProcess
from .schedulers import DDMScheduler, DDMSchedulerOutput


__version__ = "0.1.0"

__all__ = [
    "DDMDiTTransformer2DModel",
    "DDMImageToImagePipeline",
    "DDMImageToImagePipelineOutput",
    "DDMInpaintPipeline",
    "DDMPipeline",
    "DDMScheduler",
    "DDMSchedulerOutput",
    "DDMUNet2DAdapter",
    "DDMUNet2DConditionModel",
    "DDMUNet2DModel",
    "DDMUNet2DOutput",
    "DecoupledProcess",
    "IdentityAutoencoder",
]

register_with_diffusers(
    DDMScheduler, DDMUNet2DModel, DDMUNet2DConditionModel, DDMDiTTransformer2DModel, IdentityAutoencoder
)
