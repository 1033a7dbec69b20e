# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/benchmarks/swap.py` hands the swapped scheduler the very model that the others get, compares distances above the
floor at equal numbers of evaluations, and goes on where it was.
"""

import json

import pytest
import torch
from diffusers import DDIMScheduler


@pytest.fixture(scope="module")
def swap(benchmark_script):
    return benchmark_script("swap")


@pytest.fixture(scope="module")
def mixture(swap):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 4, generator=generator).double().numpy()
    covariances = torch.eye(4, dtype=torch.float64).mul(0.05).expand(3, 4, 4).numpy()
    return swap.samplers.Mixture(torch.tensor([0.2, 0.5, 0.3]).double().numpy(), means, covariances)


def test_the_swapped_scheduler_gets_the_model_of_the_others(swap, mixture):
    theirs = DDIMScheduler(**swap.samplers.VARIANCE_PRESERVING, clip_sample=False)
    networks = [swap.samplers.exact_network(mixture, s) for s in (theirs, swap.SwappedDDMScheduler())]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    outputs = [network(x, torch.tensor(400)) for network in networks]
    assert torch.equal(*outputs) and outputs[0].shape == (5, 4)


def test_the_swapped_scheduler_is_at_the_floor_in_many_steps(swap, mixture):
    floor = swap.samplers.floor(mixture, 2000)["frechet"]
    row = swap.samplers.score(mixture, swap.swapped("default"), 50, 2000, seed=0)
    assert row["calls"] == 50 and row["frechet"] < floor["mean"] + 4 * floor["std"]
    few = swap.samplers.score(mixture, swap.swapped("paper", **swap.training.PAPER), 5, 2000, seed=0)
    assert few["frechet"] > floor["mean"] + 4 * floor["std"]


def test_the_peers_are_handed_noise_predictions(swap):
    names = {setting.label for setting in swap.PEERS}
    assert names == {
        *("DDPM", "DDIM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"),
        *("UniPCMultistep", "DEISMultistep", "SASolver"),
    }
    for setting in swap.PEERS:
        scheduler = setting.scheduler(**setting.options)
        assert scheduler.config.prediction_type == "epsilon" and not scheduler.config.get("use_flow_sigmas")


def test_what_is_compared_is_the_distance_above_the_floor(swap):
    def line(*distances):
        return {n: {"distance": d, "setting": "s"} for n, d in zip((5, 10, 20), distances, strict=True)}

    # another of ours is no peer, however good
    table = {
        swap.DEFAULT: line(4.0, 2.5, 2.4),
        "DDM, eta 0": line(2.1, 2.1, 2.1),
        "DDIM": line(9.0, 2.4, 5.0),
        "UniPC": line(6.0, 3.0, 1.9),
    }
    found = swap.comparisons("trained", table, floor=2.0)
    assert [(e["evaluations"], e["setting"], e["peer"], e["ratio"]) for e in found] == [
        (5, swap.DEFAULT, "UniPC", pytest.approx(0.5)),
        (5, "DDM, eta 0", "UniPC", pytest.approx(0.025)),
        (10, swap.DEFAULT, "DDIM", pytest.approx(1.25)),
        (10, "DDM, eta 0", "DDIM", pytest.approx(0.25)),
        (20, swap.DEFAULT, "UniPC", None),  # which is at the floor
        (20, "DDM, eta 0", "UniPC", None),
    ]
    assert [e.get("reached") for e in found] == [True, True, False, True, None, None]
    assert [e["better_than_ddim"] for e in found] == [True, True, False, True, True, True]


def test_a_run_resumes(swap, mixture, tmp_path, monkeypatch, capsys):
    """From end to end with few settings: table, JSON, plot, and a second run that samples nothing."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(swap, "PEERS", [s for s in swap.PEERS if s.label in ("DDIM", "UniPCMultistep")][:4])
    monkeypatch.setattr(swap.samplers.Mixture, "fit", lambda *arguments: mixture)
    arguments = ["--output_dir", str(tmp_path), "--models", "digits", "--num_exact_samples", "100", "--num_seeds", "2"]
    swap.main(arguments)
    output = capsys.readouterr().out
    assert "| DDM, default |" in output and "| DDIM |" in output and "digits at 5" in output
    first = json.loads((tmp_path / "swap.json").read_text())
    assert {entry["evaluations"] for entry in first["compared"]} == {5, 10, 20}
    assert first["tables"]["digits"]["DDM, default"]["5"]["seeds"] == 2
    assert first["default"]["eta"] == swap.SwappedDDMScheduler().config.eta
    assert (tmp_path / "swap.png").stat().st_size > 10_000

    def fail(*arguments, **options):
        raise AssertionError("sampled again")

    monkeypatch.setattr(swap.samplers, "score", fail)
    swap.main(arguments)
    again = json.loads((tmp_path / "swap.json").read_text())
    assert again["tables"] == first["tables"]
    swap.main([*arguments, "--report_only"])
    assert json.loads((tmp_path / "swap.json").read_text())["compared"] == first["compared"]


def test_without_the_trained_model(swap, tmp_path):
    with pytest.raises(FileNotFoundError, match="ddpm-0.safetensors is missing"):
        swap.main(["--output_dir", str(tmp_path), "--training_dir", str(tmp_path), "--models", "trained"])
