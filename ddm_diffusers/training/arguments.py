# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The options that all training scripts share, the range of each, and the command that repeats a run."""

import argparse
import math
import shlex
from argparse import BooleanOptionalAction
from collections.abc import Callable

from accelerate import Accelerator

from ..presets import PRESETS, training_options
from .objective import RECONSTRUCTIONS, TIMESTEP_DISTRIBUTIONS, WEIGHTINGS


LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
TRACKERS = ("tensorboard", "wandb", "trackio", "none")


# Options that change nothing about the weights that come out. All others have to be the same when a run is resumed.
# gradient_accumulation_steps and train_batch_size are compared as a product, and num_epochs as max_train_steps.
FREE_OPTIONS = """
    cache_dir checkpointing_steps checkpoints_total_limit compile dataloader_num_workers eval_batch_size
    evaluation_samples evaluation_steps feature_extractor gradient_accumulation_steps gradient_checkpointing
    hub_model_id hub_private_repo hub_token latent_cache_dir license logger logging_dir num_epochs num_inference_steps
    output_dir push_every_checkpoint push_to_hub resume_from_checkpoint save_images_epochs save_images_steps seed
    skip_bad_images train_batch_size
""".split()


def number(interval: str = "(-inf, inf)", kind: type = float) -> Callable[[str], float]:
    """
    A `type` for `add_argument` that accepts the numbers of an interval, and never NaN or an infinity.

    Args:
        interval (`str`, defaults to `"(-inf, inf)"`): `"[0, 1)"` accepts 0 and refuses 1.
        kind (`type`, defaults to `float`): `int` accepts whole numbers only.
    """
    low, high = map(float, interval[1:-1].split(","))

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        inside = low < value < high or (value, interval[0]) == (low, "[") or (value, interval[-1]) == (high, "]")
        if not inside:
            noun = "whole number" if kind is int else "number"
            limits = f"of {low:g} or more" if interval[0] == "[" else f"above {low:g}"
            limits = limits if interval.endswith("inf)") and low > -math.inf else f"in {interval}"
            raise argparse.ArgumentTypeError(f"{text!r} is given, but only a {noun} {limits} is accepted.")
        return value

    return parse


COUNT, COUNT_OR_ZERO = number("[1, inf)", int), number("[0, inf)", int)
POSITIVE, NOT_NEGATIVE, PROBABILITY = number("(0, inf)"), number("[0, inf)"), number("[0, 1]")
# Each process adds its number to the seed, and NumPy takes 32 bits.
SEED = number(f"[0, {2**31 - 1}]", int)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the default of each option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of [`load_image_dataset`], [`ImageTransform`] and [`TrainingBatches`]."""
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--dataset_name", help="A data set on the Hub, or a local path that datasets loads.")
    add("--dataset_config_name", help="The configuration of the data set.")
    add("--train_data_dir", help="A folder of images (one subfolder per class, if any), parquet or arrow files.")
    add("--image_column", help="The column of images. Default: the only one.")
    add("--cache_dir", help="The folder for downloaded and converted data sets.")
    add("--streaming", action="store_true", help="Read the data during training, without a local copy.")
    add("--shuffle_buffer_size", type=COUNT, default=1000, help="Images in the shuffle buffer of a stream.")
    add("--resolution", type=COUNT, default=64, help="Height and width of the training images.")
    add("--center_crop", action="store_true", help="Crop at the center instead of at random.")
    add("--random_flip", action=BooleanOptionalAction, default=False, help="Mirror half of the images.")
    add("--image_mode", choices=["L", "RGB"], help="Grayscale or color. Default: the mode of the first image.")
    add("--skip_bad_images", action="store_true", help="Skip images that do not decode.")
    add("--dataloader_num_workers", type=COUNT_OR_ZERO, default=0, help="Worker processes that load the data.")
    return data


def add_latent_arguments(parser: argparse.ArgumentParser, cache: bool = True) -> None:
    """Add the options of [`load_vae`] and, with `cache`, of [`CachedLatents`]."""
    add = parser.add_argument_group("latent space").add_argument
    add("--vae_name_or_path", help="Train in the latent space of this autoencoder: a Hub repository, or a folder.")
    add("--vae_subfolder", help="Its subfolder: vae, if the repository is a pipeline.")
    if cache:
        add("--latent_cache_dir", help="Encode images once, into this folder. Needs --center_crop.")


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of [`ddm_loss`] and [`sample_timesteps`]."""
    add = parser.add_argument_group("objective").add_argument
    add("--weighting", default="velocity", choices=WEIGHTINGS, help="Loss weighting; none: the paper's.")
    add("--reconstruction_weight", type=NOT_NEGATIVE, default=0.0, help="Weight of the reconstruction loss.")
    add("--reconstruction", default="squared", choices=RECONSTRUCTIONS, help="The reconstruction loss, see ddm_loss.")
    switch = {"action": BooleanOptionalAction, "default": False}
    add("--lpips", **switch, help="LPIPS in --reconstruction ddm and adm: `pip install lpips`.")
    add("--use_l1", **switch, help="Average squared and absolute errors, instead of squared errors.")
    add(
        "--t_min",
        type=number("(0, 1)"),
        default=1e-4,
        help="Smallest uniform time, and lower bound in the loss weights.",
    )
    add(
        "--timestep_distribution", default="logit_normal", choices=TIMESTEP_DISTRIBUTIONS, help="uniform: the paper's."
    )
    add("--logit_mean", type=number(), default=0.0, help="Mean of log(sigma / alpha) for logit_normal.")
    add("--logit_std", type=POSITIVE, default=1.0, help="Standard deviation of log(sigma / alpha) for logit_normal.")


