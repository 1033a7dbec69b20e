# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) that makes images from images.

    accelerate launch examples/train_ddm_image_to_image.py --task super_resolution    # scikit-learn's digits, on a CPU
    accelerate launch examples/train_ddm_image_to_image.py --train_data_dir pairs --output_dir ddm-depth
    accelerate launch examples/train_ddm_image_to_image.py --train_data_dir photos --task inpainting --output_dir ddm-inpaint

Without --task the data set has pairs: a column of images, the targets, and a column `conditioning_image`, which a folder of
images has by its metadata.jsonl. With --task the pairs are made from plain images.
"""

import argparse
import copy
from functools import partial

import torch
from diffusers.optimization import get_scheduler
from diffusers.utils.torch_utils import randn_tensor

from ddm_diffusers import DDMImageToImagePipeline
from ddm_diffusers.latents import scale_latents
from ddm_diffusers.training import (
    COUNT,
    DIGITS_DEFAULTS,
    PROBABILITY,
    TASKS,
    ConditionalTransform,
    HelpFormatter,
    TrainingBatches,
    TrainingRun,
    WeightAverage,
    add_data_arguments,
    add_latent_arguments,
    add_model_arguments,
    add_objective_arguments,
    add_preset_argument,
    add_training_arguments,
    build_model,
    build_scheduler,
    check_model_arguments,
    ddm_loss,
    load_image_dataset,
    load_latent_space,
    load_perceptual_loss,
    pair_grid,
    parse_arguments,
    preset_settings,
    sample_timesteps,
)


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_preset_argument(parser)
    data = add_data_arguments(parser)
    data.add_argument("--task", choices=TASKS, help="Make pairs from plain images. Default: the data set has them.")
    data.add_argument(
        "--conditioning_image_column", help="The column of conditions, without --task. Default: conditioning_image."
    )
    data.add_argument(
        "--upscale",
        type=COUNT,
        help="How much larger the targets are than the conditions. Default: 4 for super-resolution, else 1.",
    )
    data.add_argument(
        "--conditioning_mode",
        choices=["L", "RGB"],
        help="As --image_mode, for the conditions of a data set with pairs.",
    )
    data.add_argument(
        "--conditioning_dropout_prob",
        type=PROBABILITY,
        default=0.1,
        help="How often the condition is dropped, for guidance.",
    )
    add_latent_arguments(parser, cache=False)
    add_model_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)
    parser.set_defaults(output_dir="ddm-image-to-image")

    args = parse_arguments(parser, input_args, DIGITS_DEFAULTS)
    check_model_arguments(parser, args, input_args)
    if args.upscale is None:
        args.upscale = 4 if args.task == "super_resolution" else 1
    if args.evaluation_steps is not None:
        parser.error("--evaluation_steps compares images that have no condition; it is for train_ddm.py.")
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
            args.image_column,
            args.conditioning_image_column,
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
    run.set_data(transform, size)

    # Model and process
    unet = build_model(args, channels, size, conditioning_channels=conditioning_channels, sigma_data=sigma_data)
    scheduler = build_scheduler(args, clip_sample=space is None)
    perceptual_loss = load_perceptual_loss(args, accelerator)
    sigma_data = unet.config.sigma_data
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.compile:
        unet.compile()

    # Optimizer, learning rate, and the average of the weights
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=run.max_train_steps,
    )
    unet, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)
    ema = None
    if args.use_ema:
        ema = WeightAverage(
            accelerator,
            unet.parameters(),
            decay=args.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=args.ema_inv_gamma,
            power=args.ema_power,
        )

    # The grids of samples show pairs of the training data, always the same ones
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

    run.start(unet, ema)
    for batch in run.batches():
        with accelerator.accumulate(unet):
            clean, conditioning, generators = batch["pixel_values"], batch["conditioning"], batch["generators"]
            if space is not None:
                clean = space.clean(batch)
                conditioning = scale_latents(space.vae, space.encode(conditioning).mean)

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

            # The model predicts both parts, given the condition
            model_output = unet(noisy, timesteps, conditioning=conditioning).sample
            loss, parts = ddm_loss(
                scheduler,
                model_output,
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

            accelerator.backward(loss)
            run.record(loss=loss, **parts)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                run.check_step(grad_norm)  # ends the run before a loss that is not finite reaches the weights
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()

        if accelerator.sync_gradients:
            if ema is not None and not accelerator.optimizer_step_was_skipped:
                ema.step(unet.parameters())
            run.end_step(lr=lr_scheduler.get_last_lr()[0])
            if run.should_save:
                run.save_checkpoint()
            run.show_progress(make_pipeline, settings)  # samples and uploads, where they are due

    # The result, as a user loads it
    run.finish(make_pipeline(), settings)


if __name__ == "__main__":
    main(parse_args())
