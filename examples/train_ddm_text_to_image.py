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
from train_ddm import training_loss  # examples/train_ddm.py
from transformers import CLIPTextModel, CLIPTokenizer

from ddm_diffusers import DDMScheduler
from ddm_diffusers.model_card import framed_grid
from ddm_diffusers.training import (
    CaptionTransform,
    HelpFormatter,
    TrainingRun,
    add_data_arguments,
    add_latent_arguments,
    add_objective_arguments,
    add_training_arguments,
    build_text_unet,
    cache_latents,
    check_training_arguments,
    load_image_dataset,
    load_perceptual_loss,
    load_text_space,
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
    data.add_argument("--caption_dropout_prob", type=float, default=0.1, help="How often it is empty, for guidance.")
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
    model.add_argument("--block_out_channels", type=int, nargs="+", help="Channels of each level.")
    model.add_argument("--layers_per_block", type=int, default=2, help="Residual blocks of each level.")
    model.add_argument(
        "--attention_head_dim", type=int, default=8, help="Heads of each attention, as diffusers names it."
    )
    model.add_argument("--guidance_scale", type=float, default=4.0, help="Of the samples.")
    model.add_argument("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")
    add_objective_arguments(parser)
    add_training_arguments(parser)
    parser.set_defaults(output_dir="ddm-text-to-image", eval_batch_size=16)
    args = parser.parse_args(input_args)
    check_training_arguments(parser, args)
    if args.evaluation_steps is not None:
        parser.error("--evaluation_steps draws images without captions; it is for train_ddm.py.")
    if not 0 <= args.caption_dropout_prob <= 1:
        parser.error(f"--caption_dropout_prob is {args.caption_dropout_prob}, but has to be in [0, 1].")
    if args.pixel_space and (args.vae_name_or_path or args.latent_cache_dir or args.from_pretrained_unet):
        parser.error(
            "--pixel_space goes without --vae_name_or_path, --latent_cache_dir and --from_pretrained_unet; a model of pixels"
            " goes on with --from_pretrained_unet alone."
        )
    if args.from_pretrained_unet and args.block_out_channels:
        parser.error("--from_pretrained_unet goes without --block_out_channels: that unet has its own.")
    return args


def main(args):
    run = TrainingRun(args, "train_ddm_text_to_image")
    run.card = CARD
    accelerator = run.accelerator

    # What is not trained, and the data
    with accelerator.main_process_first():
        source = args.pretrained_model_name_or_path
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=torch.float32)
        text_encoder = text_encoder.to(accelerator.device).eval().requires_grad_(False)
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
        )
    channels, sigma_data = space.measure(transform)
    if args.latent_cache_dir is not None:
        transform = cache_latents(args, transform, space, accelerator)

    unet = build_text_unet(args, channels, size, sigma_data, text_encoder.config.hidden_size)
    scheduler = DDMScheduler(noise_schedule=args.noise_schedule, clip_sample=False)
    perceptual_loss = load_perceptual_loss(args, accelerator)
    sigma_data = unet.config.sigma_data
    unet = run.prepare(unet, transform)

    prompts = args.validation_prompts
    if prompts is None:
        rows = itertools.islice(dataset, args.eval_batch_size)
        prompts = [each[0] if isinstance(each, list) else each for each in (row[args.caption_column] for row in rows)]

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

    for batch in run:
        with run.accumulate():
            with torch.no_grad():
                embeddings = text_encoder(batch["input_ids"])[0]
            loss, parts = training_loss(
                args,
                unet,
                scheduler,
                sigma_data,
                space.clean(batch),
                batch["generators"],
                perceptual_loss,
                encoder_hidden_states=embeddings,
            )
            run.optimize(loss, parts)

        # Pictures and uploads, where they are due
        run.show_progress(make_pipeline, settings)

    # The result, as a user would load it
    run.finish(make_pipeline(), settings)


if __name__ == "__main__":
    main(parse_args())
