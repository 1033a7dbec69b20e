# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the training scripts build from their options: networks, schedulers, autoencoders and LPIPS.

Each function takes the parsed options of a script as `args`.
"""

import argparse
import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DConditionModel, UNet2DModel

from .. import presets
from ..model_card import listing
from ..models import DDMDiTTransformer2DModel, DDMUNet2DConditionModel, DDMUNet2DModel, IdentityAutoencoder
from ..schedulers import DDMScheduler
from .arguments import COUNT, POSITIVE, number
from .augmentation import NUM_LABELS
from .data import ImageTransform
from .defaults import default_block_out_channels
from .latents import CachedLatents, LatentSpace, load_vae
from .objective import load_lpips


if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

logger = get_logger(__name__, log_level="INFO")

# Without a data set a script trains on scikit-learn's digits, with these defaults.
DIGITS_DEFAULTS = {
    "resolution": 8,
    "center_crop": True,
    "train_batch_size": 64,
    "max_train_steps": 1200,
    "learning_rate": 1e-3,
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
# New classes start at "no class" and this share of a fresh embedding. Without it they part too slowly: after 150 steps of the
# model in the box on two new classes, their predictions differed by 0.005, and with it by 0.12.
NEW_CLASS_SCALE = 0.5
MODELS = {model.__name__: model for model in (DDMUNet2DModel, DDMDiTTransformer2DModel)}
# What weights decide.
NETWORK_OPTIONS = """
    model_config_name_or_path model_type block_out_channels layers_per_block attention_resolutions dropout architecture
    num_decoders num_heads precondition sigma_data num_layers num_attention_heads attention_head_dim patch_size
""".split()
PROCESS_OPTIONS = ("attenuation", "noise_schedule")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of [`build_unet`] and [`build_scheduler`]."""
    add = parser.add_argument_group("model and process").add_argument
    add(
        "--pretrained_model_name_or_path",
        help="Start from these weights: a pipeline or a model of this package, or a UNet2DModel with its scheduler; a folder or"
        " a repository.",
    )
    add(
        "--model_config_name_or_path",
        help="Take the network from this config, and no weights: a file, a folder or a repository.",
    )
    add(
        "--block_out_channels",
        type=number("[8, inf)", int),  # diffusers' attention has heads of 8 channels
        nargs="+",
        help="Channels of each level. Default: by the number of images and their size.",
    )
    add("--layers_per_block", type=COUNT, default=2, help="Residual blocks of each level.")
    add("--attention_resolutions", type=COUNT, nargs="*", help="Heights with self-attention. Default: 16 and below.")
    add("--dropout", type=number("[0, 1)"), default=0.0, help="Dropout of the residual blocks.")
    add(
        "--architecture", default="diffusers", choices=["diffusers", "released"], help="released: the authors' blocks."
    )
    add("--num_decoders", type=int, default=1, choices=[1, 2], help="2: a decoder for each output.")
    add("--num_heads", type=int, default=2, choices=[1, 2], help="Output heads of one decoder.")
    add(
        "--precondition",
        choices=PRECONDITIONS,
        help="Scales of input and outputs; ddm: as in the authors' first release. Default: velocity, or unit_variance"
        " with linear attenuation.",
    )
    add(
        "--sigma_data",
        type=POSITIVE,
        help="Root mean square of the data. Default: 1 for images; latents are measured.",
    )
    add("--attenuation", default="constant", choices=["constant", "linear"], help="How images fade.")
    add("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model_type` and the options of a transformer."""
    add = parser.add_argument_group("transformer").add_argument
    add("--model_type", default="unet", choices=["unet", "dit"], help="dit: a transformer of patches.")
    add("--num_layers", type=COUNT, help="Blocks. Default: 6 to 12, by the number of images.")
    add("--num_attention_heads", type=COUNT, help="Attention heads. Default: 3 to 6, by the number of images.")
    add("--attention_head_dim", type=COUNT, default=64, help="Channels of each attention head.")
    add("--patch_size", type=COUNT, default=2, help="Height and width of a patch.")


def check_model_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, input_args: list[str] | None = None
) -> None:
    """
    End the program if an option contradicts `--pretrained_model_name_or_path`.

    The weights also decide `PROCESS_OPTIONS` that are neither given nor a preset's: these are `None` until
    [`build_model`] sets them.
    """
    if args.pretrained_model_name_or_path is None:
        return
    default = object()
    parsed = parser.parse_args(input_args, argparse.Namespace(**dict.fromkeys(vars(args), default)))
    given = [name for name, value in vars(parsed).items() if value is not default]
    if beside := [f"--{name}" for name in NETWORK_OPTIONS if name in given]:
        parser.error(
            f"--pretrained_model_name_or_path takes the network as it is, so leave out {', '.join(beside)}. Without it, a new"
            " network is trained."
        )
    for name in PROCESS_OPTIONS:
        if name not in given and getattr(args, "preset", None) is None:
            setattr(args, name, None)


