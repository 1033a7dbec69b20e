# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Samplers without a network: the error of each scheduler by itself, on Gaussian mixtures fitted to real images.

    python examples/benchmarks/samplers.py --output_dir samplers                 # half an hour; resumes where it was
    python examples/benchmarks/samplers.py --output_dir samplers --quick         # a minute, only to see that it runs
    python examples/benchmarks/samplers.py --output_dir samplers --report_only   # table, JSON and plot of what is there

For a Gaussian mixture the best possible denoiser is a closed formula. Each scheduler is handed what a perfectly trained
network of its own parametrisation returns (noise, velocity, EDM's raw output, attenuation and noise), evaluated at
exactly the input and the timestep that the scheduler asks for. All that is left is the sampler's own error. It is
measured against the mixture itself, whose mean, covariance and projections are known: Frechet's distance and a sliced
Wasserstein distance. True samples of the same number do not score zero but the floor.

The mixtures are fitted to scikit-learn's digits (8x8) and to 20,000 images of Fashion-MNIST averaged to 7x7. Every
sampler starts from the same noise. The first seed runs every setting of every scheduler; the further seeds run, at each
number of evaluations, those settings that were best of their scheduler. A scheduler is then represented by the setting
of the lowest mean, at each number of evaluations anew. Rows that are in the JSON file are not run again: delete it after
a change of diffusers or of this package.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from inspect import signature
from itertools import cycle
from pathlib import Path

import diffusers
import numpy as np
import sklearn
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from scipy.special import ndtr
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import ddm_diffusers
from ddm_diffusers import DDMScheduler


DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
EVALUATIONS = (1, 2, 3, 5, 8, 10, 20, 50)
MEASURES = {"frechet": "Frechet distance", "sliced_wasserstein": "sliced Wasserstein distance"}
NUM_FLOOR_DRAWS = 20

# What is to be reached by the best DDM setting, as a multiple of the best peer at the same number of evaluations
RATIOS_TO_REACH = {5: 0.25, 10: 0.30, 20: 0.90}
# and as a multiple of the floor
FLOOR_TO_REACH = {10: 1.35}


# ---------------------------------------------------------------------------------------------------------------- truth
class Mixture:
    """
    A Gaussian mixture `p(x_0) = sum_k w_k N(x_0; m_k, C_k)`, its exact denoiser, and distances to it.

    Args:
        weights (`np.ndarray` of shape `(K,)`): `w_k`.
        means (`np.ndarray` of shape `(K, d)`): `m_k`.
        covariances (`np.ndarray` of shape `(K, d, d)`): `C_k`.
    """

    def __init__(self, weights, means, covariances):
        self.weights, self.means, self.covariances = weights, means, covariances
        centered = means - weights @ means
        self.mean = weights @ means
        self.covariance = np.einsum("k,kij->ij", weights, covariances) + (centered.T * weights) @ centered
        self.covariance_root = symmetric_root(self.covariance)

        # C_k = U_k diag(e_k) U_k^T: in the basis U_k the noisy component stays diagonal at every noise level
        eigenvalues, bases = np.linalg.eigh(covariances)
        self._log_weights = torch.tensor(weights).log().float()
        self._eigenvalues = torch.tensor(eigenvalues.clip(min=0)).float()
        self._bases = torch.tensor(bases.transpose(1, 0, 2).reshape(means.shape[1], -1)).float()
        self._rotated_means = torch.tensor(np.einsum("kd,kde->ke", means, bases)).float()

    @classmethod
    def fit(cls, images, num_components, regularization):
        """Fit to images `(N, d)`. Some pixels are always black: the regularization keeps their variance above 0."""
        fitted = GaussianMixture(num_components, reg_covar=regularization, tol=1e-2, random_state=0).fit(images)
        return cls(fitted.weights_, fitted.means_, fitted.covariances_)

    def denoise(self, x, alpha, sigma):
        """`E[x_0 | alpha x_0 + sigma eps = x]` for x `(N, d)`, the mean of the components' posterior means."""
        num_components, dimension = self._eigenvalues.shape
        variances = alpha**2 * self._eigenvalues + sigma**2
        gains = alpha * self._eigenvalues / variances
        half_log_determinants = variances.log().sum(1) / 2
        denoised = []
        for part in x.split(250):  # fits the processor's cache
            rotated = (part @ self._bases).view(-1, num_components, dimension) - alpha * self._rotated_means
            distances = torch.einsum("nkd,kd->nk", rotated**2, 1 / variances)
            responsibilities = (self._log_weights - half_log_determinants - distances / 2).softmax(1)
            posterior_means = (self._rotated_means + gains * rotated) * responsibilities[:, :, None]
            denoised.append(posterior_means.flatten(1) @ self._bases.T)
        return torch.cat(denoised)

    def sample(self, num_samples, generator):
        """True samples `(N, d)`."""
        component = torch.multinomial(self._log_weights.exp(), num_samples, replacement=True, generator=generator)
        eps = torch.randn(num_samples, self._eigenvalues.shape[1], generator=generator)
        coordinates = self._rotated_means[component] + self._eigenvalues[component].sqrt() * eps
        bases = self._bases.view(-1, *self._eigenvalues.shape)[:, component]
        return torch.einsum("dne,ne->nd", bases, coordinates)

    def frechet_distance(self, samples):
        """`|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))` between the mixture's mean and covariance and the samples'."""
        samples = samples.double().numpy()
        covariance = np.cov(samples, rowvar=False)
        # the root of C C' has the trace of the root of C^(1/2) C' C^(1/2), which is symmetric
        eigenvalues = np.linalg.eigvalsh(self.covariance_root @ covariance @ self.covariance_root)
        root_trace = np.sqrt(eigenvalues.clip(min=0)).sum()
        shift = ((samples.mean(0) - self.mean) ** 2).sum()
        return float(shift + np.trace(covariance + self.covariance) - 2 * root_trace)

    def sliced_wasserstein_distance(self, samples, num_directions=200):
        """
        The root of the mean of `W_2^2` over fixed random directions. Along one the mixture is a mixture of K Gaussians
        on a line, and `W_2` is the distance between the sorted samples and the quantiles of that.
        """
        directions = np.random.default_rng(0).standard_normal((samples.shape[1], num_directions))
        directions /= np.linalg.norm(directions, axis=0)
        projected = np.sort(samples.double().numpy() @ directions, axis=0)
        return float(np.sqrt(((projected - self._quantiles(len(samples), directions)) ** 2).mean()))

    def _quantiles(self, num_samples, directions):
        if getattr(self, "_cached_quantiles", (None,))[0] != (num_samples, directions.shape):
            levels = (np.arange(num_samples) + 0.5) / num_samples
            columns = []
            for direction in directions.T:
                means, stds = self.means @ direction, np.sqrt(direction @ self.covariances @ direction)
                grid = np.linspace((means - 6 * stds).min(), (means + 6 * stds).max(), 4000)
                columns.append(np.interp(levels, ndtr((grid[:, None] - means) / stds) @ self.weights, grid))
            self._cached_quantiles = (num_samples, directions.shape), np.stack(columns, axis=1)
        return self._cached_quantiles[1]


def symmetric_root(matrix):
    eigenvalues, basis = np.linalg.eigh(matrix)
    return (basis * np.sqrt(eigenvalues.clip(min=0))) @ basis.T


def digits(data_dir):
    return load_digits().data / 8 - 1


def fashion_mnist_7x7(data_dir, num_images=20000):
    # imported here, since its other parts need more packages than this script does
    from fashion_mnist import load_fashion_mnist

    images = load_fashion_mnist("train", data_dir)[0][:num_images] / 127.5 - 1
    return images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(len(images), -1)


# name -> images, number of components, regularization
DATASETS = {"digits": (digits, 20, 1e-3), "fashion_mnist_7x7": (fashion_mnist_7x7, 25, 1e-4)}


# ------------------------------------------------------------------------------------------------------------- samplers
@dataclass(frozen=True)
class Setting:
    """A scheduler with its options, and a name for them. `sigmas(N)` are passed to `set_timesteps` if given."""

    scheduler: type
    name: str
    options: dict = field(default_factory=dict)
    sigmas: Callable | None = None

    @property
    def label(self):
        return self.scheduler.__name__.removesuffix("Scheduler")

    @property
    def record(self):
        """What the JSON file says of it."""
        options = {key: getattr(value, "__name__", value) for key, value in self.options.items()}
        return options | ({} if self.sigmas is None else {"sigmas": self.sigmas.__name__})


def settings_of(scheduler, options_by_name, **shared):
    return [Setting(scheduler, name, {**shared, **options}) for name, options in options_by_name.items()]


# The process of DDPM (arXiv 2006.11239), which the noise-predicting network of most peers was trained on
VARIANCE_PRESERVING = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
}


