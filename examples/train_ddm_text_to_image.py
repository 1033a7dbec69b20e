# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) that makes images from text, for diffusers' StableDiffusionPipeline.

    accelerate launch examples/train_ddm_text_to_image.py --train_data_dir captioned --resolution 512 --center_crop \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --from_pretrained_unet
    accelerate launch examples/train_ddm_text_to_image.py --train_data_dir captioned --resolution 64 --pixel_space \
        --pretrained_model_name_or_path text-model

The tokenizer, the text encoder and, unless --pixel_space is given, the autoencoder are those of a pipeline; --vae_name_or_path
takes another autoencoder. They are not trained. The data set has a column `text`, which a folder of images has by its
metadata.jsonl.
"""

import argparse
import itertools
import math

import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.utils.torch_utils import randn_tensor

from ddm_diffusers import DDMScheduler
from ddm_diffusers.model_card import framed_grid
from ddm_diffusers.training import (
    COUNT,
    NOT_NEGATIVE,
    PROBABILITY,
    CaptionTransform,
    HelpFormatter,
    TrainingRun,
    WeightAverage,
    add_data_arguments,
    add_latent_arguments,
    add_objective_arguments,
    add_training_arguments,
    build_text_unet,
    cache_latents,
    ddm_loss,
    load_image_dataset,
    load_perceptual_loss,
    load_text_encoder,
    load_text_space,
    parse_arguments,
    sample_timesteps,
)


CARD = {
    "pipeline_tag": "text-to-image",
    "usage": "import ddm_diffusers  # its model and its scheduler\n"
    "from diffusers import StableDiffusionPipeline\n\n"
    'pipe = StableDiffusionPipeline.from_pretrained("{repo_id}")\n'
    'image = pipe("...", num_inference_steps=10, guidance_scale=4.0).images[0]',
}


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--caption_column", default="text", help="Of captions, or lists of which one is drawn.")
    data.add_argument(
        "--caption_dropout_prob", type=PROBABILITY, default=0.1, help="Share of empty captions, for guidance."
    )
    data.add_argument(
        "--validation_prompts", nargs="+", help="What the grids of samples show. Default: captions of the data set."
    )
    add_latent_arguments(parser)
    model = parser.add_argument_group("model and process")
    model.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="A pipeline with tokenizer, text_encoder and vae, Stable Diffusion's say.",
    )
    model.add_argument(
        "--from_pretrained_unet",
        action="store_true",
        help="Start from its unet as well, of whichever process, or of this script, in pixels too.",
    )
    model.add_argument("--pixel_space", action="store_true", help="Train on pixels, without an autoencoder.")
    model.add_argument(
        "--block_out_channels",
        type=COUNT,
        nargs="+",
        help="Channels of each level. Default: by the number of images and their size.",
    )
    model.add_argument("--layers_per_block", type=COUNT, default=2, help="Residual blocks of each level.")
    model.add_argument(
        "--attention_head_dim", type=COUNT, default=8, help="Heads of each attention, as diffusers names it."
    )
    model.add_argument("--guidance_scale", type=NOT_NEGATIVE, default=4.0, help="Guidance scale of the samples.")
    model.add_argument("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")
    add_objective_arguments(parser)
    add_training_arguments(parser)
    parser.set_defaults(output_dir="ddm-text-to-image", eval_batch_size=16)
    args = parse_arguments(parser, input_args)
    if min(args.block_out_channels or [128]) < args.attention_head_dim:
        parser.error(
            f"--attention_head_dim is {args.attention_head_dim}, but --block_out_channels are {args.block_out_channels}:"
            " an attention has at most as many heads as channels."
        )
    if args.evaluation_steps is not None:
        parser.error("--evaluation_steps draws images without captions; it is for train_ddm.py.")
    if args.pixel_space and (args.vae_name_or_path or args.latent_cache_dir or args.from_pretrained_unet):
        parser.error(
            "--pixel_space goes without --vae_name_or_path, --latent_cache_dir and --from_pretrained_unet; a model of pixels"
            " goes on with --from_pretrained_unet alone."
        )
    if args.from_pretrained_unet and args.block_out_channels:
        parser.error("--from_pretrained_unet goes without --block_out_channels: that unet has its own.")
    return args


def first_captions(dataset, column, count):
    """The captions of the first rows, which the grids of samples show. Rows without a caption are left out."""
    captions = (row[column] for row in itertools.islice(dataset, 10 * count))
    captions = (each[0] if isinstance(each, list) and each else each for each in captions)
    return list(itertools.islice((each for each in captions if isinstance(each, str)), count)) or [""]


def main(args):
    run = TrainingRun(args, "train_ddm_text_to_image")
    run.card = CARD
    accelerator = run.accelerator

    # The parts that are not trained, and the data
    with accelerator.main_process_first():
        tokenizer, text_encoder = load_text_encoder(args, accelerator)
        space = load_text_space(args, accelerator)
        size = space.latent_size(args.resolution)
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir, args.streaming
        )
        transform = CaptionTransform(
            dataset,
            tokenizer,
            args.resolution,
            args.caption_column,
            args.caption_dropout_prob,
            args.center_crop,
            args.random_flip,
            image_mode=space.image_mode,
            image_column=args.image_column,
        )
    channels, sigma_data = space.measure(transform)
    if args.latent_cache_dir is not None:
        transform = cache_latents(args, transform, space, accelerator)
    run.set_data(transform, size)

    # Model and process
    unet = build_text_unet(args, channels, size, sigma_data, text_encoder.config.hidden_size)
    scheduler = DDMScheduler(noise_schedule=args.noise_schedule, clip_sample=False)
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

    prompts = args.validation_prompts or first_captions(dataset, args.caption_column, args.eval_batch_size)

    def sample_grid(pipeline, num_images, num_inference_steps):
        generator = torch.Generator().manual_seed(0)
        texts = list(itertools.islice(itertools.cycle(prompts), num_images))
        images = pipeline(
            texts, num_inference_steps=num_inference_steps, guidance_scale=args.guidance_scale, generator=generator
        ).images
        return framed_grid(images, math.ceil(math.sqrt(num_images)))

    run.sample_grid = sample_grid

    def make_pipeline():
        pipeline = StableDiffusionPipeline(
            vae=space.vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=run.trained_model(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    settings = {
        "images": f"{run.num_images or 'a stream'} of {transform.channels} x {args.resolution} x {args.resolution}",
        "trained on": "pixels" if args.pixel_space else f"latents of {channels} x {size} x {size}",
        "weighting": args.weighting,
        "times": args.timestep_distribution,
        "noise schedule": args.noise_schedule,
    }

    run.start(unet, ema)
    for batch in run.batches():
        with accelerator.accumulate(unet):
            with torch.no_grad():
                embeddings = text_encoder(batch["input_ids"])[0]
            clean, generators = space.clean(batch), batch["generators"]

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

            # The model predicts both parts, given the caption
            model_output = unet(noisy, timesteps, encoder_hidden_states=embeddings).sample
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
