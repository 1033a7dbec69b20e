# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Trained models head to head on Fashion-MNIST: DDPM, flow matching, EDM and DDM with the same trunk, data and training.

    python examples/benchmarks/training.py --output_dir training                 # hours on a CPU; resumes where it was
    python examples/benchmarks/training.py --output_dir training --quick         # minutes, only to see that it runs
    python examples/benchmarks/training.py --output_dir training --report_only   # table, JSON and plots of what is there

Every model is trained on the same batches in the same order, with the same optimizer, schedule and average of weights.
The networks see an image of 28x28 pixels as 14x14 with 4 channels (`pixel_unshuffle`, a permutation of the pixels, so that
white noise stays white noise): that costs a quarter. The distance is Frechet's, in the 128 features of a classifier
trained on the same data, between the samples and the 10,000 test images; as many training images score the floor.

Each model runs with every sampler that suits it, `DDMScheduler` swapped in (`from_config`) among them, on
`--num_screening_samples` at 5, 10 and 20 evaluations, the first of those reported. Of diffusers' samplers the best of each
model, at the nearest of these numbers, then runs on `--num_samples` (half of them at more than 10 evaluations and for the
models that are not headline rows), with all seeds, and of ours the default and, for DDM, the best. `--samplers` names some
instead. Results are one JSON file per model and seed under `--output_dir`, so that several processes can share the work
(`--methods`, `--seeds`).
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from inspect import signature
from pathlib import Path

import diffusers
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from fashion_mnist import DEBIAN_FOLDER, FrechetDistance, load_fashion_mnist, to_tensor, train_classifier
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

import ddm_diffusers
from ddm_diffusers import DDMScheduler, DDMUNet2DModel, presets
from ddm_diffusers.training import ddm_loss, sample_timesteps


matplotlib.use("Agg")