def flow(shift, **options):
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift, **options}


def edm_range(sigma_max, **options):
    """A narrower range of noise levels than the default, 80 to 0.002, leaves fewer of a few steps to waste."""
    return {"sigma_max": sigma_max, "sigma_min": 0.02, **options}


def no_noise(timestep):
    """SA-Solver's `tau_func` for its deterministic mode."""
    return 0


def from_1_to_1_over_N(num_steps):
    """The noise levels that the pipelines of flow models pass (`FluxPipeline`, for one)."""
    return [1 - i / num_steps for i in range(num_steps)]


LEADING, TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
THIRD, SA_THIRD = {"solver_order": 3}, {"predictor_order": 3, "corrector_order": 3}

# Some 200 documented settings were screened on both mixtures with 2,000 samples. Here are those that were the best of
# their scheduler at some number of evaluations, and the usual ones.
PEERS = [
    *settings_of(DDPMScheduler, {"trailing": TRAILING, "leading": LEADING}, **VARIANCE_PRESERVING, clip_sample=False),
    *settings_of(
        DDIMScheduler,
        {
            "leading": LEADING,
            "linspace": LINSPACE,
            "linspace, zero SNR": {**LINSPACE, **ZERO_SNR},
            "trailing": TRAILING,
        },
        **VARIANCE_PRESERVING,
        clip_sample=False,
    ),
    *settings_of(
        EulerDiscreteScheduler,
        {"leading": LEADING, "Karras": KARRAS, "trailing": TRAILING},
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        HeunDiscreteScheduler,
        {
            "trailing": TRAILING,
            "trailing, exponential": {**TRAILING, **EXPONENTIAL},
            "trailing, Karras": {**TRAILING, **KARRAS},
        },
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        DPMSolverMultistepScheduler,
        {
            "order 2, exponential": EXPONENTIAL,
            "order 2, exponential, heun": {**EXPONENTIAL, "solver_type": "heun"},
            "order 2, Lu": {"use_lu_lambdas": True},
            "order 2, Karras": KARRAS,
            "order 2, leading": LEADING,
            "order 2, trailing": TRAILING,
            "order 3, exponential": {**EXPONENTIAL, **THIRD},
            "order 3, Karras": {**KARRAS, **THIRD},
            "order 3, trailing": {**TRAILING, **THIRD},
        },
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        DPMSolverMultistepScheduler,
        {
            "order 2, flow": flow(1.0),
            "order 2, flow, heun": flow(1.0, solver_type="heun"),
            "order 2, flow, shift 0.85, heun": flow(0.85, solver_type="heun"),
            "order 3, flow, shift 0.85": flow(0.85, **THIRD),
            "order 3, flow": flow(1.0, **THIRD),
        },
    ),
    *settings_of(
        UniPCMultistepScheduler,
        {
            "order 2, exponential": EXPONENTIAL,
            "order 2, leading": LEADING,
            "order 2, trailing": TRAILING,
            "order 3, exponential": {**EXPONENTIAL, **THIRD},
            "order 3, Karras": {**KARRAS, **THIRD},
            "order 3, leading": {**LEADING, **THIRD},
        },
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        UniPCMultistepScheduler,
        {
            "order 2, flow": flow(1.0),
            "order 2, flow, shift 0.7": flow(0.7),
            "order 3, flow": flow(1.0, **THIRD),
            "order 3, flow, shift 0.5": flow(0.5, **THIRD),
            "order 3, flow, shift 0.85": flow(0.85, **THIRD),
            "order 3, flow, shift 0.7": flow(0.7, **THIRD),
        },
    ),
    *settings_of(
        DEISMultistepScheduler,
        {
            "order 3, Karras": {**KARRAS, **THIRD},
            "order 2, exponential": EXPONENTIAL,
            "order 2, Karras": KARRAS,
            "order 2, leading": LEADING,
            "order 2, trailing": TRAILING,
            "order 3, leading": {**LEADING, **THIRD},
        },
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        SASolverScheduler,
        {
            "leading, no noise": {**LEADING, "tau_func": no_noise},
            "trailing, no noise": {**TRAILING, "tau_func": no_noise},
            "order 3, exponential, no noise": {**EXPONENTIAL, **SA_THIRD, "tau_func": no_noise},
            "leading": LEADING,
        },
        **VARIANCE_PRESERVING,
    ),
    *settings_of(
        EDMDPMSolverMultistepScheduler,
        {
            "order 2, Karras": {},
            "order 2, Karras, heun": {"solver_type": "heun"},
            "order 2, Karras, 20 to 0.02": edm_range(20.0),
            "order 2, Karras, 10 to 0.02": edm_range(10.0),
            "order 3, Karras": THIRD,
            "order 2, exponential": {"sigma_schedule": "exponential"},
            "order 2, exponential, 20 to 0.02": edm_range(20.0, sigma_schedule="exponential"),
            "order 2, exponential, 10 to 0.02": edm_range(10.0, sigma_schedule="exponential"),
            "order 3, exponential": {"sigma_schedule": "exponential", **THIRD},
            "order 2, exponential, 80 to 0.02": edm_range(80.0, sigma_schedule="exponential"),
        },
    ),
    Setting(FlowMatchEulerDiscreteScheduler, "1 to 1/N", sigmas=from_1_to_1_over_N),
    *settings_of(FlowMatchEulerDiscreteScheduler, {"shift 3": {"shift": 3.0}, "default": {}}),
    *settings_of(
        FlowMatchHeunDiscreteScheduler,
        {"default": {}, "shift 3": {"shift": 3.0}, "shift 0.5": {"shift": 0.5}, "shift 0.7": {"shift": 0.7}},
    ),
]

