# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/benchmarks/samplers.py` measures what it says: its denoiser is the posterior mean, its distances are those of
the mixture, each scheduler is handed its own parametrisation, and the report compares equal numbers of evaluations.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from scipy.stats import multivariate_normal

from ddm_diffusers import DDMScheduler


SCRIPT = Path(__file__).parents[3] / "examples" / "benchmarks" / "samplers.py"

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.0, 0.5], [0.8, 0.7], [0.2, -1.2]])
COVARIANCES = np.array([[[0.05, 0.02], [0.02, 0.04]], [[0.02, -0.01], [-0.01, 0.09]], [[0.3, 0.0], [0.0, 0.01]]])


def load_script():
    spec = importlib.util.spec_from_file_location("samplers_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


samplers = load_script()


@pytest.fixture(scope="module")
def mixture():
    return samplers.Mixture(WEIGHTS, MEANS, COVARIANCES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def excess(mixture, setting, evaluations, num_samples=2000):
    """By how many standard deviations of the floor a sampler misses it; the worse of the two distances."""
    row = samplers.score(mixture, setting, evaluations, num_samples, seed=0)
    assert "error" not in row, row["error"]
    floor = samplers.floor(mixture, num_samples)
    return max((row[name] - floor[name]["mean"]) / floor[name]["std"] for name in samplers.MEASURES)


# ---------------------------------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("alpha, sigma", [(0.0, 1.0), (0.3, 0.9), (0.7, 0.3), (1.0, 2.0), (1.0, 0.2)])
def test_the_denoiser_is_the_posterior_mean(mixture, alpha, sigma):
    """Against the integral over x_0 on a grid."""
    axis = np.linspace(-4, 4, 601)
    x_0 = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    prior = sum(w * multivariate_normal(m, c).pdf(x_0) for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True))
    x = alpha * mixture.sample(5, seeded(0)) + sigma * torch.randn(5, 2, generator=seeded(1))
    for noisy, denoised in zip(x.numpy(), mixture.denoise(x, alpha, sigma).numpy(), strict=True):
        posterior = prior * np.exp(-((noisy - alpha * x_0) ** 2).sum(1) / (2 * sigma**2))
        np.testing.assert_allclose(denoised, posterior @ x_0 / posterior.sum(), atol=1e-4)


def test_samples_have_the_moments_of_the_mixture(mixture):
    samples = mixture.sample(200_000, seeded(0)).double().numpy()
    components = zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    second_moment = sum(weight * (covariance + np.outer(mean, mean)) for weight, mean, covariance in components)
    np.testing.assert_allclose(samples.mean(0), WEIGHTS @ MEANS, atol=0.01)
    np.testing.assert_allclose(samples.T @ samples / len(samples), second_moment, atol=0.01)


def test_true_samples_score_the_floor_which_falls_with_their_number(mixture):
    few, many = samplers.floor(mixture, 500), samplers.floor(mixture, 8000)
    others = mixture.sample(500, seeded(12345))
    for name, distance in (
        ("frechet", mixture.frechet_distance(others)),
        ("sliced_wasserstein", mixture.sliced_wasserstein_distance(others)),
    ):
        assert abs(distance - few[name]["mean"]) < 4 * few[name]["std"]
    # Frechet's is a square and falls as 1 / n; the other one as 1 / sqrt(n)
    assert 8 < few["frechet"]["mean"] / many["frechet"]["mean"] < 32
    assert 2.8 < few["sliced_wasserstein"]["mean"] / many["sliced_wasserstein"]["mean"] < 5.7


def test_the_frechet_distance_of_a_shift_and_of_a_scale_is_known(mixture):
    samples, shift = mixture.sample(1000, seeded(0)), torch.tensor([0.3, -0.7])
    offset = samples.double().mean(0).numpy() - WEIGHTS @ MEANS
    expected = mixture.frechet_distance(samples) + 0.3**2 + 0.7**2 + 2 * shift.numpy() @ offset
    assert mixture.frechet_distance(samples + shift) == pytest.approx(expected, abs=1e-5)

    gaussian = samplers.Mixture(np.ones(1), np.zeros((1, 2)), np.diag([4.0, 0.25])[None])
    white = torch.randn(1000, 2, generator=seeded(0), dtype=torch.float64)
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    # standard deviations 3 and 1 instead of 2 and 1/2
    distance = gaussian.frechet_distance(white * torch.tensor([3.0, 1.0]))
    assert distance == pytest.approx((3 - 2) ** 2 + (1 - 0.5) ** 2, abs=1e-9)


def test_the_sliced_wasserstein_distance_of_a_shift_is_known(mixture):
    """Along a direction it is the shift's component; over all directions the mean square of that is |shift|^2 / 2."""
    samples = mixture.sample(20_000, seeded(0)) + torch.tensor([0.6, -0.8])
    assert mixture.sliced_wasserstein_distance(samples) == pytest.approx(0.5**0.5, rel=0.05)


def test_a_fit_finds_the_mixture(mixture):
    fitted = samplers.Mixture.fit(mixture.sample(20_000, seeded(0)).numpy(), 3, 1e-6)
    order = np.argsort(fitted.weights)
    np.testing.assert_allclose(fitted.weights[order], [0.2, 0.3, 0.5], atol=0.02)
    np.testing.assert_allclose(fitted.means[order], MEANS[[0, 2, 1]], atol=0.05)
    np.testing.assert_allclose(fitted.covariances[order], COVARIANCES[[0, 2, 1]], atol=0.02)


# ------------------------------------------------------------------------------------------------------------- samplers


def test_many_steps_come_near_the_floor_and_one_does_not(mixture):
    best = next(setting for setting in samplers.ddm_settings() if setting.name == "order 3, ratio, sqrt noise")
    assert excess(mixture, best, 50) < 3
    assert excess(mixture, best, 1) > 30


VP = samplers.VARIANCE_PRESERVING
V_PREDICTION = {**VP, "prediction_type": "v_prediction", "clip_sample": False}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    "setting",
    [
        samplers.ddm("sqrt", solver_order=2, eta=0.0, time_grid="ratio"),
        samplers.ddm("linear", solver_order=2, eta=0.0, noise_schedule="linear"),
        samplers.Setting(DPMSolverMultistepScheduler, "noise", VP),
        samplers.Setting(DDIMScheduler, "velocity", {**V_PREDICTION, "timestep_spacing": "trailing"}),
        samplers.Setting(DDIMScheduler, "zero SNR", {**V_PREDICTION, "rescale_betas_zero_snr": True}),
        samplers.Setting(HeunDiscreteScheduler, "scaled input", {**VP, "use_karras_sigmas": True}),
        samplers.Setting(EDMDPMSolverMultistepScheduler, "EDM"),
        samplers.Setting(UniPCMultistepScheduler, "flow", FLOW),
        samplers.Setting(FlowMatchHeunDiscreteScheduler, "shift", {"shift": 2.0}),
        samplers.Setting(FlowMatchEulerDiscreteScheduler, "sigmas", sigmas=samplers.from_1_to_1_over_N),
    ],
    ids=lambda setting: f"{setting.label}-{setting.name}",
)
def test_each_scheduler_is_handed_its_own_parametrisation(mixture, setting):
    assert excess(mixture, setting, 100) < 4


