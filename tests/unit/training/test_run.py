# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The loop of a run: how many steps it makes of which batches, what a checkpoint brings back, and how it ends. What a run
survives in processes of its own is tested with the scripts.
"""

import signal

import pytest
import torch
from safetensors.torch import load_file


def weights(run):
    return [weight.detach().clone() for weight in run.model.parameters()]


def same(a, b):
    return all(map(torch.equal, a, b))


def test_steps_epochs_and_batches(prepared, train):
    """Eight images in batches of four, two batches to a step: a step is an epoch."""
    run = prepared("--num_epochs", 3, "--gradient_accumulation_steps", 2)
    assert (run.steps_per_epoch, run.max_train_steps, run.total_batch_size) == (1, 3, 8)
    ended = []
    train(run, lambda run: ended.append((run.accelerator.sync_gradients, run.global_step)))
    assert ended == [(False, 0), (True, 1), (False, 1), (True, 2), (False, 2), (True, 3)]


def test_what_is_due(prepared, train):
    run = prepared("--max_train_steps", 4, "--gradient_accumulation_steps", 2)
    due = []
    train(run, lambda run: due.append((run.global_step, run.is_due(2), run.is_due(None))))
    assert sorted({step for step, is_due, _ in due if is_due}) == [0, 2, 4]
    assert not any(never for _, _, never in due)


def test_when_a_checkpoint_is_due(prepared, train):
    run = prepared("--max_train_steps", 5, "--checkpointing_steps", 2)
    due = []
    train(run, lambda run: due.append(run.should_save))
    assert due == [False, True, False, True, True]


def test_the_losses_are_logged_as_means(prepared, train):
    run = prepared("--max_train_steps", 2, "--gradient_accumulation_steps", 2)
    seen = []
    train(run, lambda run: seen.append(run._logs) if run.accelerator.sync_gradients else None)
    for logs in seen:
        assert logs["part"] == pytest.approx(logs["loss"] / 2, rel=1e-6) and logs["grad_norm"] > 0
    assert seen[0]["loss"] != seen[1]["loss"]


def test_gradients_are_clipped(prepared, train, tmp_path):
    """A loss a million times as large has the same gradient after it, and Adam's first step does not see its scale."""
    results = []
    for factor in (1.0, 1e6):
        run = prepared("--max_train_steps", 1, "--max_grad_norm", 1e-4, "--output_dir", tmp_path / f"{factor:g}")
        train(run, factor=factor)
        results.append([state["exp_avg"] for state in run.optimizer.state.values()])
        norm = torch.stack([each.norm() for each in results[-1]]).norm() / (1 - 0.95)
        assert norm == pytest.approx(1e-4, rel=0.01)
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-9)


def test_a_checkpoint_brings_everything_back(prepared, train):
    whole = prepared("--max_train_steps", 4, "--checkpointing_steps", 2)
    train(whole)
    again = prepared("--max_train_steps", 4, "--resume_from_checkpoint", "checkpoint-2")
    assert again.global_step == 2 and not same(weights(again), weights(whole))
    train(again)
    assert same(weights(again), weights(whole))
    assert same(again.ema.shadow_params, whole.ema.shadow_params)
    assert again.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()


def test_the_state_of_a_run_goes_into_its_checkpoints(make_run):
    run, other = make_run(), make_run()
    run.global_step, run._position, run.bad_images = 7, (1, 4), 3
    run._bad_image_names, run.tracking.ids = {"b.png", "a.png"}, {"wandb": "x"}
    other.load_state_dict(run.state_dict())
    assert other.state_dict() == run.state_dict()
    assert (other.global_step, other._position, other._bad_image_names) == (7, (1, 4), {"a.png", "b.png"})


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_other_settings_are_refused_and_nothing_is_touched(prepared, train, tmp_path):
    train(prepared("--max_train_steps", 1, "--logger", "tensorboard"))
    before = contents(tmp_path / "out")
    with pytest.raises(
        ValueError, match="learning_rate: 0.0001 there, 0.5 now.*total_batch_size: 4 there, 2 now"
    ) as raised:
        other = ["--learning_rate", 0.5, "--train_batch_size", 2]
        prepared("--max_train_steps", 1, "--resume_from_checkpoint", "latest", "--logger", "tensorboard", *other)
    assert "resolution" not in str(raised.value) and contents(tmp_path / "out") == before