NFES = (1, 2, 3, 5, 10, 20, 50)
SCREENING_NFES = (5, 10, 20)
CHECKPOINT_STEPS = 250
PATCH = 2
CHANNELS, SIZE = PATCH**2, 28 // PATCH
TRUNK = {
    "sample_size": SIZE,
    "block_out_channels": (32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}


# ------------------------------------------------------------------------------------------------------------- methods
@dataclass
class Method:
    """A model with its objective, and the samplers that suit it."""

    family: str
    build: Callable  # () -> model
    loss: Callable  # (model, clean, generator) -> loss
    samplers: dict  # name -> () -> scheduler
    headline: bool = False
    always: tuple = ()  # samplers that are reported with the first seed, however the screening went


PAPER = {"solver_order": 1, "eta": 1.0, "time_grid": "uniform"}
POWER = {"time_grid": "power", "rho": 1.0, "t_min": 1e-2}
DDM_SAMPLERS = {
    "default": {},
    "paper": PAPER,
    "no clipping": {"clip_sample": False},
    "eta 0": {"eta": 0.0},
    "churn 1": {"churn": 1.0},
    "shift 2": {"shift": 2.0},
    "shift 2, no clipping": {"shift": 2.0, "clip_sample": False},
    "uniform": {"time_grid": "uniform"},
    "power": POWER,
    "no corrector": {"corrector": False},
    "order 3": {"solver_order": 3},
    "order 3, eta 0": {"solver_order": 3, "eta": 0.0},
}
OURS = "DDM, "  # what the names of our samplers begin with


def swapped(scheduler):
    """Our scheduler in the place of the one that the model was trained with."""
    return {
        OURS + name: lambda options=DDM_SAMPLERS[name]: DDMScheduler.from_config(scheduler.config, **options)
        for name in ("default", "eta 0", "churn 1", "shift 2")
    }


def plain_unet():
    return UNet2DModel(in_channels=CHANNELS, out_channels=CHANNELS, **TRUNK)


# DDPM (arXiv 2006.11239): epsilon, linear betas
VP = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def ddpm_loss(model, clean, generator):
    scheduler = DDPMScheduler(**VP)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(1000, (len(clean),), generator=generator)
    return F.mse_loss(model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample, noise)


def ddpm_samplers():
    trailing = {**VP, "timestep_spacing": "trailing"}
    exponential = {**trailing, "use_exponential_sigmas": True}
    karras = {**VP, "use_karras_sigmas": True}
    dpm, unipc, deis = DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler
    return {
        "DDPM": lambda: DDPMScheduler(**trailing),
        "DDIM": lambda: DDIMScheduler(**trailing),
        "DDIM, leading": lambda: DDIMScheduler(**VP, timestep_spacing="leading"),
        "Heun Karras": lambda: HeunDiscreteScheduler(**karras),
        "DPM++ 2M": lambda: dpm(**trailing),
        "DPM++ 2M Karras": lambda: dpm(**karras),
        "DPM++ 2M exponential": lambda: dpm(**exponential),
        "SDE-DPM++ 2M": lambda: dpm(**trailing, algorithm_type="sde-dpmsolver++"),
        "DPM++ 3M Karras": lambda: dpm(**karras, solver_order=3),
        "UniPC": lambda: unipc(**trailing),
        "UniPC Karras": lambda: unipc(**karras),
        "UniPC exponential": lambda: unipc(**exponential),
        "UniPC 3 exponential": lambda: unipc(**exponential, solver_order=3),
        "DEIS 3 Karras": lambda: deis(**karras, solver_order=3),
        **swapped(DDPMScheduler(**VP)),
    }


# Flow matching (arXiv 2210.02747): velocity, t logit-normal as in Stable Diffusion 3 (arXiv 2403.03206)
def flow_loss(model, clean, generator):
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.randn(len(clean), generator=generator).sigmoid()
    x_t = clean + t[:, None, None, None] * (noise - clean)
    return F.mse_loss(model(x_t, 1000 * t).sample, noise - clean)


def flow_samplers():
    samplers = {
        "Euler": FlowMatchEulerDiscreteScheduler,
        "Euler, shift 3": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        "Heun": FlowMatchHeunDiscreteScheduler,
    }
    for shift in (1.0, 2.0, 3.0):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        name = "" if shift == 1 else f", shift {shift:g}"
        samplers[f"DPM++ 2M{name}"] = lambda flow=flow: DPMSolverMultistepScheduler(**flow)
        samplers[f"SDE-DPM++ 2M{name}"] = lambda flow=flow: DPMSolverMultistepScheduler(
            **flow, algorithm_type="sde-dpmsolver++"
        )
        samplers[f"UniPC{name}"] = lambda flow=flow: UniPCMultistepScheduler(**flow)
        samplers[f"UniPC 3{name}"] = lambda flow=flow: UniPCMultistepScheduler(**flow, solver_order=3)
    return samplers | swapped(FlowMatchEulerDiscreteScheduler())


# EDM (arXiv 2206.00364): preconditioned denoiser, sigma log-normal
SIGMA_DATA = 0.83  # root mean square of the images
EDM_RANGE = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": SIGMA_DATA}


def edm_loss(model, clean, generator):
    sigma = torch.exp(1.2 * torch.randn(len(clean), generator=generator) - 1.2)[:, None, None, None]
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    variance = sigma**2 + SIGMA_DATA**2
    raw = model(noisy / variance.sqrt(), sigma.log().flatten() / 4).sample
    denoised = SIGMA_DATA**2 / variance * noisy + sigma * SIGMA_DATA / variance.sqrt() * raw
    return (variance / (sigma * SIGMA_DATA) ** 2 * (denoised - clean) ** 2).mean()


def edm_samplers():
    dpm = EDMDPMSolverMultistepScheduler
    return {
        "EDM Euler": lambda: EDMEulerScheduler(**EDM_RANGE),
        "EDM DPM++ 2M": lambda: dpm(**EDM_RANGE),
        "EDM DPM++ 3M": lambda: dpm(**EDM_RANGE, solver_order=3),
        "EDM DPM++ 2M exponential": lambda: dpm(**EDM_RANGE, sigma_schedule="exponential"),
        "EDM SDE-DPM++ 2M": lambda: dpm(**EDM_RANGE, algorithm_type="sde-dpmsolver++"),
        "EDM DPM++ 2M, narrow": lambda: dpm(**{**EDM_RANGE, "sigma_min": 0.02, "sigma_max": 20.0}),
    }


# DDM (arXiv 2306.13720). These images are small, so their times are drawn at less noise than by default.
def ddm(
    weighting="velocity",
    distribution="logit_normal",
    logit_mean=-0.5,
    headline=False,
    loss_options=None,
    samplers=None,
    **model_options,
):
    model_options = {"precondition": "velocity", **model_options}
    loss_options, samplers = loss_options or {}, samplers or {}
    process = {key: model_options[key] for key in ("attenuation", "noise_schedule") if key in model_options}
    training_scheduler = DDMScheduler(**process)

    def loss(model, clean, generator):
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = sample_timesteps(
            training_scheduler,
            len(clean),
            generator=generator,
            t_min=loss_options.get("t_min", 1e-4),
            distribution=distribution,
            logit_mean=logit_mean,
        )
        attenuation = training_scheduler.get_attenuation(clean, generator=generator)
        noisy = training_scheduler.add_noise(clean, noise, timesteps, attenuation)
        output = model(noisy, timesteps).sample
        return ddm_loss(
            training_scheduler,
            output,
            clean,
            noise,
            timesteps,
            attenuation,
            weighting,
            model.config.sigma_data,
            **loss_options,
        )

    return Method(
        "DDM",
        build=lambda: DDMUNet2DModel(in_channels=CHANNELS, **TRUNK, **model_options),
        loss=loss,
        samplers={
            OURS + name: lambda options=options: DDMScheduler(**{**options, **process})
            for name, options in DDM_SAMPLERS.items()
        }
        | samplers,
        headline=headline,
        always=(OURS + "paper", *samplers),
    )


# The authors' releases, but for LPIPS, which is of images and not of these patches
def released(preset, sampler):
    options = presets.training_options(preset)
    precondition = {"ddm": "ddm", "unit_variance": True}[options["precondition"]]
    return ddm(
        options["weighting"],
        options["timestep_distribution"],
        loss_options={name: options[name] for name in ("reconstruction", "reconstruction_weight", "t_min")},
        samplers={OURS + "released": sampler},
        precondition=precondition,
        **{name: options[name] for name in ("noise_schedule", "architecture", "num_decoders", "num_heads")},
    )


METHODS = {
    "ddpm": Method("DDPM", plain_unet, ddpm_loss, ddpm_samplers(), headline=True, always=("UniPC",)),
    "flow": Method("flow matching", plain_unet, flow_loss, flow_samplers(), headline=True, always=("Euler",)),
    "edm": Method("EDM", plain_unet, edm_loss, edm_samplers()),
    "ddm": ddm(headline=True),
    "ddm_more_noise": ddm(logit_mean=0.0),
    "ddm_uniform_times": ddm(distribution="uniform"),
    "ddm_one_head": ddm(num_heads=1),
    "ddm_two_decoders": ddm(num_decoders=2),
    "ddm_linear_noise": ddm(noise_schedule="linear"),
    "ddm_one_head_linear_noise": ddm(num_heads=1, noise_schedule="linear"),
    "ddm_linear_attenuation": ddm("unit_variance", attenuation="linear", precondition=True),
    "ddm_none": ddm("none"),
    "ddm_inverse_time": ddm("inverse_time"),
    "ddm_adm": ddm("adm"),
    "ddm_unit_variance": ddm("unit_variance"),
    "ddm_unit_scales": ddm(precondition=True),
    "ddm_sigma_data": ddm(precondition=True, sigma_data=SIGMA_DATA),
    "ddm_raw": ddm(precondition=False),
    "ddm_paper": ddm("none", distribution="uniform", num_decoders=2, precondition=False),
    "ddm_released": released("ddm", DDMScheduler.paper),
    "adm_released": released("adm", DDMScheduler.adm),
}


# ------------------------------------------------------------------------------------------------------------ training
def train(method, seed, images, args, path):
    """Write the averaged weights to `path`, if they are not there yet; goes on where a run before was stopped."""
    if path.is_file():
        return
    torch.manual_seed(seed)
    model = method.build().to(memory_format=torch.channels_last)
    if args.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=200, num_training_steps=args.train_steps)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    generator = torch.Generator().manual_seed(seed)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    state_path, step, seconds, losses = path.with_suffix(".state.pt"), 0, 0.0, []
    if state_path.is_file():
        state = torch.load(state_path, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        step, seconds, losses = state["step"], state["seconds"], state["losses"]

    model.train()
    progress = tqdm(total=args.train_steps, initial=step, desc=path.stem, mininterval=10)
    while step < args.train_steps:
        began = time.perf_counter()
        # the order of the images is that of the seed, whatever else a method draws
        order = torch.Generator().manual_seed(1_000_000 * seed + step)
        index = torch.randint(len(images), (args.train_batch_size,), generator=order)
        loss = method.loss(model, images[index], generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(loss.item())
        step, seconds = step + 1, seconds + time.perf_counter() - began
        progress.update()
        if step % CHECKPOINT_STEPS == 0 and step < args.train_steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"generator": generator.get_state(), "step": step, "seconds": seconds, "losses": losses}
            torch.save(state, state_path.with_suffix(".tmp"))
            os.replace(state_path.with_suffix(".tmp"), state_path)
    progress.close()
    ema.copy_to(model.parameters())
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    write_json(
        path.with_suffix(".training.json"),
        {
            "parameters": model.num_parameters(),
            "seconds": seconds,
            "loss": float(np.mean(losses[-200:])),
            "steps": args.train_steps,
            "batch_size": args.train_batch_size,
        },
    )
    state_path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ sampling
@torch.no_grad()
def sample(model, make_scheduler, nfe, num_samples, seed, batch_size=100):
    """Images `(N, 1, 28, 28)` in [-1, 1], rounded to 8 bits, and the evaluations of the model that each cost."""
    images, calls = [], 0
    second_order = make_scheduler().order == 2
    num_steps = (nfe + 1) // 2 if second_order else nfe
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for schedulers that ignore the generator
    for begin in range(0, num_samples, batch_size):
        scheduler = make_scheduler()
        scheduler.set_timesteps(num_steps)
        size = min(batch_size, num_samples - begin)
        x = torch.randn(size, CHANNELS, SIZE, SIZE, generator=generator)
        # the schedulers for flow matching lack this and scale_model_input
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        calls = 0
        for timestep in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            output = model(x_in, timestep.to(x).repeat(size)).sample
            calls += 1
            options = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
            x = scheduler.step(output, timestep, x, **options).prev_sample
        images.append(F.pixel_shuffle(x, PATCH).clamp(-1, 1))
    return (torch.cat(images) * 127.5).round() / 127.5, calls


def num_samples(method, nfe, args):
    return args.num_samples if method.headline and nfe <= 10 else args.num_samples // 2


class Rows:
    """The results of one model, in a JSON file; what is there is not run again."""

    def __init__(self, name, seed, metric, folder, compile=False):
        self.name, self.seed, self.metric, self.folder, self.compile = name, seed, metric, folder, compile
        self.path = folder / f"{name}-{seed}.rows.json"
        self.rows = json.loads(self.path.read_text()) if self.path.is_file() else []
        self.model = None

    def distance(self, sampler, nfe, num_samples):
        for row in self.rows:
            if (row["sampler"], row["nfe"], row["num_samples"]) == (sampler, nfe, num_samples):
                return row["distance"]
        if self.model is None:
            self.model = METHODS[self.name].build()
            self.model.load_state_dict(load_file(self.folder / f"{self.name}-{self.seed}.safetensors"))
            self.model.eval().to(memory_format=torch.channels_last)
            if self.compile:
                self.model.compile()
        began = time.perf_counter()
        try:
            images, calls = sample(
                self.model, METHODS[self.name].samplers[sampler], nfe, num_samples, seed=1000 + self.seed
            )
            distance = self.metric.distance(images) if bool(torch.isfinite(images).all()) else math.inf
        except (ValueError, IndexError, AssertionError, RuntimeError) as error:
            # some schedulers of diffusers refuse so few steps
            distance, calls = math.inf, nfe
            print(f"{self.name} with {sampler} at {nfe}: {type(error).__name__}: {error}", flush=True)
        row = {"method": self.name, "seed": self.seed, "sampler": sampler, "nfe": nfe, "num_samples": num_samples}
        self.rows.append(row | {"evaluations": calls, "distance": distance, "seconds": time.perf_counter() - began})
        write_json(self.path, self.rows)
        print(
            f"{self.name:24} seed {self.seed} {sampler:20} NFE {nfe:3} n {num_samples:6} {distance:9.3f}", flush=True
        )
        return distance


def evaluate(name, seed, metric, args, folder):
    """Fill the rows of one model. Its samplers are chosen on the first of the samples of the first seed."""
    method, rows = METHODS[name], Rows(name, seed, metric, folder, args.compile)
    screened = rows if seed == args.seeds[0] else Rows(name, args.seeds[0], metric, folder, args.compile)
    for nfe in sorted(args.nfes, key=lambda nfe: (nfe not in args.screening_nfes, nfe)):
        if args.samplers:
            for sampler in args.samplers:
                rows.distance(sampler, nfe, num_samples(method, nfe, args))
            continue
        nearest = min(args.screening_nfes, key=lambda other: abs(math.log(other / nfe)))
        ranking = sorted(method.samplers, key=lambda s: screened.distance(s, nearest, args.num_screening_samples))
        chosen = {sampler for sampler in method.samplers if sampler == OURS + "default"}
        chosen |= set([sampler for sampler in ranking if not sampler.startswith(OURS)][:1])
        if method.family == "DDM" and nfe <= max(args.screening_nfes):
            chosen |= set([sampler for sampler in ranking if sampler.startswith(OURS)][:1])
        if screened is rows and nfe in args.screening_nfes:
            chosen |= set(method.always)
        for sampler in sorted(chosen):
            rows.distance(sampler, nfe, num_samples(method, nfe, args))


# -------------------------------------------------------------------------------------------------------------- report
def summarize(rows, args):
    """`{(method, nfe): {sampler: distances, one for each seed}}` of the rows on all samples."""
    summary = {}
    for row in rows:
        if row["num_samples"] == num_samples(METHODS[row["method"]], row["nfe"], args):
            samplers = summary.setdefault((row["method"], row["nfe"]), {})
            samplers.setdefault(row["sampler"], {})[row["seed"]] = row["distance"]
    return summary


def best_sampler(samplers, ours):
    """The sampler of the smallest mean, ours or diffusers', among those that ran with the most seeds, and its mean."""
    samplers = {name: list(d.values()) for name, d in samplers.items() if name.startswith(OURS) == ours}
    most = max(map(len, samplers.values()), default=0)
    return min(((np.mean(d), name) for name, d in samplers.items() if len(d) == most), default=(math.nan, ""))


def markdown(corner, header, lines):
    """A Markdown table; a number gets three digits."""
    lines = [
        [name, *(f"{cell:.3g}" if isinstance(cell, float) and cell < 1000 else str(cell) for cell in cells)]
        for name, cells in lines
    ]
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [[corner, *map(str, header)], ["---"] * (len(header) + 1), *lines]
    )