# The names of the DDM settings that have a line of their own in the table
SHOWN = {
    "default": "DDM, default",
    "order 2, ratio, sqrt noise, churn 1": "DDM, churn 1",
    "paper": "DDM, the paper's step",
}
PAPER = {"solver_order": 1, "eta": 1.0, "time_grid": "uniform", "noise_schedule": "sqrt"}
GRIDS = {
    "uniform": {"time_grid": "uniform"},
    "ratio": {"time_grid": "ratio"},
    "power 1 to 1e-2": {"time_grid": "power", "rho": 1.0, "t_min": 1e-2},
    "power 2 to 1e-4": {"time_grid": "power", "rho": 2.0, "t_min": 1e-4},
}


DDM_OPTIONS = (
    "noise_schedule",
    "solver_order",
    "corrector",
    "eta",
    "churn",
    "time_grid",
    "rho",
    "t_min",
    "shift",
)


def ddm(name, **options):
    # the data of a mixture is not confined to [-1, 1]; the defaults are spelled out, so that a row knows what it ran
    defaults = {key: DDMScheduler().config[key] for key in DDM_OPTIONS}
    return Setting(DDMScheduler, name, {**defaults, **options, "clip_sample": False})


def ddm_settings():
    """The default, the paper's step, and the solvers of higher order on each grid."""
    settings = [ddm("default"), ddm("paper", **PAPER)]
    for grid in ("ratio", "uniform", "power 1 to 1e-2", "power 2 to 1e-4"):
        for noise_schedule in ("sqrt", "linear"):
            if (grid, noise_schedule) == ("ratio", "linear"):
                continue  # without noise the same sampler as with "sqrt", up to the scale of its states
            for order in (3, 2):
                options = {**GRIDS[grid], "noise_schedule": noise_schedule, "solver_order": order, "eta": 0.0}
                settings.append(ddm(f"order {order}, {grid}, {noise_schedule} noise", **options))
    for grid in ("ratio", "uniform"):
        for noise_schedule in ("sqrt", "linear"):
            for order in (3, 2):
                options = {**GRIDS[grid], "noise_schedule": noise_schedule, "solver_order": order, "churn": 1.0}
                settings.append(ddm(f"order {order}, {grid}, {noise_schedule} noise, churn 1", **options))
    for order in (3, 2):
        settings.append(ddm(f"order {order}, ratio, shift 0.6", solver_order=order, eta=0.0, shift=0.6))
        options = {"solver_order": order, "eta": 0.0, "corrector": False}
        settings.append(ddm(f"order {order}, ratio, sqrt noise, no corrector", **options))
    return settings


