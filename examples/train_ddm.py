# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) on images.

    accelerate launch examples/train_ddm.py                             # scikit-learn's digits, a few minutes on a CPU
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 64 --output_dir ddm-photos
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 256 --center_crop --output_dir ddm-latent \
        --vae_name_or_path stabilityai/sd-vae-ft-mse --latent_cache_dir latents
    accelerate launch examples/train_ddm.py --preset ddm --train_data_dir photos --resolution 32    # the authors' method

--help shows the defaults for your own images. Without a data set, ddm_diffusers.training.DIGITS_DEFAULTS replaces some of them.
"""

import argparse
from functools import partial

import torch
from diffusers.optimization import get_scheduler
from diffusers.utils.torch_utils import randn_tensor

from ddm_diffusers import DDMPipeline
from ddm_diffusers.training import (
    DIGITS_DEFAULTS,
    PROBABILITY,
    HelpFormatter,
    ImageTransform,
    TrainingRun,
    WeightAverage,
    add_data_arguments,
    add_latent_arguments,
    add_model_arguments,
    add_objective_arguments,
    add_preset_argument,
    add_training_arguments,
    add_transformer_arguments,
    augment,
    build_model,
    build_scheduler,
    cache_latents,
    check_model_arguments,
    ddm_loss,
    load_image_dataset,
    load_latent_space,
    load_perceptual_loss,
    parse_arguments,
    preset_settings,
    sample_timesteps,
)


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_preset_argument(parser)
    data = add_data_arguments(parser)
    data.add_argument("--class_conditional", action="store_true", help="Train on labels, of subfolders for example.")
    data.add_argument("--label_column", help="The column of labels, with --class_conditional. Default: label.")
    data.add_argument(
        "--class_dropout_prob", type=PROBABILITY, default=0.1, help="Share of dropped labels, for guidance."
    )

    data.add_argument(
        "--augment_prob",
        type=PROBABILITY,
        default=0.0,
        help="Share of images that are rotated, scaled, stretched and shifted. Needs --architecture released.",
    )
    add_latent_arguments(parser)
    add_model_arguments(parser)
    add_transformer_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)

    args = parse_arguments(parser, input_args, DIGITS_DEFAULTS)
    check_model_arguments(parser, args, input_args)
    if args.label_column is not None and not args.class_conditional:
        parser.error(f"--label_column is {args.label_column}, which needs --class_conditional.")
    released = args.architecture == "released" or args.pretrained_model_name_or_path is not None
    if args.augment_prob and (args.vae_name_or_path is not None or not released):
        parser.error("--augment_prob needs --architecture released, and images instead of latents.")
    if args.latent_cache_dir is not None and args.vae_name_or_path is None:
        parser.error("--latent_cache_dir needs an autoencoder, --vae_name_or_path.")
    if args.model_type == "dit" and args.preset is not None:
        parser.error(f"--preset is {args.preset}, whose network is --model_type unet.")
    if args.model_type == "dit" and (args.num_attention_heads or 1) * args.attention_head_dim % 4:
        parser.error(
            f"--num_attention_heads is {args.num_attention_heads} and --attention_head_dim is {args.attention_head_dim},"
            " but their product has to be a multiple of 4, for the embedding of positions."
        )
    if args.model_type == "dit" and args.num_decoders == 2:
        parser.error("--num_decoders is 2, which is for --model_type unet; a transformer has none.")
    return args


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
            args.image_column,
            args.label_column,
        )
    class_names = transform.class_names
    channels, size, sigma_data = transform.channels, args.resolution, None
    if space is not None:
        (channels, sigma_data), size = space.measure(transform), space.latent_size(args.resolution)
        if args.latent_cache_dir is not None:
            transform = cache_latents(args, transform, space, accelerator)
    run.set_data(transform, size)

    # Model and process
    unet = build_model(args, channels, size, class_names, sigma_data=sigma_data)
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
    settings = preset_settings(args, accelerator) | {
        "images": f"{run.num_images or 'a stream'} of {transform.channels} x {args.resolution} x {args.resolution}",
        "weighting": args.weighting,
        "times": args.timestep_distribution,
        "noise schedule": args.noise_schedule,
        "classes": "none" if class_names is None else len(class_names),
    }
    if space is not None:
        settings["latents"] = (
            f"{channels} x {size} x {size}, of {args.vae_name_or_path}, root mean square {sigma_data:g}"
        )
    evaluation = None
    if args.evaluation_steps is not None:
        try:
            from evaluate import PipelineEvaluation
        except ImportError as error:
            raise ImportError(
                "--evaluation_steps needs examples/evaluate.py beside this script. Copy it too."
            ) from error

        evaluation = PipelineEvaluation(
            accelerator,
            dataset,
            args.resolution,
            args.feature_extractor,
            args.evaluation_samples,
            image_column=args.image_column,
        )

    def make_pipeline():
        pipeline = DDMPipeline(run.trained_model(), scheduler, vae=None if space is None else space.vae)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    run.start(unet, ema)
    for batch in run.batches():
        with accelerator.accumulate(unet):
            clean = batch["pixel_values"] if space is None else space.clean(batch)
            generators = batch["generators"]
            model_kwargs = {"class_labels": batch.get("class_labels")}
            if args.augment_prob:
                clean, model_kwargs["augment_labels"] = augment(clean, args.augment_prob, generators)

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

            # The model predicts both parts
            model_output = unet(noisy, timesteps, **model_kwargs).sample
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
            if run.is_due(args.evaluation_steps):
                run.evaluate(make_pipeline, partial(evaluation, num_inference_steps=args.num_inference_steps))

    # The result, as a user loads it
    run.finish(make_pipeline(), settings)


if __name__ == "__main__":
    main(parse_args())