def report(args, folder, accuracy, floors):
    """Print the tables; write `training.json`, `training.png` and `training_samples.png`."""
    import matplotlib.pyplot as plt

    rows = [row for path in sorted(folder.glob("*.rows.json")) for row in json.loads(path.read_text())]
    summary = summarize(rows, args)
    names = [name for name in METHODS if any(key[0] == name for key in summary)]
    best = {(name, nfe): best_sampler(summary[name, nfe], ours=METHODS[name].family == "DDM") for name, nfe in summary}
    best = {key: (distance, sampler) for key, (distance, sampler) in best.items() if sampler}

    def cells(name):
        return [best[name, nfe][0] if (name, nfe) in best else "" for nfe in args.nfes]

    headlines = [name for name in names if METHODS[name].headline]
    of_all = {
        "floor": [floors[str(num_samples(METHODS["ddm"], nfe, args))] for nfe in args.nfes],
    }
    print(markdown("headline", args.nfes, [*((name, cells(name)) for name in headlines), *of_all.items()]), "\n")
    print(markdown("one seed", args.nfes, [(name, cells(name)) for name in names if name not in headlines]), "\n")
    ratios = []
    for name in headlines:
        pairs = [(best.get(("ddm", nfe)), best.get((name, nfe))) for nfe in args.nfes]
        ratios.append((f"best DDM / {name}", [a[0] / b[0] if a and b else "" for a, b in pairs]))
    print(markdown("ratio", args.nfes, ratios), "\n")
    for name in names:
        samplers = sorted({sampler for key, group in summary.items() if key[0] == name for sampler in group})
        if len(samplers) > 1:
            groups = [
                {s: float(np.mean(list(d.values()))) for s, d in summary.get((name, nfe), {}).items()}
                for nfe in args.nfes
            ]
            print(markdown(name, args.nfes, [(s, [group.get(s, "") for group in groups]) for s in samplers]), "\n")

    training = {p.name.split(".")[0]: json.loads(p.read_text()) for p in sorted(folder.glob("*.training.json"))}
    for entry in training.values():
        entry["seconds"] = round(entry["seconds"], 1)
    write_json(
        folder / "training.json",
        {
            "date": date.today().isoformat(),
            "versions": versions(),
            "settings": {key: value for key, value in vars(args).items() if key not in ("output_dir", "data_dir")},
            "classifier_accuracy": accuracy,
            "floor": floors,
            "training": training,
            "best": [
                {"method": name, "nfe": nfe, "distance": float(distance), "sampler": sampler}
                for (name, nfe), (distance, sampler) in sorted(best.items())
            ],
            "rows": rows,
        },
    )
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in names:
        style = {"linewidth": 2} if METHODS[name].headline else {"linewidth": 1, "linestyle": "--"}
        points = [(nfe, best[name, nfe][0]) for nfe in args.nfes if (name, nfe) in best]
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=name, **style)
    axes.step(args.nfes, of_all["floor"], where="mid", color="gray", linewidth=1, label="training images")
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("Frechet distance to the test images")
    axes.set_xticks(args.nfes, [str(nfe) for nfe in args.nfes])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "training.png", dpi=120)
    plt.close(figure)
    sample_grids(args, folder, best, headlines)