# ----------------------------------------------------------------------------------------------------------------- networks
def build_model(
    args: argparse.Namespace,
    channels: int,
    size: int,
    class_names: list[str] | None = None,
    conditioning_channels: int = 0,
    sigma_data: float | None = None,
) -> DDMUNet2DModel | DDMDiTTransformer2DModel:
    """
    The network that the options ask for: weights for the data, a new transformer or [`build_unet`].

    From `--pretrained_model_name_or_path` it takes `args.attenuation` and `args.noise_schedule` too, if these are `None`.

    Args:
        args (`argparse.Namespace`): The options of [`add_model_arguments`], after [`check_model_arguments`].
        channels (`int`): Channels of images or latents.
        size (`int`): Height and width of images or latents.
        class_names (`list[str]`, *optional*): For training with class labels; they go into the config as `id2label`.
        conditioning_channels (`int`, defaults to 0): Channels of an image condition.
        sigma_data (`float`, *optional*): The measured root mean square, which `--sigma_data` replaces.

    Raises:
        OSError: there is no such model or config.
        ValueError: the model or config is of another class, the weights are for another process or do not fit the data, or
            the resolution cannot be halved as often as there are levels.
    """
    if args.pretrained_model_name_or_path is not None:
        return _load_pretrained(args, channels, size, class_names, conditioning_channels)
    if getattr(args, "model_type", "unet") == "unet":
        return build_unet(args, channels, size, class_names, conditioning_channels, sigma_data)
    options = _shared_options(args, channels, size, class_names, sigma_data)
    if args.model_config_name_or_path is not None:
        return _from_config(DDMDiTTransformer2DModel, args, options)
    return DDMDiTTransformer2DModel(
        **options,
        num_layers=args.num_layers or 12,
        num_attention_heads=args.num_attention_heads or 6,
        attention_head_dim=args.attention_head_dim,
        patch_size=args.patch_size,
        dropout=args.dropout,
        num_heads=args.num_heads,
    )


def build_unet(
    args: argparse.Namespace,
    channels: int,
    size: int,
    class_names: list[str] | None = None,
    conditioning_channels: int = 0,
    sigma_data: float | None = None,
) -> DDMUNet2DModel:
    """A new U-Net, of `--model_config_name_or_path` or of the size that the options ask for; see [`build_model`]."""
    options = _shared_options(args, channels, size, class_names, sigma_data)
    options["conditioning_channels"] = conditioning_channels
    if args.model_config_name_or_path is not None:
        return _from_config(DDMUNet2DModel, args, options)
    heights = range(17) if args.attention_resolutions is None else args.attention_resolutions
    return DDMUNet2DModel(
        **options,
        **_unet_blocks(args, size, "Attn", heights),
        dropout=args.dropout,
        num_decoders=args.num_decoders,
        num_heads=args.num_heads,
        architecture=args.architecture,
        augment_dim=NUM_LABELS if getattr(args, "augment_prob", 0.0) else 0,
    )


def _class_options(class_names: list[str] | None) -> dict[str, object]:
    if class_names is None:
        return {"num_class_embeds": None, "id2label": None}
    return {"num_class_embeds": len(class_names), "id2label": dict(enumerate(class_names))}


