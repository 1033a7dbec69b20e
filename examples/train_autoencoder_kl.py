# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train an autoencoder, in whose latent space train_ddm.py then trains, for images that no public autoencoder fits.

    accelerate launch examples/train_autoencoder_kl.py --train_data_dir photos --resolution 256 --output_dir autoencoder
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 256 --vae_name_or_path autoencoder

The objective is that of latent diffusion models (arXiv 2112.10752): the mean absolute error of the pixels, LPIPS (arXiv
1801.03924) with --lpips_weight, which needs the package lpips and downloads its network, a small KL divergence, and with
--adversarial_weight what a discriminator of patches says.
"""

import argparse
import math
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.optimization import get_scheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ddm_diffusers.model_card import framed_grid
from ddm_diffusers.training import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    HelpFormatter,
    ImageTransform,
    LatentSpace,
    TrainingBatches,
    TrainingRun,
    WeightAverage,
    add_data_arguments,
    add_training_arguments,
    load_image_dataset,
    load_lpips,
    parse_arguments,
)


CARD = {
    "pipeline_tag": "image-to-image",
    "description": "An [AutoencoderKL](https://huggingface.co/docs/diffusers/api/models/autoencoderkl) for latent diffusion"
    " models. The picture shows images, and beside each what is left of it.",
    "usage": 'from diffusers import AutoencoderKL\n\nvae = AutoencoderKL.from_pretrained("{repo_id}")',
}


class TrainedAutoencoder(AutoencoderKL):
    """Does a whole step in `forward`, which is what the processes of a distributed run share gradients in."""

    def forward(self, images, noise):
        posterior = self.encode(images).latent_dist
        return self.decode(posterior.mean + posterior.std * noise).sample, posterior.kl()


class PatchDiscriminator(nn.Sequential):
    """A number for each patch of an image, above 0 for one that looks real (arXiv 1611.07004)."""

    def __init__(self, in_channels, channels=64, num_levels=3):
        layers, width = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)], channels
        for _ in range(num_levels - 1):
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.GroupNorm(32, 2 * width),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        super().__init__(*layers, nn.Conv2d(width, 1, 3, padding=1))


class AdversarialLoss:
    """A discriminator that learns beside the autoencoder, from `start_step` on, with a hinge loss."""

    def __init__(self, run, channels, learning_rate, start_step):
        if run.sharding != "none":
            raise ValueError(
                f"`--adversarial_weight` is above 0, but {run.sharding} shards one model and accepts only 0."
            )
        self.run, self.start_step = run, start_step
        discriminator = PatchDiscriminator(channels)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        self.discriminator, self.optimizer = run.accelerator.prepare(discriminator, optimizer)

    def __call__(self, reconstructions):
        """The autoencoder's part. The weights of the discriminator get no gradient from it."""
        if self.run.global_step < self.start_step:
            return 0.0 * reconstructions.mean()
        discriminator = self.run.accelerator.unwrap_model(self.discriminator)
        weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        return -torch.func.functional_call(discriminator, weights, reconstructions).mean()

    def train(self, images, reconstructions):
        """The discriminator's part."""
        if self.run.global_step >= self.start_step:
            real, made = self.discriminator(torch.cat([images, reconstructions.detach()])).chunk(2)
            self.run.accelerator.backward(F.relu(1 - real).mean() + F.relu(1 + made).mean())
            self.optimizer.step()
            self.optimizer.zero_grad()


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_data_arguments(parser)
    model = parser.add_argument_group("model and objective")
    model.add_argument(
        "--block_out_channels",
        type=COUNT,
        nargs="+",
        default=[128, 256, 512, 512],
        help="Channels of each level. The latents are 2^(levels - 1) times smaller than the images.",
    )
    model.add_argument("--layers_per_block", type=COUNT, default=2, help="Residual blocks of each level.")
    model.add_argument("--latent_channels", type=COUNT, default=4, help="Channels of the latents.")
    model.add_argument(
        "--kl_weight", type=NOT_NEGATIVE, default=1e-6, help="Weight of the KL divergence per pixel and channel."
    )
    model.add_argument("--lpips_weight", type=NOT_NEGATIVE, default=0.0, help="Weight of LPIPS; the paper's: 1.")
    model.add_argument(
        "--adversarial_weight", type=NOT_NEGATIVE, default=0.0, help="Weight of the discriminator; try 0.1."
    )
    model.add_argument(
        "--adversarial_start_step", type=COUNT_OR_ZERO, default=5000, help="First step with the discriminator."
    )
    add_training_arguments(parser)
    parser.set_defaults(output_dir="autoencoder", eval_batch_size=16)
    args = parse_arguments(parser, input_args)
    if args.evaluation_steps is not None:
        parser.error("--evaluation_steps draws images, which an autoencoder does not.")
    if args.resolution % 2 ** (len(args.block_out_channels) - 1):
        parser.error(
            f"--resolution is {args.resolution}, but has to be a multiple of {2 ** (len(args.block_out_channels) - 1)} for"
            f" {len(args.block_out_channels)} --block_out_channels."
        )
    return args


