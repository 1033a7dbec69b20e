# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The objective of decoupled diffusion models, and what the training scripts share.

The objective works with the base install. The rest needs the extra `training` and is imported on first use.
"""

from importlib import import_module

from .augmentation import NUM_LABELS, augment
from .objective import (
    RECONSTRUCTIONS,
    TIMESTEP_DISTRIBUTIONS,
    WEIGHTINGS,
    ddm_loss,
    load_lpips,
    loss_weights,
    sample_timesteps,
)


_NAMES_OF_MODULES = {
    "arguments": """
        COUNT COUNT_OR_ZERO NOT_NEGATIVE POSITIVE PROBABILITY SEED HelpFormatter add_data_arguments
        add_latent_arguments add_objective_arguments add_preset_argument add_training_arguments
        check_mixed_precision command_line number parse_arguments
    """,
    "captions": "CaptionTransform",
    "checkpoints": "Checkpoints replace_contents",
    "data": "ImageTransform TrainingBatches load_digits_dataset load_image_dataset",
    "folders": "check_output_dir list_images",
    "defaults": "default_block_out_channels set_data_defaults training_length",
    "latents": "CachedLatents LatentSpace load_vae",
    "networks": """
        DIGITS_DEFAULTS PRECONDITIONS add_model_arguments add_transformer_arguments build_model build_scheduler
        build_text_unet build_unet cache_latents check_model_arguments load_latent_space load_perceptual_loss
        load_text_encoder load_text_space preset_settings
    """,
    "run": "TrainingRun",
    "sharding": "WeightAverage",
    "tasks": "TASKS ConditionalTransform make_pair pair_grid",
    "upload": "HubUploader",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names.split()}
__all__ = [
    "NUM_LABELS",
    "RECONSTRUCTIONS",
    "TIMESTEP_DISTRIBUTIONS",
    "WEIGHTINGS",
    "augment",
    "ddm_loss",
    "load_lpips",
    "loss_weights",
    "sample_timesteps",
    *_MODULE_OF,
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name.startswith("ddm_diffusers"):
            raise
        raise ImportError(
            f'`{name}` needs the package {error.name}: `pip install "ddm-diffusers[training]"`.', name=error.name
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
