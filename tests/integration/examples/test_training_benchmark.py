# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/benchmarks/training.py` trains every model in the parametrisation that its samplers expect, counts evaluations of
the network alike for all, and goes on where it was.
"""

import json

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def training(benchmark_script):
    return benchmark_script("training")


@pytest.fixture(scope="module")
def clean(training):
    """One image, the whole data set of the networks below."""
    shape = (1, training.CHANNELS, training.SIZE, training.SIZE)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(1.6).sub(0.8)


class Knows:
    """The exact network of a data set of one image: solves the forward equation of its method for what was trained."""

    def __init__(self, training, name, clean):
        self.training, self.name, self.clean = training, name, clean
        model = training.METHODS[name].build()
        self.config = model.config
        self.calls = 0

    def __call__(self, x, timesteps):
        self.calls += 1
        training = self.training
        times = timesteps.double().reshape(-1, 1, 1, 1)
        if self.name == "ddpm":
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
            product = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)]).log()
            below = (times + 1).long().clamp(0, 999)  # our samplers ask between the timesteps as well
            alpha = torch.lerp(product[below], product[below + 1], times + 1 - below).div(2).exp()
            output = (x - alpha * self.clean) / (1 - alpha**2).sqrt()
        elif self.name == "flow":
            output = (x - self.clean) / (times / 1000)
        elif self.name == "edm":
            sigma, data = (4 * times).exp(), training.SIGMA_DATA
            variance = sigma**2 + data**2
            output = (self.clean - data**2 / variance.sqrt() * x) * variance.sqrt() / (sigma * data)
        else:
            t = times / 1000
            alpha, sigma = 1 - t, t if self.config.noise_schedule == "linear" else t.sqrt()
            output = torch.cat([(-self.clean).expand_as(x), (x - alpha * self.clean) / sigma], dim=1)
        return UNet2DOutput(sample=output.float())


PARAMETRISATIONS = ["ddpm", "flow", "edm", "ddm", "ddm_linear_noise", "ddm_released", "adm_released"]


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_what_is_trained_is_what_the_samplers_expect(training, clean, name):
    """The exact network has no loss, and with it every sampler comes to the image in the evaluations that were asked for."""
    network = Knows(training, name, clean)
    method = training.METHODS[name]
    loss = method.loss(network, clean.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert loss < 1e-6
    wrong = method.loss(Knows(training, name, -clean), clean.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert wrong > 0.1
    expected = torch.nn.functional.pixel_shuffle(clean, training.PATCH)
    for sampler, make_scheduler in method.samplers.items():
        network.calls = 0
        images, calls = training.sample(network, make_scheduler, 10, 4, seed=0)
        assert calls == network.calls <= 10, sampler
        # half of a step of 8 bits, and the noise that some schedulers of diffusers leave in
        assert (images - expected).abs().max() < 0.04, sampler


class Stopped(Exception):
    pass


def test_a_training_goes_on_where_it_was_stopped(training, clean, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    images = torch.cat([clean, -clean, clean.flip(3)])
    args = training.parse_args(["--train_steps", "5", "--train_batch_size", "4"])
    method = training.METHODS["ddm"]
    training.train(method, 3, images, args, tmp_path / "whole.safetensors")

    losses = iter(range(3))

    def stops(*arguments):
        if next(losses, None) is None:
            raise Stopped
        return method.loss(*arguments)

    path = tmp_path / "stopped.safetensors"
    with pytest.raises(Stopped):
        training.train(training.Method("DDM", method.build, stops, {}), 3, images, args, path)
    assert not path.exists() and (tmp_path / "stopped.state.pt").is_file()
    training.train(method, 3, images, args, path)
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not (tmp_path / "stopped.state.pt").exists()
    written = path.stat().st_mtime_ns
    training.train(training.Method("DDM", method.build, stops, {}), 3, images, args, path)  # it is there
    assert path.stat().st_mtime_ns == written


def test_the_best_sampler_is_that_of_the_most_seeds(training):
    samplers = {
        "UniPC": {0: 10.0, 1: 12.0},
        "DDIM": {0: 20.0, 1: 8.0},
        "Euler": {0: 1.0},  # screened on one seed alone
        "DDM, default": {0: 5.0, 1: 6.0},
    }
    assert training.best_sampler(samplers, ours=False) == (11.0, "UniPC")
    assert training.best_sampler(samplers, ours=True) == (5.5, "DDM, default")
    assert training.best_sampler({"UniPC": {0: 1.0}}, ours=True)[1] == ""


@pytest.mark.slow
def test_from_training_to_report(training, fashion_mnist_dir, tmp_path, monkeypatch, capsys):
    """On few images, in the features of a classifier that is not trained; a second run samples nothing."""
    classifier = training.train_classifier.__globals__["Classifier"]()
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    options = "--train_steps 2 --train_batch_size 4 --num_samples 40 --num_screening_samples 8 --screening_nfes 5 --nfes 5 20"
    folders = ["--output_dir", str(tmp_path), "--data_dir", fashion_mnist_dir]
    arguments = [*folders, *options.split(), "--methods", "ddm", "flow", "edm"]
    training.main(arguments)
    output = capsys.readouterr().out
    assert "| flow |" in output and "| best DDM / flow |" in output and "| floor |" in output

    rows = {name: json.loads((tmp_path / f"{name}.rows.json").read_text()) for name in ("flow-0", "flow-1", "ddm-1")}
    screened = [row["sampler"] for row in rows["flow-0"] if row["num_samples"] == 8]
    assert sorted(screened) == sorted(training.METHODS["flow"].samplers)
    # of the second seed only what the first one chose, and half as many samples at more than 10 evaluations
    chosen = min((row for row in rows["flow-0"] if row["num_samples"] == 8 and row["sampler"][:3] != "DDM"), key=score)
    assert {(row["sampler"], row["nfe"], row["num_samples"]) for row in rows["flow-1"]} == {
        (sampler, nfe, n) for sampler in (chosen["sampler"], "DDM, default") for nfe, n in ((5, 40), (20, 20))
    }
    assert not (tmp_path / "edm-1.rows.json").exists()  # not a headline row
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["training"].keys() == {"ddm-0", "ddm-1", "flow-0", "flow-1", "edm-0"}
    assert (tmp_path / "training.png").stat().st_size > 10_000

    def fail(*arguments, **options):
        raise AssertionError("sampled again")

    monkeypatch.setattr(training, "sample", fail)
    training.main(arguments)
    assert json.loads((tmp_path / "flow-1.rows.json").read_text()) == rows["flow-1"]
    # swapped alone: no row of a peer, which the report has to bear
    monkeypatch.undo()
    training.main([*folders, "--methods", "flow", "--samplers", "DDM, default", "--nfes", "10", "--num_samples", "30"])
    assert "| flow |" in capsys.readouterr().out


def score(row):
    return row["distance"]
