# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What happens around the steps of a training run, whatever is trained: the part that all training scripts share."""

import logging
import math
import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import datasets
import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, gather_object, send_to_device, set_seed
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..hub import SAMPLES_NAME, TRAINING_FILES, sample_grid
from .arguments import settings_that_matter
from .checkpoints import PREFIX, Checkpoints, replace_contents
from .data import ImageTransform, TrainingBatches
from .results import save_trained_pipeline
from .sharding import WeightAverage, configure_sharding, whole
from .signals import StopSignal, ignore_signals
from .tracking import Tracking, tolerating_failures
from .upload import HubUploader


logger = get_logger(__name__, log_level="INFO")


class TrainingRun:
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
        self.seed = gather_object([seed])[0] if self.accelerator.num_processes > 1 else seed
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
        self._pictured_step = 0
        self.tracking = Tracking(self.accelerator, name, args)
        self._stop_signal = StopSignal()

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
        logger.info(
            f"Training {self.num_parameters:,} parameters on {images} for {self.max_train_steps:,} steps of"
            f" {self.total_batch_size} images, seed {self.seed}"
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
            "pictured_step": self._pictured_step,
            "tracker_ids": self.tracking.ids,
        }

    def load_state_dict(self, state: dict) -> None:
        self.global_step, self._position, self.seed = state["global_step"], tuple(state["position"]), state["seed"]
        self.best, self.bad_images, self._pictured_step = state["best"], state["bad_images"], state["pictured_step"]
        self.tracking.ids = state["tracker_ids"]

    # ----------------------------------------------------------------------------------------------------------- the loop
    def __iter__(self) -> Iterator[dict]:
        """
        Batches on the device until `max_train_steps`, each with `generators`, one for the noise of each example.

        Between them happens what belongs to the end of a step. A SIGTERM or Ctrl-C ends the run after the step that is
        under way: it saves a checkpoint and exits with 128 and the number of the signal. A second one, some seconds later,
        ends it at once.
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
        dataloader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            num_workers=args.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the one of the dropout, once more for each resumption
            worker_init_fn=ignore_signals,
        )
        progress_bar = tqdm(
            total=self.max_train_steps,
            initial=self.global_step,
            disable=not accelerator.is_local_main_process,
            unit="step",
            smoothing=0.05,
        )
        self.model.train()
        self._begin_step()
        with self._stop_signal, progress_bar as self._progress_bar:
            if self.global_step >= self.max_train_steps:
                return
            for batch in dataloader:
                # a DataLoader makes lists of tuples
                self._next_position = tuple(batch.pop("position"))
                self._examples.extend(map(tuple, batch.pop("examples")))
                for message in batch.pop("bad_images"):
                    self._new_bad_images += 1
                    logger.warning(f"Skipped: {message}", main_process_only=False)
                batch = send_to_device(batch, accelerator.device, non_blocking=True)
                batch["generators"] = [
                    torch.Generator(accelerator.device).manual_seed(seed) for seed in batch.pop("seeds")
                ]
                yield batch
                if self.step_ended:
                    self._end_step()
                    if self.global_step >= self.max_train_steps:
                        break

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
        """
        accelerator = self.accelerator
        values = {"loss": loss.detach(), **(parts or {})}
        accelerator.backward(loss)
        values = torch.stack([value.float() for value in values.values()]) / self.accumulation_steps
        self._sums = values if self._sums is None else self._sums + values
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            if isinstance(norm, DTensor):
                norm = norm.full_tensor()
            norm = torch.as_tensor(norm, dtype=torch.float32, device=self._sums.device)  # a float from DeepSpeed
            means = accelerator.reduce(torch.cat([self._sums, norm.reshape(1)]), "mean")
            sums = torch.tensor([float(self._stop_signal.number or 0), self._new_bad_images], device=means.device)
            # the one time in a step that the device is waited for
            *means, stop, bad_images = torch.cat([means, accelerator.reduce(sums, "sum")]).tolist()
            self._stop = stop > 0
            self.bad_images += int(bad_images)
            self._logs = dict(zip(["loss", *(parts or {}), "grad_norm"], means, strict=True))
            if not all(map(math.isfinite, means)) and not self.scales_loss:
                self._stop_at_nonfinite()
        self.optimizer.step()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self.model.parameters())
        self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.global_step += 1
            self._position = self._next_position
            self._seconds = time.perf_counter() - self._began  # without what is drawn and evaluated after the step

    def _begin_step(self) -> None:
        self._sums, self._examples, self._new_bad_images, self._began = None, [], 0, time.perf_counter()
        # for a state that reproduces the step
        self._random_state = torch.get_rng_state()
        self._cuda_random_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def _end_step(self) -> None:
        """After what the script did at the end of a step: log, save, stop."""
        args, accelerator = self.args, self.accelerator
        logs = self._logs | {
            "lr": self.lr_scheduler.get_last_lr()[0],
            "images_per_second": self.total_batch_size / self._seconds,
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
        if self.global_step % args.checkpointing_steps == 0:
            if self.checkpoints.save(accelerator, f"{PREFIX}{self.global_step}") is not None:
                self.tracking.restart(self.global_step)  # there is room on the disk again
        self.model.train()
        self._begin_step()

    # ------------------------------------------------------------------------------------------------------ its early ends
    def _stop_at_signal(self) -> None:
        path = self.checkpoints.save(self.accelerator, f"{PREFIX}{self.global_step}")
        number = self._stop_signal.number
        signals = [number] if self.accelerator.num_processes == 1 else gather_object([number])
        self._progress_bar.close()
        if path is not None:
            logger.warning(f"Saved {path}; --resume_from_checkpoint latest goes on from there")
        self.tracking.end(self.global_step)
        sys.exit(128 + next(number for number in signals if number is not None))

    def _stop_at_nonfinite(self) -> None:
        """Save the state as it was before this step, and say what was seen in it."""
        torch.set_rng_state(self._random_state)
        if self._cuda_random_state is not None:
            torch.cuda.set_rng_state(self._cuda_random_state)
        examples = self._examples if self.accelerator.num_processes == 1 else gather_object(self._examples)
        step, name = self.global_step + 1, f"nonfinite-{self.global_step + 1}"
        path = self.checkpoints.save(self.accelerator, name)
        saved = f" --resume_from_checkpoint {name} does this step again." if path is not None else ""
        values = ", ".join(f"{key} {value:g}" for key, value in self._logs.items())
        raise FloatingPointError(
            f"Step {step} is not finite: {values}. Its images are {_listing(examples)} as (epoch, row). The weights are as"
            f" they were before it.{saved}"
        )

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

    def log_images(self, grid: Image.Image, name: str = "samples") -> None:
        """Save a grid of samples in `samples/` and send it to the trackers. For the main process."""
        self._pictured_step = self.global_step
        path = self.output_dir / "samples" / f"step-{self.global_step:07d}.png"
        with tolerating_failures("saving samples", self.global_step):
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        self.tracking.log_image(name, grid, path, self.global_step)

    def keep_best(self, distance: float, pipeline: DiffusionPipeline, name: str = "distance") -> None:
        """Log a distance and, if it is the smallest so far, keep the pipeline in `best/`. For the main process."""
        self.tracking.log({name: distance}, self.global_step)
        logger.info(f"Step {self.global_step}: {name} {distance:.4g}, best so far {min(distance, self.best):.4g}")
        if distance < self.best:
            with tolerating_failures("keeping the best", self.global_step):
                replace_contents(self.output_dir / "best", pipeline.save_pretrained)
                self.best = distance

    def save_pipeline(self, pipeline: DiffusionPipeline, folder: Path, settings: dict) -> Image.Image:
        """
        Save a pipeline, load it again as a user would, let it draw what its model card shows, and write that card. A
        pipeline that is in the folder already is replaced file by file. For the main process.

        Returns:
            `PIL.Image.Image`: the grid of samples.
        """
        return save_trained_pipeline(
            pipeline,
            folder,
            self.args,
            script=self.name,
            sample_grid=self.sample_grid,
            repo_id=self.uploader.repo_id if self.uploader is not None else str(self.output_dir),
            settings={
                "parameters": self.num_parameters,
                "steps": self.global_step,
                "batch size": self.total_batch_size,
                "learning rate": self.args.learning_rate,
                "seed": self.seed,
                **settings,
            },
        )

    def upload(self, pipeline: DiffusionPipeline, settings: dict) -> None:
        """Upload a pipeline in the background, with its model card, while training goes on. For the main process."""
        step = self.global_step
        with tolerating_failures("the upload", step), self.uploader.snapshot(f"Step {step}") as folder:
            self.save_pipeline(pipeline, folder, settings)

    def finish(self, pipeline: DiffusionPipeline, settings: dict) -> None:
        """Save the result, upload it if that is asked for, and end the trackers. For the main process."""
        args = self.args
        grid = self.save_pipeline(pipeline, self.output_dir, settings)
        if self._pictured_step < self.global_step:
            self.log_images(grid)
        logger.info(
            f"Saved the pipeline in {self.output_dir} and {args.eval_batch_size} samples in"
            f" {self.output_dir / SAMPLES_NAME}"
        )
        if self.uploader is not None:
            logger.info(
                f"Uploading it to {self.uploader.repo_id}; if that fails, push_to_hub uploads it from there later"
            )
            ignored = [*TRAINING_FILES, f"{args.logging_dir}/*"]
            self.uploader.upload(self.output_dir, f"Trained for {self.global_step} steps", ignored)
            self.uploader.close()


def _listing(items: list, most: int = 64) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
