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

Each model runs with every sampler that suits it, first on `--num_screening_samples` at 5, 10 and 20 evaluations. The two
best of each model at each number of evaluations then run on `--num_samples`. Results are one JSON file per model and seed
under `--output_dir`, so that several processes can share the work (`--methods`, `--seeds`).
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
from ddm_diffusers import DDMScheduler, DDMUNet2DModel
from ddm_diffusers.training import ddm_loss, sample_timesteps


matplotlib.use("Agg")

NFES = (1, 2, 3, 5, 10, 20, 50)
SCREENING_NFES = (5, 10, 20)
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
        "DPM++ 3M Karras": lambda: dpm(**karras, solver_order=3),
        "UniPC": lambda: unipc(**trailing),
        "UniPC Karras": lambda: unipc(**karras),
        "UniPC exponential": lambda: unipc(**exponential),
        "UniPC 3 exponential": lambda: unipc(**exponential, solver_order=3),
        "DEIS 3 Karras": lambda: deis(**karras, solver_order=3),
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
    for shift in (0.5, 1.0, 2.0):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        name = "" if shift == 1 else f", shift {shift:g}"
        samplers[f"DPM++ 2M{name}"] = lambda flow=flow: DPMSolverMultistepScheduler(**flow)
        samplers[f"UniPC{name}"] = lambda flow=flow: UniPCMultistepScheduler(**flow)
        samplers[f"UniPC 3{name}"] = lambda flow=flow: UniPCMultistepScheduler(**flow, solver_order=3)
    return samplers


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
    }


# DDM (arXiv 2306.13720)
def ddm(weighting="unit_variance", draw=None, sampler_options=None, headline=False, **model_options):
    process = {key: model_options[key] for key in ("attenuation", "noise_schedule") if key in model_options}
    training_scheduler = DDMScheduler(**process)

    def loss(model, clean, generator):
        noise = torch.randn(clean.shape, generator=generator)
        if draw is None:
            timesteps = sample_timesteps(training_scheduler, len(clean), generator=generator)
        else:
            timesteps = 1000 * draw(len(clean), generator)
        attenuation = training_scheduler.get_attenuation(clean, generator=generator)
        noisy = training_scheduler.add_noise(clean, noise, timesteps, attenuation)
        output = model(noisy, timesteps).sample
        return ddm_loss(
            training_scheduler, output, clean, noise, timesteps, attenuation, weighting, model.config.sigma_data
        )

    return Method(
        "DDM",
        build=lambda: DDMUNet2DModel(in_channels=CHANNELS, **TRUNK, **model_options),
        loss=loss,
        samplers={
            name: lambda options=options: DDMScheduler(**{**options, **process})
            for name, options in (sampler_options or DDM_SAMPLERS).items()
        },
        headline=headline,
    )


def logit_normal(mean, std):
    return lambda n, generator: (mean + std * torch.randn(n, generator=generator)).sigmoid()


PAPER = {"solver_order": 1, "eta": 1.0, "time_grid": "uniform"}
GRIDS = {
    "ratio": {"time_grid": "ratio"},
    "uniform": {"time_grid": "uniform"},
    "power": {"time_grid": "power", "rho": 1.0, "t_min": 1e-2},
}
DDM_SAMPLERS = {"default": {}, "paper": PAPER} | {
    f"order {order}, {grid}, eta {eta:g}": {"solver_order": order, "eta": eta, **options}
    for grid, options in GRIDS.items()
    for order in (2, 3)
    for eta in (0.0, 0.5, 1.0)
}

METHODS = {
    "ddpm": Method("DDPM", plain_unet, ddpm_loss, ddpm_samplers(), headline=True),
    "flow": Method("flow matching", plain_unet, flow_loss, flow_samplers(), headline=True),
    "edm": Method("EDM", plain_unet, edm_loss, edm_samplers(), headline=True),
    "ddm": ddm(headline=True),
    "ddm_one_head": ddm(num_heads=1),
    "ddm_two_decoders": ddm(num_decoders=2),
    "ddm_linear_noise": ddm(noise_schedule="linear"),
    "ddm_linear_attenuation": ddm(attenuation="linear"),
    "ddm_none": ddm(weighting="none"),
    "ddm_inverse_time": ddm(weighting="inverse_time"),
    "ddm_adm": ddm(weighting="adm"),
    "ddm_sigma_data": ddm(sigma_data=SIGMA_DATA),
    "ddm_logit_normal": ddm(draw=logit_normal(-0.5, 1.2)),
    "ddm_raw": ddm(precondition=False, weighting="none"),
}


