# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What happens around the steps of a training run, whatever is trained: the part that all training scripts share."""

import logging
import math
import random
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import datasets
import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from ..model_card import sample_grid
from .arguments import settings_that_matter
from .checkpoints import PREFIX, Checkpoints
from .data import ImageTransform, TrainingBatches
from .loading import BatchLoader
from .results import ResultsMixin
from .sharding import WeightAverage, configure_sharding, whole
from .signals import StopSignal
from .steps import StepRecord
from .tracking import Tracking
from .upload import HubUploader


logger = get_logger(__name__, log_level="INFO")


class TrainingRun(ResultsMixin):
    """
    A training run with everything but its objective: processes and precision through Accelerate, the optimizer and the
    average of the weights, data, checkpoints, signals, logs, uploads.

        run = TrainingRun(args, "train_ddm")
        ...
        unet = run.prepare(unet, transform)
        for batch in run:
            ...
            with run.accumulate():
                run.optimize(loss, parts)

    `args` are the options of [`add_training_arguments`] and those of the script, which all count as settings that a run
    has to share with the one that it continues, but for `FREE_OPTIONS`.

    Args:
        args (`argparse.Namespace`): The options.
        name (`str`): The name of the project in the trackers, and of the script.

    Attributes:
        accelerator ([`~accelerate.Accelerator`]): Of the run.
        global_step (`int`): Optimizer steps so far.
        output_dir (`Path`): Where everything goes.
        sample_grid (`Callable`):
            [`~hub.sample_grid`], or what a script puts in its place: `(pipeline, num_images, num_inference_steps)` to the
            picture of the model card.
    """

    def __init__(self, args: Namespace, name: str):
        self.args = args
        self.name = name
        self.output_dir = Path(args.output_dir)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=None if args.logger == "none" else args.logger,
            project_config=ProjectConfiguration(
                project_dir=self.output_dir, logging_dir=self.output_dir / args.logging_dir
            ),
            # it would advance the schedule once for each process
            step_scheduler_with_optimizer=False,
        )
        self.mixed_precision = self.accelerator.mixed_precision
        self.sharding = configure_sharding(self.accelerator, args)
        # a scaler skips steps that are not finite
        deepspeed_scales = self.sharding == "DEEPSPEED" and self.mixed_precision == "fp16"
        self.scales_loss = self.accelerator.scaler is not None or deepspeed_scales
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
        # a line for each request of an upload, with its signed address; and for each file of a checkpoint
        for library in ("httpx", "httpx2", "accelerate"):
            logging.getLogger(library).setLevel(logging.WARNING)
        for library in (datasets.utils.logging, diffusers.utils.logging):
            library.set_verbosity_warning() if self.accelerator.is_local_main_process else library.set_verbosity_error()

        # Every process draws the weights of the model from the same seed.
        seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
        self.seed = self._gather([seed])[0]
        set_seed(self.seed)

        self.uploader = None
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if args.push_to_hub:
                self.uploader = HubUploader(
                    args.hub_model_id or self.output_dir.name, args.hub_token, args.hub_private_repo
                )
        self.sample_grid = sample_grid
        self.global_step = 0
        self.best = math.inf
        self.bad_images = 0
        self._bad_image_names = set()
        self._pictured_step = 0
        self.tracking = Tracking(self.accelerator, name, args)
        self._stop_signal = StopSignal()
        self._until_finished = ExitStack()

    # ------------------------------------------------------------------------------------------------------------ set-up
    def prepare(self, model: ModelMixin, transform: ImageTransform) -> torch.nn.Module:
        """
        Set up the optimizer, the average of the weights and the batches, and resume if that is asked for.

        Args:
            model ([`~diffusers.ModelMixin`]): What is trained; its weights in float32.
            transform ([`ImageTransform`]): With the data set.

        Returns:
            `torch.nn.Module`: the model to call.

        Raises:
            ValueError: the checkpoint to resume from does not exist or belongs to a run with other settings.
        """
        args, accelerator = self.args, self.accelerator
        self.transform = transform
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if args.compile:
            model.compile()
        self.num_parameters = model.num_parameters()
        # accelerate's configuration goes before the option
        self.accumulation_steps = accelerator.gradient_accumulation_steps
        self.total_batch_size = args.train_batch_size * accelerator.num_processes * self.accumulation_steps
        # the length of an epoch in steps; a stream does not tell it
        self.num_images = len(transform.dataset) if hasattr(transform.dataset, "__len__") else None
        self.steps_per_epoch = math.ceil((self.num_images or 0) / self.total_batch_size) or None
        if args.max_train_steps is None and self.steps_per_epoch is None:
            raise ValueError(
                "`--max_train_steps` is None, but has to be given for a stream, whose length is not known."
            )
        self.max_train_steps = args.max_train_steps or args.num_epochs * self.steps_per_epoch
        self.save_images_steps = args.save_images_steps
        if self.save_images_steps is None and self.steps_per_epoch is not None:
            self.save_images_steps = args.save_images_epochs * self.steps_per_epoch

        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_train_steps,
        )
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)
        self.ema = None
        if args.use_ema:
            # of what the optimizer steps on: with FSDP each process averages its own part
            self.ema = WeightAverage(
                accelerator,
                self.model.parameters(),
                decay=args.ema_max_decay,
                use_ema_warmup=True,
                inv_gamma=args.ema_inv_gamma,
                power=args.ema_power,
            )
        # from here on each process has its own, for dropout
        set_seed(self.seed, device_specific=True)
        self._position = (0, 0)
        accelerator.register_for_checkpointing(self)

        self.checkpoints = Checkpoints(self.output_dir, self._settings(model), args.checkpoints_total_limit)
        if accelerator.is_main_process:
            self.checkpoints.remove_leftovers()
        accelerator.wait_for_everyone()
        checkpoint = self.checkpoints.find(args.resume_from_checkpoint)
        if checkpoint is not None:
            logger.info(f"Resuming from {checkpoint}")
            accelerator.load_state(checkpoint)
        elif self.checkpoints.list():
            logger.warning(
                f"{self.output_dir} has checkpoints of another run, up to {self.checkpoints.list()[-1].name}, which"
                " --resume_from_checkpoint latest would go on from."
            )
        self.tracking.start(self.global_step)

        images = "a stream of images" if self.num_images is None else f"{self.num_images:,} images"
        size = f"{transform.channels} x {args.resolution} x {args.resolution}"
        logger.info(
            f"Training {self.num_parameters:,} parameters on {images} of {size}"
            f" ({'grey' if transform.channels == 1 else 'colour'}) for {self.max_train_steps:,} steps of {self.total_batch_size} images, seed {self.seed}"
        )
        if 2 * args.lr_warmup_steps > self.max_train_steps:
            logger.warning(
                f"--lr_warmup_steps is {args.lr_warmup_steps}, more than half of the {self.max_train_steps} steps: the"
                " learning rate is low for most of the run. Give fewer."
            )
        return self.model

    def _settings(self, model: ModelMixin) -> dict:
        """What has to be the same when the run is resumed."""
        settings = settings_that_matter(self.args) | {
            "total_batch_size": self.total_batch_size,
            "max_train_steps": self.max_train_steps,
            "num_images": self.num_images,
            "mixed_precision": self.mixed_precision,
            "sharding": self.sharding,
            "model": {key: value for key, value in model.config.items() if not key.startswith("_")},
        }
        if self.args.lr_scheduler.startswith("constant"):
            del settings["max_train_steps"]  # such a run can be made longer
        return settings

    def state_dict(self) -> dict:
        """How far the run is, for its checkpoints."""
        return {
            "global_step": self.global_step,
            "position": self._position,
            "seed": self.seed,
            "best": self.best,
            "bad_images": self.bad_images,
            "bad_image_names": sorted(self._bad_image_names),
            "pictured_step": self._pictured_step,
            "tracker_ids": self.tracking.ids,
        }

    def load_state_dict(self, state: dict) -> None:
        self.global_step, self._position, self.seed = state["global_step"], tuple(state["position"]), state["seed"]
        self.best, self.bad_images, self._pictured_step = state["best"], state["bad_images"], state["pictured_step"]
        self._bad_image_names = set(state["bad_image_names"])
        self.tracking.ids = state["tracker_ids"]

    # ----------------------------------------------------------------------------------------------------------- the loop
    def __iter__(self) -> Iterator[dict]:
        """
        Batches on the device until `max_train_steps`, each with `generators`, one for the noise of each example.

        Between them happens what belongs to the end of a step. A SIGTERM or Ctrl-C ends the run after the step that is
        under way: it saves a checkpoint and exits with 128 and the number of the signal. After the last step it is
        [`~TrainingRun.finish`] that does so, when the result is there. A second one, some seconds later, ends the run at
        once.
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
        progress_bar = tqdm(
            total=self.max_train_steps,
            initial=self.global_step,
            disable=not accelerator.is_local_main_process,
            unit="step",
            smoothing=0.05,
        )
        with ExitStack() as signals:
            signals.enter_context(self._stop_signal)
            with progress_bar as self._progress_bar:
                if self.global_step < self.max_train_steps:
                    yield from self._steps()
                else:
                    logger.info(f"No step is left to do after {self.global_step:,}: the result is saved again")
            self._until_finished = signals.pop_all()  # a signal is noted until the result is there
        if self.bad_images:
            logger.info(f"Skipped bad images: {len(self._bad_image_names):,}, drawn {self.bad_images:,} times")

    def _steps(self) -> Iterator[dict]:
        self._begin_step()
        for batch in self._batches:
            if self._batches.failure is not None and self.sharding == "DEEPSPEED":
                raise self._batches.failure  # its update comes with the gradient, too soon to drop the step
            yield batch
            if self.step_ended:
                self._end_step()
                if self.global_step >= self.max_train_steps:
                    return
                self._begin_step()

    def accumulate(self):
        """The context of [`~TrainingRun.optimize`] and of what is differentiated, for several batches to a step."""
        return self.accelerator.accumulate(self.model)

    @property
    def step_ended(self) -> bool:
        """Whether the last call of [`~TrainingRun.optimize`] ended a step, so that `global_step` has moved."""
        return self.accelerator.sync_gradients

    def is_due(self, every: int | None) -> bool:
        """Whether a step just ended whose number is a multiple of `every`; never for `None`."""
        return every is not None and self.step_ended and self.global_step % every == 0

    def optimize(self, loss: torch.Tensor, parts: dict[str, torch.Tensor] | None = None) -> None:
        """
        Differentiate a loss and, with the last batch of a step, update the weights.

        Args:
            loss (`torch.Tensor`): 0-d.
            parts (`dict` of 0-d `torch.Tensor`, *optional*): What else to log, averaged like the loss.

        Raises:
            FloatingPointError: the loss or its gradient is not finite and no loss scaler is there to cope with it. The
                weights are as they were before; the state is saved in `nonfinite-{step}`.
            RuntimeError: a process could not load a batch. The state before this step is saved as a checkpoint.
        """
        accelerator, batches = self.accelerator, self._batches
        accelerator.backward(loss)
        self._record.add({"loss": loss, **(parts or {})})
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            new = {name: message for name, message in batches.bad_images if name not in self._bad_image_names}
            counts = [batches.failure is not None, self._stop_signal.number or 0, len(batches.bad_images), len(new)]
            self._logs, (failed, stop, num_bad, num_new) = self._record.reduce(
                accelerator, self.accumulation_steps, norm, counts
            )
            if failed:
                self._stop_at_failed_load()
            if not all(map(math.isfinite, self._logs.values())) and not self.scales_loss:
                self._stop_at_nonfinite()
            self._stop = stop > 0
            self.bad_images += int(num_bad)
            if num_new:
                self._name_bad_images(new)
        self.optimizer.step()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self.model.parameters())
        self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.global_step += 1
            self._position = batches.position
            self._record.end()  # without what is drawn and evaluated after the step

    def _begin_step(self) -> None:
        self.model.train()
        self._batches.begin_step()
        self._record = StepRecord()

    def _name_bad_images(self, new: dict[str, str]) -> None:
        """Tell of images that were not skipped before, on whichever process. Every process knows of all of them."""
        new = dict(self._gather(list(new.items())))
        for message in new.values():
            logger.warning(f"Skipped: {message}")
        self._bad_image_names |= new.keys()

    def _end_step(self) -> None:
        """After what the script did at the end of a step: log, save, stop."""
        args, accelerator = self.args, self.accelerator
        logs = self._logs | {
            "lr": self.lr_scheduler.get_last_lr()[0],
            "images_per_second": self.total_batch_size / self._record.seconds,
        }
        if accelerator.optimizer_step_was_skipped:
            logs["skipped"] = 1.0  # by the loss scaler, which found the gradient not finite
        if self.bad_images:
            logs["bad_images"] = self.bad_images
        self.tracking.log(logs, self.global_step)
        self._progress_bar.update(1)
        self._progress_bar.set_postfix(
            loss=f"{logs['loss']:.4f}", lr=f"{logs['lr']:.1e}", images_per_s=f"{logs['images_per_second']:.0f}"
        )
        if self._stop:
            self._stop_at_signal()
        if self.global_step % args.checkpointing_steps == 0 or self.global_step >= self.max_train_steps:
            if self.checkpoints.save(accelerator, f"{PREFIX}{self.global_step}") is not None:
                self.tracking.restart(self.global_step)  # there is room on the disk again

    # ------------------------------------------------------------------------------------------------------ its early ends
    def _stop_at_signal(self) -> None:
        path = self.checkpoints.save(self.accelerator, f"{PREFIX}{self.global_step}")
        signals = self._gather([self._stop_signal.number])
        self._progress_bar.close()
        if path is not None:
            logger.warning(f"Saved {path}; --resume_from_checkpoint latest goes on from there")
        self.tracking.end(self.global_step)
        sys.exit(128 + next(number for number in signals if number is not None))

    def _stop_at_nonfinite(self) -> None:
        """Save the state as it was before this step, and say what was seen in it."""
        self._record.restore_random_state()
        examples = self._gather(self._batches.examples)
        step, name = self.global_step + 1, f"nonfinite-{self.global_step + 1}"
        path = self.checkpoints.save(self.accelerator, name)
        saved = f" --resume_from_checkpoint {name} does this step again." if path is not None else ""
        values = ", ".join(f"{key} {value:g}" for key, value in self._logs.items())
        raise FloatingPointError(
            f"Step {step} is not finite: {values}. Its images are {_listing(examples)} as (epoch, row). The weights are as"
            f" they were before it.{saved}"
        )

    def _stop_at_failed_load(self) -> None:
        """Save the state as it was before this step, and say which process could not load its batch, and why."""
        self._record.restore_random_state()
        failure = self._batches.failure
        messages = self._gather([None if failure is None else str(failure)])
        path = self.checkpoints.save(self.accelerator, f"{PREFIX}{self.global_step}")
        self._progress_bar.close()
        message = next(message for message in messages if message is not None)
        if path is not None:
            message += f" Saved {path}; --resume_from_checkpoint latest goes on from there."
        raise RuntimeError(message) from failure

    def _gather(self, items: list) -> list:
        """The items of all processes. Every process has to call this."""
        return items if self.accelerator.num_processes == 1 else gather_object(items)

    # ------------------------------------------------------------------------------------------------------------- results
    def trained_model(self) -> ModelMixin:
        """
        A copy of the model with the averaged weights, or the weights themselves without an average, in float32. Every
        process has to call this.
        """
        model = self.accelerator.unwrap_model(self.model)
        with torch.random.fork_rng(devices=[]):  # whatever is drawn here must not change the run
            copy = type(model).from_config(model.config)
        weights = self.model.parameters() if self.ema is None else self.ema.shadow_params
        for parameter, weight in zip(copy.parameters(), whole(weights), strict=True):
            parameter.data.copy_(weight)
        return copy.to(self.accelerator.device).eval()

    def finish(self, pipeline: DiffusionPipeline | ModelMixin, settings: dict) -> None:
        """
        Save the result, upload it if that is asked for, and end the trackers. Every process calls this. If a signal came
        after the last step, the process then exits with 128 and its number.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): The result, with [`~TrainingRun.trained_model`].
            settings (`dict`): What the model card lists besides the settings that all runs have.
        """
        with self._until_finished:
            if self.accelerator.is_main_process:
                self.save_result(pipeline, settings)
            self.tracking.end(self.global_step)
        if self._stop_signal.number is not None:
            sys.exit(128 + self._stop_signal.number)


def _listing(items: list, most: int = 64) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
