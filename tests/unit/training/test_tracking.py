# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""TensorBoard shows one curve of a run that was resumed; a tracker that fails does not end the run."""

import importlib.util
import time
from argparse import Namespace

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddm_diffusers.training.tracking import Tracking, tolerating_failures


def tracking_of(folder, logger="tensorboard", resume=None):
    log_with = None if logger == "none" else logger
    config = ProjectConfiguration(project_dir=folder, logging_dir=folder / "logs")
    accelerator = Accelerator(cpu=True, log_with=log_with, project_config=config)
    args = Namespace(logger=logger, resume_from_checkpoint=resume, hub_token="hf_secret", seed=0)
    return Tracking(accelerator, "project", args)


def board(folder):
    return EventAccumulator(str(folder / "logs" / "project"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def losses(folder):
    return {event.step: event.value for event in board(folder).Scalars("loss")}


def test_curves_and_pictures(tmp_path):
    tracking = tracking_of(tmp_path)
    tracking.start(0)
    for step in (1, 2):
        tracking.log({"loss": step / 2}, step)
    image = Image.new("RGB", (3, 2), (255, 0, 0))
    tracking.log_image("samples", image, tmp_path / "image.png", 2)
    tracking.end(2)
    assert losses(tmp_path) == {1: 0.5, 2: 1.0}
    (event,) = board(tmp_path).Images("samples")
    assert (event.step, event.width, event.height) == (2, 3, 2)
    # nothing that is secret
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("resume", ["latest", None])
def test_a_resumed_run_goes_on_in_its_curve(resume, tmp_path):
    """Steps after the checkpoint are taken back."""
    first = tracking_of(tmp_path)
    first.start(0)
    for step in (1, 2, 3):
        first.log({"loss": 1.0}, step)
    first.end(3)
    time.sleep(1)  # the names of the files, which give their order, have seconds
    second = tracking_of(tmp_path, resume=resume)
    second.start(1)
    second.log({"loss": 2.0}, 2)
    second.end(2)
    assert losses(tmp_path) == {1: 1.0, 2: 2.0}


def test_a_tracker_that_fails_is_left_alone_until_it_is_started_again(tmp_path, caplog):
    tracking = tracking_of(tmp_path)
    tracking.start(0)
    tracking.log({"loss": 1.0}, 1)
    tracking.log({"loss": {"part": object()}}, 2)  # nothing that a tracker takes
    assert tracking.failed and "Step 2: the tracker failed, the run goes on." in caplog.text
    caplog.clear()
    tracking.log({"loss": 3.0}, 3)
    tracking.log_image("samples", Image.fromarray(np.zeros((2, 2), np.uint8)), tmp_path / "image.png", 3)
    assert not caplog.text
    tracking.restart(3)
    assert not tracking.failed
    tracking.log({"loss": 4.0}, 4)
    tracking.end(4)
    assert losses(tmp_path)[4] == 4.0 and 3 not in losses(tmp_path)


def test_one_that_works_is_not_started_again(tmp_path):
    tracking = tracking_of(tmp_path)
    tracking.start(0)
    before = tracking.accelerator.trackers
    tracking.restart(1)
    assert tracking.accelerator.trackers is before
    tracking.end(1)


def test_without_a_tracker(tmp_path):
    tracking = tracking_of(tmp_path, logger="none")
    tracking.start(0)
    tracking.log({"loss": 1.0}, 1)
    tracking.end(1)
    assert not tracking.failed and not list(tmp_path.iterdir())


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_at_the_start(logger, tmp_path):
    if importlib.util.find_spec(logger) is not None:
        pytest.skip(f"{logger} is installed")
    message = f"`--logger` is {logger}, but that package is not installed: `pip install {logger}`"
    with pytest.raises(ImportError, match=message):
        tracking_of(tmp_path, logger=logger)


def test_failures_are_told_and_ctrl_c_is_none(caplog):
    Accelerator(cpu=True)  # for the log
    with tolerating_failures("saving", 7):
        raise OSError("disk full")
    assert "Step 7: saving failed, the run goes on. OSError: disk full" in caplog.text
    with pytest.raises(KeyboardInterrupt), tolerating_failures("saving", 7):
        raise KeyboardInterrupt
