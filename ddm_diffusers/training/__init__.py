# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The objective of decoupled diffusion models, and what every training script shares."""

from .arguments import (
    HelpFormatter,
    add_data_arguments,
    add_latent_arguments,
    add_objective_arguments,
    add_preset_argument,
    add_training_arguments,
    check_training_arguments,
    parse_with_defaults,
)
from .augmentation import NUM_LABELS, augment
from .captions import CaptionTransform
from .checkpoints import Checkpoints, replace_contents
from .data import ImageTransform, TrainingBatches, load_digits_dataset, load_image_dataset
from .latents import CachedLatents, LatentSpace, load_vae
from .networks import (
    DIGITS_DEFAULTS,
    PRECONDITIONS,
    add_model_arguments,
    add_transformer_arguments,
    build_scheduler,
    build_text_unet,
    build_transformer,
    build_unet,
    cache_latents,
    default_block_out_channels,
    from_config,
    load_latent_space,
    load_perceptual_loss,
    load_text_space,
    model_options,
    preset_settings,
)
from .objective import (
    RECONSTRUCTIONS,
    TIMESTEP_DISTRIBUTIONS,
    WEIGHTINGS,
    ddm_loss,
    load_lpips,
    loss_weights,
    sample_timesteps,
)
from .run import TrainingRun
from .sharding import WeightAverage
from .tasks import TASKS, ConditionalTransform, make_pair, pair_grid
from .upload import HubUploader
