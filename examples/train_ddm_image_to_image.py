# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) that makes images from images.

    accelerate launch examples/train_ddm_image_to_image.py --task super_resolution    # scikit-learn's digits, on a CPU
    accelerate launch examples/train_ddm_image_to_image.py --train_data_dir pairs --output_dir ddm-depth
    accelerate launch examples/train_ddm_image_to_image.py --train_data_dir photos --task inpainting --output_dir ddm-inpaint

Without --task the data set has pairs: a column `image`, the target, and a column `conditioning_image`, which a folder of
images has by its metadata.jsonl. With --task the pairs are made from plain images.
"""

import argparse
import copy
from functools import partial

from train_ddm import training_loss  # examples/train_ddm.py

from ddm_diffusers import DDMImageToImagePipeline
from ddm_diffusers.latents import scale_latents
from ddm_diffusers.training import (
    DIGITS_DEFAULTS,
    TASKS,
    ConditionalTransform,
    HelpFormatter,
    TrainingBatches,
    TrainingRun,
    add_data_arguments,
    add_latent_arguments,
    add_model_arguments,
    add_objective_arguments,
    add_preset_argument,
    add_training_arguments,
    build_scheduler,
    build_unet,
    check_training_arguments,
    load_image_dataset,
    load_latent_space,
    load_perceptual_loss,
    pair_grid,
    parse_with_defaults,
    preset_settings,
)


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_preset_argument(parser)
    data = add_data_arguments(parser)
    data.add_argument("--task", choices=TASKS, help="Make pairs from plain images. Default: the data set has them.")
    data.add_argument(
        "--upscale",
        type=int,
        help="How much larger the targets are than the conditions. Default: 4 for super-resolution, else 1.",
    )
    data.add_argument(
        "--conditioning_mode",
        choices=["L", "RGB"],
        help="As --image_mode, for the conditions of a data set with pairs.",
    )
    data.add_argument(
        "--conditioning_dropout_prob",
        type=float,
        default=0.1,
        help="How often the condition is dropped, for guidance.",
    )
    add_latent_arguments(parser, cache=False)
    add_model_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)
    parser.set_defaults(output_dir="ddm-image-to-image")

    args = parse_with_defaults(parser, input_args, DIGITS_DEFAULTS)
    check_training_arguments(parser, args)
    if args.upscale is None:
        args.upscale = 4 if args.task == "super_resolution" else 1
    if args.evaluation_steps is not None:
        parser.error("--evaluation_steps compares images that have no condition; it is for train_ddm.py.")
    if not 0 <= args.conditioning_dropout_prob <= 1:
        parser.error(f"--conditioning_dropout_prob is {args.conditioning_dropout_prob}, but has to be in [0, 1].")
    return args


def main(args):
    run = TrainingRun(args, "train_ddm_image_to_image")
    accelerator = run.accelerator

    # Data, which the autoencoder turns into latents, if there is one
    with accelerator.main_process_first():
        space = load_latent_space(args, accelerator)
        if space is not None:
            args.conditioning_mode = args.image_mode
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir, args.streaming
        )
        transform = ConditionalTransform(
            dataset,
            args.resolution,
            args.task,
            args.upscale,
            args.center_crop,
            args.random_flip,
            args.image_mode,
            args.conditioning_mode,
            args.conditioning_dropout_prob,
        )

    channels, conditioning_channels = transform.channels, transform.conditioning_channels
    size, sigma_data = args.resolution, None
    if space is not None:
        image_channels = space.vae.config.in_channels
        if (channels, conditioning_channels) != (image_channels, image_channels):
            raise ValueError(
                f"`--task` is {args.task}, with a target of {channels} and a condition of {conditioning_channels} channels, but"
                f" the autoencoder takes images of {image_channels}."
            )
        (channels, sigma_data), size = space.measure(transform), space.latent_size(args.resolution)
        conditioning_channels = channels

    # Model and process
    unet = build_unet(args, channels, size, conditioning_channels=conditioning_channels, sigma_data=sigma_data)
    scheduler = build_scheduler(args, clip_sample=space is None)
    perceptual_loss = load_perceptual_loss(args, accelerator)
    sigma_data = unet.config.sigma_data
    unet = run.prepare(unet, transform)

    # What grids of samples show: pairs of the training data, always the same, whatever the run draws
    shown = copy.copy(transform)
    shown.conditioning_dropout_prob = 0.0
    shown = next(iter(TrainingBatches(shown, args.eval_batch_size, seed=0, skip_bad_images=True)))
    run.sample_grid = partial(pair_grid, targets=shown["pixel_values"], conditioning=shown["conditioning"])

    settings = preset_settings(args, accelerator) | {
        "images": f"{run.num_images or 'a stream'} of {transform.channels} x {args.resolution} x {args.resolution}",
        "task": args.task or "pairs of the data set",
        "condition": f"{transform.conditioning_channels} channels"
        + (f", {args.upscale} times smaller" if args.upscale > 1 else ""),
        "weighting": args.weighting,
        "times": args.timestep_distribution,
        "noise schedule": args.noise_schedule,
    }

    def make_pipeline():
        vae = None if space is None else space.vae
        pipeline = DDMImageToImagePipeline(run.trained_model(), scheduler, vae, upscale=args.upscale)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    for batch in run:
        with run.accumulate():
            clean, conditioning = batch["pixel_values"], batch["conditioning"]
            if space is not None:
                clean = space.clean(batch)
                conditioning = scale_latents(space.vae, space.encode(conditioning).mean)
            loss, parts = training_loss(
                args,
                unet,
                scheduler,
                sigma_data,
                clean,
                batch["generators"],
                perceptual_loss,
                conditioning=conditioning,
            )
            run.optimize(loss, parts)

        # Pictures and uploads, where they are due
        run.show_progress(make_pipeline, settings)

    # The result, as a user would load it
    run.finish(make_pipeline(), settings)


if __name__ == "__main__":
    main(parse_args())