def sample_grids(args, folder, best, names):
    """The first 32 images of each headline model at 10 evaluations, side by side, from the same noise."""
    import matplotlib.pyplot as plt

    shown = [(name, best[name, 10][1]) for name in names if (name, 10) in best]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 6.4), squeeze=False)
    for axis, (name, sampler) in zip(axes[0], shown, strict=True):
        model = METHODS[name].build()
        model.load_state_dict(load_file(folder / f"{name}-{args.seeds[0]}.safetensors"))
        images, _ = sample(model.eval(), METHODS[name].samplers[sampler], 10, 32, seed=1)
        axis.imshow(images.reshape(8, 4, 28, 28).transpose(1, 2).reshape(224, 112), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(f"{name}\n{sampler}", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(folder / "training_samples.png", dpi=120)
    plt.close(figure)


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "ddm_diffusers": ddm_diffusers.__version__,
    }


def write_json(path, value):
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="training", help="Models, rows, table, plots.")
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's four files.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], help="All but the first: headline models only."
    )
    parser.add_argument("--train_steps", type=int, default=3000)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a third less time, after minutes.")
    parser.add_argument("--samplers", nargs="+", help="Of all methods, by name; the screening is left out.")
    parser.add_argument("--num_samples", type=int, default=10000)
    parser.add_argument("--num_screening_samples", type=int, default=1000)
    parser.add_argument("--nfes", type=int, nargs="+", default=NFES)
    parser.add_argument("--screening_nfes", type=int, nargs="+", default=SCREENING_NFES)
    parser.add_argument("--quick", action="store_true", help="20 steps of training, 500 samples.")
    parser.add_argument("--report_only", action="store_true", help="Train and sample nothing.")
    args = parser.parse_args(argv)
    if args.quick:
        args.train_steps, args.num_samples, args.num_screening_samples = 20, 500, 200
        args.nfes, args.screening_nfes, args.seeds = (1, 2, 5, 10), (5, 10), args.seeds[:1]
    return args


def main(argv=None):
    args = parse_args(argv)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    classifier, accuracy = train_classifier(folder / "classifier.safetensors", args.data_dir)
    metric = FrechetDistance(classifier)
    for batch in to_tensor(load_fashion_mnist("test", args.data_dir)[0]).split(500):
        metric.update(batch, real=True)
    images = to_tensor(load_fashion_mnist("train", args.data_dir)[0])
    counts = {args.num_screening_samples, args.num_samples, args.num_samples // 2}
    floors = {
        str(n): float(np.mean([metric.distance(part) for part in images[: 3 * n].split(n)])) for n in sorted(counts)
    }
    print(f"classifier: {accuracy:.2%} of the test images; floors {floors}", flush=True)
    images = F.pixel_unshuffle(images, PATCH)
    if not args.report_only:
        runs = [(n, s) for s in args.seeds for n in args.methods if METHODS[n].headline or s == args.seeds[0]]
        for name, seed in runs:
            train(METHODS[name], seed, images, args, folder / f"{name}-{seed}.safetensors")
        for name, seed in runs:
            evaluate(name, seed, metric, args, folder)
    report(args, folder, accuracy, floors)


if __name__ == "__main__":
    main()
