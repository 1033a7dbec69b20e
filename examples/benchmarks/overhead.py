# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the package costs beside the network: pipeline, scheduler step, objective, and the variants of the model.

    python examples/benchmarks/overhead.py --output_dir overhead
    python examples/benchmarks/overhead.py --output_dir overhead --quick    # only to see that it runs

Every figure is a ratio of two times that are taken in pairs, one right after the other and in alternating order, so that
what slows the machine slows both; the table has the median of the ratios and their quartiles. Memory is the peak of a
fresh process (on Linux; of the device, on a GPU) over its peak before the model is run.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import diffusers
import matplotlib
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from tqdm.auto import tqdm

import ddm_diffusers
from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DModel
from ddm_diffusers.training import ddm_loss, sample_timesteps


matplotlib.use("Agg")

SIZE, CHANNELS, BATCH_SIZE, NUM_STEPS = 32, 3, 16, 10
UNET = {
    "sample_size": SIZE,
    "in_channels": CHANNELS,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
VARIANTS = {
    "plain UNet2DModel": lambda: UNet2DModel(out_channels=CHANNELS, **UNET),
    "one head": lambda: DDMUNet2DModel(num_heads=1, **UNET),
    "two heads": lambda: DDMUNet2DModel(num_heads=2, **UNET),
    "two decoders": lambda: DDMUNet2DModel(num_decoders=2, **UNET),
}

# the default draws fresh noise, as the SDE solver does and the other two do not
STEPS = {
    "step / DDIM": (DDMScheduler, DDIMScheduler),
    "step / DPM-Solver++": (DDMScheduler, DPMSolverMultistepScheduler),
    "step / SDE-DPM-Solver++": (
        DDMScheduler,
        lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    ),
    "step with eta 0 / DPM-Solver++": (lambda: DDMScheduler(eta=0.0), DPMSolverMultistepScheduler),
    "step with eta 0, no corrector / DPM-Solver++": (
        lambda: DDMScheduler(eta=0.0, corrector=False),
        DPMSolverMultistepScheduler,
    ),
}


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_ratio(first, second, device, rounds, repeats=1):
    """Times `first` and `second` in alternating order; the ratios `first / second` of all rounds, and their quartiles."""
    ratios = []
    for i in range(rounds + 1):
        seconds = {}
        for run in (first, second) if i % 2 else (second, first):
            synchronize(device)
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            synchronize(device)
            seconds[run] = time.perf_counter() - began
        if i > 0:  # the first round warms up
            ratios.append(seconds[first] / seconds[second])
    quartiles = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "quartiles": [quartiles[0], quartiles[2]], "rounds": rounds}


def pipeline_over_model(device, rounds, batch_size):
    """A call of the pipeline over as many bare evaluations of its model."""
    unet = VARIANTS["two heads"]().to(device).eval()
    pipe = DDMPipeline(unet, DDMScheduler())
    pipe.set_progress_bar_config(disable=True)
    sample = torch.randn(batch_size, CHANNELS, SIZE, SIZE, device=device)
    timestep = torch.tensor(500.0, device=device)

    def bare():
        with torch.no_grad():
            for _ in range(NUM_STEPS):
                unet(sample, timestep)

    return paired_ratio(
        lambda: pipe(batch_size=batch_size, num_inference_steps=NUM_STEPS, output_type="np"), bare, device, rounds
    ) | {"parameters": unet.num_parameters()}


def step_over(make_ours, make_theirs, device, rounds, shape):
    """All steps of a `DDMScheduler` over those of another scheduler, without any model."""
    sample = torch.randn(shape, device=device)
    output = torch.randn_like(sample)
    double = torch.cat([output, output], dim=1)

    def run(scheduler, model_output):
        scheduler.set_begin_index(0) if hasattr(scheduler, "set_begin_index") else None
        x = sample
        for timestep in scheduler.timesteps:
            x = scheduler.step(model_output, timestep, x).prev_sample

    def prepare(scheduler):
        scheduler.set_timesteps(NUM_STEPS, device=device)
        return scheduler

    ours, theirs = make_ours(), make_theirs()

    # both prepare their timesteps, which a scheduler with a state needs before each run
    return paired_ratio(
        lambda: run(prepare(ours), double), lambda: run(prepare(theirs), output), device, rounds, repeats=5
    )