# ------------------------------------------------------------------------------------------------------------ training
def train(method, seed, images, args, path):
    """The averaged weights at `path`, trained if they are not there yet; goes on where a run before was stopped."""
    torch.manual_seed(seed)
    model = method.build()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
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
        if step % 250 == 0 and step < args.train_steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"generator": generator.get_state(), "step": step, "seconds": seconds, "losses": losses}
            torch.save(state, state_path.with_suffix(".tmp"))
            os.replace(state_path.with_suffix(".tmp"), state_path)
    progress.close()
    ema.copy_to(model.parameters())
    save_file(model.state_dict(), path)
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
    return model.eval()


# ------------------------------------------------------------------------------------------------------------ sampling
@torch.no_grad()
def sample(model, make_scheduler, nfe, num_samples, seed, batch_size=500):
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
        x = torch.randn(size, CHANNELS, SIZE, SIZE, generator=generator) * scheduler.init_noise_sigma
        calls = 0
        for timestep in scheduler.timesteps:
            # the schedulers for flow matching have no such method
            x_in = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            output = model(x_in, timestep.expand(size)).sample
            calls += 1
            options = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
            x = scheduler.step(output, timestep, x, **options).prev_sample
        images.append(F.pixel_shuffle(x, PATCH).clamp(-1, 1))
    return (torch.cat(images) * 127.5).round() / 127.5, calls


def evaluate(name, method, seed, model, metric, args, path):
    """Fill the rows of one model in `path`, a JSON list; rows that are there are not run again."""
    rows = json.loads(path.read_text()) if path.is_file() else []

    def row(sampler, nfe, num_samples):
        for known in rows:
            if (known["sampler"], known["nfe"], known["num_samples"]) == (sampler, nfe, num_samples):
                return known
        began = time.perf_counter()
        try:
            images, calls = sample(model, method.samplers[sampler], nfe, num_samples, seed=1000 + seed)
            distance = metric.distance(images) if bool(torch.isfinite(images).all()) else math.inf
        except (ValueError, IndexError, AssertionError, RuntimeError) as error:
            # some schedulers of diffusers refuse so few steps
            distance, calls, images = math.inf, nfe, None
            print(f"{name} with {sampler} at {nfe}: {type(error).__name__}: {error}", flush=True)
        known = {"method": name, "seed": seed, "sampler": sampler, "nfe": nfe, "num_samples": num_samples}
        known |= {"evaluations": calls, "distance": distance, "seconds": time.perf_counter() - began}
        rows.append(known)
        write_json(path, rows)
        print(f"{name:24} seed {seed} {sampler:28} NFE {nfe:3} n {num_samples:6} {distance:9.3f}", flush=True)
        return known

    screening = {
        nfe: sorted((row(s, nfe, args.num_screening_samples) for s in method.samplers), key=lambda r: r["distance"])
        for nfe in args.screening_nfes
    }
    for nfe in sorted(args.nfes, key=lambda nfe: (nfe not in args.screening_nfes, nfe)):
        nearest = min(args.screening_nfes, key=lambda other: abs(math.log(other / nfe)))
        best = [known["sampler"] for known in screening[nearest][: args.num_best]]
        for sampler in [*best, *([] if "default" not in method.samplers or "default" in best else ["default"])]:
            row(sampler, nfe, args.num_samples)


