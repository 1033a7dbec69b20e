# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The options that all training scripts share."""

import argparse

from ..presets import PRESETS, training_options
from .objective import RECONSTRUCTIONS, TIMESTEP_DISTRIBUTIONS, WEIGHTINGS


LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
TRACKERS = ("tensorboard", "wandb", "trackio", "none")
AT_LEAST_ONE = (
    "resolution",
    "train_batch_size",
    "num_epochs",
    "max_train_steps",
    "gradient_accumulation_steps",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "patch_size",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "save_images_epochs",
    "save_images_steps",
    "eval_batch_size",
    "evaluation_steps",
    "shuffle_buffer_size",
)
# Options that change nothing about the weights that come out. All others have to be the same when a run is resumed.
FREE_OPTIONS = (
    "cache_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "compile",
    "dataloader_num_workers",
    "eval_batch_size",
    "evaluation_samples",
    "evaluation_steps",
    "feature_extractor",
    "gradient_accumulation_steps",  # the product with the next ones is compared
    "gradient_checkpointing",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
    "latent_cache_dir",
    "license",
    "logger",
    "logging_dir",
    "num_epochs",
    "num_inference_steps",
    "output_dir",
    "push_every_checkpoint",
    "push_to_hub",
    "resume_from_checkpoint",
    "save_images_epochs",
    "save_images_steps",
    "seed",  # it is taken from the checkpoint if it is not given
    "skip_bad_images",  # what a run asks for that has met one
    "train_batch_size",
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the default of each option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of [`load_image_dataset`], [`ImageTransform`] and [`TrainingBatches`]."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="A data set on the Hub, or a local path that datasets can load.")
    data.add_argument("--dataset_config_name", help="The configuration of the data set.")
    data.add_argument(
        "--train_data_dir",
        help="A folder of images (a subfolder for each class, if any), of parquet or of arrow files.",
    )
    data.add_argument("--cache_dir", help="Where downloaded and converted data sets are kept.")
    data.add_argument("--streaming", action="store_true", help="Read the data as they are needed, without a copy.")
    data.add_argument(
        "--shuffle_buffer_size", type=int, default=1000, help="From how many images of a stream the next is drawn."
    )
    data.add_argument("--resolution", type=int, default=64, help="Height and width of the training images.")
    data.add_argument("--center_crop", action="store_true", help="Crop at the center instead of at random.")
    data.add_argument(
        "--random_flip", action=argparse.BooleanOptionalAction, default=False, help="Mirror half of the images."
    )
    data.add_argument("--image_mode", choices=["L", "RGB"], help="Grey or colour. Default: as the first image is.")
    data.add_argument(
        "--skip_bad_images", action="store_true", help="Leave images out that do not decode, instead of stopping."
    )
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="0 loads in the main process.")
    return data


def add_latent_arguments(parser: argparse.ArgumentParser, cache: bool = True) -> None:
    """Add the options of [`load_vae`] and, with `cache`, of [`CachedLatents`]."""
    latents = parser.add_argument_group("latent space")
    latents.add_argument(
        "--vae_name_or_path", help="Train in the latent space of this autoencoder: on the Hub, or a folder."
    )
    latents.add_argument("--vae_subfolder", help="Where it is in there; vae, if it is a pipeline.")
    if cache:
        latents.add_argument(
            "--latent_cache_dir", help="Encode all images once, into this folder. Needs --center_crop."
        )


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of [`ddm_loss`] and [`sample_timesteps`]."""
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--weighting", default="velocity", choices=WEIGHTINGS, help="Weighting of the loss; none: the paper's."
    )
    objective.add_argument(
        "--reconstruction_weight", type=float, default=0.0, help="Weight of the clean image's error."
    )
    objective.add_argument(
        "--reconstruction", default="squared", choices=RECONSTRUCTIONS, help="Which error that is, see ddm_loss."
    )
    objective.add_argument(
        "--lpips",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="LPIPS in that error, for --reconstruction ddm and adm; needs the package lpips.",
    )
    objective.add_argument(
        "--use_l1",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Mean of squared and absolute errors instead of squared ones.",
    )
    objective.add_argument(
        "--t_min", type=float, default=1e-4, help="The smallest of uniform times, also of the weights; in (0, 1)."
    )
    objective.add_argument(
        "--timestep_distribution",
        default="logit_normal",
        choices=TIMESTEP_DISTRIBUTIONS,
        help="How training times are drawn; uniform: the paper's.",
    )
    objective.add_argument("--logit_mean", type=float, default=0.0, help="Of log(sigma / alpha), if logit_normal.")
    objective.add_argument("--logit_std", type=float, default=1.0, help="Of log(sigma / alpha), if logit_normal.")


def add_preset_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, for a script that has the options of [`~presets.training_options`]."""
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="The method of the authors' release DDM-Public or ADM-Public: network, loss, times and sampler. Other options"
        " replace its own.",
    )


