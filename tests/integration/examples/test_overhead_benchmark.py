# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`examples/benchmarks/overhead.py` compares what it says: a ratio is first over second, and every figure is there."""

import json
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def overhead(benchmark_script):
    return benchmark_script("overhead")


def test_a_ratio_is_that_of_pairs_in_alternating_order(overhead, monkeypatch):
    clock, order = [0.0], []

    def takes(name, *seconds):
        durations = iter(seconds)

        def run():
            order.append(name)
            clock[0] += next(durations)

        return run

    monkeypatch.setattr(overhead, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    # the machine slows down threefold in the fourth round, and the first one warms up
    first, second = takes("a", 9.0, 4.0, 5.0, 12.0, 3.0), takes("b", 1.0, 1.0, 1.0, 3.0, 1.0)
    result = overhead.paired_ratio(first, second, torch.device("cpu"), rounds=4)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" + "ba"
    assert result["ratio"] == 4.0 and result["quartiles"] == [3.25, 4.75]


@pytest.mark.slow
def test_every_figure(overhead, tmp_path, capsys):
    overhead.main(["--output_dir", str(tmp_path), "--quick", "--device", "cpu"])
    result = json.loads((tmp_path / "overhead.json").read_text())
    what = "\n".join(result["ratios"])
    for part in (
        "pipeline, 10 steps / 10 evaluations",
        "training step / bare step",
        "step / DDIM",
        "step / DPM-Solver++",
        "step / SDE-DPM-Solver++",
    ):
        assert part in what
    for name in ("one head", "two heads", "two decoders"):
        assert result["ratios"][f"{name} / plain, forward"]["ratio"] > 0.5
    assert result["memory"].keys() == {"two decoders"} and result["memory"]["two decoders"]["MiB"] > 1
    assert result["ratios"]["pipeline, 10 steps / 10 evaluations"]["parameters"] > 1_000_000
    assert "| two decoders / plain, forward and backward |" in capsys.readouterr().out
    assert (tmp_path / "overhead.png").stat().st_size > 5_000
