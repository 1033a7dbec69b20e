# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What surrounds the loop of a training script: where it is in the data, checkpoints, signals, logs and results."""

import logging
import math
import random
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import datasets
import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import DiffusionPipeline, ModelMixin
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..hub import TRAINING_FILES
from ..model_card import listing, sample_grid
from .arguments import check_mixed_precision, command_line, settings_that_matter
from .checkpoints import PREFIX, Checkpoints, gather, refuse_used_folder
from .data import ImageTransform, TrainingBatches
from .defaults import set_data_defaults, training_length
from .folders import check_output_dir
from .latents import CachedLatents
from .loading import BatchLoader
from .results import keep_best, read_best, save_with_card
from .sharding import WeightAverage, configure_sharding, full_tensors
from .signals import StopSignal
from .steps import StepRecord
from .tracking import Tracking, tolerating_failures
from .upload import HubUploader


logger = get_logger(__name__, log_level="INFO")

# The first steps are slow (compilation, caches): the time of a run is estimated from those between these two.
TIMED_STEPS = (5, 25)


class TrainingRun:
    """
    Everything around the loop of a training script, which itself reads as any loop with Accelerate. A run goes through

        run = TrainingRun(args, "train_ddm")
        run.set_data(transform)
        run.start(unet, ema)  # as the accelerator prepared them
        for batch in run.batches():
            ...  # record, check_step, end_step, save_checkpoint, show_progress: see examples/train_ddm.py
        run.finish(make_pipeline(), settings)

    Every process calls every method.

    Args:
        args (`argparse.Namespace`):
            The options of [`add_data_arguments`], [`add_training_arguments`] and of the script. All but `FREE_OPTIONS` must
            be the same when the run is resumed.
        name (`str`): The name of the script, and of the project in the trackers.

    Attributes:
        accelerator ([`~accelerate.Accelerator`]): Processes, device and precision.
        output_dir (`Path`): Where everything goes.
        global_step (`int`): Optimizer steps so far.
        num_images (`int` or `None`), total_batch_size, steps_per_epoch (`int` or `None`), max_train_steps (`int`):
            The length of the run, after [`~TrainingRun.set_data`]. `None` for a stream.
        card (`dict`): More arguments of [`~model_card.write_model_card`], for results of other packages.
        sample_grid (`Callable`):
            [`~model_card.sample_grid`], or a function with its arguments that a script replaces it with.

    Raises:
        ValueError: `output_dir` holds another run or is inside the data folder, the precision does not suit the device, or
            the Hub refuses the repository or the token.
        ImportError: the tracker is not installed.
    """

    def __init__(self, args: Namespace, name: str):
        self.args = args
        self.name = name
        self.output_dir = Path(args.output_dir)
        for data in (args.train_data_dir, args.dataset_name):
            check_output_dir(args.output_dir, data)
        refuse_used_folder(self.output_dir, args.resume_from_checkpoint)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=None if args.logger == "none" else args.logger,
            project_config=ProjectConfiguration(
                project_dir=self.output_dir, logging_dir=self.output_dir / args.logging_dir
            ),
            # else accelerate advances the learning rate once for each process
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        check_mixed_precision(self.accelerator)
        self.sharding = configure_sharding(self.accelerator, args)
        # a scaler skips steps that are not finite
        deepspeed_scales = self.sharding == "DEEPSPEED" and self.accelerator.mixed_precision == "fp16"
        self.scales_loss = self.accelerator.scaler is not None or deepspeed_scales
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
        # a line for each request of an upload, with its signed address; and for each file of a checkpoint
        for library in ("httpx", "httpx2", "accelerate"):
            logging.getLogger(library).setLevel(logging.WARNING)
        for library in (datasets.utils.logging, diffusers.utils.logging):
            library.set_verbosity_warning() if self.accelerator.is_local_main_process else library.set_verbosity_error()

        # Every process draws the weights of the model from the same seed.
        seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
        self.seed = gather(self.accelerator, [seed])[0]
        set_seed(self.seed)

        self.tracking = Tracking(self.accelerator, name, args)
        self.uploader = None
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if args.push_to_hub:
                self.uploader = HubUploader(
                    args.hub_model_id or self.output_dir.name, args.hub_token, args.hub_private_repo
                )
        self.card, self.sample_grid = {}, sample_grid
        self.global_step, self._position, self.best = 0, (0, 0), math.inf
        self.bad_images, self._bad_image_names = 0, set()
        self._stop, self._stop_signal = False, StopSignal()
        self._until_finished = ExitStack()

    # ------------------------------------------------------------------------------------------------------------ set-up
    def set_data(self, transform: ImageTransform | CachedLatents, size: int | None = None) -> None:
        """
        Take the data set, which sets the length of the run and the options that [`set_data_defaults`] lists.

        Args:
            transform ([`ImageTransform`] or [`CachedLatents`]): With the data set.
            size (`int`, *optional*): Height and width of what the model is trained on. Default: the resolution.

        Raises:
            ValueError: the data set is a stream and `--max_train_steps` is not given.
        """
        args, self.transform = self.args, transform
        set_data_defaults(args, transform, size or args.resolution, self.accelerator)
        self.num_images = len(transform.dataset) if hasattr(transform.dataset, "__len__") else None
        self.total_batch_size, self.steps_per_epoch, self.max_train_steps = training_length(
            args, self.num_images, self.accelerator
        )
        self.save_images_steps = args.save_images_steps
        if self.save_images_steps is None and self.steps_per_epoch is not None:
            self.save_images_steps = args.save_images_epochs * self.steps_per_epoch

    def start(self, model: torch.nn.Module, ema: WeightAverage | None = None) -> None:
        """
        Resume if `--resume_from_checkpoint` asks for it, and start the tracker.

        Args:
            model (`torch.nn.Module`): The model as the accelerator prepared it.
            ema ([`WeightAverage`], *optional*): The average of its weights.

        Raises:
            ValueError: the checkpoint does not exist or belongs to a run with other settings.
        """
        args, accelerator = self.args, self.accelerator
        self.model, self.ema = model, ema
        unwrapped = accelerator.unwrap_model(model)
        self.num_parameters = unwrapped.num_parameters()
        set_seed(self.seed, device_specific=True)  # for dropout, which differs between processes
        accelerator.register_for_checkpointing(self)
        self.checkpoints = Checkpoints(self.output_dir, self._settings(unwrapped), args.checkpoints_total_limit)
        if accelerator.is_main_process:
            self.checkpoints.remove_leftovers()
        accelerator.wait_for_everyone()
        checkpoint = self.checkpoints.find(args.resume_from_checkpoint)
        if checkpoint is not None:
            logger.info(f"Resuming from {checkpoint}")
            accelerator.load_state(checkpoint)
            self.best = read_best(self.output_dir, self.global_step)
        self.checkpoints.settings["seed"] = self.seed  # drawn, given, or the checkpoint's
        self.tracking.start(self.global_step)

        transform = self.transform
        images = "a stream of images" if self.num_images is None else f"{self.num_images:,} images"
        size = f"{transform.channels} x {args.resolution} x {args.resolution}"
        logger.info(
            f"Training {self.num_parameters:,} parameters on {images} of {size}"
            f" ({'grayscale' if transform.channels == 1 else 'color'}) for {self.max_train_steps:,} steps of"
            f" {self.total_batch_size} images, seed {self.seed}"
        )

    def _settings(self, model: ModelMixin) -> dict:
        """What has to be the same when the run is resumed."""
        settings = settings_that_matter(self.args) | {
            "total_batch_size": self.total_batch_size,
            "max_train_steps": self.max_train_steps,
            "num_images": self.num_images,
            "mixed_precision": self.accelerator.mixed_precision,
            "sharding": self.sharding,
            "model": {key: value for key, value in model.config.items() if not key.startswith("_")},
        }
        if self.args.lr_scheduler.startswith("constant"):
            del settings["max_train_steps"]  # such a run can be made longer
        return settings

    def state_dict(self) -> dict:
        """The progress of the run, for its checkpoints."""
        return {
            "global_step": self.global_step,
            "position": self._position,
            "seed": self.seed,
            "bad_images": self.bad_images,
            "bad_image_names": sorted(self._bad_image_names),
            "tracker_ids": self.tracking.ids,
        }

    def load_state_dict(self, state: dict) -> None:
        self.global_step, self._position, self.seed = state["global_step"], tuple(state["position"]), state["seed"]
        self.bad_images, self._bad_image_names = state["bad_images"], set(state["bad_image_names"])
        self.tracking.ids = state["tracker_ids"]

    # ----------------------------------------------------------------------------------------------------------- the loop
    def batches(self) -> Iterator[dict]:
        """
        Batches on the device until `max_train_steps`, each with `generators`, one for the noise of each example.

        From the first batch to [`~TrainingRun.finish`], a SIGTERM or Ctrl-C is only noted. The next
        [`~TrainingRun.save_checkpoint`] then ends the run, or `finish` after the last step. A second signal, some seconds
        later, ends the process at once.
        """
        args, accelerator = self.args, self.accelerator
        batches = TrainingBatches(
            self.transform,
            args.train_batch_size,
            self.seed,
            accelerator.process_index,
            accelerator.num_processes,
            position=self._position,
            skip_bad_images=args.skip_bad_images,
            shuffle_buffer_size=args.shuffle_buffer_size,
        )
        self._batches = BatchLoader(batches, accelerator.device, args.dataloader_num_workers)
        self._seconds = []
        self._progress_bar = tqdm(
            total=self.max_train_steps,
            initial=self.global_step,
            disable=not accelerator.is_local_main_process,
            unit="step",
            smoothing=0.05,
        )
        self.model.train()
        with ExitStack() as signals:
            signals.enter_context(self._stop_signal)
            with logging_redirect_tqdm(), self._progress_bar:  # log lines stand above the progress bar
                if self.global_step < self.max_train_steps:
                    yield from self._until_last_step()
                else:
                    logger.info(f"All {self.global_step:,} steps are done: saving the result again")
            self._until_finished = signals.pop_all()  # a signal is noted until the result is there
        if self.bad_images:
            logger.info(f"Skipped bad images: {len(self._bad_image_names):,}, drawn {self.bad_images:,} times")

    def _until_last_step(self) -> Iterator[dict]:
        self._begin_step()
        for batch in self._batches:
            if self._batches.failure is not None and self.sharding == "DEEPSPEED":
                raise self._batches.failure  # its update comes with the gradient, too soon to drop the step
            yield batch
            if self.accelerator.sync_gradients:
                if self.global_step >= self.max_train_steps:
                    return
                self._begin_step()

    def _begin_step(self) -> None:
        self._batches.begin_step()
        self._record = StepRecord()

    def record(self, **losses: torch.Tensor) -> None:
        """Note the losses of a batch, 0-d; their means over the step and the processes are logged."""
        self._record.add(losses)

    def check_step(self, grad_norm: torch.Tensor | float) -> None:
        """
        Make sure that a step may be taken. Call this after the gradients are clipped and before the optimizer steps.

        Args:
            grad_norm (`torch.Tensor` or `float`): What [`~accelerate.Accelerator.clip_grad_norm_`] returned.

        Raises:
            FloatingPointError: the loss or its gradient is not finite, and there is no loss scaler, which would skip the
                step. The state before this step is saved in `nonfinite-{step}`.
            RuntimeError: a process could not load a batch. The state before this step is saved as a checkpoint.
        """
        batches = self._batches
        new = {name: message for name, message in batches.bad_images if name not in self._bad_image_names}
        counts = [batches.failure is not None, self._stop_signal.number or 0, len(batches.bad_images), len(new)]
        num_batches = self.accelerator.gradient_accumulation_steps
        reduced = self._record.reduce(self.accelerator, num_batches, grad_norm, counts)
        self._logs, (failed, stop, num_bad, num_new) = reduced
        if failed:
            self._stop_at_failed_load()
        if not all(map(math.isfinite, self._logs.values())) and not self.scales_loss:
            self._stop_at_nonfinite()
        self._stop = stop > 0
        self.bad_images += int(num_bad)
        if num_new:  # on whichever process; every process then knows of all of them
            new = dict(gather(self.accelerator, list(new.items())))
            for message in new.values():
                logger.warning(f"Skipped: {message}")
            self._bad_image_names |= new.keys()

    def end_step(self, **logs: float) -> None:
        """Count a step and log it: the losses, the norm of the gradient, the speed, and `logs`."""
        self.global_step += 1
        self._position = self._batches.position
        self._record.end()
        self._seconds.append(self._record.seconds)
        if len(self._seconds) == TIMED_STEPS[1]:
            seconds = sum(self._seconds[TIMED_STEPS[0] :]) / (TIMED_STEPS[1] - TIMED_STEPS[0])
            left = round(seconds * (self.max_train_steps - self.global_step) / 60)
            logger.info(f"A step takes {seconds:.3g} s; the other steps take about {left // 60} h {left % 60} min.")
        logs = self._logs | logs | {"images_per_second": self.total_batch_size / self._record.seconds}
        if self.accelerator.optimizer_step_was_skipped:
            logs["skipped"] = 1.0  # by the loss scaler, as the gradient is not finite
        if self.bad_images:
            logs["bad_images"] = self.bad_images
        self.tracking.log(logs, self.global_step)
        self._progress_bar.update(1)
        shown = {"loss": ".4f", "lr": ".1e", "images_per_second": ".0f"}
        self._progress_bar.set_postfix({key: format(logs[key], spec) for key, spec in shown.items() if key in logs})

    def is_due(self, every: int | None) -> bool:
        """Whether the number of the step that just ended is a multiple of `every`; never for `None`."""
        return every is not None and self.global_step % every == 0

    @property
    def should_save(self) -> bool:
        """Whether a checkpoint is due: every `--checkpointing_steps`, after the last step, and when a signal came."""
        return self._stop or self.is_due(self.args.checkpointing_steps) or self.global_step >= self.max_train_steps

    def save_checkpoint(self) -> None:
        """Save a checkpoint. If a signal came before the last step, end the trackers and exit with 128 + its number."""
        path = self.checkpoints.save(self.accelerator, f"{PREFIX}{self.global_step}")
        if path is not None:
            self.tracking.restart(self.global_step)  # there is room on the disk again
        if self._stop:
            signals = gather(self.accelerator, [self._stop_signal.number])
            self._progress_bar.close()
            if path is not None:
                logger.warning(f"Saved {path}; --resume_from_checkpoint latest continues from there")
            self.tracking.end(self.global_step)
            sys.exit(128 + next(number for number in signals if number is not None))

    # ------------------------------------------------------------------------------------------------------ its early ends
    def _stop_at_nonfinite(self) -> None:
        """Save the state as it was before this step, and say what was seen in it."""
        self._record.restore_random_state()
        examples = gather(self.accelerator, self._batches.examples)
        step, name = self.global_step + 1, f"nonfinite-{self.global_step + 1}"
        path = self.checkpoints.save(self.accelerator, name)
        saved = f" --resume_from_checkpoint {name} repeats this step." if path is not None else ""
        values = ", ".join(f"{key} {value:g}" for key, value in self._logs.items())
        raise FloatingPointError(
            f"Step {step} is not finite: {values}. Its images are {listing(examples, 64)} as (epoch, row). The weights are as"
            f" they were before it.{saved}"
        )

    def _stop_at_failed_load(self) -> None:
        """Save the state as it was before this step, and say which process could not load its batch, and why."""
        self._record.restore_random_state()
        failure = self._batches.failure
        messages = gather(self.accelerator, [None if failure is None else str(failure)])
        path = self.checkpoints.save(self.accelerator, f"{PREFIX}{self.global_step}")
        self._progress_bar.close()
        message = next(message for message in messages if message is not None)
        if path is not None:
            message += f" Saved {path}; --resume_from_checkpoint latest continues from there."
        raise RuntimeError(message) from failure

    # ------------------------------------------------------------------------------------------------------------- results
    def trained_model(self) -> ModelMixin:
        """A copy of the model in float32, with the averaged weights if there is an average."""
        model = self.accelerator.unwrap_model(self.model)
        with torch.random.fork_rng(devices=[]):  # whatever is drawn here must not change the run
            copy = type(model).from_config(model.config)
        weights = self.model.parameters() if self.ema is None else self.ema.shadow_params
        for parameter, weight in zip(copy.parameters(), full_tensors(weights), strict=True):
            parameter.data.copy_(weight)
        return copy.to(self.accelerator.device).eval()

    def show_progress(self, make_result: Callable[[], DiffusionPipeline | ModelMixin], settings: dict) -> None:
        """
        Draw samples and upload the result so far, where `--save_images_steps` (or epochs) and `--push_every_checkpoint` ask
        for it after this step. A failure is logged and does not end the run.

        Args:
            make_result (`Callable`): Returns the result so far, with [`~TrainingRun.trained_model`].
            settings (`dict`): Rows of the model card, besides those that all runs have.
        """
        args = self.args
        draws = self.is_due(self.save_images_steps)
        uploads = args.push_every_checkpoint and self.is_due(args.checkpointing_steps)
        if not (draws or uploads):
            return
        result = make_result()
        if draws and self.accelerator.is_main_process:
            with tolerating_failures("drawing samples", self.global_step):
                self._log_images(self.sample_grid(result, args.eval_batch_size, args.num_inference_steps))
        if uploads and self.accelerator.is_main_process:
            step = self.global_step
            with tolerating_failures("the upload", step), self.uploader.snapshot(f"Step {step}") as folder:
                self._save(result, folder, settings)

    def evaluate(self, make_result: Callable[[], DiffusionPipeline], distance: Callable, name: str = "fid") -> None:
        """
        Log a distance of the result so far, and keep the result in `best/` if it is the smallest so far. A failure is logged
        and does not end the run, unless there are several processes, which would wait for each other.

        Args:
            make_result (`Callable`): Returns the result so far, with [`~TrainingRun.trained_model`].
            distance (`Callable`): From the result to its distance on the main process; every process calls it.
            name (`str`): The name of the distance in the log.
        """
        result, value = make_result(), None
        alone = self.accelerator.num_processes == 1
        with tolerating_failures("the evaluation", self.global_step) if alone else nullcontext():
            value = distance(result)
        if value is None or not self.accelerator.is_main_process:
            return
        self.tracking.log({name: value}, self.global_step)
        logger.info(f"Step {self.global_step}: {name} {value:.4g}, best so far {min(value, self.best):.4g}")
        if value < self.best:
            with tolerating_failures("keeping the best", self.global_step):
                keep_best(self.output_dir, result, self.global_step, value)
                self.best = value

    def _log_images(self, grid) -> None:
        """Save a grid of samples in `samples/` and send it to the tracker."""
        path = self._samples_path
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        self.tracking.log_image("samples", grid, path, self.global_step)

    @property
    def _samples_path(self) -> Path:
        return self.output_dir / "samples" / f"step-{self.global_step:07d}.png"

    def _save(self, result: DiffusionPipeline | ModelMixin, folder: Path, settings: dict):
        """Save a result with its samples and its model card; returns the samples, or `None` if drawing them failed."""
        args = self.args
        named = args.dataset_name and not Path(args.dataset_name).exists()
        return save_with_card(
            result,
            folder,
            lambda loaded: self.sample_grid(loaded, args.eval_batch_size, args.num_inference_steps),
            repo_id=self.uploader.repo_id if self.uploader is not None else str(self.output_dir),
            license=args.license,
            datasets=args.dataset_name if named else None,
            training_command=command_line(self.name, args, self.seed),
            settings={
                "parameters": self.num_parameters,
                "steps": self.global_step,
                "batch size": self.total_batch_size,
                "learning rate": args.learning_rate,
                "seed": self.seed,
                **settings,
            },
            **self.card,
        )

    def finish(self, result: DiffusionPipeline | ModelMixin, settings: dict) -> None:
        """
        Save the result, upload it with `--push_to_hub`, and end the tracker. Then exit with 1 if that upload failed, or
        with 128 + the number of a signal that came after the last step.

        Args:
            result ([`~diffusers.DiffusionPipeline`] or a model): The result, with [`~TrainingRun.trained_model`].
            settings (`dict`): Rows of the model card, besides those that all runs have.
        """
        args, uploaded = self.args, True
        with self._until_finished:
            if self.accelerator.is_main_process:
                grid = self._save(result, self.output_dir, settings)
                logger.info(f"Saved the result in {self.output_dir}")
                if grid is not None and not self._samples_path.exists():  # not drawn after the last step
                    with tolerating_failures("saving samples", self.global_step):
                        self._log_images(grid)
            if self.uploader is not None:
                logger.info(f"Uploading {self.output_dir} to {self.uploader.repo_id}")
                ignored = [*TRAINING_FILES, f"{args.logging_dir}/*"]
                self.uploader.upload(self.output_dir, f"Trained for {self.global_step} steps", ignored)
                uploaded = self.uploader.close()
            self.tracking.end(self.global_step)
        if not uploaded:
            logger.error(f"The result is in {self.output_dir}; push_to_hub of its pipeline uploads it later")
        if self._stop_signal.number is not None or not uploaded:
            sys.exit(128 + self._stop_signal.number if self._stop_signal.number is not None else 1)
