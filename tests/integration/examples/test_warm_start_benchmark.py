# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/benchmarks/warm_start.py` compares its starts on the same batches and the same test loss, counts steps until the
loss that training from scratch ends with, and goes on where it was.
"""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def warm_start(benchmark_script):
    return benchmark_script("warm_start")


@pytest.fixture(scope="module")
def finished(warm_start, fashion_mnist_dir, tmp_path_factory):
    """The folder of a short run."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("warm")
    arguments = ["--output_dir", str(folder), "--base_dir", str(folder / "base"), "--data_dir", fashion_mnist_dir]
    arguments += ["--train_steps", "6", "--condition_train_steps", "6", "--evaluation_steps", "3"]
    arguments += ["--base_steps", "2", "--condition_base_steps", "2", "--warmup_steps", "1"]
    arguments += ["--train_batch_size", "4", "--num_test_images", "16"]
    warm_start.main(arguments)
    return folder, arguments


def test_a_run_from_end_to_end(finished):
    folder, _ = finished
    report = json.loads((folder / "warm_start.json").read_text())
    for kind in ("unet2d", "unet2d_condition"):
        steps = {name: [row[0] for row in report["runs"][f"{kind}-{name}"]] for name in ("predictions", "scratch")}
        assert steps == {"predictions": [0, 2], "scratch": [0, 3, 6]}
        rows = report["summary"][kind]
        assert (rows["scratch_steps"], rows["scratch_loss"]) == (6, rows["scratch"]["last_loss"])
        assert rows["scratch"]["reached_after"] == 6
    assert (folder / "warm_start.png").stat().st_size > 10_000
    assert report["settings"]["condition_base_steps"] == 2 and "data_dir" not in report["settings"]


def test_the_first_step_that_is_as_good_as_scratch_counts(warm_start, tmp_path, capsys):
    # rows of step, loss of the averaged weights, loss without averaging
    runs = {
        "scratch": [(0, 3.0, 3.0), (50, 2.0, 1.0), (100, 0.9, 0.8)],
        "weights": [(0, 2.0, 2.0), (50, 0.9, 0.1), (100, 1.0, 0.1)],
        "predictions": [(0, 1.0, 0.1), (50, 0.95, 0.1)],
    }
    for name, rows in runs.items():
        (tmp_path / f"unet2d-{name}.json").write_text(json.dumps(rows))
    warm_start.report(warm_start.parse_args(["--kinds", "unet2d"]), tmp_path)
    summary = json.loads((tmp_path / "warm_start.json").read_text())["summary"]["unet2d"]
    reached = {name: summary[name]["reached_after"] for name in runs}
    assert reached == {"scratch": 100, "weights": 50, "predictions": None}
    assert "predictions  first 1.0000 last 0.9500: 0.9000 after None" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["unet2d", "unet2d_condition"])
def test_the_starts(kind, warm_start):
    torch.manual_seed(1)
    unet = {
        "unet2d": warm_start.plain_unet,
        "unet2d_condition": lambda: warm_start.UNet2DConditionModel(
            **warm_start.CONDITION_TRUNK, out_channels=warm_start.CHANNELS
        ),
    }[kind]()
    models = {name: warm_start.start(kind, name, unet) for name in warm_start.STARTS}
    weights = {name: model.conv_in.weight for name, model in models.items()}
    assert torch.equal(weights["predictions"], unet.conv_in.weight)
    assert torch.equal(weights["weights"], unet.conv_in.weight)
    assert not torch.equal(weights["scratch"], unet.conv_in.weight)
    processes = {name: model.config.base_scheduler for name, model in models.items()}
    assert processes["weights"] is processes["scratch"] is None
    assert processes["predictions"]["beta_end"] == warm_start.VP["beta_end"]
    assert len({model.num_parameters() for model in models.values()}) == 1


def test_a_run_resumes(finished, warm_start, monkeypatch):
    folder, arguments = finished
    first = json.loads((folder / "warm_start.json").read_text())

    def fail(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(torch.optim, "AdamW", fail)
    warm_start.main(arguments)
    assert json.loads((folder / "warm_start.json").read_text())["runs"] == first["runs"]
    # and only what is missing is done
    (folder / "unet2d-weights.json").unlink()
    with pytest.raises(AssertionError, match="trained again"):
        warm_start.main(arguments)


def test_every_start_sees_the_same(warm_start, fashion_mnist_dir):
    data = warm_start.Data("train", fashion_mnist_dir)
    first, labels = data.batch(8, step=3)
    again, same = data.batch(8, step=3)
    assert torch.equal(first, again) and torch.equal(labels, same)
    assert not torch.equal(first, data.batch(8, step=4)[0])
    model = warm_start.start("unet2d_condition", "scratch", None)
    losses = [warm_start.evaluate(model, data, 64) for _ in range(2)]
    assert losses[0] == losses[1] and model.training
    # it is told the classes
    shuffled = warm_start.Data("train", fashion_mnist_dir)
    shuffled.labels = shuffled.labels.roll(1)
    assert warm_start.evaluate(model, shuffled, 64) != losses[0]