def test_settings_that_do_not_matter_may_differ(prepared, train):
    train(prepared("--max_train_steps", 2, "--checkpointing_steps", 1))
    other = ["--gradient_accumulation_steps", 2, "--train_batch_size", 2, "--eval_batch_size", 1]
    other += ["--checkpoints_total_limit", 1, "--checkpointing_steps", 1000]
    run = prepared("--max_train_steps", 2, "--resume_from_checkpoint", "checkpoint-1", *other)
    train(run)
    assert [path.name for path in run.checkpoints.list()] == ["checkpoint-2"]  # the last step is always saved


def test_an_example_weighs_as_much_in_an_accumulated_step(prepared, train, tmp_path):
    losses = []
    for options in ([], ["--train_batch_size", 2, "--gradient_accumulation_steps", 2]):
        run = prepared("--max_train_steps", 3, "--output_dir", tmp_path / str(len(losses)), *options)
        losses.append([])
        train(run, lambda run: losses[-1].append(run._logs) if run.accelerator.sync_gradients else None)
    for one, accumulated in zip(*losses, strict=True):
        assert accumulated == pytest.approx(one, rel=1e-4)


def test_a_folder_of_another_run_is_refused(prepared, train, make_run):
    train(prepared("--max_train_steps", 1))
    with pytest.raises(ValueError, match="up to checkpoint-1. --resume_from_checkpoint latest continues it"):
        make_run()


def test_an_output_folder_inside_the_data_is_refused(make_run, tmp_path):
    with pytest.raises(ValueError, match="`output_dir` is .*out', which is inside the data folder"):
        make_run("--train_data_dir", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_run_continues_in_another_folder(prepared, train, tmp_path):
    whole = prepared("--max_train_steps", 4, "--checkpointing_steps", 2)
    train(whole)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    before = contents(tmp_path / "out")
    again = prepared("--max_train_steps", 4, "--resume_from_checkpoint", checkpoint, "--output_dir", tmp_path / "b")
    train(again)
    assert same(weights(again), weights(whole)) and contents(tmp_path / "out") == before
    assert (tmp_path / "b" / "checkpoint-4" / "model.safetensors").is_file()


def test_a_constant_learning_rate_can_go_on_for_longer(prepared, train):
    train(prepared("--max_train_steps", 1, "--lr_scheduler", "constant"))
    options = ["--lr_scheduler", "constant", "--resume_from_checkpoint", "latest"]
    longer = prepared("--max_train_steps", 2, *options)
    train(longer)
    assert longer.global_step == 2
    longer.checkpoints.settings.pop("max_train_steps", None)
    with pytest.raises(ValueError, match="max_train_steps"):
        prepared("--max_train_steps", 3, "--resume_from_checkpoint", "latest")


def test_a_run_without_a_seed_draws_one(make_run):
    def drawn():
        run = make_run()
        run.args.seed = None
        return type(run)(run.args, run.name).seed

    seeds = {drawn() for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_what_was_trained(prepared, train, tmp_path):
    """The averaged weights, or the weights; and the copy draws no random numbers of the run."""
    averaged = prepared("--max_train_steps", 2)
    train(averaged)
    state = torch.get_rng_state()
    model = averaged.trained_model()
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert same(list(model.parameters()), averaged.ema.shadow_params)
    plain = prepared("--max_train_steps", 2, "--no-use_ema", "--output_dir", tmp_path / "plain")
    train(plain)
    assert plain.ema is None and same(list(plain.trained_model().parameters()), weights(plain))
    assert not same(weights(plain), averaged.ema.shadow_params)


def test_a_step_that_is_not_finite(prepared, train, tmp_path):
    run = prepared("--max_train_steps", 2)
    before = weights(run)
    with pytest.raises(FloatingPointError, match=r"Step 1 is not finite: loss inf.* Its images are \(0, \d\), "):
        train(run, factor=float("inf"))
    assert same(weights(run), before) and run.global_step == 0
    saved = load_file(tmp_path / "out" / "nonfinite-1" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in run.model.named_parameters())


def test_a_signal_ends_the_run_after_the_step(prepared, train, tmp_path):
    run = prepared("--max_train_steps", 9, "--gradient_accumulation_steps", 2)
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(run):
        if run.global_step == 0:  # in the middle of the first step
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        train(run, interrupt)
    assert ended.value.code == 128 + signal.SIGTERM and run.global_step == 1
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").is_file()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_after_the_last_step_waits_for_the_result(prepared, train, pipeline_of, tmp_path):
    run, before = prepared("--max_train_steps", 1), signal.getsignal(signal.SIGINT)
    train(run)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        run.finish(pipeline_of(run), {})
    assert ended.value.code == 128 + signal.SIGINT and (tmp_path / "out" / "README.md").is_file()
    assert signal.getsignal(signal.SIGINT) == before
