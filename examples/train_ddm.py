# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) on images.

    accelerate launch examples/train_ddm.py                             # scikit-learn's digits, a few minutes on a CPU
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 64 --output_dir ddm-photos
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 256 --center_crop --output_dir ddm-latent \
        --vae_name_or_path stabilityai/sd-vae-ft-mse --latent_cache_dir latents
    accelerate launch examples/train_ddm.py --preset ddm --train_data_dir photos --resolution 32    # the authors' method

Without a data set the defaults are those of DIGITS_DEFAULTS below; the ones that --help shows are for your own images.
"""

import argparse
import math

from diffusers.utils.torch_utils import randn_tensor

from ddm_diffusers import DDMDiTTransformer2DModel, DDMPipeline, DDMScheduler, DDMUNet2DModel, presets
from ddm_diffusers.training import (
    NUM_LABELS,
    CachedLatents,
    HelpFormatter,
    ImageTransform,
    LatentSpace,
    TrainingRun,
    add_data_arguments,
    add_latent_arguments,
    add_objective_arguments,
    add_preset_argument,
    add_training_arguments,
    augment,
    check_training_arguments,
    ddm_loss,
    load_image_dataset,
    load_lpips,
    load_vae,
    parse_with_defaults,
    sample_timesteps,
)


# With no data set named, the script trains on scikit-learn's digits, with these in place of the defaults below.
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
    # of a preset: mirrored and turned digits are none, and 8 pixels are too few for LPIPS
    "random_flip": False,
    "augment_prob": 0.0,
    "lpips": False,
}
PRECONDITIONS = {"velocity": "velocity", "unit_variance": True, "ddm": "ddm", "none": False}


def add_model_arguments(parser):
    """The options of `build_unet` and of the process."""
    model = parser.add_argument_group("model and process")
    model.add_argument(
        "--model_config_name_or_path", help="The config of a model of this kind, instead of what follows."
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
        help="Whose blocks; released: the network of the authors' releases.",
    )
    model.add_argument("--num_decoders", type=int, default=1, choices=[1, 2], help="2: a decoder for each output.")
    model.add_argument("--num_heads", type=int, default=2, choices=[1, 2], help="Output heads of one decoder.")
    model.add_argument(
        "--precondition",
        choices=PRECONDITIONS,
        help="Scales of input and outputs; ddm: the first release's. Default: velocity, or unit_variance with linear"
        " attenuation.",
    )
    model.add_argument(
        "--sigma_data", type=float, help="Root mean square of what is trained on. Default: 1, or measured, of latents."
    )
    model.add_argument("--attenuation", default="constant", choices=["constant", "linear"], help="How images fade.")
    model.add_argument("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")


def add_transformer_arguments(parser):
    """The choice of the model, and the options of `build_transformer`."""
    model = parser.add_argument_group("transformer")
    model.add_argument("--model_type", default="unet", choices=["unet", "dit"], help="dit: a transformer of patches.")
    model.add_argument("--num_layers", type=int, default=12, help="Blocks of the transformer.")
    model.add_argument("--num_attention_heads", type=int, default=6, help="Of the transformer.")
    model.add_argument("--attention_head_dim", type=int, default=64, help="The transformer's width, over its heads.")
    model.add_argument("--patch_size", type=int, default=2, help="Height and width of its patches.")


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_preset_argument(parser)
    data = add_data_arguments(parser)
    data.add_argument("--class_conditional", action="store_true", help="Train on the labels of the column `label`.")
    data.add_argument(
        "--class_dropout_prob", type=float, default=0.1, help="How often the label is dropped, for guidance."
    )

    data.add_argument(
        "--augment_prob",
        type=float,
        default=0.0,
        help="How often images are turned, scaled, stretched and shifted, of which the released network is told.",
    )
    add_latent_arguments(parser)
    add_model_arguments(parser)
    add_transformer_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)

    args = parse_with_defaults(parser, input_args, DIGITS_DEFAULTS)
    check_training_arguments(parser, args)
    if not 0 <= args.class_dropout_prob <= 1:
        parser.error(f"--class_dropout_prob is {args.class_dropout_prob}, but has to be in [0, 1].")
    if not 0 <= args.augment_prob <= 1:
        parser.error(f"--augment_prob is {args.augment_prob}, but has to be in [0, 1].")
    if args.augment_prob and (args.vae_name_or_path is not None or args.architecture != "released"):
        parser.error("--augment_prob needs --architecture released, and images instead of latents.")
    if args.latent_cache_dir is not None and args.vae_name_or_path is None:
        parser.error("--latent_cache_dir needs an autoencoder, --vae_name_or_path.")
    if args.model_type == "dit" and args.preset is not None:
        parser.error(f"--preset is {args.preset}, whose network is --model_type unet.")
    if args.model_type == "dit" and args.num_decoders == 2:
        parser.error("--num_decoders is 2, which is for --model_type unet; a transformer has none.")
    return args


def load_latent_space(args, accelerator):
    """The autoencoder of `--vae_name_or_path`; grey or colour is what it encodes."""
    if args.vae_name_or_path is None:
        return None
    space = LatentSpace(load_vae(args.vae_name_or_path, args.vae_subfolder), accelerator.device)
    space.latent_size(args.resolution)  # before anything else is done
    args.image_mode = space.image_mode
    return space


def cache_latents(args, transform, space, accelerator):
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


def default_block_out_channels(resolution):
    """Up to six levels, as many as the resolution can be halved for, down to 4 pixels."""
    block_out_channels = [128, 128, 256, 256, 512, 512]
    while len(block_out_channels) > 1 and (resolution / 2 ** (len(block_out_channels) - 1)) not in range(
        4, resolution
    ):
        block_out_channels.pop()
    return block_out_channels


def model_options(args, channels, size, num_classes, sigma_data):
    """What all models have."""
    options = {"in_channels": channels, "num_class_embeds": num_classes, "sample_size": size}
    options |= {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if args.precondition is not None:
        options["precondition"] = PRECONDITIONS[args.precondition]
    if args.sigma_data is not None or sigma_data is not None:
        options["sigma_data"] = args.sigma_data or sigma_data
    return options


def from_config(model_class, args, options):
    config = model_class.load_config(args.model_config_name_or_path)
    return model_class.from_config({**config, **options, "out_channels": None})


def build_transformer(args, channels, size, num_classes=None, sigma_data=None):
    """The transformer of `--model_config_name_or_path`, or one of the size that is asked for."""
    options = model_options(args, channels, size, num_classes, sigma_data)
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


def build_unet(args, channels, size, num_classes=None, conditioning_channels=0, sigma_data=None):
    """The model of `--model_config_name_or_path`, or one that suits the size of images or latents."""
    options = model_options(args, channels, size, num_classes, sigma_data)
    options |= {"conditioning_channels": conditioning_channels}
    if args.model_config_name_or_path is not None:
        return from_config(DDMUNet2DModel, args, options)

    block_out_channels = args.block_out_channels or default_block_out_channels(size)
    multiple = 2 ** (len(block_out_channels) - 1)
    if size % multiple:
        factor = args.resolution // size
        raise ValueError(
            f"`--resolution` is {args.resolution}, but has to be a multiple of {factor * multiple} for the"
            f" {len(block_out_channels)} levels of `--block_out_channels`."
        )
    sizes = [size // 2**level for level in range(len(block_out_channels))]
    attention = [
        each <= 16 if args.attention_resolutions is None else each in args.attention_resolutions for each in sizes
    ]
    return DDMUNet2DModel(
        **options,
        block_out_channels=tuple(block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        layers_per_block=args.layers_per_block,
        norm_num_groups=math.gcd(32, max(1, block_out_channels[0] // 4), *block_out_channels),
        dropout=args.dropout,
        num_decoders=args.num_decoders,
        num_heads=args.num_heads,
        architecture=args.architecture,
        augment_dim=NUM_LABELS if getattr(args, "augment_prob", 0.0) else 0,
    )


def build_scheduler(args, clip_sample):
    """The scheduler that is saved: the preset's sampler, or the default one."""
    options = {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if not clip_sample:  # latents are not limited to [-1, 1]
        options["clip_sample"] = False
    build = {None: DDMScheduler, "ddm": DDMScheduler.paper, "adm": DDMScheduler.adm}[getattr(args, "preset", None)]
    return build(**options)


def preset_settings(args, accelerator):
    """The rows of the model card that say what the preset is; printed at the start."""
    if args.preset is None:
        return {}
    latents = args.vae_name_or_path is not None
    description = presets.describe(args.preset, vars(args), latents)
    accelerator.print(f"Preset {description}. Its options:")
    for name in presets.training_options(args.preset, latents):
        if hasattr(args, name):
            accelerator.print(f"    --{name} {getattr(args, name)}")
    return {"preset": description}


def load_perceptual_loss(args, accelerator):
    """LPIPS, if it is asked for."""
    return load_lpips(accelerator.device) if args.lpips and args.reconstruction_weight else None


def training_loss(args, unet, scheduler, sigma_data, clean, generators, perceptual_loss=None, **model_kwargs):
    """The loss of clean images or latents and its parts."""
    # The forward process: the image fades, noise rises
    noise = randn_tensor(clean.shape, generators, clean.device, clean.dtype)
    timesteps = sample_timesteps(
        scheduler,
        len(clean),
        clean.device,
        generators,
        t_min=args.t_min,
        distribution=args.timestep_distribution,
        logit_mean=args.logit_mean,
        logit_std=args.logit_std,
    )
    attenuation = scheduler.get_attenuation(clean, generators)
    noisy = scheduler.add_noise(clean, noise, timesteps, attenuation)

    # Predict both parts of it
    return ddm_loss(
        scheduler,
        unet(noisy, timesteps, **model_kwargs).sample,
        clean,
        noise,
        timesteps,
        attenuation,
        weighting=args.weighting,
        sigma_data=sigma_data,
        reconstruction_weight=args.reconstruction_weight,
        return_parts=True,
        reconstruction=args.reconstruction,
        perceptual_loss=perceptual_loss,
        use_l1=args.use_l1,
        t_min=args.t_min,
    )


def main(args):
    run = TrainingRun(args, "train_ddm")
    accelerator = run.accelerator

    # Data, which the autoencoder turns into latents, if there is one
    with accelerator.main_process_first():
        space = load_latent_space(args, accelerator)
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir, args.streaming
        )
        transform = ImageTransform(
            dataset,
            args.resolution,
            args.center_crop,
            args.random_flip,
            args.class_conditional,
            args.image_mode,
            args.class_dropout_prob,
        )
    class_names = transform.class_names
    channels, size, sigma_data = transform.channels, args.resolution, None
    if space is not None:
        (channels, sigma_data), size = space.measure(transform), space.latent_size(args.resolution)
        if args.latent_cache_dir is not None:
            transform = cache_latents(args, transform, space, accelerator)

    # Model and process
    num_classes = None if class_names is None else len(class_names)
    build = build_transformer if args.model_type == "dit" else build_unet
    unet = build(args, channels, size, num_classes, sigma_data=sigma_data)
    scheduler = build_scheduler(args, clip_sample=space is None)
    perceptual_loss = load_perceptual_loss(args, accelerator)
    sigma_data = unet.config.sigma_data
    unet = run.prepare(unet, transform)

    settings = preset_settings(args, accelerator) | {
        "images": f"{run.num_images or 'a stream'} of {transform.channels} x {args.resolution} x {args.resolution}",
        "weighting": args.weighting,
        "times": args.timestep_distribution,
        "noise schedule": args.noise_schedule,
        "class labels": "none" if class_names is None else dict(enumerate(class_names)),
    }
    if space is not None:
        settings["latents"] = (
            f"{channels} x {size} x {size}, of {args.vae_name_or_path}, root mean square {sigma_data:g}"
        )
    evaluation = None
    if args.evaluation_steps is not None:
        from evaluate import PipelineEvaluation  # examples/evaluate.py

        evaluation = PipelineEvaluation(
            accelerator, dataset, args.resolution, args.feature_extractor, args.evaluation_samples
        )

    def make_pipeline():
        pipeline = DDMPipeline(run.trained_model(), scheduler, vae=None if space is None else space.vae)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    for batch in run:
        with run.accumulate():
            clean = batch["pixel_values"] if space is None else space.clean(batch)
            model_kwargs = {"class_labels": batch.get("class_labels")}
            if args.augment_prob:
                clean, model_kwargs["augment_labels"] = augment(clean, args.augment_prob, batch["generators"])
            loss, parts = training_loss(
                args,
                unet,
                scheduler,
                sigma_data,
                clean,
                batch["generators"],
                perceptual_loss,
                **model_kwargs,
            )
            run.optimize(loss, parts)

        # Pictures and uploads, where they are due
        run.show_progress(make_pipeline, settings)
        if run.is_due(args.evaluation_steps):
            pipeline = make_pipeline()
            distance = evaluation(pipeline, args.num_inference_steps)
            if accelerator.is_main_process:
                run.keep_best(distance, pipeline, "fid")

    # The result, as a user would load it
    run.finish(make_pipeline(), settings)


if __name__ == "__main__":
    main(parse_args())
