# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the training scripts build from their options: networks, schedulers, autoencoders and LPIPS.

Each function takes the parsed options of a script as `args`.
"""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel

from .. import presets
from ..models import DDMDiTTransformer2DModel, DDMUNet2DConditionModel, DDMUNet2DModel, IdentityAutoencoder
from ..schedulers import DDMScheduler
from .augmentation import NUM_LABELS
from .data import ImageTransform
from .latents import CachedLatents, LatentSpace, load_vae
from .objective import load_lpips


if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


# Without a data set a script trains on scikit-learn's digits, with these defaults.
DIGITS_DEFAULTS = {
    "resolution": 8,
    "center_crop": True,
    "train_batch_size": 64,
    "max_train_steps": 1200,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 100,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "save_images_epochs": 50,
    "seed": 0,
    # Instead of a preset's: mirrored and rotated digits are no digits, and 8 pixels are too few for LPIPS.
    "random_flip": False,
    "augment_prob": 0.0,
    "lpips": False,
}
PRECONDITIONS = {"velocity": "velocity", "unit_variance": True, "ddm": "ddm", "none": False}
SCHEDULERS = {None: DDMScheduler, "ddm": DDMScheduler.paper, "adm": DDMScheduler.adm}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of [`build_unet`] and [`build_scheduler`]."""
    model = parser.add_argument_group("model and process")
    model.add_argument(
        "--model_config_name_or_path",
        help="Take the network from this config, and no weights: a folder or a repository.",
    )
    model.add_argument(
        "--block_out_channels", type=int, nargs="+", help="Channels of each level. Default: by resolution."
    )
    model.add_argument("--layers_per_block", type=int, default=2, help="Residual blocks of each level.")
    model.add_argument(
        "--attention_resolutions",
        type=int,
        nargs="*",
        help="Heights of the levels with self-attention. Default: 16 and below.",
    )
    model.add_argument("--dropout", type=float, default=0.0, help="Dropout of the residual blocks.")
    model.add_argument(
        "--architecture",
        default="diffusers",
        choices=["diffusers", "released"],
        help="Blocks of the network; released: as in the authors' code.",
    )
    model.add_argument("--num_decoders", type=int, default=1, choices=[1, 2], help="2: a decoder for each output.")
    model.add_argument("--num_heads", type=int, default=2, choices=[1, 2], help="Output heads of one decoder.")
    model.add_argument(
        "--precondition",
        choices=PRECONDITIONS,
        help="Scales of input and outputs; ddm: as in the authors' first release. Default: velocity, or unit_variance"
        " with linear attenuation.",
    )
    model.add_argument(
        "--sigma_data",
        type=float,
        help="Root mean square of the training data. Default: 1 for images; latents are measured.",
    )
    model.add_argument("--attenuation", default="constant", choices=["constant", "linear"], help="How images fade.")
    model.add_argument("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model_type` and the options of [`build_transformer`]."""
    model = parser.add_argument_group("transformer")
    model.add_argument("--model_type", default="unet", choices=["unet", "dit"], help="dit: a transformer of patches.")
    model.add_argument("--num_layers", type=int, default=12, help="Blocks of the transformer.")
    model.add_argument("--num_attention_heads", type=int, default=6, help="Attention heads of the transformer.")
    model.add_argument("--attention_head_dim", type=int, default=64, help="Channels of each attention head.")
    model.add_argument("--patch_size", type=int, default=2, help="Height and width of a patch.")


# ----------------------------------------------------------------------------------------------------------------- networks
def default_block_out_channels(resolution: int) -> list[int]:
    """Up to six levels: as many as the resolution can be halved for, down to 4 pixels."""
    block_out_channels = [128, 128, 256, 256, 512, 512]
    while len(block_out_channels) > 1 and (resolution / 2 ** (len(block_out_channels) - 1)) not in range(
        4, resolution
    ):
        block_out_channels.pop()
    return block_out_channels


def unet_blocks(
    args: argparse.Namespace, size: int, attention: str, has_attention: Callable[[int], bool]
) -> dict[str, object]:
    """
    The levels of a U-Net, as options of its class.

    Args:
        args (`argparse.Namespace`): With `resolution`, `block_out_channels` and `layers_per_block`.
        size (`int`): Height and width of images or latents.
        attention (`str`): `"Attn"` or `"CrossAttn"`, what the names of blocks with attention begin with.
        has_attention (`Callable`): From the height of a level to whether it has attention.

    Raises:
        ValueError: the resolution cannot be halved as often as there are levels.
    """
    block_out_channels = tuple(args.block_out_channels or default_block_out_channels(size))
    multiple = 2 ** (len(block_out_channels) - 1)
    if size % multiple:
        raise ValueError(
            f"`--resolution` is {args.resolution}, but has to be a multiple of {args.resolution // size * multiple} for"
            f" the {len(block_out_channels)} levels of `--block_out_channels`."
        )
    prefixes = [attention if has_attention(size // 2**level) else "" for level in range(len(block_out_channels))]
    return {
        "block_out_channels": block_out_channels,
        "down_block_types": tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
        "up_block_types": tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
        "layers_per_block": args.layers_per_block,
        "norm_num_groups": math.gcd(32, max(1, block_out_channels[0] // 4), *block_out_channels),
    }


def model_options(
    args: argparse.Namespace, channels: int, size: int, class_names: list[str] | None, sigma_data: float | None
) -> dict[str, object]:
    """The options that [`build_unet`] and [`build_transformer`] share."""
    options = {"in_channels": channels, "sample_size": size, "num_class_embeds": None, "id2label": None}
    if class_names is not None:
        options |= {"num_class_embeds": len(class_names), "id2label": dict(enumerate(class_names))}
    options |= {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if args.precondition is not None:
        options["precondition"] = PRECONDITIONS[args.precondition]
    if args.sigma_data is not None or sigma_data is not None:
        options["sigma_data"] = args.sigma_data or sigma_data
    return options


def from_config(model_class: type, args: argparse.Namespace, options: dict[str, object]):
    """A new network by the config of `--model_config_name_or_path`, for the channels, size and classes of the data."""
    config = model_class.load_config(args.model_config_name_or_path)
    return model_class.from_config({**config, **options, "out_channels": None})


def build_unet(
    args: argparse.Namespace,
    channels: int,
    size: int,
    class_names: list[str] | None = None,
    conditioning_channels: int = 0,
    sigma_data: float | None = None,
) -> DDMUNet2DModel:
    """
    A new U-Net: of `--model_config_name_or_path`, or of the size that the options ask for.

    Args:
        args (`argparse.Namespace`): The options of [`add_model_arguments`].
        channels (`int`): Channels of images or latents.
        size (`int`): Height and width of images or latents.
        class_names (`list[str]`, *optional*): For training with class labels; they go into the config as `id2label`.
        conditioning_channels (`int`, defaults to 0): Channels of an image condition.
        sigma_data (`float`, *optional*): The measured root mean square, which `--sigma_data` replaces.

    Raises:
        ValueError: the resolution cannot be halved as often as there are levels.
    """
    options = model_options(args, channels, size, class_names, sigma_data)
    options["conditioning_channels"] = conditioning_channels
    if args.model_config_name_or_path is not None:
        return from_config(DDMUNet2DModel, args, options)
    resolutions = args.attention_resolutions
    return DDMUNet2DModel(
        **options,
        **unet_blocks(
            args, size, "Attn", lambda height: height <= 16 if resolutions is None else height in resolutions
        ),
        dropout=args.dropout,
        num_decoders=args.num_decoders,
        num_heads=args.num_heads,
        architecture=args.architecture,
        augment_dim=NUM_LABELS if getattr(args, "augment_prob", 0.0) else 0,
    )


def build_transformer(
    args: argparse.Namespace,
    channels: int,
    size: int,
    class_names: list[str] | None = None,
    sigma_data: float | None = None,
) -> DDMDiTTransformer2DModel:
    """A new transformer, from the options of [`add_transformer_arguments`]; see [`build_unet`]."""
    options = model_options(args, channels, size, class_names, sigma_data)
    if args.model_config_name_or_path is not None:
        return from_config(DDMDiTTransformer2DModel, args, options)
    return DDMDiTTransformer2DModel(
        **options,
        num_layers=args.num_layers,
        num_attention_heads=args.num_attention_heads,
        attention_head_dim=args.attention_head_dim,
        patch_size=args.patch_size,
        dropout=args.dropout,
        num_heads=args.num_heads,
    )


def build_text_unet(
    args: argparse.Namespace, channels: int, size: int, sigma_data: float, cross_attention_dim: int
) -> DDMUNet2DConditionModel:
    """
    The U-Net for text to image: of `--pretrained_model_name_or_path` with `--from_pretrained_unet`, or a new one.

    Raises:
        ValueError: the pretrained model has another noise schedule, or the resolution cannot be halved as often as there
            are levels.
    """
    if not args.from_pretrained_unet:
        return DDMUNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            noise_schedule=args.noise_schedule,
            sigma_data=sigma_data,
            **unet_blocks(args, size, "CrossAttn", lambda height: height <= 32),
            attention_head_dim=args.attention_head_dim,
            cross_attention_dim=cross_attention_dim,
        )
    source = args.pretrained_model_name_or_path
    config = DDMUNet2DConditionModel.load_config(source, subfolder="unet")
    if config["_class_name"] != DDMUNet2DConditionModel.__name__:
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        # Both outputs start from what it predicts, by the process that it was trained on.
        scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
        return DDMUNet2DConditionModel.from_unet2d_condition(
            unet, scheduler, noise_schedule=args.noise_schedule, sample_size=size
        )
    if config["noise_schedule"] != args.noise_schedule:
        raise ValueError(
            f"`--noise_schedule` is {args.noise_schedule!r}, but the model of {source} has {config['noise_schedule']!r} and"
            " needs the same."
        )
    return DDMUNet2DConditionModel.from_pretrained(source, subfolder="unet")


# ------------------------------------------------------------------------------------------- process, latent space and loss
def build_scheduler(args: argparse.Namespace, clip_sample: bool = True) -> DDMScheduler:
    """The scheduler that is saved: the preset's sampler, or the default one. Latents go without `clip_sample`."""
    options = {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if not clip_sample:
        options["clip_sample"] = False
    return SCHEDULERS[getattr(args, "preset", None)](**options)


def preset_settings(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, str]:
    """The row of the model card that describes `--preset`. Prints the preset and its options."""
    if args.preset is None:
        return {}
    latents = args.vae_name_or_path is not None
    description = presets.describe(args.preset, vars(args), latents)
    accelerator.print(f"Preset {description}. Its options:")
    for name in presets.training_options(args.preset, latents):
        if hasattr(args, name):
            accelerator.print(f"    --{name} {getattr(args, name)}")
    return {"preset": description}


def load_latent_space(args: argparse.Namespace, accelerator: Accelerator) -> LatentSpace | None:
    """The autoencoder of `--vae_name_or_path`, if there is one. It sets `args.image_mode` to what it encodes."""
    if args.vae_name_or_path is None:
        return None
    space = LatentSpace(load_vae(args.vae_name_or_path, args.vae_subfolder), accelerator.device)
    space.latent_size(args.resolution)  # fails before the data are read
    args.image_mode = space.image_mode
    return space


def load_text_encoder(args: argparse.Namespace, accelerator: Accelerator) -> tuple["CLIPTokenizer", "CLIPTextModel"]:
    """
    The tokenizer of `--pretrained_model_name_or_path`, and its text encoder, frozen, in float32.

    Raises:
        ImportError: The package transformers is not installed.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ModuleNotFoundError as error:
        raise ImportError(
            'Text to image needs the package transformers: `pip install "ddm-diffusers[text]"`.', name=error.name
        ) from error
    source = args.pretrained_model_name_or_path
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=torch.float32)
    text_encoder = text_encoder.to(accelerator.device).eval().requires_grad_(False)
    return CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"), text_encoder


def load_text_space(args: argparse.Namespace, accelerator: Accelerator) -> LatentSpace:
    """The latent space of text to image: of `--vae_name_or_path`, else of the pipeline, or pixels with `--pixel_space`."""
    if args.pixel_space:
        return LatentSpace(IdentityAutoencoder(1 if args.image_mode == "L" else 3), accelerator.device)
    if args.vae_name_or_path is not None:
        return LatentSpace(load_vae(args.vae_name_or_path, args.vae_subfolder), accelerator.device)
    return LatentSpace(load_vae(args.pretrained_model_name_or_path, "vae"), accelerator.device)


def cache_latents(
    args: argparse.Namespace, transform: ImageTransform, space: LatentSpace, accelerator: Accelerator
) -> CachedLatents:
    """The transform with latents of `--latent_cache_dir` in the place of its images."""
    return CachedLatents(
        transform,
        space,
        args.latent_cache_dir,
        accelerator,
        args.train_batch_size,
        args.dataloader_num_workers,
        args.skip_bad_images,
    )


def load_perceptual_loss(
    args: argparse.Namespace, accelerator: Accelerator
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """LPIPS, if the loss has it."""
    return load_lpips(accelerator.device) if args.lpips and args.reconstruction_weight else None