def exact_network(mixture, scheduler):
    """
    `network(x, timestep)`: what a network returns that was trained to perfection in the parametrisation of the
    scheduler. It knows no more than a network does, the input and the timestep that it is told.
    """
    config = scheduler.config
    if config.get("prediction_type") == "decoupled":

        def network(x, timestep):
            t = timestep.double() / config.num_train_timesteps
            alpha, sigma = float(scheduler.process.alpha(t)), float(scheduler.process.sigma(t))
            x_0 = mixture.denoise(x, alpha, sigma)
            return torch.cat([-x_0, (x - alpha * x_0) / sigma], dim=1)

    elif isinstance(scheduler, EDMDPMSolverMultistepScheduler):

        def network(x, timestep):
            # EDM's network (arXiv 2206.00364, table 1): input c_in x, told log(sigma) / 4
            sigma, sigma_data = math.exp(4 * float(timestep)), config.sigma_data
            norm = math.hypot(sigma, sigma_data)
            noisy = x * norm
            x_0 = mixture.denoise(noisy, 1.0, sigma)
            return (x_0 - (sigma_data / norm) ** 2 * noisy) / (sigma * sigma_data / norm)

    elif "prediction_type" not in config or config.prediction_type == "flow_prediction":

        def network(x, timestep):
            t = float(timestep) / config.num_train_timesteps
            return (x - mixture.denoise(x, 1 - t, t)) / t  # noise - image

    else:
        alphas_cumprod = scheduler.alphas_cumprod.double().numpy()
        with np.errstate(divide="ignore"):  # alpha is 0 at the end of a schedule of zero SNR
            log_snr = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)

        def network(x, timestep):
            # between the training indices as the schedulers do it themselves, in the logarithm
            snr = np.exp(np.interp(float(timestep), np.arange(len(log_snr)), log_snr))
            alpha, sigma = math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))
            x_0 = mixture.denoise(x, alpha, sigma)
            noise = (x - alpha * x_0) / sigma
            return noise if config.prediction_type == "epsilon" else alpha * noise - sigma * x_0

    return network