# -------------------------------------------------------------------------------------------------------------- report
def report(args, folder, accuracy, floors):
    """Print the table; write `training.json`, `training.png` and `training_samples.png`."""
    import matplotlib.pyplot as plt

    rows = [row for path in sorted(folder.glob("*.rows.json")) for row in json.loads(path.read_text())]
    full = [row for row in rows if row["num_samples"] == args.num_samples]
    best = {}  # (method, nfe) -> (mean over the seeds of the sampler that is best by it, sampler, distances)
    for key in {(row["method"], row["nfe"]) for row in full}:
        by_sampler = {}
        for row in full:
            if (row["method"], row["nfe"]) == key:
                by_sampler.setdefault(row["sampler"], []).append(row["distance"])
        most = max(map(len, by_sampler.values()))
        best[key] = min((np.mean(d), s, d) for s, d in by_sampler.items() if len(d) == most)
    methods = [name for name in METHODS if any(key[0] == name for key in best)]
    lines = ["| model | " + " | ".join(str(nfe) for nfe in args.nfes) + " |", "| --- |" + " --- |" * len(args.nfes)]
    for name in methods:
        cells = [f"{best[name, n][0]:.2f} ({best[name, n][1]})" if (name, n) in best else "" for n in args.nfes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| floor | " + " | ".join([f"{floors[str(args.num_samples)]:.2f}"] * len(args.nfes)) + " |")
    print("\n".join(lines))

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
                {"method": m, "nfe": n, "distance": float(v[0]), "sampler": v[1], "distances": v[2]}
                for (m, n), v in sorted(best.items())
            ],
            "rows": rows,
        },
    )
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in methods:
        nfes = [nfe for nfe in args.nfes if (name, nfe) in best]
        style = {"linewidth": 2} if METHODS[name].headline else {"linewidth": 1, "linestyle": "--"}
        axes.loglog(nfes, [best[name, nfe][0] for nfe in nfes], marker="o", markersize=4, label=name, **style)
    axes.axhline(floors[str(args.num_samples)], color="gray", linewidth=1)
    axes.annotate("training images", (args.nfes[0], floors[str(args.num_samples)]), va="bottom", color="gray")
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("Frechet distance to the test images")
    axes.set_xticks(args.nfes, [str(nfe) for nfe in args.nfes])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "training.png", dpi=120)
    plt.close(figure)
    sample_grids(args, folder, best, [name for name in methods if METHODS[name].headline])


def sample_grids(args, folder, best, methods):
    """The first 32 images of each headline model at 10 evaluations, side by side, from the same noise."""
    import matplotlib.pyplot as plt

    shown = [(name, best[name, 10][1]) for name in methods if (name, 10) in best]
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


def parse_args():
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
    parser.add_argument("--num_samples", type=int, default=10000)
    parser.add_argument("--num_screening_samples", type=int, default=2000)
    parser.add_argument("--num_best", type=int, default=1, help="Samplers of each model that run on --num_samples.")
    parser.add_argument("--nfes", type=int, nargs="+", default=NFES)
    parser.add_argument("--screening_nfes", type=int, nargs="+", default=SCREENING_NFES)
    parser.add_argument("--quick", action="store_true", help="20 steps of training, 500 samples.")
    parser.add_argument("--report_only", action="store_true", help="Train and sample nothing.")
    args = parser.parse_args()
    if args.quick:
        args.train_steps, args.num_samples, args.num_screening_samples = 20, 500, 200
        args.nfes, args.screening_nfes, args.seeds = (1, 2, 5, 10), (5, 10), args.seeds[:1]
    return args


def main():
    args = parse_args()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    classifier, accuracy = train_classifier(folder / "classifier.safetensors", args.data_dir)
    metric = FrechetDistance(classifier)
    for batch in to_tensor(load_fashion_mnist("test", args.data_dir)[0]).split(500):
        metric.update(batch, real=True)
    images = to_tensor(load_fashion_mnist("train", args.data_dir)[0])
    floors = {
        str(n): float(np.mean([metric.distance(part) for part in images[: 3 * n].split(n)]))
        for n in (args.num_screening_samples, args.num_samples)
    }
    print(f"classifier: {accuracy:.2%} of the test images; floors {floors}", flush=True)
    images = F.pixel_unshuffle(images, PATCH)
    if not args.report_only:
        runs = [(n, s) for s in args.seeds for n in args.methods if METHODS[n].headline or s == args.seeds[0]]
        models = {(n, s): train(METHODS[n], s, images, args, folder / f"{n}-{s}.safetensors") for n, s in runs}
        for (name, seed), model in models.items():
            evaluate(name, METHODS[name], seed, model, metric, args, folder / f"{name}-{seed}.rows.json")
    report(args, folder, accuracy, floors)


if __name__ == "__main__":
    main()