def add_preset_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, for a script that has the options of [`~presets.training_options`]."""
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="The method of the authors' release DDM-Public or ADM-Public: network, loss, times and sampler. Options that"
        " you give override it.",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the optimization, and of what [`TrainingRun`] writes."""
    add = parser.add_argument_group("training").add_argument
    add("--train_batch_size", type=COUNT, help="Batch size per process. Default: 16, or 64 for many small images.")
    add("--num_epochs", type=COUNT, default=100, help="Number of passes over all images.")
    add("--max_train_steps", type=COUNT, help="Number of optimizer steps. Overrides --num_epochs.")
    add("--gradient_accumulation_steps", type=COUNT, default=1, help="Batches per optimizer step.")
    add("--learning_rate", type=POSITIVE, default=1e-4, help="Learning rate after the warm-up.")
    add("--lr_scheduler", default="cosine", choices=LR_SCHEDULERS, help="Learning-rate schedule after the warm-up.")
    add("--lr_warmup_steps", type=COUNT_OR_ZERO, help="Warm-up steps. Default: a tenth of the run, at most 500.")
    below_one = number("[0, 1)")
    add("--adam_beta1", type=below_one, default=0.95, help="AdamW beta1.")
    add("--adam_beta2", type=below_one, default=0.999, help="AdamW beta2.")
    add("--adam_weight_decay", type=NOT_NEGATIVE, default=1e-6, help="AdamW weight decay.")
    add("--adam_epsilon", type=POSITIVE, default=1e-8, help="AdamW epsilon.")
    add("--max_grad_norm", type=POSITIVE, default=1.0, help="Clip gradients to this norm.")
    add(
        "--use_ema",
        action=BooleanOptionalAction,
        default=True,
        help="Average the weights, for samples and the result.",
    )
    add("--ema_inv_gamma", type=POSITIVE, default=1.0, help="EMA decay: 1 - (1 + step / ema_inv_gamma)^-ema_power.")
    add("--ema_power", type=POSITIVE, default=3 / 4, help="Exponent of the EMA decay, see --ema_inv_gamma.")
    add("--ema_max_decay", type=PROBABILITY, default=0.9999, help="Upper bound of the EMA decay.")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: the precision of accelerate's config.")
    add("--gradient_checkpointing", action="store_true", help="Use less memory and more time.")
    add("--compile", action="store_true", help="Compile the model with torch.compile.")
    add("--seed", type=SEED, help="Makes the run reproducible. Default: a random seed, or the resumed checkpoint's.")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="ddm-model", help="The folder for pipeline, checkpoints and samples.")
    add("--num_inference_steps", type=COUNT, default=10, help="Inference steps of the samples.")
    add("--save_images_epochs", type=COUNT, default=10, help="Epochs between sample grids.")
    add("--save_images_steps", type=COUNT, help="Steps between sample grids, instead of epochs.")
    add("--eval_batch_size", type=COUNT, default=64, help="Images per sample grid.")
    add("--evaluation_steps", type=COUNT, help="Steps between evaluations. Default: no evaluation.")
    add("--evaluation_samples", type=number("[4, inf)", int), default=1000, help="Images that an evaluation draws.")
    add("--feature_extractor", help="Evaluate with this network, see examples/evaluate.py. Default: Inception.")
    add("--checkpointing_steps", type=COUNT, default=500, help="Steps between checkpoints.")
    add("--checkpoints_total_limit", type=COUNT, help="Number of checkpoints to keep. Default: all.")
    add("--resume_from_checkpoint", help="A checkpoint: its path, its name in output_dir, or `latest`.")
    add("--logger", default="tensorboard", choices=TRACKERS, help="The tracker.")
    add("--logging_dir", default="logs", help="The folder of TensorBoard's files inside output_dir.")
    add("--push_to_hub", action="store_true", help="Upload the pipeline at the end.")
    add("--push_every_checkpoint", action="store_true", help="Upload at every checkpoint too.")
    add("--hub_model_id", help="The repository to upload to. Default: the name of output_dir.")
    add("--hub_token", help="Default: the token that you are logged in with.")
    add("--hub_private_repo", action="store_true", help="Make a new repository private.")
    add("--license", help="The license in the model card, e.g. apache-2.0.")