@torch.no_grad()
def run(mixture, setting, evaluations, noise, generator):
    """Samples `(N, d)` from noise `(N, d)`, and how often the network was evaluated."""
    scheduler = setting.scheduler(**setting.options)
    num_steps = (evaluations + 1) // 2 if scheduler.order == 2 else evaluations
    if setting.sigmas is None:
        scheduler.set_timesteps(num_steps)
    else:
        scheduler.set_timesteps(sigmas=setting.sigmas(num_steps))
    network = exact_network(mixture, scheduler)
    # the schedulers for flow matching have neither of these, nor has every `step` a generator
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
    options = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    calls = 0
    for timestep in scheduler.timesteps:
        output = network(scale(x, timestep), timestep)
        calls += 1
        x = scheduler.step(output, timestep, x, **options).prev_sample
    return x, calls


# ---------------------------------------------------------------------------------------------------------- measurement
def score(mixture, setting, evaluations, num_samples, seed):
    """The part of a row that is measured. A scheduler that refuses so few steps leaves the reason."""
    noise = torch.randn(num_samples, len(mixture.mean), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    began = time.perf_counter()
    try:
        samples, calls = run(mixture, setting, evaluations, noise, generator)
    except (ValueError, IndexError, AssertionError, RuntimeError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = round(time.perf_counter() - began, 3)
    if not bool(torch.isfinite(samples).all()):
        return {"calls": calls, "seconds": seconds, "error": "the samples are not finite"}
    return {
        "calls": calls,
        "seconds": seconds,
        "frechet": mixture.frechet_distance(samples),
        "sliced_wasserstein": mixture.sliced_wasserstein_distance(samples),
    }


def floor(mixture, num_samples):
    """Mean and standard deviation of what true samples score."""
    scores = {measure: [] for measure in MEASURES}
    for draw in range(NUM_FLOOR_DRAWS):
        samples = mixture.sample(num_samples, torch.Generator().manual_seed(2_000_000 + draw))
        scores["frechet"].append(mixture.frechet_distance(samples))
        scores["sliced_wasserstein"].append(mixture.sliced_wasserstein_distance(samples))
    return {name: {"mean": float(np.mean(s)), "std": float(np.std(s, ddof=1))} for name, s in scores.items()}


class Results:
    """The JSON file: rows by what was run, and the floors."""

    def __init__(self, path):
        self.path = path
        content = json.loads(path.read_text()) if path.is_file() else {"rows": [], "floors": []}
        self.rows = {self._key(row): row for row in content["rows"]}
        self.floors = {(entry["dataset"], entry["num_samples"]): entry for entry in content["floors"]}

    @staticmethod
    def _key(row):
        names = ("dataset", "scheduler", "setting", "evaluations", "seed", "num_samples")
        return (*(row[name] for name in names), json.dumps(row["options"], sort_keys=True))

    def fill(self, dataset, mixture, setting, all_evaluations, num_samples, seed):
        """Run what is not there yet of one setting and seed, and write it."""
        missing = False
        for evaluations in all_evaluations:
            row = {"dataset": dataset, "scheduler": setting.label, "setting": setting.name}
            row |= {"evaluations": evaluations, "seed": seed, "num_samples": num_samples, "options": setting.record}
            if self._key(row) not in self.rows:
                self.rows[self._key(row)] = row | score(mixture, setting, evaluations, num_samples, seed)
                missing = True
        if missing:
            self.write()

    def rows_of(self, dataset, settings, num_samples, seed=None):
        """The rows of these settings that have a distance and did not exceed their evaluations."""
        wanted = {(setting.label, setting.name, json.dumps(setting.record, sort_keys=True)) for setting in settings}
        return [
            row
            for row in self.rows.values()
            if (row["dataset"], row["num_samples"]) == (dataset, num_samples)
            and (row["scheduler"], row["setting"], json.dumps(row["options"], sort_keys=True)) in wanted
            and seed in (None, row["seed"])
            and "error" not in row
            and row["calls"] <= row["evaluations"]
        ]

    def write(self, **report):
        content = {"rows": list(self.rows.values()), "floors": list(self.floors.values())}
        temporary = self.path.with_suffix(f".tmp{os.getpid()}")
        temporary.write_text(json.dumps(report | content, indent=1) + "\n")
        os.replace(temporary, self.path)


def by_scheduler(settings):
    groups = {}
    for setting in settings:
        groups.setdefault(setting.label, []).append(setting)
    return groups


def benchmark(results, dataset, mixture, settings, args):
    """Every setting with the first seed, then the best of each scheduler with the others."""
    if (dataset, args.num_samples) not in results.floors:
        entry = {"dataset": dataset, "num_samples": args.num_samples, **floor(mixture, args.num_samples)}
        results.floors[dataset, args.num_samples] = entry
    for number, setting in enumerate(settings, 1):
        results.fill(dataset, mixture, setting, args.evaluations, args.num_samples, seed=0)
        print(f"{dataset}, seed 0: {number} of {len(settings)} settings, {setting.label} {setting.name}", flush=True)

    finalists = [
        (setting, args.evaluations) for setting in settings if setting.label == "DDM" and setting.name in SHOWN
    ]
    for group in by_scheduler(settings).values():
        rows = results.rows_of(dataset, group, args.num_samples, seed=0)
        places = {}
        for evaluations in args.evaluations:
            ranked = sorted((r for r in rows if r["evaluations"] == evaluations), key=lambda r: r["frechet"])
            for row in ranked[: args.num_finalists]:
                places.setdefault(row["setting"], set()).add(evaluations)
        finalists += [(setting, sorted(places[setting.name])) for setting in group if setting.name in places]
    for seed in range(1, args.num_seeds):
        for number, (setting, evaluations) in enumerate(finalists, 1):
            results.fill(dataset, mixture, setting, evaluations, args.num_samples, seed)
            print(f"{dataset}, seed {seed}: {number} of {len(finalists)} settings", flush=True)


# --------------------------------------------------------------------------------------------------------------- report
def best(rows, measure="frechet"):
    """By the number of evaluations: the lowest mean over the seeds, of the settings that ran with all of them."""
    found = {}
    for evaluations in sorted({row["evaluations"] for row in rows}):
        distances = {}
        for row in rows:
            if row["evaluations"] == evaluations:
                distances.setdefault((row["scheduler"], row["setting"]), []).append(row[measure])
        most = max(map(len, distances.values()))
        full = {key: np.mean(values) for key, values in distances.items() if len(values) == most}
        scheduler, setting = min(full, key=full.get)
        distance = float(full[scheduler, setting])
        found[evaluations] = {"scheduler": scheduler, "setting": setting, "distance": distance, "seeds": most}
    return found


def report(results, settings, args):
    """Print the tables and what was to be reached; write `samplers.json` and `samplers.png`."""
    peers = [setting for setting in settings if setting.scheduler is not DDMScheduler]
    own = [setting for setting in settings if setting.scheduler is DDMScheduler]
    lines = {
        **{title: [setting for setting in own if setting.name == name] for name, title in SHOWN.items()},
        "DDM, best": own,
        **by_scheduler(peers),
    }
    curves, reached, entries = {}, [], []
    datasets = [name for name in args.datasets if results.rows_of(name, settings, args.num_samples)]
    for dataset in datasets:
        floors = results.floors[dataset, args.num_samples]
        for measure, title in MEASURES.items():
            table = {
                name: best(results.rows_of(dataset, group, args.num_samples), measure) for name, group in lines.items()
            }
            curves[dataset, measure] = table
            entries += [
                {"dataset": dataset, "measure": measure, "line": name, "evaluations": n, **winner}
                for name, winners in table.items()
                for n, winner in winners.items()
            ]
            print(f"\n{dataset}: {title}, {args.num_samples} samples, the best setting of each scheduler\n")
            print("| sampler | " + " | ".join(map(str, args.evaluations)) + " |")
            print("| --- |" + " --- |" * len(args.evaluations))
            for name, winners in table.items():
                cells = [f"{winners[n]['distance']:.3g}" if n in winners else "" for n in args.evaluations]
                print(f"| {name} | " + " | ".join(cells) + " |")
            print("| floor | " + " | ".join([f"{floors[measure]['mean']:.3g}"] * len(args.evaluations)) + " |")
        ddm_rows = results.rows_of(dataset, own, args.num_samples)
        peer_rows = results.rows_of(dataset, peers, args.num_samples)
        reached += ratios(dataset, best(ddm_rows), best(peer_rows), floors["frechet"])
    print_ratios(reached)
    results.write(
        date=date.today().isoformat(),
        versions=versions(),
        settings={k: v for k, v in vars(args).items() if k not in ("output_dir", "data_dir", "report_only")},
        ratios=reached,
        best=entries,
    )
    plot({dataset: curves[dataset, "frechet"] for dataset in datasets}, results, args)


def ratios(dataset, ours, peers, floor):
    """What is to be reached, and what is."""
    found = []
    for n, to_reach in RATIOS_TO_REACH.items():
        if n in ours and n in peers:
            ratio = ours[n]["distance"] / peers[n]["distance"]
            excess, peer_excess = ours[n]["distance"] - floor["mean"], peers[n]["distance"] - floor["mean"]
            entry = {"ratio": ratio, "excess": excess, "peer_excess": peer_excess, "floor_std": floor["std"]}
            found.append({"dataset": dataset, "evaluations": n, "over": "peer", "ddm": ours[n], "peer": peers[n]})
            found[-1] |= entry | {"to_reach": to_reach, "reached": ratio <= to_reach}
    for n, to_reach in FLOOR_TO_REACH.items():
        if n in ours:
            ratio = ours[n]["distance"] / floor["mean"]
            found.append({"dataset": dataset, "evaluations": n, "over": "floor", "ddm": ours[n], "ratio": ratio})
            found[-1] |= {"floor": floor["mean"], "to_reach": to_reach, "reached": ratio <= to_reach}
    return found


def print_ratios(entries):
    def name(winner):
        return f"{winner['distance']:.4f} ({winner['scheduler']}: {winner['setting']})"

    print("\nTo reach: the Frechet distance of the best DDM setting, over the best peer's or the floor\n")
    for entry in entries:
        over = name(entry["peer"]) if entry["over"] == "peer" else f"{entry['floor']:.4f} (floor)"
        verdict = "reached" if entry["reached"] else "not reached"
        print(
            f"{entry['dataset']} at {entry['evaluations']}: {name(entry['ddm'])} / {over} = {entry['ratio']:.3f},"
            f" to reach {entry['to_reach']:.2f}: {verdict}"
        )
    print(
        "\nA second measure: the same, each less the floor. Differences below the floor's own deviation mean nothing\n"
    )
    for entry in entries:
        if entry["over"] != "peer":
            continue
        start = f"{entry['dataset']} at {entry['evaluations']}: {entry['excess']:.4f} / {entry['peer_excess']:.4f}"
        deviation = f"(one draw of true samples deviates by {entry['floor_std']:.4f})"
        if entry["peer_excess"] <= 0 or entry["excess"] <= 0:
            print(f"{start}, no ratio, since not both are above the floor {deviation}")
        else:
            print(f"{start} = {entry['excess'] / entry['peer_excess']:.3f} {deviation}")


def plot(tables, results, args):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {
        "DDM, default": {"color": "tab:red", "linewidth": 1.5, "linestyle": "--"},
        "DDM, the paper's step": {"color": "tab:red", "linewidth": 1.5, "linestyle": ":"},
        "DDM, best": {"color": "tab:red", "linewidth": 2.5},
    }
    figure, axes = plt.subplots(1, len(tables), figsize=(6 * len(tables), 5), squeeze=False)
    for axis, (dataset, table) in zip(axes[0], tables.items(), strict=True):
        # red is DDM's, gray the floor's
        peer_colors = cycle(color for i, color in enumerate(plt.colormaps["tab20"].colors) if i not in (6, 7, 14, 15))
        for name, winners in table.items():
            style = styles[name] if name in styles else {"color": next(peer_colors), "linewidth": 1}
            distances = [winner["distance"] for winner in winners.values()]
            axis.loglog(list(winners), distances, marker="o", markersize=3, label=name, **style)
        axis.axhline(results.floors[dataset, args.num_samples]["frechet"]["mean"], color="gray", linewidth=1)
        axis.annotate(
            "true samples",
            (args.evaluations[0], results.floors[dataset, args.num_samples]["frechet"]["mean"]),
            va="bottom",
            color="gray",
            fontsize=8,
        )
        axis.set_title(dataset)
        axis.set_xlabel("evaluations of the exact denoiser")
        axis.set_ylabel("Frechet distance to the mixture")
        axis.set_xticks(args.evaluations, [str(n) for n in args.evaluations])
        axis.set_xticks([], minor=True)
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    figure.savefig(Path(args.output_dir, "samplers.png"), dpi=120)
    plt.close(figure)


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "scikit-learn": sklearn.__version__,
        "ddm_diffusers": ddm_diffusers.__version__,
    }


# ----------------------------------------------------------------------------------------------------------------- main
def load_mixture(dataset, args):
    """The mixture that is in the output folder, or a new fit, written there."""
    path = Path(args.output_dir, f"{dataset}.npz")
    if path.is_file():
        stored = np.load(path)
        return Mixture(stored["weights"], stored["means"], stored["covariances"])
    load_images, num_components, regularization = DATASETS[dataset]
    mixture = Mixture.fit(load_images(args.data_dir), num_components, regularization)
    temporary = path.with_suffix(f".tmp{os.getpid()}.npz")
    np.savez(temporary, weights=mixture.weights, means=mixture.means, covariances=mixture.covariances)
    os.replace(temporary, path)
    return mixture


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="samplers", help="Where samplers.json and samplers.png go.")
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's four files.")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--num_samples", type=int, default=4000)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_finalists", type=int, default=2, help="Settings of each scheduler for further seeds.")
    parser.add_argument("--quick", action="store_true", help="500 samples, one seed, two settings of each scheduler.")
    parser.add_argument("--report_only", action="store_true", help="Sample nothing.")
    args = parser.parse_args(arguments)
    if args.quick:
        args.num_samples, args.num_seeds, args.evaluations = 500, 1, (5, 10, 20)
    return args


def main(arguments=None):
    args = parse_args(arguments)
    settings = ddm_settings() + PEERS
    if args.quick:
        settings = [
            setting
            for group in by_scheduler(settings).values()
            for setting in (group[:4] if group[0].label == "DDM" else (group[0], group[-1]))
        ]
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    results = Results(Path(args.output_dir, "samplers.json"))
    if not args.report_only:
        for dataset in args.datasets:
            benchmark(results, dataset, load_mixture(dataset, args), settings, args)
    report(results, settings, args)


if __name__ == "__main__":
    main()