def parse_with_defaults(
    parser: argparse.ArgumentParser, input_args: list[str] | None, digits: dict | None = None
) -> argparse.Namespace:
    """
    Parse the options; those that are not given are the preset's, or, without a data set, those for digits.

    Args:
        parser (`argparse.ArgumentParser`): With the options of a training script.
        input_args (`list[str]`, *optional*): The command line. Default: that of the program.
        digits (`dict`, *optional*): What replaces the defaults, and the preset's, where no data set is named.
    """
    args = parser.parse_args(input_args)
    if getattr(args, "preset", None) is not None:
        options = training_options(args.preset, args.vae_name_or_path is not None)
        parser.set_defaults(**{name: value for name, value in options.items() if hasattr(args, name)})
    if digits is not None and args.dataset_name is None and args.train_data_dir is None:
        parser.set_defaults(**{name: value for name, value in digits.items() if hasattr(args, name)})
    return parser.parse_args(input_args)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the optimization, and what [`TrainingRun`] writes."""
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train_batch_size", type=int, help="Batch size per process. Default: 16, or 64 for many small images."
    )
    training.add_argument("--num_epochs", type=int, default=100, help="How often all images are seen.")
    training.add_argument("--max_train_steps", type=int, help="Optimizer steps; overrides num_epochs.")
    training.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimizer step.")
    training.add_argument("--learning_rate", type=float, default=1e-4, help="After the warm-up.")
    training.add_argument(
        "--lr_scheduler", default="cosine", choices=LR_SCHEDULERS, help="The learning rate after the warm-up."
    )
    training.add_argument(
        "--lr_warmup_steps",
        type=int,
        help="Steps until the learning rate is reached. Default: a tenth of the run, at most 500.",
    )
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
    training.add_argument("--compile", action="store_true", help="Compile the model with torch.compile.")
    training.add_argument("--seed", type=int, help="Makes the run reproducible.")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default="ddm-model", help="Where pipeline, checkpoints and samples go.")
    output.add_argument("--num_inference_steps", type=int, default=10, help="Steps of the samples.")
    output.add_argument("--save_images_epochs", type=int, default=10, help="Epochs between grids of samples.")
    output.add_argument("--save_images_steps", type=int, help="Steps between grids of samples, instead of epochs.")
    output.add_argument("--eval_batch_size", type=int, default=64, help="Images in a grid of samples.")
    output.add_argument("--evaluation_steps", type=int, help="Steps between evaluations. Default: none.")
    output.add_argument("--evaluation_samples", type=int, default=1000, help="Images that an evaluation draws.")
    output.add_argument(
        "--feature_extractor", help="Of the evaluation, as for examples/evaluate.py. Default: Inception."
    )
    output.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints.")
    output.add_argument("--checkpoints_total_limit", type=int, help="How many checkpoints to keep.")
    output.add_argument("--resume_from_checkpoint", help="A checkpoint's folder name, or `latest`.")
    output.add_argument("--logger", default="tensorboard", choices=TRACKERS, help="Tracker.")
    output.add_argument("--logging_dir", default="logs", help="Where TensorBoard's files go, inside output_dir.")
    output.add_argument("--push_to_hub", action="store_true", help="Upload the pipeline at the end.")
    output.add_argument(
        "--push_every_checkpoint", action="store_true", help="Upload in the background at every checkpoint as well."
    )
    output.add_argument("--hub_model_id", help="The repository to upload to. Default: the name of output_dir.")
    output.add_argument("--hub_token", help="Default: the token that you are logged in with.")
    output.add_argument("--hub_private_repo", action="store_true", help="Create a private repository.")
    output.add_argument("--license", help="The licence that the model card names, apache-2.0 say.")


def check_training_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a message about options that contradict each other or are out of range."""
    for name in AT_LEAST_ONE:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, but has to be 1 or more.")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed is {args.seed}, but has to be 0 or more.")
    if getattr(args, "logit_std", 1.0) <= 0:
        parser.error(f"--logit_std is {args.logit_std}, but has to be above 0.")
    if not 0 < getattr(args, "t_min", 0.5) < 1:
        parser.error(f"--t_min is {args.t_min}, but has to be in (0, 1).")
    if getattr(args, "lpips", False) and args.reconstruction not in ("ddm", "adm"):
        parser.error(f"--lpips is for --reconstruction ddm and adm, not {args.reconstruction}.")
    if args.streaming and args.max_train_steps is None:
        parser.error("--max_train_steps is not given, but --streaming needs it: a stream does not tell its length.")
    if args.streaming and args.evaluation_steps is not None:
        parser.error("--evaluation_steps compares with all images of the data set, which --streaming does not have.")
    if args.feature_extractor is not None and args.evaluation_steps is None:
        parser.error("--feature_extractor is for the evaluation, which --evaluation_steps asks for.")
    if args.evaluation_samples < 4:
        parser.error(f"--evaluation_samples is {args.evaluation_samples}, but has to be 4 or more.")
    if getattr(args, "latent_cache_dir", None) is not None:
        if not args.center_crop:
            parser.error("--latent_cache_dir keeps one crop of each image and needs --center_crop.")
        if args.streaming:
            parser.error("--latent_cache_dir needs a data set whose rows have numbers, not --streaming.")
    if not args.push_to_hub and (args.push_every_checkpoint or args.hub_model_id):
        parser.error("--push_every_checkpoint and --hub_model_id need --push_to_hub.")


def settings_that_matter(args: argparse.Namespace) -> dict:
    """The options that a run has to share with the one that it continues: all but `FREE_OPTIONS`."""
    settings = {key: value for key, value in vars(args).items() if key not in FREE_OPTIONS}
    return settings if args.seed is None else settings | {"seed": args.seed}