class Options(argparse.Namespace):
    """The options of a run. Their `defaults` are in a slot, so that `vars` lists the options alone."""

    __slots__ = ("defaults",)


def parse_arguments(
    parser: argparse.ArgumentParser, input_args: list[str] | None = None, digits: dict | None = None
) -> Options:
    """
    Parse the options of a training script and refuse what does not go together.

    Options that are not given are the preset's or, without a data set, those for digits, or else the parser's defaults.

    Args:
        parser (`argparse.ArgumentParser`):
            With the options of [`add_data_arguments`] and [`add_training_arguments`], and others.
        input_args (`list[str]`, *optional*): The command line. Default: the program's.
        digits (`dict`, *optional*): Defaults that replace the parser's and the preset's where no data set is named.
    """
    args, defaults = parser.parse_args(input_args), {}
    if getattr(args, "preset", None) is not None:
        defaults |= training_options(args.preset, args.vae_name_or_path is not None)
    if digits is not None and args.dataset_name is None and args.train_data_dir is None:
        defaults |= digits
    if args.resume_from_checkpoint is not None:
        defaults.pop("seed", None)  # a run that goes on has its checkpoint's
    parser.set_defaults(**{name: value for name, value in defaults.items() if hasattr(args, name)})
    args = parser.parse_args(input_args, Options())
    args.defaults = {name: parser.get_default(name) for name in vars(args)}

    if getattr(args, "lpips", False) and args.reconstruction not in ("ddm", "adm"):
        parser.error(f"--lpips is for --reconstruction ddm and adm, not {args.reconstruction}.")
    channels = getattr(args, "block_out_channels", None)
    if getattr(args, "architecture", "diffusers") == "released" and channels and channels[0] % 2:
        parser.error(f"--block_out_channels are {channels}, but --architecture released needs an even number first.")
    if args.streaming and args.max_train_steps is None:
        parser.error("--max_train_steps is not given. Streaming data sets have no length, so --streaming needs it.")
    if args.streaming and args.evaluation_steps is not None:
        parser.error("--evaluation_steps compares with all images of the data set, which --streaming does not have.")
    if args.feature_extractor is not None and args.evaluation_steps is None:
        parser.error("--feature_extractor is for evaluations. Give --evaluation_steps too.")
    if getattr(args, "latent_cache_dir", None) is not None and not args.center_crop:
        parser.error("--latent_cache_dir keeps one crop of each image and needs --center_crop.")
    if getattr(args, "latent_cache_dir", None) is not None and args.streaming:
        parser.error("--latent_cache_dir needs a data set with numbered rows, not --streaming.")
    if not args.push_to_hub and (args.push_every_checkpoint or args.hub_model_id):
        parser.error("--push_every_checkpoint and --hub_model_id need --push_to_hub.")
    return args


def check_mixed_precision(accelerator: Accelerator) -> None:
    """
    Refuse fp16 on a CPU, where accelerate would train in float32 without a word.

    Raises:
        ValueError: the precision, from `--mixed_precision` or from accelerate's config, is fp16, and the device a CPU.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("`--mixed_precision` is fp16, but a CPU does not train in fp16: give bf16 or no.")


def settings_that_matter(args: argparse.Namespace) -> dict:
    """The options that a run shares with the run it continues: all but `FREE_OPTIONS`, and the seed if it is given."""
    settings = {key: value for key, value in vars(args).items() if key not in FREE_OPTIONS}
    return settings if args.seed is None else settings | {"seed": args.seed}


def command_line(script: str, args: argparse.Namespace, seed: int) -> str | None:
    """
    The command that repeats a run, from its beginning and without secrets: all options that are not the defaults.

    Args:
        script (`str`): The name of the script in `examples/`, without `.py`.
        args (`argparse.Namespace`): The options of the run.
        seed (`int`): The seed of the run, given or drawn.

    Returns:
        `str` or `None`: `None` if the options are not from [`parse_arguments`], and their defaults are not known.
    """
    if not isinstance(args, Options):
        return None
    words = ["accelerate", "launch", f"examples/{script}.py"]
    for name, default in args.defaults.items():
        value = getattr(args, name)
        if name in ("hub_token", "resume_from_checkpoint", "seed") or value in (None, default):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return shlex.join([*words, "--seed", str(seed)])
