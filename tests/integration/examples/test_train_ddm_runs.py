# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What a run of `examples/train_ddm.py` survives, and what it shows meanwhile: the processes here are real ones, and so are
the signals that end them. "The same weights" means the same bits, unless a test says otherwise.
"""

import contextlib
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from hub_server import client_environment
from PIL import Image
from processes import EXAMPLES, fork, hub, start, start_command, start_distributed
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddm_diffusers import DDMPipeline
from ddm_diffusers.training import (
    ImageTransform,
    TrainingBatches,
    TrainingRun,
    load_digits_dataset,
    load_image_dataset,
)


SCRIPT = "train_ddm.py"
STEPS = 24
# Forty images, so that an epoch is five steps of eight
MODEL = ["--resolution", 8, "--block_out_channels", 8, 16, "--layers_per_block", 1, "--random_flip"]
OPTIONS = [*MODEL, "--seed", 0, "--learning_rate", 1e-3, "--lr_warmup_steps", 4, "--max_train_steps", STEPS]
OPTIONS += ["--eval_batch_size", 4, "--num_inference_steps", 2, "--output_dir", "out"]
DROPOUT = ["--dropout", 0.2]  # the states of the random generators matter
BATCH = ["--train_batch_size", 8]
RESUME = ["--resume_from_checkpoint", "latest"]

EXTRACTOR = '''
import torch

class Pixels(torch.nn.Module):
    """The features are pixels. It draws random numbers, as some feature extractors with dropout do."""

    def forward(self, images):
        torch.rand(3)
        return images.mean(dim=1).flatten(1)[:, ::8]
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    load_digits_dataset().select(range(40)).save_to_disk(folder)
    return ["--train_data_dir", folder]


@pytest.fixture(scope="module")
def options(data):
    return [*data, *OPTIONS, *DROPOUT, *BATCH]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    cwd = tmp_path_factory.mktemp("whole")
    train(*options, "--checkpointing_steps", 6, "--save_images_steps", 8, cwd=cwd)
    return cwd / "out"


@pytest.fixture
def processes():
    """A list of processes that must not outlive the test."""
    running = []
    yield running
    for run in running:
        run.kill()


def train(*arguments, cwd, **environment):
    run = start(SCRIPT, *arguments, cwd=cwd, **environment)
    try:
        assert run.wait() == 0, run.output[-4000:]
    finally:
        run.kill()
    return run.output


def train_distributed(*arguments, cwd):
    runs = start_distributed(SCRIPT, *arguments, cwd=cwd)
    try:
        for run in runs:
            assert run.wait() == 0, run.output[-4000:]
    finally:
        for run in runs:
            run.kill()
    return [run.output for run in runs]


def steps_of(folder):
    """The numbers of the checkpoints."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*[0-9]"))


def tensors(state):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if torch.is_tensor(leaf)]