@pytest.fixture(scope="module")
def known_image():
    """A mixture of a single image, so that a perfect network returns exactly the image and the noise that were mixed."""
    image = torch.tensor([[0.4, -0.9]]).expand(3, 2)
    return samplers.Mixture(np.ones(1), image[:1].double().numpy(), np.zeros((1, 2, 2))), image


@pytest.mark.parametrize("timestep", [2, 500, 990])
@pytest.mark.parametrize(
    "scheduler, target",
    [
        (DDMScheduler(), lambda scheduler, image, noise, timestep: torch.cat([-image, noise], dim=1)),
        (DDPMScheduler(), lambda scheduler, image, noise, timestep: noise),
        (DDPMScheduler(**V_PREDICTION), DDPMScheduler.get_velocity),
        (DPMSolverMultistepScheduler(**FLOW), lambda scheduler, image, noise, timestep: noise - image),
    ],
    ids=["DDM", "epsilon", "v_prediction", "flow"],
)
def test_a_perfect_network_returns_what_it_would_be_trained_on(known_image, scheduler, target, timestep):
    """With the noising and the targets that the schedulers themselves have for training."""
    mixture, image = known_image
    noise, timesteps = torch.randn(3, 2, generator=seeded(0)), torch.full((3,), timestep)
    if scheduler.config.prediction_type == "flow_prediction":
        noisy = image + timestep / 1000 * (noise - image)
    else:
        noisy = scheduler.add_noise(image, noise, timesteps)
    output = samplers.exact_network(mixture, scheduler)(noisy, timesteps[0])
    torch.testing.assert_close(output, target(scheduler, image, noise, timesteps), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 60.0])
