# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures on time, the best pipeline so far, and a card whose command repeats the run and keeps its secrets."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from processes import hub

from ddm_diffusers import DDMPipeline
from ddm_diffusers.training.results import _command


@pytest.fixture
def at_step(prepared):
    """`at_step(5, ...)` makes a run that is at this step."""

    def make(step, *options):
        run = prepared("--max_train_steps", 20, *options)
        run.global_step = step
        return run

    return make


def test_the_result_is_a_pipeline_with_a_card(at_step, pipeline_of, tmp_path):
    run, out = at_step(20, "--license", "mit", "--dataset_name", "user/digits"), tmp_path / "out"
    run.save_result(pipeline_of(run), {"images": "eight digits"})
    loaded = DDMPipeline.from_pretrained(out)
    assert all(map(torch.equal, loaded.unet.parameters(), run.ema.shadow_params))
    card = (out / "README.md").read_text()
    for part in ("license: mit", "user/digits", "| images | eight digits |", "| steps | 20 |", "| batch size | 4 |"):
        assert part in card
    # the picture of the card is that of the last step, too
    with Image.open(out / "samples.png") as grid, Image.open(out / "samples" / "step-0000020.png") as logged:
        assert np.array_equal(np.asarray(grid), np.asarray(logged)) and grid.size == (2 * 52, 52)


def test_a_local_data_set_is_not_named(at_step, pipeline_of, tmp_path):
    run = at_step(20, "--dataset_name", tmp_path)
    run.save_result(pipeline_of(run), {})
    assert "datasets:" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("step", "pictures"), [(3, 0), (4, 1)])
def test_pictures_are_due_every_so_many_steps(step, pictures, at_step, pipeline_of, tmp_path):
    run = at_step(step, "--save_images_steps", 2)
    run.show_progress(lambda: pipeline_of(run), {})
    assert len(list((tmp_path / "out").glob("samples/step-*.png"))) == pictures
    assert run._pictured_step == pictures * step


def test_pictures_that_cannot_be_saved_do_not_end_a_run(at_step, tmp_path, caplog):
    run = at_step(3)
    (tmp_path / "out" / "samples").write_text("in the way")
    run.log_images(Image.new("L", (4, 4)))
    assert "Step 3: saving samples failed, the run goes on." in caplog.text


def test_the_best_is_kept(at_step, pipeline_of, tmp_path):
    run, best = at_step(1), tmp_path / "out" / "best"
    shown = []
    for distance in (5.0, 7.0, 3.0):
        with torch.no_grad():
            run.ema.shadow_params[0] += 1
        run.keep_best(distance, pipeline_of(run))
        unet = DDMPipeline.from_pretrained(best).unet
        shown.append(next(unet.parameters()).clone())
    assert run.best == 3.0
    assert torch.equal(shown[0], shown[1]) and torch.equal(shown[2], run.ema.shadow_params[0])


def test_a_best_that_cannot_be_saved_does_not_count(at_step, pipeline_of, tmp_path, caplog):
    run = at_step(1)
    (tmp_path / "out" / "best").write_text("in the way")
    run.keep_best(5.0, pipeline_of(run))
    assert run.best == float("inf") and "keeping the best failed" in caplog.text


def test_uploads_by_the_way_and_at_the_end(at_step, pipeline_of, tmp_path):
    options = ["--push_to_hub", "--push_every_checkpoint", "--hub_model_id", "user/run", "--hub_token", "hf_test"]
    with hub("hf_test") as server:
        run = at_step(4, *options, "--checkpointing_steps", 2)
        run.show_progress(lambda: pipeline_of(run), {})
        assert run.uploader._last.result() is True
        first = server.files("user/run")
        assert "| steps | 4 |" in first["README.md"].decode() and "samples.png" in first
        run.global_step = 5  # nothing is due
        before = run.uploader._last
        run.show_progress(lambda: pipeline_of(run), {})
        assert run.uploader._last is before
        run.global_step = 20
        (tmp_path / "out" / "checkpoint-20").mkdir()
        (tmp_path / "out" / "checkpoint-20" / "state.bin").write_bytes(b"large")
        run.save_result(pipeline_of(run), {})
        files = server.files("user/run")
    assert "| steps | 20 |" in files["README.md"].decode()
    assert not [name for name in files if name.startswith(("checkpoint-", "samples/", "logs/"))]


def test_the_command_repeats_the_run(monkeypatch):
    words = ["train.py", "--hub_token", "hf_secret", "--seed", "3", "--resume_from_checkpoint=latest", "--name", "a b"]
    monkeypatch.setattr(sys, "argv", words)
    expected = "accelerate launch examples/train_ddm.py --hub_token ... --name 'a b' --seed 7"
    assert _command("train_ddm", 7, "hf_secret") == expected
    assert "hf_secret" in _command("train_ddm", 7, None)