@torch.no_grad()
def reconstructions(vae, num_images, num_inference_steps, *, images):
    """Images, and beside each what is left of it, in rows of four pairs. The model card shows them."""
    images = images[:num_images]
    made = vae.decode(vae.encode(images.to(vae.device)).latent_dist.mean).sample.cpu()
    pairs = zip(*(VaeImageProcessor().postprocess(each) for each in (images, made)), strict=True)
    return framed_grid([image for pair in pairs for image in pair], columns=8)


def main(args):
    run = TrainingRun(args, "train_autoencoder_kl")
    run.card = CARD
    accelerator = run.accelerator
    with accelerator.main_process_first():
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir, args.streaming
        )
        transform = ImageTransform(
            dataset,
            args.resolution,
            args.center_crop,
            args.random_flip,
            image_mode=args.image_mode,
            image_column=args.image_column,
        )
    run.set_data(transform)
    num_levels = len(args.block_out_channels)
    vae = TrainedAutoencoder(
        in_channels=transform.channels,
        out_channels=transform.channels,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        norm_num_groups=math.gcd(32, max(1, args.block_out_channels[0] // 4), *args.block_out_channels),
        sample_size=args.resolution,
        scaling_factor=1.0,
        force_upcast=False,
    )
    lpips = load_lpips(accelerator.device, "--lpips_weight") if args.lpips_weight > 0 else None
    adversarial = None
    if args.adversarial_weight > 0:
        adversarial = AdversarialLoss(run, transform.channels, args.learning_rate, args.adversarial_start_step)
    if args.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if args.compile:
        vae.compile()

    # Optimizer, learning rate, and the average of the weights
    optimizer = torch.optim.AdamW(
        vae.parameters(),
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
    vae, optimizer, lr_scheduler = accelerator.prepare(vae, optimizer, lr_scheduler)
    ema = None
    if args.use_ema:
        ema = WeightAverage(
            accelerator,
            vae.parameters(),
            decay=args.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=args.ema_inv_gamma,
            power=args.ema_power,
        )
    size = args.resolution // 2 ** (num_levels - 1)

    # What the pictures show: images of the training data, always the same
    shown = next(iter(TrainingBatches(transform, args.eval_batch_size, seed=0, skip_bad_images=True)))
    run.sample_grid = partial(reconstructions, images=shown["pixel_values"])
    settings = {
        "images": f"{run.num_images or 'a stream'} of {transform.channels} x {args.resolution} x {args.resolution}",
        "latents": f"{args.latent_channels} x {size} x {size}",
        "weights": f"KL {args.kl_weight:g}, LPIPS {args.lpips_weight:g}, adversarial {args.adversarial_weight:g}",
    }

    def make_result():
        """As diffusers knows it, with the factor that brings its latents to a deviation of 1."""
        trained = run.trained_model()
        result = AutoencoderKL.from_config(trained.config).to(trained.device).eval().requires_grad_(False)
        result.load_state_dict(trained.state_dict())
        _, deviation = LatentSpace(result, trained.device).measure(transform)
        result.register_to_config(scaling_factor=1 / deviation)
        return result

    run.start(vae, ema)
    for batch in run.batches():
        with accelerator.accumulate(vae):
            images = batch["pixel_values"]
            shape = (len(images), args.latent_channels, size, size)
            noise = randn_tensor(shape, batch["generators"], images.device, images.dtype)
            made, kl = vae(images, noise)
            parts = {"l1": F.l1_loss(made, images), "kl": kl.mean() / images[0].numel()}
            loss = parts["l1"] + args.kl_weight * parts["kl"]
            if lpips is not None:
                parts["lpips"] = lpips(made, images).mean()
                loss = loss + args.lpips_weight * parts["lpips"]
            if adversarial is not None:
                parts["adversarial"] = adversarial(made)
                loss = loss + args.adversarial_weight * parts["adversarial"]

            accelerator.backward(loss)
            run.record(loss=loss, **parts)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(vae.parameters(), args.max_grad_norm)
                run.check_step(grad_norm)  # ends the run before a loss that is not finite reaches the weights
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            if adversarial is not None:
                adversarial.train(images, made)

        if accelerator.sync_gradients:
            if ema is not None and not accelerator.optimizer_step_was_skipped:
                ema.step(vae.parameters())
            run.end_step(lr=lr_scheduler.get_last_lr()[0])
            if run.should_save:
                run.save_checkpoint()
            run.show_progress(make_result, settings)  # reconstructions and uploads, where they are due

    # The result, as a user loads it
    result = make_result()
    run.finish(result, settings | {"scaling factor": f"{result.config.scaling_factor:.4g}"})


if __name__ == "__main__":
    main(parse_args())
