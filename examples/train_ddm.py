# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a decoupled diffusion model (arXiv 2306.13720) on images.

    accelerate launch examples/train_ddm.py                             # scikit-learn's digits, a few minutes on a CPU
    accelerate launch examples/train_ddm.py --train_data_dir photos --resolution 64 --output_dir ddm-photos

Without a data set the defaults are those of DIGITS_DEFAULTS below; the ones that --help shows are for your own images.
"""

import argparse
import logging
import math
import shlex
import shutil
import sys
import time
from pathlib import Path

import datasets
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DModel
from ddm_diffusers.hub import TRAINING_FILES, sample_grid, write_model_card
from ddm_diffusers.training import (
    WEIGHTINGS,
    HubUploader,
    ImageTransform,
    ddm_loss,
    load_image_dataset,
    sample_timesteps,
)


logger = get_logger(__name__, log_level="INFO")

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
    "save_images_epochs": 50,
    "seed": 0,
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the default of each option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="A data set on the Hub, or a local path that datasets can load.")
    data.add_argument("--dataset_config_name", help="The configuration of the data set.")
    data.add_argument(
        "--train_data_dir",
        help="A folder of images (a subfolder for each class, if any), of parquet or of arrow files.",
    )
    data.add_argument("--cache_dir", help="Where downloaded and converted data sets are kept.")
    data.add_argument("--resolution", type=int, default=64, help="Height and width of the training images.")
    data.add_argument("--center_crop", action="store_true", help="Crop at the center instead of at random.")
    data.add_argument("--random_flip", action="store_true", help="Mirror half of the images.")
    data.add_argument("--image_mode", choices=["L", "RGB"], help="Grey or colour. Default: as the first image is.")
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="0 loads in the main process.")
    data.add_argument("--class_conditional", action="store_true", help="Train on the labels of the column `label`.")
    data.add_argument(
        "--class_dropout_prob", type=float, default=0.1, help="How often the label is dropped, for guidance."
    )

    model = parser.add_argument_group("model and process")
    model.add_argument("--model_config_name_or_path", help="The config of a DDMUNet2DModel, instead of what follows.")
    model.add_argument(
        "--block_out_channels", type=int, nargs="+", help="Channels of each level. Default: by resolution."
    )
    model.add_argument("--layers_per_block", type=int, default=2, help="Residual blocks of each level.")
    model.add_argument("--dropout", type=float, default=0.0, help="Dropout of the residual blocks.")
    model.add_argument("--num_decoders", type=int, default=1, choices=[1, 2], help="2: the paper's two decoders.")
    model.add_argument("--num_heads", type=int, default=2, choices=[1, 2], help="Output heads of one decoder.")
    model.add_argument("--sigma_data", type=float, default=1.0, help="Root mean square of the images in [-1, 1].")
    model.add_argument("--attenuation", default="constant", choices=["constant", "linear"], help="How images fade.")
    model.add_argument("--noise_schedule", default="sqrt", choices=["sqrt", "linear"], help="sigma_t = sqrt(t) or t.")
    model.add_argument(
        "--weighting", default="unit_variance", choices=WEIGHTINGS, help="Weighting of the loss; none: the paper's."
    )
    model.add_argument("--reconstruction_weight", type=float, default=0.0, help="Weight of the clean image's error.")

    training = parser.add_argument_group("training")
    training.add_argument("--train_batch_size", type=int, default=16, help="Batch size per process.")
    training.add_argument("--num_epochs", type=int, default=100, help="How often all images are seen.")
    training.add_argument("--max_train_steps", type=int, help="Optimizer steps; overrides num_epochs.")
    training.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimizer step.")
    training.add_argument("--learning_rate", type=float, default=1e-4, help="After the warm-up.")
    training.add_argument(
        "--lr_scheduler",
        default="cosine",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
        help="How the learning rate goes on after the warm-up.",
    )
    training.add_argument("--lr_warmup_steps", type=int, default=500, help="Steps until the learning rate is reached.")
    training.add_argument("--adam_beta1", type=float, default=0.95, help="Of AdamW.")
    training.add_argument("--adam_beta2", type=float, default=0.999, help="Of AdamW.")
    training.add_argument("--adam_weight_decay", type=float, default=1e-6, help="Of AdamW.")
    training.add_argument("--adam_epsilon", type=float, default=1e-8, help="Of AdamW.")
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to it.")
    training.add_argument(
        "--use_ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Average the weights; the average is what is sampled from and saved.",
    )
    training.add_argument(
        "--ema_inv_gamma", type=float, default=1.0, help="decay = 1 - (1 + step / inv_gamma)^-power."
    )
    training.add_argument("--ema_power", type=float, default=3 / 4, help="See above.")
    training.add_argument("--ema_max_decay", type=float, default=0.9999, help="Upper end of the decay.")
    training.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: accelerate's config.")
    training.add_argument("--gradient_checkpointing", action="store_true", help="Less memory, more time.")
    training.add_argument("--seed", type=int, help="Makes the run reproducible.")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default="ddm-model", help="Where pipeline, checkpoints and samples go.")
    output.add_argument("--num_inference_steps", type=int, default=10, help="Steps of the samples.")
    output.add_argument("--save_images_epochs", type=int, default=10, help="Epochs between grids of samples.")
    output.add_argument("--eval_batch_size", type=int, default=64, help="Images in a grid of samples.")
    output.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints.")
    output.add_argument("--checkpoints_total_limit", type=int, help="How many checkpoints to keep.")
    output.add_argument("--resume_from_checkpoint", help="A checkpoint's folder name, or `latest`.")
    output.add_argument("--logger", default="tensorboard", choices=["tensorboard", "wandb", "none"], help="Tracker.")
    output.add_argument("--logging_dir", default="logs", help="Where TensorBoard's files go, inside output_dir.")
    output.add_argument("--push_to_hub", action="store_true", help="Upload the pipeline at the end.")
    output.add_argument(
        "--push_every_checkpoint", action="store_true", help="Upload in the background at every checkpoint as well."
    )
    output.add_argument("--hub_model_id", help="The repository to upload to. Default: the name of output_dir.")
    output.add_argument("--hub_token", help="Default: the token that you are logged in with.")
    output.add_argument("--hub_private_repo", action="store_true", help="Create a private repository.")
    output.add_argument("--license", help="The licence that the model card names, apache-2.0 say.")

    args = parser.parse_args(input_args)
    if args.dataset_name is None and args.train_data_dir is None:
        parser.set_defaults(**DIGITS_DEFAULTS)
        args = parser.parse_args(input_args)
    for name in ("resolution", "train_batch_size", "num_epochs", "max_train_steps", "gradient_accumulation_steps",
                 "checkpointing_steps", "checkpoints_total_limit", "save_images_epochs", "eval_batch_size"):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, but has to be 1 or more.")
    if not args.push_to_hub and (args.push_every_checkpoint or args.hub_model_id):
        parser.error("--push_every_checkpoint and --hub_model_id need --push_to_hub.")
    if not 0 <= args.class_dropout_prob <= 1:
        parser.error(f"--class_dropout_prob is {args.class_dropout_prob}, but has to be in [0, 1].")
    return args


def default_block_out_channels(resolution):
    """Up to six levels, as many as the resolution can be halved for, down to 4 pixels."""
    block_out_channels = [128, 128, 256, 256, 512, 512]
    while len(block_out_channels) > 1 and (resolution / 2 ** (len(block_out_channels) - 1)) not in range(
        4, resolution
    ):
        block_out_channels.pop()
    return block_out_channels


def build_unet(args, channels, num_classes):
    """The model of `--model_config_name_or_path`, or one that suits the resolution."""
    options = {"in_channels": channels, "num_class_embeds": num_classes, "sample_size": args.resolution}
    options |= {"attenuation": args.attenuation, "noise_schedule": args.noise_schedule}
    if args.model_config_name_or_path is not None:
        config = DDMUNet2DModel.load_config(args.model_config_name_or_path)
        return DDMUNet2DModel.from_config({**config, **options, "out_channels": None})

    block_out_channels = args.block_out_channels or default_block_out_channels(args.resolution)
    multiple = 2 ** (len(block_out_channels) - 1)
    if args.resolution % multiple:
        raise ValueError(
            f"`--resolution` is {args.resolution}, but has to be a multiple of {multiple} for the"
            f" {len(block_out_channels)} levels of `--block_out_channels`."
        )
    attention = [args.resolution // 2**level <= 16 for level in range(len(block_out_channels))]
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
        sigma_data=args.sigma_data,
    )


def main(args):
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / args.logging_dir),
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for name in ("httpx", "httpx2"):  # a line for each request of an upload, with its signed address
        logging.getLogger(name).setLevel(logging.WARNING)
    for library in (datasets.utils.logging, diffusers.utils.logging):
        library.set_verbosity_warning() if accelerator.is_local_main_process else library.set_verbosity_error()
    if args.seed is not None:
        set_seed(args.seed)

    # Data
    with accelerator.main_process_first():
        dataset = load_image_dataset(
            args.dataset_name, args.dataset_config_name, args.train_data_dir, cache_dir=args.cache_dir
        )
        transform = ImageTransform(
            dataset, args.resolution, args.center_crop, args.random_flip, args.class_conditional, args.image_mode
        )
    train_dataloader = torch.utils.data.DataLoader(
        transform.dataset,
        batch_size=args.train_batch_size,
        shuffle=True,
        num_workers=args.dataloader_num_workers,
    )
    class_names = transform.class_names

    # Model and process
    unet = build_unet(args, transform.channels, None if class_names is None else len(class_names))
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    sigma_data = unet.config.sigma_data
    scheduler = DDMScheduler(attenuation=args.attenuation, noise_schedule=args.noise_schedule)
    ema = None
    if args.use_ema:
        ema = EMAModel(
            unet.parameters(),
            decay=args.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=args.ema_inv_gamma,
            power=args.ema_power,
            model_cls=DDMUNet2DModel,
            model_config=unet.config,
        )
        ema.to(accelerator.device)

    # Optimizer. The prepared learning-rate schedule takes a step per process, hence its counts.
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
    batches_per_epoch = math.ceil(len(train_dataloader) / accelerator.num_processes)
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    max_train_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
    num_epochs = math.ceil(max_train_steps / steps_per_epoch)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=max_train_steps * accelerator.num_processes,
    )
    unet, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        unet, optimizer, train_dataloader, lr_scheduler
    )
    if ema is not None:
        accelerator.register_for_checkpointing(ema)

    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.push_to_hub:
            uploader = HubUploader(args.hub_model_id or output_dir.name, args.hub_token, args.hub_private_repo)
    if args.logger != "none":
        config = {name: str(value) for name, value in vars(args).items() if name != "hub_token"}
        accelerator.init_trackers("train_ddm", config=config)

    global_step = 0
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    if checkpoint is not None:
        logger.info(f"Resuming from {checkpoint}")
        accelerator.load_state(checkpoint)
        if ema is not None:
            ema.to(accelerator.device)
        global_step = int(checkpoint.name.removeprefix("checkpoint-"))
    first_epoch = global_step // steps_per_epoch

    total_batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    logger.info(
        f"Training {num_parameters:,} parameters on {len(dataset):,} images of {transform.channels} x"
        f" {args.resolution} x {args.resolution} for {max_train_steps:,} steps of {total_batch_size} images"
    )
    if class_names is not None:
        logger.info(f"Class labels: {dict(enumerate(class_names))}")
    if 2 * args.lr_warmup_steps > max_train_steps:
        logger.warning(
            f"--lr_warmup_steps is {args.lr_warmup_steps}, more than half of the {max_train_steps} steps: the learning"
            " rate is low for most of the run. Give fewer."
        )

    def save_pipeline(folder):
        """Save the pipeline, load it again as a user would, and let it draw what its model card shows."""
        make_pipeline().save_pretrained(folder)
        pipeline = DDMPipeline.from_pretrained(folder).to(accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        grid = sample_grid(pipeline, args.eval_batch_size, args.num_inference_steps)
        grid.save(folder / "samples.png")
        write_model_card(
            folder,
            pipeline,
            repo_id=uploader.repo_id if args.push_to_hub else str(output_dir),
            license=args.license,
            datasets=args.dataset_name if args.dataset_name and not Path(args.dataset_name).exists() else None,
            training_command=training_command(args),
            settings={
                "images": f"{len(dataset)} of {transform.channels} x {args.resolution} x {args.resolution}",
                "parameters": num_parameters,
                "steps": global_step,
                "batch size": total_batch_size,
                "learning rate": args.learning_rate,
                "weighting": args.weighting,
                "noise schedule": args.noise_schedule,
                "seed": args.seed,
                "class labels": "none" if class_names is None else dict(enumerate(class_names)),
            },
        )
        return grid

    def make_pipeline():
        model = accelerator.unwrap_model(unet)
        if ema is not None:
            model = DDMUNet2DModel.from_config(model.config)
            ema.copy_to(model.parameters())
        pipeline = DDMPipeline(unet=model.eval(), scheduler=scheduler).to(accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    # Training
    progress_bar = tqdm(
        total=max_train_steps,
        initial=global_step,
        disable=not accelerator.is_local_main_process,
        unit="step",
    )
    for epoch in range(first_epoch, num_epochs):
        if global_step >= max_train_steps:  # resumed from the end
            break
        unet.train()
        train_loss = 0.0
        step_start = time.perf_counter()
        epoch_dataloader = train_dataloader
        if epoch == first_epoch and global_step % steps_per_epoch:
            done = (global_step % steps_per_epoch) * args.gradient_accumulation_steps
            epoch_dataloader = accelerator.skip_first_batches(train_dataloader, done)

        for batch in epoch_dataloader:
            clean = batch["pixel_values"]
            class_labels = batch.get("class_labels")
            if class_labels is not None:
                # classifier-free guidance (arXiv 2207.12598): the label after the last one stands for "no class"
                dropped = torch.rand(len(clean), device=clean.device) < args.class_dropout_prob
                class_labels = class_labels.masked_fill(dropped, len(class_names))

            # The forward process: the image fades, noise rises
            noise = torch.randn_like(clean)
            timesteps = sample_timesteps(scheduler, len(clean), device=clean.device)
            attenuation = scheduler.get_attenuation(clean)
            noisy = scheduler.add_noise(clean, noise, timesteps, attenuation)

            with accelerator.accumulate(unet):
                # Predict both parts of it
                model_output = unet(noisy, timesteps, class_labels=class_labels).sample
                loss = ddm_loss(
                    scheduler,
                    model_output,
                    clean,
                    noise,
                    timesteps,
                    attenuation,
                    weighting=args.weighting,
                    sigma_data=sigma_data,
                    reconstruction_weight=args.reconstruction_weight,
                )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            train_loss += loss.detach() / args.gradient_accumulation_steps

            if not accelerator.sync_gradients:
                continue
            # After an optimizer step; the average of the weights steps on every process
            if ema is not None:
                ema.step(accelerator.unwrap_model(unet).parameters())
            global_step += 1
            now = time.perf_counter()
            logs = {
                "loss": accelerator.gather(train_loss).mean().item(),
                "lr": lr_scheduler.get_last_lr()[0],
                "images_per_second": total_batch_size / (now - step_start),
            }
            step_start, train_loss = now, 0.0
            progress_bar.update(1)
            progress_bar.set_postfix(
                loss=f"{logs['loss']:.4f}", lr=f"{logs['lr']:.1e}", images_per_s=f"{logs['images_per_second']:.0f}"
            )
            accelerator.log(logs, step=global_step)

            if global_step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir, global_step, args.checkpoints_total_limit)
                if args.push_to_hub and args.push_every_checkpoint and accelerator.is_main_process:
                    with uploader.snapshot(f"Step {global_step}") as folder:
                        save_pipeline(folder)
                    unet.train()
            if global_step >= max_train_steps:
                break

        accelerator.wait_for_everyone()
        if accelerator.is_main_process and (epoch + 1) % args.save_images_epochs == 0 and epoch + 1 < num_epochs:
            grid = sample_grid(make_pipeline(), args.eval_batch_size, args.num_inference_steps)
            (output_dir / "samples").mkdir(exist_ok=True)
            grid.save(output_dir / "samples" / f"step-{global_step:07d}.png")
            log_grid(accelerator, grid, global_step)
    progress_bar.close()

    # The result, as a user would load it
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        grid = save_pipeline(output_dir)
        log_grid(accelerator, grid, global_step)
        logger.info(
            f"Saved the pipeline in {output_dir} and {args.eval_batch_size} samples in {output_dir}/samples.png"
        )
        if args.push_to_hub:
            logger.info(f"Uploading it to {uploader.repo_id}; if that fails, push_to_hub uploads it from there later")
            ignore_patterns = [*TRAINING_FILES, f"{args.logging_dir}/*"]
            uploader.upload(output_dir, f"Trained for {global_step} steps", ignore_patterns)
            uploader.close()
    accelerator.end_training()


def training_command(args):
    """The command of this run, without what is secret."""
    words = sys.argv[1:]
    if args.hub_token is not None:
        words = [word.replace(args.hub_token, "...") for word in words]
    return shlex.join(["accelerate", "launch", "examples/train_ddm.py", *words])


def list_checkpoints(output_dir):
    """The folders of checkpoints, in the order of their steps."""
    return sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(name, output_dir):
    """The folder that `--resume_from_checkpoint` names, or None to start from scratch."""
    if name is None:
        return None
    checkpoints = list_checkpoints(output_dir)
    if name == "latest":
        if not checkpoints:
            logger.info(f"There is no checkpoint in {output_dir}: starting from scratch")
        return checkpoints[-1] if checkpoints else None
    checkpoint = output_dir / Path(name).name
    if checkpoint not in checkpoints:
        raise ValueError(
            f"`--resume_from_checkpoint` is {name!r}, but {output_dir} has only {[path.name for path in checkpoints]}."
        )
    return checkpoint


def save_checkpoint(accelerator, output_dir, global_step, total_limit):
    """Save model, average, optimizer, schedule and random states, then delete what is over the limit."""
    accelerator.save_state(output_dir / f"checkpoint-{global_step}")
    if accelerator.is_main_process and total_limit is not None:
        for checkpoint in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(checkpoint)


def log_grid(accelerator, grid, global_step):
    """Send a grid of samples to the trackers."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            pixels = np.asarray(grid)[None]
            tracker.log_images({"samples": pixels}, step=global_step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [grid]}, step=global_step)


if __name__ == "__main__":
    main(parse_args())