def test_the_preconditioned_network_of_edm_gives_the_image(known_image, sigma):
    mixture, image = known_image
    scheduler, sigma = EDMDPMSolverMultistepScheduler(), torch.tensor(sigma)
    noisy = image + sigma * torch.randn(3, 2, generator=seeded(0))
    network = samplers.exact_network(mixture, scheduler)
    output = network(scheduler.precondition_inputs(noisy, sigma), scheduler.precondition_noise(sigma))
    torch.testing.assert_close(scheduler.precondition_outputs(noisy, output, sigma), image, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("evaluations, calls", [(1, 1), (2, 1), (5, 5), (10, 9)])
def test_the_steps_of_heun_are_counted_as_evaluations(mixture, evaluations, calls):
    setting = samplers.Setting(FlowMatchHeunDiscreteScheduler, "")
    assert samplers.score(mixture, setting, evaluations, 10, seed=0)["calls"] == calls


def test_all_samplers_start_from_the_same_noise(mixture, monkeypatch):
    starts = []

    def record(mixture, setting, evaluations, noise, generator):
        starts.append((noise, generator.initial_seed()))
        return noise, evaluations

    monkeypatch.setattr(samplers, "run", record)
    for setting, seed in ((samplers.PEERS[0], 0), (samplers.PEERS[-1], 0), (samplers.PEERS[0], 1)):
        samplers.score(mixture, setting, 5, 10, seed)
    assert torch.equal(starts[0][0], starts[1][0]) and starts[0][1] == starts[1][1]
    assert not torch.equal(starts[0][0], starts[2][0]) and starts[0][1] != starts[2][1]


def test_every_setting_is_accepted_by_its_scheduler():
    settings = samplers.ddm_settings() + samplers.PEERS
    for setting in settings:
        options = setting.scheduler(**setting.options).config
        assert setting.options.items() <= dict(options).items()
        assert not options.get("clip_sample")
    assert len({(setting.label, setting.name) for setting in settings}) == len(settings)


# --------------------------------------------------------------------------------------------------------------- report


def row(setting, evaluations, distance, scheduler="A", calls=None, seed=0):
    return {
        "dataset": "digits",
        "num_samples": 10,
        "options": {},
        **{"scheduler": scheduler, "setting": setting, "evaluations": evaluations, "seed": seed},
        **{"calls": calls or evaluations, "frechet": distance, "sliced_wasserstein": distance},
    }


def test_the_best_is_by_the_mean_of_settings_that_ran_with_all_seeds():
    rows = [row("lucky", 5, 0.1), row("good", 5, 0.3), row("good", 5, 0.5, seed=1)]
    rows += [row("bad", 5, 0.2), row("bad", 5, 0.9, seed=1), row("lucky", 10, 0.2)]
    found = samplers.best(rows)
    assert found[5] == {"scheduler": "A", "setting": "good", "distance": pytest.approx(0.4), "seeds": 2}
    assert found[10]["setting"] == "lucky"


def test_what_exceeds_its_evaluations_or_fails_is_not_compared(tmp_path):
    rows = [row("honest", 5, 0.4), row("generous", 5, 0.1, calls=6)]
    failed = {**row("failed", 5, 0.1), "error": "refused"}
    (tmp_path / "samplers.json").write_text(json.dumps({"rows": [*rows, failed], "floors": []}))
    results = samplers.Results(tmp_path / "samplers.json")
    settings = [samplers.Setting(type("AScheduler", (), {}), name) for name in ("honest", "generous", "failed")]
    assert results.rows_of("digits", settings, 10) == rows[:1]
    assert results.rows_of("digits", settings[1:], 10) == []


def test_the_ratios_are_those_of_the_issue():
    ours = {n: {"distance": d} for n, d in ((5, 0.2), (10, 0.13), (20, 0.1))}
    peers = {n: {"distance": d} for n, d in ((5, 0.8), (10, 0.2), (20, 0.1))}
    entries = samplers.ratios("digits", ours, peers, {"mean": 0.1, "std": 0.01})
    found = [(e["evaluations"], e["over"], e["ratio"], e["to_reach"], e["reached"]) for e in entries]
    assert found == [
        (5, "peer", pytest.approx(0.25), 0.25, True),
        (10, "peer", pytest.approx(0.65), 0.30, False),
        (20, "peer", pytest.approx(1.0), 0.90, False),
        (10, "floor", pytest.approx(1.3), 1.35, True),
    ]
    assert [(e["excess"], e["peer_excess"]) for e in entries[:3]] == [
        (pytest.approx(0.1), pytest.approx(0.7)),
        (pytest.approx(0.03), pytest.approx(0.1)),
        (pytest.approx(0.0), pytest.approx(0.1 - 0.1)),
    ]


def test_a_run_resumes_and_keeps_the_reason_of_a_refusal(tmp_path, mixture, monkeypatch, capsys):
    """From end to end with few settings: JSON, plot, and a second run that samples nothing."""
    pytest.importorskip("matplotlib")
    refusing = samplers.Setting(DPMSolverMultistepScheduler, "refusing", {**VP, "timestep_spacing": "none of them"})
    monkeypatch.setattr(samplers, "PEERS", [samplers.PEERS[0], refusing])
    monkeypatch.setattr(samplers, "ddm_settings", lambda: [samplers.ddm("default"), samplers.ddm("paper")])
    monkeypatch.setattr(samplers.Mixture, "fit", lambda *arguments: mixture)
    arguments = ["--output_dir", str(tmp_path), "--datasets", "digits", "--num_samples", "50", "--num_seeds", "2"]
    arguments += ["--evaluations", "5", "10"]
    samplers.main(arguments)
    first = json.loads((tmp_path / "samplers.json").read_text())
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "samplers.json", "samplers.png"]
    refused = [row for row in first["rows"] if row["setting"] == "refusing"]
    assert len(refused) == 2 and all("none of them" in row["error"] for row in refused)
    assert {row["seed"] for row in first["rows"] if row["scheduler"] in ("DDM", "DDPM")} == {0, 1}
    assert "digits at 5" in capsys.readouterr().out

    def fail(*arguments, **options):
        raise AssertionError("sampled again")

    monkeypatch.setattr(samplers, "score", fail)
    monkeypatch.setattr(samplers, "floor", fail)
    samplers.main(arguments)
    assert json.loads((tmp_path / "samplers.json").read_text()) == first
