# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Weights before pictures, pictures on time, the best pipeline so far, and a card whose command repeats the run and keeps its secrets."""

import numpy as np
import pytest
import torch
from PIL import Image
from processes import hub

from ddm_diffusers import DDMPipeline
from ddm_diffusers.training.results import read_best


@pytest.fixture
def at_step(prepared):
    """`at_step(5, ...)` makes a run that is at this step."""

    def make(step, *options):
        run = prepared("--max_train_steps", 20, *options)
        run.global_step = step
        return run

    return make


@pytest.fixture
def fails():
    """Stands for anything that goes wrong where samples are drawn or a distance is measured."""

    def fail(*_, **__):
        raise RuntimeError("no memory is left")

    return fail


def test_the_result_is_a_pipeline_with_a_card(at_step, pipeline_of, tmp_path):
    run, out = at_step(20, "--license", "mit", "--dataset_name", "user/digits"), tmp_path / "out"
    run.finish(pipeline_of(run), {"images": "eight digits"})
    loaded = DDMPipeline.from_pretrained(out)
    assert all(map(torch.equal, loaded.unet.parameters(), run.ema.shadow_params))
    card = (out / "README.md").read_text()
    for part in ("license: mit", "user/digits", "| images | eight digits |", "| steps | 20 |", "| batch size | 4 |"):
        assert part in card
    # the samples of the card are those of the last step, too
    with Image.open(out / "samples.png") as grid, Image.open(out / "samples" / "step-0000020.png") as logged:
        assert np.array_equal(np.asarray(grid), np.asarray(logged)) and grid.size == (2 * 52, 52)


def test_samples_that_cannot_be_drawn_cost_no_weights(at_step, pipeline_of, fails, tmp_path, caplog):
    run, out = at_step(20), tmp_path / "out"
    (out / "samples.png").write_bytes(b"those of an earlier result")
    run.sample_grid = fails
    run.finish(pipeline_of(run), {})
    loaded = DDMPipeline.from_pretrained(out)
    assert all(map(torch.equal, loaded.unet.parameters(), run.ema.shadow_params))
    assert "drawing the samples of the model card failed" in caplog.text and "no memory is left" in caplog.text
    assert "| steps | 20 |" in (out / "README.md").read_text() and not (out / "samples.png").exists()


def test_a_card_that_cannot_be_written_costs_nothing_else(at_step, pipeline_of, tmp_path, caplog):
    run, out = at_step(20), tmp_path / "out"
    (out / "README.md").write_bytes(b"not UTF-8: \xff")
    run.finish(pipeline_of(run), {})
    assert "writing the model card failed" in caplog.text
    assert len(DDMPipeline.from_pretrained(out)(batch_size=1, num_inference_steps=2).images) == 1


def test_a_card_that_somebody_edited_stays(at_step, pipeline_of, tmp_path):
    run = at_step(20)
    (tmp_path / "out" / "README.md").write_text("# My own words")
    run.finish(pipeline_of(run), {})
    assert (tmp_path / "out" / "README.md").read_text() == "# My own words"


def test_a_local_data_set_is_not_named(at_step, pipeline_of, tmp_path):
    (tmp_path / "data").mkdir()
    run = at_step(20, "--dataset_name", tmp_path / "data")
    run.finish(pipeline_of(run), {})
    assert "datasets:" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("step", "pictures"), [(3, 0), (4, 1)])
def test_samples_are_due_every_so_many_steps(step, pictures, at_step, pipeline_of, tmp_path):
    run = at_step(step, "--save_images_steps", 2)
    run.show_progress(lambda: pipeline_of(run), {})
    assert len(list((tmp_path / "out").glob("samples/step-*.png"))) == pictures


def test_samples_that_cannot_be_drawn_do_not_end_a_run(at_step, pipeline_of, fails, tmp_path, caplog):
    run = at_step(4, "--save_images_steps", 2)
    run.sample_grid = fails
    run.show_progress(lambda: pipeline_of(run), {})
    assert "Step 4: drawing samples failed, the run goes on. RuntimeError: no memory is left" in caplog.text
    run = at_step(4, "--save_images_steps", 2, "--output_dir", tmp_path / "other")
    (tmp_path / "other" / "samples").write_text("in the way")
    run.show_progress(lambda: pipeline_of(run), {})
    assert "FileExistsError" in caplog.text


def test_the_best_is_kept(at_step, pipeline_of, tmp_path):
    run, best = at_step(1), tmp_path / "out" / "best"
    shown = []
    for distance in (5.0, 7.0, 3.0):
        with torch.no_grad():
            run.ema.shadow_params[0] += 1
        run.evaluate(lambda: pipeline_of(run), lambda _, distance=distance: distance)
        unet = DDMPipeline.from_pretrained(best).unet
        shown.append(next(unet.parameters()).clone())
        run.global_step += 1
    assert run.best == 3.0
    assert torch.equal(shown[0], shown[1]) and torch.equal(shown[2], run.ema.shadow_params[0])
    # a run that goes on from the third step knows of it, from the second one it does not
    assert [read_best(tmp_path / "out", step) for step in (3, 2)] == [3.0, float("inf")]


def test_an_evaluation_that_fails_does_not_end_a_run(at_step, pipeline_of, fails, tmp_path, caplog):
    run = at_step(1)
    run.evaluate(lambda: pipeline_of(run), fails)
    assert "Step 1: the evaluation failed, the run goes on. RuntimeError: no memory is left" in caplog.text
    (tmp_path / "out" / "best").write_text("in the way")
    run.evaluate(lambda: pipeline_of(run), lambda _: 5.0)
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
        run.finish(pipeline_of(run), {})
        files = server.files("user/run")
    assert "| steps | 20 |" in files["README.md"].decode()
    assert not [name for name in files if name.startswith(("checkpoint-", "samples/", "logs/"))]


def test_an_upload_that_fails_in_the_end_shows_in_the_exit_code(at_step, pipeline_of, tmp_path, caplog):
    with hub("hf_test") as server:
        run = at_step(20, "--push_to_hub", "--hub_model_id", "user/run", "--hub_token", "hf_test")
        server.fail_next("POST", "/commit/", status=403)
        with pytest.raises(SystemExit) as ended:
            run.finish(pipeline_of(run), {})
    assert ended.value.code == 1 and "push_to_hub of its pipeline uploads it later" in caplog.text
    assert (tmp_path / "out" / "model_index.json").is_file()
