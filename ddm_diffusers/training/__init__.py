# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The objective of decoupled diffusion models, and what every training script shares."""

from .data import ImageTransform, load_digits_dataset, load_image_dataset
from .objective import TIMESTEP_DISTRIBUTIONS, WEIGHTINGS, ddm_loss, loss_weights, sample_timesteps
from .upload import HubUploader
