# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training runs in this process: a tiny model on eight digits."""

import argparse
import signal

import pytest
import torch
from diffusers.optimization import get_scheduler

from ddm_diffusers import DDMPipeline, DDMScheduler
from ddm_diffusers.training import (
    ImageTransform,
    TrainingRun,
    WeightAverage,
    add_data_arguments,
    add_training_arguments,
    ddm_loss,
    load_digits_dataset,
    parse_arguments,
)


@pytest.fixture
def make_run(tmp_path):
    """`make_run("--max_train_steps", 3)` makes a run whose results go to `out` in the temporary folder."""

    def make(*options, seed: int | None = 0) -> TrainingRun:
        parser = argparse.ArgumentParser()
        add_data_arguments(parser)
        add_training_arguments(parser)
        defaults = ["--resolution", 8, "--train_batch_size", 4, "--lr_warmup_steps", 0, "--logger", "none"]
        defaults += [] if seed is None else ["--seed", seed]
        defaults += ["--eval_batch_size", 2, "--num_inference_steps", 2, "--output_dir", tmp_path / "out"]
        return TrainingRun(parse_arguments(parser, [str(option) for option in (*defaults, *options)]), "train_ddm")

    # a run holds the signals until it is finished, which not every test does
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield make
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def prepared(make_run, tiny_unet):
    """`prepared(...)` makes a run as `make_run` does and starts it, with a model; the steps have no dropout."""

    def make(*options, **seed) -> TrainingRun:
        run = make_run(*options, **seed)
        args = run.args
        run.set_data(ImageTransform(load_digits_dataset().select(range(8)), 8))
        model = tiny_unet(in_channels=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.95, 0.999))
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=run.max_train_steps,
        )
        model, run.optimizer, run.lr_scheduler = run.accelerator.prepare(model, optimizer, lr_scheduler)
        ema = WeightAverage(run.accelerator, model.parameters()) if args.use_ema else None
        run.start(model, ema)
        return run

    return make


@pytest.fixture
def train():
    """`train(run)` goes through the steps of a run; `train(run, stop)` calls `stop(run)` after each batch."""

    def train(run, after_batch=lambda run: None, factor=1.0):
        scheduler, accelerator = DDMScheduler(), run.accelerator
        for batch in run.batches():
            clean = batch["pixel_values"]
            noise = torch.stack(
                [torch.randn(each.shape, generator=g) for each, g in zip(clean, batch["generators"], strict=True)]
            )
            timesteps = torch.full((len(clean),), 500.0)
            with accelerator.accumulate(run.model):
                output = run.model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
                loss = ddm_loss(scheduler, output, clean, noise, timesteps)
                accelerator.backward(loss * factor)
                run.record(loss=loss * factor, part=loss / 2)
                if accelerator.sync_gradients:
                    run.check_step(accelerator.clip_grad_norm_(run.model.parameters(), run.args.max_grad_norm))
                run.optimizer.step()
                run.lr_scheduler.step()
                run.optimizer.zero_grad()
            if accelerator.sync_gradients:
                if run.ema is not None:
                    run.ema.step(run.model.parameters())
                run.end_step(lr=run.lr_scheduler.get_last_lr()[0])
            after_batch(run)
            if accelerator.sync_gradients and run.should_save:
                run.save_checkpoint()

    return train


@pytest.fixture
def pipeline_of():
    """`pipeline_of(run)` is the pipeline of what a run has trained."""
    return lambda run: DDMPipeline(run.trained_model(), DDMScheduler())