def training_step_over_bare(device, rounds, batch_size):
    """A whole training step over forward, backward and optimizer step of the same model on ready inputs."""
    unet, scheduler = VARIANTS["two heads"]().to(device), DDMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    clean = torch.rand(batch_size, CHANNELS, SIZE, SIZE, device=device) * 2 - 1
    fixed_timesteps = torch.full((batch_size,), 500.0, device=device)

    def update(loss):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def full():
        noise = torch.randn_like(clean)
        timesteps = sample_timesteps(scheduler, batch_size, device=device)
        attenuation = scheduler.get_attenuation(clean)
        noisy = scheduler.add_noise(clean, noise, timesteps, attenuation)
        update(ddm_loss(scheduler, unet(noisy, timesteps).sample, clean, noise, timesteps, attenuation))

    return paired_ratio(full, lambda: update(unet(clean, fixed_timesteps).sample.mean()), device, rounds)


def variant_over_plain(name, device, rounds, batch_size, training):
    """Forward, or forward and backward, of a variant of the model over a plain `UNet2DModel`."""
    models = [VARIANTS[each]().to(device) for each in (name, "plain UNet2DModel")]
    sample = torch.randn(batch_size, CHANNELS, SIZE, SIZE, device=device)
    timesteps = torch.full((batch_size,), 500.0, device=device)

    def run(model):
        with torch.set_grad_enabled(training):
            output = model(sample, timesteps).sample
            if training:
                output.mean().backward()

    return paired_ratio(lambda: run(models[0]), lambda: run(models[1]), device, rounds) | {
        "parameters": models[0].num_parameters()
    }


def peak_memory(name, device):
    """MiB that forward and backward need beyond the model, measured in a fresh process."""
    command = [sys.executable, __file__, "--device", str(device), "--measure_memory", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"MiB": int(output) / 2**20}


def measure_memory(name, device):
    model = VARIANTS[name]().to(device)
    sample = torch.randn(BATCH_SIZE, CHANNELS, SIZE, SIZE, device=device)
    before = peak(device)
    model(sample, torch.full((BATCH_SIZE,), 500.0, device=device)).sample.mean().backward()
    print(peak(device) - before)


def peak(device):
    """The most bytes that this process has had at once."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # not `ru_maxrss`, which a process takes over from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="overhead", help="Where overhead.json and overhead.png go.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20, help="Pairs of times for each figure.")
    parser.add_argument("--quick", action="store_true", help="Two rounds of two images, memory of one model.")
    parser.add_argument("--measure_memory", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if args.measure_memory:
        return measure_memory(args.measure_memory, device)

    rounds, step_rounds, batch_size = (2, 2, 2) if args.quick else (args.rounds, 5 * args.rounds, BATCH_SIZE)
    shapes = {"16x3x32x32": (16, 3, 32, 32), "4x4x64x64": (4, 4, 64, 64), "1x4x128x128": (1, 4, 128, 128)}
    tasks = {
        f"pipeline, {NUM_STEPS} steps / {NUM_STEPS} evaluations": lambda: pipeline_over_model(
            device, rounds, batch_size
        ),
        "training step / bare step": lambda: training_step_over_bare(device, rounds, batch_size),
    }
    for what, (make_ours, make_theirs) in STEPS.items():
        for name, shape in shapes.items():
            tasks[f"{what}, {name}"] = lambda ours=make_ours, theirs=make_theirs, shape=shape: step_over(
                ours, theirs, device, step_rounds, shape
            )
    for name in list(VARIANTS)[1:]:
        for training in (False, True):
            what = "forward and backward" if training else "forward"
            tasks[f"{name} / plain, {what}"] = lambda name=name, training=training: variant_over_plain(
                name, device, rounds, batch_size, training
            )
    rows = {name: run() for name, run in tqdm(tasks.items())}
    names = list(VARIANTS)[-1:] if args.quick else VARIANTS
    memory = {name: peak_memory(name, device) for name in tqdm(names, desc="memory")}

    print("| what | ratio | quartiles |\n| --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['ratio']:.3f} | {row['quartiles'][0]:.3f} .. {row['quartiles'][1]:.3f} |")
    print("\n| forward and backward | MiB |\n| --- | --- |")
    for name, row in memory.items():
        print(f"| {name} | {row['MiB']:.0f} |")

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "ddm_diffusers": ddm_diffusers.__version__,
    }
    result = {"date": date.today().isoformat(), "versions": versions, "device": str(device), "threads": None}
    result |= {"threads": torch.get_num_threads(), "ratios": rows, "memory": memory}
    temporary = folder / "overhead.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, folder / "overhead.json")
    plot(rows, folder / "overhead.png")


def plot(rows, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.4 * len(rows) + 1))
    for i, row in enumerate(rows.values()):
        axes.plot(row["quartiles"], [i, i], color="C0")
        axes.plot(row["ratio"], i, "o", color="C0")
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("ratio of times, median and quartiles")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