def assert_same_weights(folder, other, step=STEPS):
    """The average, and with the number of a step the weights and the optimizer as well, in all bits."""
    for name in ("unet/diffusion_pytorch_model.safetensors", f"checkpoint-{step}/model.safetensors"):
        a, b = load_file(folder / name), load_file(other / name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {len(different)} of {len(a)} differ"
    for name in ("optimizer.bin", "average.pt"):
        a, b = (tensors(torch.load(each / f"checkpoint-{step}" / name)) for each in (folder, other))
        assert len(a) == len(b) > 100 and all(map(torch.equal, a, b))


def board(folder):
    return EventAccumulator(
        str(folder / "logs" / "train_ddm"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    ).Reload()


def curve(folder, name):
    """The values of a scalar by step; a step that is there twice is an error."""
    events = board(folder).Scalars(name)
    values = {event.step: event.value for event in events}
    assert len(values) == len(events), f"{name}: {[event.step for event in events]}"
    return values


# ----------------------------------------------------------------------------------------------------------------- processes
@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("one")
    arguments = [*data, *OPTIONS, "--max_train_steps", 15, "--checkpointing_steps", 15, "--save_images_steps", 10]
    train(*arguments, "--train_batch_size", 8, cwd=cwd)
    return cwd / "out", arguments


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param(["--train_batch_size", 4], id="batch"),
        pytest.param(
            ["--train_batch_size", 2, "--gradient_accumulation_steps", 2], id="accumulation", marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(shared, one_process, tmp_path):
    folder, arguments = one_process
    outputs = train_distributed(*arguments, *shared, cwd=tmp_path)
    out = tmp_path / "out"
    for name in ("loss", "attenuation_loss", "noise_loss", "grad_norm"):
        expected, values = curve(folder, name), curve(out, name)
        assert list(values) == list(expected) == list(range(1, 16))
        np.testing.assert_allclose(list(values.values()), list(expected.values()), atol=1e-4, rtol=1e-4)
    assert curve(out, "lr") == curve(folder, "lr")
    for name in ("unet/diffusion_pytorch_model.safetensors", "checkpoint-15/model.safetensors"):
        expected, weights = load_file(folder / name), load_file(out / name)
        # the softmax of the attention does not see this bias: its gradient is a rounding error, which Adam enlarges
        for key in (key for key in expected if not key.endswith("to_k.bias")):
            torch.testing.assert_close(weights[key], expected[key], atol=1e-4, rtol=0)
    # what one process does for all
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-0000010.png", "step-0000015.png"]
    assert "Saved the result" in outputs[0] and "Saved the result" not in outputs[1]
    assert "15/15" in outputs[0] and "15/15" not in outputs[1]
    # both of them save the state of their random generators
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {path.name for path in (out / "checkpoint-15").iterdir()}


# ------------------------------------------------------------------------------------------------------------------- killed
@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    path = tmp_path_factory.mktemp("extractor") / "extractor.py"
    path.write_text(EXTRACTOR)
    return ["--evaluation_steps", 4, "--evaluation_samples", 400, "--feature_extractor", f"{path}:Pixels"]


def halt_during(pattern, run, out):
    """Halt a run while there is a file or folder of this name."""

    def caught():
        if not any(out.glob(pattern)):
            return False
        run.send(signal.SIGSTOP)  # on a busy machine it may be through by now
        if any(out.glob(pattern)):
            return True
        run.send(signal.SIGCONT)
        return False

    assert run.until(caught), run.output[-3000:]


def kill_during(phase, run, out, delay=0.0, uploads=()):
    """Kill a run in the middle of a phase. What the phase leaves on the disk or in the output proves that it was."""
    assert run.until(lambda: "step/s" in run.output), run.output[-3000:]
    if phase == "a step":
        time.sleep(delay)
        run.kill()
    elif phase == "an evaluation":
        assert run.until(lambda: "evaluation:" in run.output), run.output[-3000:]
        run.kill()  # on a busy machine it may be through by then
    elif phase == "an upload":
        before = len(uploads)
        assert run.until(lambda: any("/commit/" in path for _, path in uploads[before:])), run.output[-3000:]
        run.kill()
    else:
        pattern = {"a save": "checkpoint-*.tmp", "keeping the best": "best/new.tmp", "the end": "new.tmp"}[phase]
        halt_during(pattern, run, out)
        run.kill()
        assert any(out.glob(pattern)), f"too late for {phase}"
    assert run.wait() == -signal.SIGKILL, f"it ended before {phase}: {run.output[-2000:]}"


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(options, evaluated, whole, tmp_path, processes):
    arguments = [*options, *evaluated, "--checkpointing_steps", 2, "--save_images_steps", 8, *RESUME]
    out = tmp_path / "out"
    for phase in ("a save", "keeping the best", "the end"):  # others: test_a_run_that_was_killed_twenty_times
        run = start(SCRIPT, *arguments, cwd=tmp_path)
        processes.append(run)
        kill_during(phase, run, out)
    train(*arguments, cwd=tmp_path)
    assert_same_weights(out, whole)
    assert not list(out.rglob("*.tmp"))
    for name in ("loss", "lr", "grad_norm"):
        assert curve(out, name) == curve(whole, name)
    assert [event.step for event in board(out).Images("samples")] == [8, 16, 24]


@pytest.mark.slow
def test_a_run_that_was_killed_twenty_times(options, evaluated, tmp_path, processes):
    """At random moments, with uploads under way."""
    steps = ["--max_train_steps", 120]
    whole, cwd = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, cwd):
        folder.mkdir()
    train(*options, *steps, "--checkpointing_steps", 120, cwd=whole)
    arguments = [*options, *evaluated, *steps, "--checkpointing_steps", 2, "--checkpoints_total_limit", 2, *RESUME]
    arguments += ["--push_to_hub", "--push_every_checkpoint", "--hub_model_id", "user/digits"]
    moments, out = random.Random(0), cwd / "out"
    with hub() as server:
        for _ in range(5):
            for phase in ("a step", "a save", "an evaluation", "an upload"):
                run = start(SCRIPT, *arguments, cwd=cwd, HF_TOKEN="hf_test")
                processes.append(run)
                # some get no further than the one before, most do
                goal = max(steps_of(out), default=0) + 2 * moments.randint(0, 1)
                assert run.until(lambda goal=goal: goal in [0, *steps_of(out)]), run.output[-3000:]
                kill_during(phase, run, out, moments.uniform(0, 1), server.requests)
        train(*arguments, cwd=cwd, HF_TOKEN="hf_test")
        uploaded = server.files("user/digits")["unet/diffusion_pytorch_model.safetensors"]
    assert_same_weights(out, whole / "out", step=120)
    assert uploaded == (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert curve(out, "loss") == curve(whole / "out", "loss")


# ------------------------------------------------------------------------------------------------------------------ signals
def stop_by(number, run, at=3, group=False):
    """Send a signal once a number of steps are done; returns the exit code."""
    assert run.until(lambda: f" {at}/{STEPS}" in run.output), run.output[-3000:]
    run.send(number, group)
    return run.wait()


def assert_stopped(out, run, number):
    (step,) = steps_of(out)
    assert 3 <= step < STEPS
    assert f"{number.name}: the run ends once it is saved" in run.output
    assert f"Saved out/checkpoint-{step}; --resume_from_checkpoint latest continues from there" in run.output
    assert not (out / "model_index.json").exists()


NEVER = ["--checkpointing_steps", 1000]


def test_sigterm_saves_first(options, whole, tmp_path, processes):
    run = start(SCRIPT, *options, *NEVER, cwd=tmp_path)
    processes.append(run)
    assert stop_by(signal.SIGTERM, run) == 128 + 15
    assert_stopped(tmp_path / "out", run, signal.SIGTERM)
    train(*options, *RESUME, "--checkpointing_steps", STEPS, cwd=tmp_path)
    assert_same_weights(tmp_path / "out", whole)
    assert curve(tmp_path / "out", "loss") == curve(whole, "loss")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_saves_first(number, options, tmp_path, processes):
    """As Ctrl-C, Slurm and systemd do it: the processes that load the data get it as well. With streamed data."""
    arguments = [*options, "--streaming", "--dataloader_num_workers", 2]
    run = start(SCRIPT, *arguments, *NEVER, cwd=tmp_path)
    processes.append(run)
    assert stop_by(number, run, group=True) == 128 + number
    assert_stopped(tmp_path / "out", run, number)
    train(*arguments, *RESUME, "--checkpointing_steps", STEPS, cwd=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    train(*options, "--streaming", "--checkpointing_steps", STEPS, cwd=other)
    assert_same_weights(tmp_path / "out", other / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_after_the_last_step_waits_for_the_result(number, options, whole, tmp_path, processes):
    out = tmp_path / "out"
    run = start(SCRIPT, *options, *NEVER, cwd=tmp_path)
    processes.append(run)
    halt_during("new.tmp", run, out)
    run.send(number)
    run.send(signal.SIGCONT)
    assert run.wait() == 128 + number
    assert f"{number.name}: the run ends once it is saved" in run.output
    assert "Saved the result in out" in run.output and "Traceback" not in run.output
    assert not list(out.rglob("*.tmp"))
    assert_same_weights(out, whole)

    # the run can still be resumed, with nothing to do but to save the result
    shutil.rmtree(out / "unet")
    output = train(*options, *RESUME, cwd=tmp_path)
    assert f"Resuming from out/checkpoint-{STEPS}" in output
    assert f"All {STEPS} steps are done: saving the result again" in output
    assert_same_weights(out, whole)
    assert curve(out, "loss") == curve(whole, "loss")


@pytest.mark.slow
def test_a_signal_after_the_last_step_of_two_processes(options, tmp_path, processes):
    runs = start_distributed(SCRIPT, *options, *NEVER, cwd=tmp_path)
    processes += runs
    halt_during("new.tmp", runs[0], tmp_path / "out")
    runs[0].send(signal.SIGTERM)
    runs[0].send(signal.SIGCONT)
    assert [run.wait() for run in runs] == [143, 0]
    assert "Saved the result in out" in runs[0].output and (tmp_path / "out" / "README.md").is_file()


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_an_upload(options, tmp_path, processes):
    arguments = [*options, *NEVER, "--push_to_hub", "--hub_model_id", "user/digits"]
    with hub() as server:
        server.fail_next("POST", "/commit/", kind="delay", seconds=60)
        run = start(SCRIPT, *arguments, cwd=tmp_path, HF_TOKEN="hf_test")
        processes.append(run)
        assert run.until(lambda: any("/commit/" in path for _, path in server.requests)), run.output[-3000:]
        run.send(signal.SIGINT)
        time.sleep(6)
        assert run.running
        run.send(signal.SIGINT)
        assert run.wait(20) == -signal.SIGINT
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(options, tmp_path, processes):
    runs = start_distributed(SCRIPT, *options, *NEVER, cwd=tmp_path)
    processes += runs
    assert runs[0].until(lambda: f" 3/{STEPS}" in runs[0].output), runs[0].output[-3000:]
    runs[1].send(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143, 143], runs[0].output[-3000:]
    assert len(steps_of(tmp_path / "out")) == 1
    train_distributed(*options, *RESUME, "--checkpointing_steps", STEPS, cwd=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    train_distributed(*options, "--checkpointing_steps", STEPS, cwd=other)
    assert_same_weights(tmp_path / "out", other / "out")


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(options, tmp_path, processes):
    # one that would draw samples for minutes, in short steps
    slow = ["--save_images_steps", 3, "--eval_batch_size", 1000, "--num_inference_steps", 5000]
    run = start(SCRIPT, *options, *NEVER, *slow, cwd=tmp_path)
    processes.append(run)
    assert run.until(lambda: f" 2/{STEPS}" in run.output), run.output[-3000:]
    time.sleep(3)
    run.send(signal.SIGTERM)
    time.sleep(1)
    run.send(signal.SIGTERM)  # so soon it may be the same one, passed on by a launcher
    time.sleep(5)
    assert run.running
    run.send(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert not steps_of(tmp_path / "out")


@pytest.mark.slow
def test_torchrun(options, whole, tmp_path, processes):
    """Two processes as a launcher starts them: one upload, and a SIGTERM to the launcher saves first."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, EXAMPLES / SCRIPT]
    arguments = [*options, "--push_to_hub", "--hub_model_id", "user/digits", *RESUME]
    with hub() as server:
        variables = {"ACCELERATE_USE_CPU": "true", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}
        environment = client_environment(server, tmp_path / "cache", token="hf_test", **variables)
        run = start_command(*launcher, *arguments, *NEVER, cwd=tmp_path, environment=environment)
        processes.append(run)
        assert stop_by(signal.SIGTERM, run) != 0
        assert len(steps_of(tmp_path / "out")) == 1, run.output[-3000:]
        assert not [path for _, path in server.requests if "/commit/" in path]
        run = start_command(*launcher, *arguments, cwd=tmp_path, environment=environment)
        processes.append(run)
        assert run.wait() == 0, run.output[-3000:]
        assert len([path for _, path in server.requests if "/commit/" in path]) == 1
        files = server.files("user/digits")
    weights = (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert files["unet/diffusion_pytorch_model.safetensors"] == weights


# --------------------------------------------------------------------------------------------------------------- a full disk
@pytest.fixture
def small_disk(tmp_path):
    """A disk of three megabytes, of which a checkpoint takes one."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # tensors that were read may still be mapped


def test_a_full_disk_does_not_end_a_run(options, evaluated, whole, small_disk, tmp_path, processes):
    arguments = [*options, *evaluated, "--evaluation_samples", 40, "--checkpointing_steps", 4]
    arguments += ["--checkpoints_total_limit", 1, "--save_images_steps", 1]
    run = start(SCRIPT, *arguments, cwd=tmp_path)
    processes.append(run)
    assert run.until(lambda: f" 5/{STEPS}" in run.output), run.output[-3000:]
    run.send(signal.SIGSTOP)
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1000))
    run.send(signal.SIGCONT)
    assert run.until(lambda: f" 13/{STEPS}" in run.output), run.output[-3000:]
    # nothing could be written, and all of it is told
    for message in ("checkpoint-8 could not be saved", "checkpoint-12 could not be saved", "drawing samples failed"):
        assert message in run.output
    assert run.output.count("the tracker failed, the run goes on") == 1
    assert "The last good one is checkpoint-4" in run.output and steps_of(small_disk) == [4]
    (small_disk / "filler").unlink()
    assert run.wait() == 0, run.output[-3000:]
    assert_same_weights(small_disk, whole)
    # the curve goes on once there is room for a checkpoint again
    steps = list(curve(small_disk, "loss"))
    assert steps[:4] == [1, 2, 3, 4] and steps[-4:] == [21, 22, 23, 24] and 12 not in steps


# -------------------------------------------------------------------------------------------------- what a run does not survive
def nonfinite_message(run):
    assert run.wait() == 1, run.output[-3000:]
    return next(line for line in run.output.splitlines() if line.startswith("FloatingPointError"))


def test_a_step_that_is_not_finite_can_be_done_again(options, whole, data, tmp_path):
    """A loss that is finite and depends on all that is random, and a gradient that is not finite."""
    out = tmp_path / "out"
    shutil.copytree(whole / "checkpoint-12", out / "checkpoint-12")
    weights = load_file(out / "checkpoint-12" / "model.safetensors")
    weights["conv_out.weight"] *= 1e12
    save_file(weights, out / "checkpoint-12" / "model.safetensors", {"format": "pt"})
    message = nonfinite_message(start(SCRIPT, *options, *RESUME, cwd=tmp_path))
    loss = float(re.search(r"loss ([^,]+),", message)[1])
    assert np.isfinite(loss) and loss > 1e12 and "grad_norm inf" in message
    assert message.startswith("FloatingPointError: Step 13 is not finite")

    # the thirteenth batch of eight out of epochs of forty
    transform = ImageTransform(load_image_dataset(train_data_dir=str(data[1])), 8)
    for batch in itertools.islice(TrainingBatches(transform, 8, seed=0), 13):
        examples = batch["examples"]
    assert f"Its images are {', '.join(map(str, examples))} as (epoch, row)." in message

    assert steps_of(out) == [12] and (out / "nonfinite-13").is_dir()
    state = load_file(out / "nonfinite-13" / "model.safetensors")
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    for name in ("optimizer.bin", "average.pt"):
        before, after = (tensors(torch.load(out / each / name)) for each in ("checkpoint-12", "nonfinite-13"))
        assert len(before) == len(after) > 100 and all(map(torch.equal, before, after))

    assert "--resume_from_checkpoint nonfinite-13 repeats this step" in message
    again = start(SCRIPT, *options, "--resume_from_checkpoint", "nonfinite-13", cwd=tmp_path)
    assert nonfinite_message(again) == message
    assert "checkpoint-12" in {path.name for path in out.iterdir()}  # latest is still the one before


def test_a_loss_that_is_not_finite_stops_all_processes(data, tmp_path, processes):
    arguments = [*data, *OPTIONS, "--learning_rate", 1e30, "--checkpointing_steps", 1]
    runs = start_distributed(
        SCRIPT, *arguments, "--train_batch_size", 2, "--gradient_accumulation_steps", 2, cwd=tmp_path
    )
    processes += runs
    messages = [nonfinite_message(run) for run in runs]
    assert messages[0] == messages[1] and "loss nan" in messages[0]
    assert len(re.findall(r"\(\d+, \d+\)", messages[0])) == 8  # of both processes and both batches
    out = tmp_path / "out"
    step = int(re.search(r"Step (\d+)", messages[0])[1])
    assert steps_of(out) == list(range(1, step))
    state = load_file(out / f"nonfinite-{step}" / "model.safetensors")
    before = load_file(out / f"checkpoint-{step - 1}" / "model.safetensors")
    assert all(torch.equal(state[key], before[key]) for key in before)


# ------------------------------------------------------------------------------------------------------------- seen meanwhile
def test_what_is_logged(whole):
    loss, attenuation_loss, noise_loss = (curve(whole, name) for name in ("loss", "attenuation_loss", "noise_loss"))
    lr, norm, speed = (curve(whole, name) for name in ("lr", "grad_norm", "images_per_second"))
    for values in (loss, attenuation_loss, noise_loss, lr, norm, speed):
        assert list(values) == list(range(1, STEPS + 1))
        assert np.isfinite(list(values.values())).all()
    for step in loss:
        assert loss[step] == pytest.approx(attenuation_loss[step] + noise_loss[step], rel=1e-6)
        assert norm[step] > 0 and speed[step] > 0
        # after the step: four of warm-up, then half a cosine to zero
        cosine = 0.5 * (1 + np.cos(np.pi * (step - 4) / (STEPS - 4)))
        assert lr[step] == pytest.approx(1e-3 * (step / 4 if step < 4 else cosine), abs=1e-9)
    images = board(whole).Images("samples")
    assert [event.step for event in images] == [8, 16, 24]
    for event in images:
        with Image.open(io.BytesIO(event.encoded_image_string)) as logged:
            with Image.open(whole / "samples" / f"step-{event.step:07}.png") as saved:
                assert np.array_equal(np.asarray(logged), np.asarray(saved))
    # always from the same seeds: what changes from grid to grid is the model
    with Image.open(whole / "samples.png") as final, Image.open(whole / "samples" / "step-0000024.png") as last:
        assert np.array_equal(np.asarray(final), np.asarray(last))
    assert len({event.encoded_image_string for event in images}) == 3


def test_the_progress_bar(whole):
    assert "on 40 images of 1 x 8 x 8 (grayscale) for 24 steps" in (whole.parent / "output.txt").read_text()
    last = re.findall(r"24/24 \[[^]]*\]", (whole.parent / "output.txt").read_text())[-1]
    assert re.search(r"24/24 \[\d\d:\d\d<\d\d:\d\d, .* loss=\d\.\d{4}, lr=\d.*, images_per_second=\d+", last), last


def save_with_bad_images(folder, count, *bad):
    """Digits, of which those of these numbers are cut off."""
    rows = load_digits_dataset().cast_column("image", datasets.Image(decode=False))[:count]["image"]
    rows = [{"bytes": row["bytes"], "path": f"{i}.png"} for i, row in enumerate(rows)]
    for number in bad:
        rows[number]["bytes"] = rows[number]["bytes"][:40]
    datasets.Dataset.from_dict({"image": rows}).save_to_disk(folder)


def test_bad_images_of_all_processes_are_counted(options, tmp_path):
    save_with_bad_images(tmp_path / "bad", 16, 3, 4, 11)
    arguments = [*options, "--train_data_dir", tmp_path / "bad", "--train_batch_size", 4, "--max_train_steps", 4]
    run = start(SCRIPT, *arguments, *NEVER, "--output_dir", "stopped", cwd=tmp_path)
    assert run.wait() == 1
    assert re.search(r"ValueError: The image (3|4|11).png does not decode", run.output)
    outputs = train_distributed(*arguments, "--skip_bad_images", "--checkpointing_steps", 2, cwd=tmp_path)
    # two epochs of two steps: each bad image is met twice, by one process or by the other
    assert curve(tmp_path / "out", "bad_images")[4] == 6
    for number in (3, 4, 11):
        assert outputs[0].count(f"Skipped: The image {number}.png does not decode") == 1
    assert "Skipped: " not in outputs[1]
    total = "Skipped bad images: 3, drawn 6 times"
    assert total in outputs[0]
    arguments += ["--skip_bad_images", "--resume_from_checkpoint", "checkpoint-2"]
    outputs = train_distributed(*arguments, cwd=tmp_path)
    assert curve(tmp_path / "out", "bad_images")[4] == 6
    assert "Skipped: " not in outputs[0] and total in outputs[0]


@pytest.mark.parametrize(
    ("train", "shared"),
    [
        pytest.param(
            train, ["--train_batch_size", 4, "--gradient_accumulation_steps", 2], id="the second batch of a step"
        ),
        pytest.param(
            train_distributed,
            ["--train_batch_size", 4, "--dataloader_num_workers", 1],
            id="the second process",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_met_a_bad_image_goes_on_without_it(train, shared, options, data, tmp_path, processes):
    transform = ImageTransform(load_image_dataset(train_data_dir=str(data[1])), 8)
    *_, batch = itertools.islice(TrainingBatches(transform, 8, seed=0), 3)
    _, bad = batch["examples"][5]  # of the third step
    save_with_bad_images(tmp_path / "bad", 40, bad)
    arguments = [*options, "--train_data_dir", tmp_path / "bad", *shared, "--max_train_steps", 6, *NEVER]
    whole, cwd = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, cwd):
        folder.mkdir()
    train(*arguments, "--skip_bad_images", cwd=whole)

    if train is train_distributed:
        runs = start_distributed(SCRIPT, *arguments, cwd=cwd)
    else:
        runs = [start(SCRIPT, *arguments, cwd=cwd)]
    processes += runs
    for run in runs:
        assert run.wait() == 1
        message = run.output[run.output.rindex("RuntimeError: ") :]
        assert f"The image {bad}.png does not decode" in message and f"It is (0, {bad}) as (epoch, row)." in message
        assert "With --skip_bad_images it is left out." in message
        assert "Saved out/checkpoint-2; --resume_from_checkpoint latest continues from there." in message
    assert steps_of(cwd / "out") == [2]

    train(*arguments, *RESUME, "--skip_bad_images", cwd=cwd)
    assert_same_weights(cwd / "out", whole / "out", step=6)


def test_colour_that_is_lost_is_told_once_and_the_card_repeats_the_run(tmp_path):
    """Without a seed given, and resumed, so that neither is in the command of the run."""
    for i in range(8):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        Image.new("L" if i == 0 else "RGB", (9, 9), 20 * i).save(tmp_path / "mixed" / f"{i}.png")
    arguments = [
        "--train_data_dir",
        tmp_path / "mixed",
        *MODEL,
        *BATCH,
        "--max_train_steps",
        4,
        "--eval_batch_size",
        4,
    ]
    arguments += ["--output_dir", "out", "--lr_warmup_steps", 1]
    output = train(*arguments, "--checkpointing_steps", 2, cwd=tmp_path)
    assert "on 8 images of 1 x 8 x 8 (grayscale) for 4 steps of 8 images" in output
    assert (
        output.count("The model is grey, as the first image that can be read is, but there are images in colour") == 1
    )
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    train(*arguments, *RESUME, cwd=tmp_path)

    (command,) = re.findall(r"```bash\n(.*)\n```", (tmp_path / "out" / "README.md").read_text())
    words = shlex.split(command)
    assert words[:3] == ["accelerate", "launch", f"examples/{SCRIPT}"] and "--resume_from_checkpoint" not in words
    (tmp_path / "again").mkdir()
    train(*words[3:], cwd=tmp_path / "again")
    assert_same_weights(tmp_path / "again" / "out", tmp_path / "out", step=4)


def test_an_evaluation_keeps_the_best_and_changes_nothing(options, evaluated, whole, tmp_path):
    evaluated = [*evaluated, "--evaluation_samples", 100]
    output = train(*options, *evaluated, "--checkpointing_steps", 4, cwd=tmp_path)
    out = tmp_path / "out"
    assert_same_weights(out, whole)
    distances = curve(out, "fid")
    assert list(distances) == list(range(4, STEPS + 1, 4))
    best = min(distances, key=distances.get)
    assert f"fid {distances[best]:.4g}, best so far {distances[best]:.4g}" in output
    pipeline = DDMPipeline.from_pretrained(out / "best")
    average = torch.load(out / f"checkpoint-{best}" / "average.pt")["shadow_params"]
    assert all(map(torch.equal, pipeline.unet.parameters(), average))
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2
    # a run that goes on from before the best knows of none better
    assert best > 4
    for path in out.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > 4:
            shutil.rmtree(path)
    train(*options, *evaluated, *RESUME, *NEVER, cwd=tmp_path)
    again = DDMPipeline.from_pretrained(out / "best")
    assert all(map(torch.equal, again.unet.parameters(), average))
    assert curve(out, "fid") == distances


# ---------------------------------------------------------------------------------------------------------- speed and precision
@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_loss(options, whole, tmp_path):
    # also with dropout, which has to be the same when an activation is computed again
    train(*options, "--gradient_checkpointing", *NEVER, cwd=tmp_path)
    expected, values = curve(whole, "loss"), curve(tmp_path / "out", "loss")
    np.testing.assert_allclose(list(values.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.slow
def test_bf16_keeps_weights_and_average_in_float32(options, whole, tmp_path):
    train(*options, "--mixed_precision", "bf16", "--checkpointing_steps", STEPS, cwd=tmp_path)
    out = tmp_path / "out"
    expected, values = curve(whole, "loss"), curve(out, "loss")
    # the first two losses are those of the weights that both begin with, as the first learning rate is zero
    for step in (1, 2):
        assert values[step] != expected[step]  # bf16 has eight bits
        assert values[step] == pytest.approx(expected[step], rel=2**-6)
    assert values[STEPS] < values[1]
    states = [load_file(out / "unet" / "diffusion_pytorch_model.safetensors")]
    states += [load_file(out / f"checkpoint-{STEPS}" / "model.safetensors")]
    for state in states:
        assert {weight.dtype for weight in state.values()} == {torch.float32}
        # none that was rounded on its way
        assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in state.values())
    average = torch.load(out / f"checkpoint-{STEPS}" / "average.pt")["shadow_params"]
    assert {weight.dtype for weight in average} == {torch.float32}


@pytest.fixture
def cpp_compiler():
    """What torch.compile needs on a CPU."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(command[0]) is None:
        pytest.skip("there is no C++ compiler")
    if subprocess.run([*command, "-x", "c++", "-fsyntax-only", "-"], input=b"#include <vector>").returncode:
        pytest.skip("the C++ compiler does not work")


@pytest.mark.slow
def test_a_compiled_run_is_resumed_without(options, tmp_path, cpp_compiler):
    out, steps = tmp_path / "out", 8
    options = [
        *options,
        "--block_out_channels",
        8,
        "--attention_resolutions",
        "--dropout",
        0,
        "--max_train_steps",
        steps,
    ]
    output = train(*options, "--compile", cwd=tmp_path)
    assert f"{steps}/{steps}" in output
    train(*options, "--output_dir", "plain", cwd=tmp_path)
    for step, loss in curve(tmp_path / "plain", "loss").items():
        assert curve(out, "loss")[step] == pytest.approx(loss, rel=1e-2)
    a, b = (load_file(each / f"checkpoint-{steps}" / "model.safetensors") for each in (out, tmp_path / "plain"))
    assert a.keys() == b.keys()
    assert len(DDMPipeline.from_pretrained(out)(batch_size=1, num_inference_steps=2).images) == 1
    (out / "model_index.json").unlink()
    output = train(*options, *RESUME, cwd=tmp_path)
    assert f"{steps}/{steps}" in output and (out / "model_index.json").exists()


class ScaledRun(TrainingRun):
    """With fp16 and a loss scaler, which accelerate does not give to a CPU: torch's own, that begins far too high."""

    def __init__(self, args, name):
        super().__init__(args, name)
        self.accelerator.state._mixed_precision, self.accelerator.native_amp = "fp16", True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8)
        self.scales_loss = True


def train_scaled(options, folder):
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    import train_ddm

    train_ddm.TrainingRun = ScaledRun
    train_ddm.main(train_ddm.parse_args(list(map(str, options))))


def test_a_loss_scaler_skips_steps_that_are_not_finite(options, tmp_path):
    steps = 8
    arguments = [*options, "--lr_warmup_steps", 0, "--max_train_steps", steps]

    def run(*more):
        process = fork(train_scaled, [*arguments, *more], tmp_path)
        process.join()
        assert process.exitcode == 0

    run("--checkpointing_steps", 1)
    out = tmp_path / "out"
    skipped, lr, norm = (curve(out, name) for name in ("skipped", "lr", "grad_norm"))
    count = len(skipped)
    assert 1 < count < 8 and list(skipped) == list(range(1, count + 1))
    assert [step for step in norm if not np.isfinite(norm[step])] == list(skipped)
    # a step that is skipped changes neither weights nor average nor the learning rate
    states = [tensors(load_file(out / f"checkpoint-{step}" / "model.safetensors")) for step in range(1, count + 3)]
    averages = [tensors(torch.load(out / f"checkpoint-{step}" / "average.pt")) for step in range(1, count + 3)]
    for state, average in zip(states[:count], averages[:count], strict=True):
        assert all(map(torch.equal, state, states[0])) and all(map(torch.equal, average, averages[0]))
    for before, after in ((count - 1, count), (count, count + 1)):
        assert not all(map(torch.equal, states[before], states[after]))
    assert not all(map(torch.equal, averages[count], averages[count + 1]))
    assert all(lr[step] == pytest.approx(1e-3) for step in skipped) and lr[count + 1] < lr[count]
    # the scale is part of a checkpoint
    whole = out.rename(tmp_path / "whole")
    shutil.copytree(whole / f"checkpoint-{count + 1}", out / f"checkpoint-{count + 1}")
    run("--checkpointing_steps", steps, *RESUME)
    assert_same_weights(out, whole, steps)
    assert "skipped" not in board(out).Tags()["scalars"]


# -------------------------------------------------------------------------------------------------------------- other trackers
def resumed_rows(logger, options, cwd, processes, environment, read):
    """What a tracker has of a run that was stopped and resumed: the rows that `read` yields, by step."""
    arguments = [*options, "--logger", logger, "--checkpointing_steps", 4, "--save_images_steps", 12]
    run = start(SCRIPT, *arguments, cwd=cwd, **environment)
    processes.append(run)
    assert stop_by(signal.SIGTERM, run, at=6) == 143
    train(*arguments, *RESUME, cwd=cwd, **environment)
    rows = {}
    for step, row in read():
        assert rows.setdefault(step, {}).keys().isdisjoint(row), f"step {step} is there twice"
        rows[step] |= row
    assert sorted(rows) == list(range(1, STEPS + 1))
    for step, row in rows.items():
        assert row["loss"] == pytest.approx(row["attenuation_loss"] + row["noise_loss"])
        assert {"lr", "grad_norm", "images_per_second"} <= row.keys()
        assert any(name.startswith("samples") for name in row) == (step in (12, 24))


def test_trackio(options, tmp_path, processes):
    pytest.importorskip("trackio")

    def read():
        (path,) = (tmp_path / "trackio").rglob("*.db")
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT run_id, step, metrics FROM metrics").fetchall()
        assert len({run for run, _, _ in rows}) == 1
        yield from ((step, json.loads(metrics)) for _, step, metrics in rows)

    resumed_rows("trackio", options, tmp_path, processes, {"TRACKIO_DIR": str(tmp_path / "trackio")}, read)


def test_wandb(options, tmp_path, processes):
    """Offline, as a test has no account."""
    pytest.importorskip("wandb")

    def read():
        paths = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(paths) == 2 and len({path.name for path in paths}) == 1  # two parts of one run
        for path in paths:
            for row in wandb_rows(path.read_bytes()):
                yield row.pop("_step"), {key: row[key] for key in row if not key.startswith("_")}

    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    resumed_rows("wandb", options, tmp_path, processes, environment, read)


def wandb_rows(data):
    """The rows of a file of Weights & Biases: a log of LevelDB with one protocol buffer per record."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, parts = 7, b""
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:  # too little for a header: the block is filled up
            position += 2**15 - position % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            if record.HasField("history"):
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