def _shared_options(
    args: argparse.Namespace, channels: int, size: int, class_names: list[str] | None, sigma_data: float | None
) -> dict[str, object]:
    """The options of U-Nets and transformers."""
    options = {"in_channels": channels, "sample_size": size, **_class_options(class_names)}
    options |= {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if args.precondition is not None:
        options["precondition"] = PRECONDITIONS[args.precondition]
    if args.sigma_data is not None or sigma_data is not None:
        options["sigma_data"] = args.sigma_data or sigma_data
    return options


def _unet_blocks(
    args: argparse.Namespace, size: int, attention: str, attention_heights: Container[int]
) -> dict[str, object]:
    """The levels of a U-Net, as options of its class. Blocks with attention are called `{attention}DownBlock2D`."""
    block_out_channels = tuple(args.block_out_channels or default_block_out_channels(size))
    multiple = 2 ** (len(block_out_channels) - 1)
    if size % multiple:
        raise ValueError(
            f"`--resolution` is {args.resolution}, but has to be a multiple of {args.resolution // size * multiple} for"
            f" the {len(block_out_channels)} levels of `--block_out_channels`."
        )
    prefixes = [attention if size // 2**level in attention_heights else "" for level in range(len(block_out_channels))]
    return {
        "block_out_channels": block_out_channels,
        "down_block_types": tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
        "up_block_types": tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
        "layers_per_block": args.layers_per_block,
        "norm_num_groups": math.gcd(32, max(1, block_out_channels[0] // 4), *block_out_channels),
    }


def _load_config(
    option: str, source: str, config_class: type = UNet2DModel, subfolder: str = "unet"
) -> tuple[dict, str | None]:
    """The config in a pipeline's subfolder or in `source` itself, and the subfolder that it is in, if any."""
    for folder in (subfolder, None):
        try:
            return config_class.load_config(source, subfolder=folder), folder
        except OSError as error:
            failure = error
    name = config_class.config_name
    raise OSError(
        f"`--{option}` is {source!r}, but has to be a folder or a repository with {subfolder}/{name}, of a pipeline, or with"
        f" {name}, of a model: {failure}"
    ) from failure


def _from_config(model_class: type, args: argparse.Namespace, options: dict[str, object]):
    """A new network by the config of `--model_config_name_or_path`, for the channels, size and classes of the data."""
    source = args.model_config_name_or_path
    config, _ = _load_config("model_config_name_or_path", source)
    stock_class = model_class.__name__.removeprefix("DDM")
    if config.get("_class_name", stock_class) not in (stock_class, model_class.__name__):
        raise ValueError(
            f"`--model_config_name_or_path` is {source!r}, a {config['_class_name']}, but has to be a {model_class.__name__} or a"
            f" {stock_class}. `--model_type` chooses between them."
        )
    folders = (Path(source), Path(source, "unet"))  # _load_config looks in both
    weights = [path for folder in folders for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")]
    if weights or not Path(source).exists():  # a repository
        logger.warning(
            f"--model_config_name_or_path takes the config of {source} alone: the weights start at random."
            " --pretrained_model_name_or_path takes its weights too."
        )
    return model_class.from_config({**config, **options, "out_channels": None})


def _load_pretrained(
    args: argparse.Namespace, channels: int, size: int, class_names: list[str] | None, conditioning_channels: int
) -> DDMUNet2DModel | DDMDiTTransformer2DModel:
    """
    The network of `--pretrained_model_name_or_path`, to go on with. It sets the `PROCESS_OPTIONS` of `args`.

    A model of this package predicts what it predicted; a [`~diffusers.UNet2DModel`] too, if its scheduler is there
    ([`DDMUNet2DModel.from_unet2d`]). Without a scheduler only the weights are taken over, with a warning.
    """
    source = args.pretrained_model_name_or_path
    config, subfolder = _load_config("pretrained_model_name_or_path", source)
    name = config.get("_class_name")
    if name in MODELS:
        for option in PROCESS_OPTIONS:
            if getattr(args, option) not in (None, config[option]):
                raise ValueError(
                    f"`--{option}` is {getattr(args, option)!r}, but the weights of {source} are for {config[option]!r}."
                )
            setattr(args, option, config[option])
        unet = MODELS[name].from_pretrained(source, subfolder=subfolder)
    elif name == UNet2DModel.__name__:
        args.attenuation, args.noise_schedule = args.attenuation or "constant", args.noise_schedule or "sqrt"
        unet = UNet2DModel.from_pretrained(source, subfolder=subfolder)
        try:
            scheduler = _load_scheduler(source)
        except OSError:
            scheduler = None
            logger.warning(
                f"{source} has no scheduler: training starts from its weights, but not from what it predicts. Give the folder"
                " or the repository of a pipeline."
            )
        unet = DDMUNet2DModel.from_unet2d(
            unet, scheduler, attenuation=args.attenuation, noise_schedule=args.noise_schedule
        )
    else:
        raise ValueError(
            f"`--pretrained_model_name_or_path` is {source!r}, a {name}, but has to be one of"
            f" {[*MODELS, UNet2DModel.__name__]}, or a pipeline with one."
        )
    return _adapt(unet, args, channels, size, class_names, conditioning_channels)


def _load_scheduler(source: str) -> SchedulerMixin:
    """The scheduler of a pipeline of diffusers, or the one beside a model."""
    config, _ = _load_config("pretrained_model_name_or_path", source, DDPMScheduler, "scheduler")
    name = config["_class_name"]
    if not hasattr(diffusers, name):
        raise ValueError(
            f"The scheduler of {source} is a {name}, but has to be one of diffusers, for its UNet2DModel."
        )
    return getattr(diffusers, name).from_config(config)


def _adapt(
    unet: DDMUNet2DModel | DDMDiTTransformer2DModel,
    args: argparse.Namespace,
    channels: int,
    size: int,
    class_names: list[str] | None,
    conditioning_channels: int,
) -> DDMUNet2DModel | DDMDiTTransformer2DModel:
    """
    A trained model for other data. It predicts what it predicted, for what both know: classes keep their embedding by their
    name or, in a model without names, by their number if there are as many. New classes start near "no class", data without
    classes at "no class", and the channels of a new image condition without influence.
    """
    source = args.pretrained_model_name_or_path
    old = unet.config
    if channels != old.in_channels:
        hints = {1: "give `--image_mode L`", 3: "give `--image_mode RGB`"}
        hint = hints.get(old.in_channels, "give its autoencoder, `--vae_name_or_path`")
        raise ValueError(
            f"`--pretrained_model_name_or_path` is {source!r}, for {old.in_channels} channels, but the images or latents have"
            f" {channels}: {hint}."
        )
    if size % unet.size_multiple:
        raise ValueError(
            f"`--resolution` makes images or latents of {size} x {size}, but the model of {source} needs a multiple of"
            f" {unet.size_multiple}."
        )
    config = {**old, "sample_size": size, **_class_options(class_names)}
    if getattr(args, "augment_prob", 0.0):
        config["augment_dim"] = NUM_LABELS
    old_conditioning_channels = old.get("conditioning_channels", 0)
    if conditioning_channels != old_conditioning_channels:
        if old_conditioning_channels or not isinstance(unet, DDMUNet2DModel):
            raise ValueError(
                f"`--pretrained_model_name_or_path` is {source!r}, a {type(unet).__name__} for a condition of"
                f" {old_conditioning_channels} channels, but here it has {conditioning_channels}. Start from a"
                " DDMUNet2DModel without a condition, or with the same."
            )
        config["conditioning_channels"] = conditioning_channels
    if old.sample_size != size:
        logger.info(
            f"The model of {source} is for {old.sample_size} x {old.sample_size}, and goes on with {size} x {size}"
        )

    model = type(unet).from_config(config)
    kept = _kept_classes(old, class_names, source)
    weights, trained = model.state_dict(), unet.state_dict()
    if class_names is None and "class_embedding.weight" in trained:
        bias = "time_embedding.linear_2.bias"
        trained[bias] = trained[bias] + trained.pop("class_embedding.weight")[-1]
    for name, weight in weights.items():
        if name == "class_embedding.weight" or name.endswith("class_embedder.embedding_table.weight"):
            rows = trained.get(name, torch.zeros_like(weight[:1]))
            trained[name] = rows[-1] + NEW_CLASS_SCALE * weight
            trained[name][-1] = rows[-1]
            for label, old_label in kept.items():
                trained[name][label] = rows[old_label]
    if new := conditioning_channels - old_conditioning_channels:
        weight = trained["conv_in.weight"]
        trained["conv_in.weight"] = torch.cat([weight, weight.new_zeros(len(weight), new, *weight.shape[2:])], dim=1)
    model.load_state_dict(weights | trained)
    return model


def _kept_classes(old: dict, class_names: list[str] | None, source: str) -> dict[int, int]:
    """From the labels of the data to those of a trained model, for the classes that both have. Warns of all others."""
    if class_names is None:
        if old["num_class_embeds"]:
            logger.warning(
                f"The model of {source} has {old['num_class_embeds']} classes and the data none: it goes on without"
                " classes. --class_conditional trains on the classes of the data."
            )
        return {}
    if old["id2label"] is None and old["num_class_embeds"] == len(class_names):
        logger.warning(
            f"The model of {source} has no class names: the labels 0 to {len(class_names) - 1} are taken to mean the same"
            f" as here, {listing(class_names, 20)}."
        )
        return {label: label for label in range(len(class_names))}
    labels = {name: label for label, name in (old["id2label"] or {}).items()}
    kept = {label: labels[name] for label, name in enumerate(class_names) if name in labels}
    if new := [name for label, name in enumerate(class_names) if label not in kept]:
        logger.warning(
            f'The model of {source} does not know the classes {listing(new, 20)}: they start near its "no class".'
        )
    if gone := [name for name in labels if name not in class_names]:
        logger.warning(f"The model of {source} loses the classes {listing(gone, 20)}, which the data do not have.")
    return kept


def build_text_unet(
    args: argparse.Namespace, channels: int, size: int, sigma_data: float, cross_attention_dim: int
) -> DDMUNet2DConditionModel:
    """
    The U-Net for text to image: of `--pretrained_model_name_or_path` with `--from_pretrained_unet`, or a new one.

    Raises:
        ValueError: the pretrained model has another noise schedule, or the size cannot be halved once for each level.
    """
    if not args.from_pretrained_unet:
        return DDMUNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            noise_schedule=args.noise_schedule,
            sigma_data=sigma_data,
            **_unet_blocks(args, size, "CrossAttn", range(33)),
            attention_head_dim=args.attention_head_dim,
            cross_attention_dim=cross_attention_dim,
        )
    source = args.pretrained_model_name_or_path
    config = DDMUNet2DConditionModel.load_config(source, subfolder="unet")
    if config["_class_name"] != DDMUNet2DConditionModel.__name__:
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        # Both outputs start from what it predicts, by the process that it was trained on.
        return DDMUNet2DConditionModel.from_unet2d_condition(
            unet, _load_scheduler(source), noise_schedule=args.noise_schedule, sample_size=size
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
    options = {} if clip_sample else {"clip_sample": False}  # else the preset's
    schedulers = {None: DDMScheduler, "ddm": DDMScheduler.paper, "adm": DDMScheduler.adm}
    return schedulers[getattr(args, "preset", None)](
        attenuation=args.attenuation, noise_schedule=args.noise_schedule, **options
    )


def preset_settings(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, str]:
    """The row of the model card that describes `--preset`. Prints the preset and its options."""
    if args.preset is None:
        return {}
    latents = args.vae_name_or_path is not None
    description = presets.describe(args.preset, vars(args), latents)
    accelerator.print(f"Preset {description}. Its options:")
    for name in presets.training_options(args.preset, latents):
        if hasattr(args, name) and not (args.pretrained_model_name_or_path and name in NETWORK_OPTIONS):
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
    vae = args.vae_name_or_path, args.vae_subfolder
    if args.vae_name_or_path is None:
        vae = args.pretrained_model_name_or_path, "vae"
    return LatentSpace(load_vae(*vae), accelerator.device)


def cache_latents(
    args: argparse.Namespace, transform: ImageTransform, space: LatentSpace, accelerator: Accelerator
) -> CachedLatents:
    """The transform with latents of `--latent_cache_dir` in the place of its images."""
    batch_size, folder = args.train_batch_size or 16, args.latent_cache_dir
    options = args.dataloader_num_workers, args.skip_bad_images
    return CachedLatents(transform, space, folder, accelerator, batch_size, *options)


def load_perceptual_loss(
    args: argparse.Namespace, accelerator: Accelerator
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """LPIPS, if the loss has it."""
    return load_lpips(accelerator.device) if args.lpips and args.reconstruction_weight else None
