# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images per second of `examples/train_ddm.py` over those of the recipe of diffusers' `train_unconditional.py`: the same UNet,
batches, images, workers, optimizer, average of the weights and logs; and of two processes over one.

    python examples/benchmarks/throughput.py --output_dir throughput

Each training is a process of its own that runs the real loop from start to end. They take turns of a few steps, one while
all others wait, in an order that rotates, so that what slows the machine slows all of them. A ratio is taken in each round;
the table has the median and its 95% interval. The images are scikit-learn's digits, enlarged.
"""

import argparse
import functools
import inspect
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Client, Listener
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ddm_diffusers import DDMScheduler, DDMUNet2DModel
from ddm_diffusers.training import ImageTransform, TrainingRun, build_unet, load_image_dataset


sys.path.insert(0, str(Path(__file__).parents[1]))
import train_ddm  # noqa: E402


matplotlib.use("Agg")

RECIPE = "diffusers' recipe"
# name: number of processes, options of train_ddm.py
TRAININGS = {
    RECIPE: (1, []),
    "one head": (1, ["--num_heads", "1"]),
    "two heads": (1, ["--num_heads", "2"]),
    "one head, two processes": (2, ["--num_heads", "1"]),
}
RATIOS = {
    "one head / recipe": ("one head", RECIPE),
    "two heads / recipe": ("two heads", RECIPE),
    "two processes / one": ("one head, two processes", "one head"),
}
NEVER = str(10**9)
# what a step of train_ddm.py does, by the functions that do it
PARTS = {
    "load the batch": (torch.utils.data.dataloader._BaseDataLoaderIter, "__next__"),
    "draw noise": (train_ddm, "randn_tensor"),
    "draw times": (train_ddm, "sample_timesteps"),
    "forward process": (DDMScheduler, "add_noise"),
    "network": (DDMUNet2DModel, "forward"),
    "loss": (train_ddm, "ddm_loss"),
    "backward": (Accelerator, "backward"),
    "clip the gradient": (Accelerator, "clip_grad_norm_"),
    "optimizer": (torch.optim.AdamW, "step"),
    "average of the weights": (EMAModel, "step"),
    "logs and progress bar": (TrainingRun, "end_step"),
}


# ------------------------------------------------------------------------------------------------------- the training processes
class Turns:
    """Hands out the batches of a training in turns: so many as the connection says, then it says how long they took."""

    def __init__(self, connection):
        self.connection = connection

    def __call__(self, batches):
        while steps := self._wait():
            began = time.perf_counter()
            for _ in range(steps):
                yield next(batches)
            if self.connection is not None:
                self.connection.send(time.perf_counter() - began)

    def _wait(self):
        # the other processes of a training wait for the first one
        return broadcast_object_list([None if self.connection is None else self.connection.recv()])[0]


def train_ddm_options(args):
    options = ["--resolution", args.resolution, "--train_batch_size", args.train_batch_size]
    options += ["--block_out_channels", *args.block_out_channels, "--layers_per_block", args.layers_per_block]
    options += [
        "--dataloader_num_workers",
        args.dataloader_num_workers,
        "--random_flip",
        "--output_dir",
        args.output_dir,
    ]
    options += [
        "--lr_warmup_steps",
        500,
        "--max_train_steps",
        NEVER,
        "--save_images_steps",
        NEVER,
        "--checkpointing_steps",
        NEVER,
    ]
    options += ["--eval_batch_size", 1, "--num_inference_steps", 1, *TRAININGS[args.training][1]]
    return train_ddm.parse_args([str(option) for option in options])


def train_ours(args, turns):
    """The script itself, whose loop gets its batches in turns."""

    class Run(TrainingRun):
        def batches(self):
            return turns(super().batches())

    train_ddm.TrainingRun = Run
    train_ddm.main(train_ddm_options(args))


def train_recipe(args, turns):
    """The loop of diffusers' script in our words, with the options and the images of `train_ddm.py`."""
    args = train_ddm_options(args)
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
    )
    set_seed(args.seed)
    transform = ImageTransform(load_image_dataset(), args.resolution, args.center_crop, args.random_flip)
    config = build_unet(args, transform.channels, args.resolution).config
    names = inspect.signature(UNet2DModel).parameters
    unet = UNet2DModel(
        **{name: config[name] for name in names if name != "out_channels"}, out_channels=transform.channels
    )
    average = EMAModel(
        unet.parameters(),
        decay=args.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=args.ema_inv_gamma,
        power=args.ema_power,
    )
    noise_scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
    dataloader = torch.utils.data.DataLoader(
        transform.dataset, args.train_batch_size, shuffle=True, num_workers=args.dataloader_num_workers
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    average.to(accelerator.device)
    accelerator.init_trackers("recipe")

    def epochs():
        while True:
            yield from dataloader

    unet.train()
    progress_bar = tqdm(disable=not accelerator.is_local_main_process)
    for global_step, batch in enumerate(turns(epochs()), 1):
        clean = batch["pixel_values"]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(noisy, timesteps).sample, noise)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(unet.parameters())
            progress_bar.update(1)
        logs = {
            "loss": loss.detach().item(),
            "lr": lr_scheduler.get_last_lr()[0],
            "ema_decay": average.cur_decay_value,
        }
        progress_bar.set_postfix(**logs)
        accelerator.log(logs, step=global_step)
    accelerator.end_training()


def run_training(args):
    """What a training process does."""
    connection = None
    if os.environ.get("RANK", "0") == "0":
        connection = Client(("localhost", args.port), authkey=os.environ["THROUGHPUT_KEY"].encode())
        connection.send(args.training)
    seconds = dict.fromkeys(PARTS, 0.0)
    if args.parts:
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, timed(getattr(owner, function), seconds, name))
    train = train_recipe if args.training == RECIPE else train_ours
    train(args, Turns(connection))
    if connection is not None:
        connection.send(seconds)


def timed(function, seconds, name):
    """A function that adds the time it takes to `seconds[name]`."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        synchronize()
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            synchronize()
            seconds[name] += time.perf_counter() - began

    return wrapped


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --------------------------------------------------------------------------------------------------------------- measurements
class Trainings:
    """Training processes that wait for their turns; they end with the context."""

    def __init__(self, args, names, folder, parts=False):
        self.args, self.names, self.folder, self.parts = args, names, folder, parts

    def __enter__(self):
        key = os.urandom(16).hex()
        environment = os.environ | {"THROUGHPUT_KEY": key}
        # accelerate has no option for several processes on the CPU
        if not torch.cuda.is_available():
            environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(self.args.threads)}
        self.processes, self.connections = [], {}
        with Listener(("localhost", 0), authkey=key.encode()) as listener:
            for name in self.names:
                launcher = [sys.executable]
                if TRAININGS[name][0] > 1:
                    launcher += [
                        "-m",
                        "torch.distributed.run",
                        "--standalone",
                        "--nproc_per_node",
                        str(TRAININGS[name][0]),
                    ]
                command = [
                    *launcher,
                    __file__,
                    "--training",
                    name,
                    "--port",
                    str(listener.address[1]),
                    *options(self.args),
                ]
                # a training refuses the folder of another one
                output_dir = Path(self.folder, "parts" if self.parts else "", name.replace(" ", "-"))
                command += ["--output_dir", str(output_dir)]
                log = open(Path(self.folder, f"{name}.log"), "w")  # noqa: SIM115
                self.processes.append(
                    subprocess.Popen(
                        command + ["--parts"] * self.parts, env=environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
                connection = listener.accept()
                self.connections[connection.recv()] = connection
        return self

    def turn(self, name, steps):
        """Seconds for that many steps."""
        try:
            self.connections[name].send(steps)
            return self.connections[name].recv()
        except (EOFError, OSError) as error:
            log = Path(self.folder, f"{name}.log").read_text()
            raise RuntimeError(f"{name} ended:\n{log[-3000:]}") from error

    def __exit__(self, *_):
        # each ends by itself: a launcher that is killed leaves its processes behind
        for connection in self.connections.values():
            with suppress(OSError):
                connection.send(0)
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def options(args):
    """The command line options of a training process that are the same for all of them."""
    names = ("resolution", "train_batch_size", "layers_per_block", "dataloader_num_workers")
    given = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    return [*given, "--block_out_channels", *map(str, args.block_out_channels)]


def median_with_interval(values):
    """The median and a 95% interval of it that assumes nothing of the distribution: two order statistics."""
    values, n = sorted(values), len(values)
    outside, k = 0.0, 0
    while k < n // 2 and outside + math.comb(n, k) / 2**n <= 0.025:
        outside += math.comb(n, k) / 2**n
        k += 1
    return {"median": statistics.median(values), "interval": [values[max(k - 1, 0)], values[n - max(k, 1)]]}


def measure(args, names, folder):
    """Seconds of each training's turns, round by round."""
    seconds = {name: [] for name in names}
    with Trainings(args, names, folder) as trainings:
        for name in names:
            trainings.turn(name, args.steps)  # warm up
        for i in tqdm(range(args.rounds)):
            for name in [*names[i % len(names) :], *names[: i % len(names)]]:
                seconds[name].append(trainings.turn(name, args.steps))
    return seconds


def measure_parts(args, folder):
    """Seconds of each part of a step of train_ddm.py with one head, and of the whole step."""
    with Trainings(args, ["one head"], folder, parts=True) as trainings:
        # what the first steps take longer counts for little
        steps = args.steps * max(4, args.rounds // 2)
        total = trainings.turn("one head", steps)
        trainings.connections["one head"].send(0)
        seconds = trainings.connections["one head"].recv()
    return {name: value / steps for name, value in (seconds | {"the whole step": total}).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="throughput", help="Where throughput.json and throughput.png go.")
    parser.add_argument("--quick", action="store_true", help="A tiny model and few rounds, to see that it works.")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--layers_per_block", type=int, default=2)
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="Of each process, on a CPU.")
    parser.add_argument("--steps", type=int, default=2, help="Of a turn.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS, help="Which to measure.")
    parser.add_argument("--training", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.resolution, args.block_out_channels, args.layers_per_block, args.rounds = 8, [8, 16], 1, 4
    if args.training is not None:
        return run_training(args)

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(args, args.trainings, folder)
        parts = measure_parts(args, folder)
    images = args.steps * args.train_batch_size
    rates = {name: images * TRAININGS[name][0] / statistics.median(times) for name, times in seconds.items()}
    ratios = {}
    for name, (first, second) in RATIOS.items():
        if first in seconds and second in seconds:
            factor = TRAININGS[first][0] / TRAININGS[second][0]
            values = [factor * b / a for a, b in zip(seconds[first], seconds[second], strict=True)]
            ratios[name] = median_with_interval(values) | {"values": values}

    print("| training | images per second |\n| --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} |")
    print("\n| images per second | ratio | 95% interval |\n| --- | --- | --- |")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio['median']:.3f} | {ratio['interval'][0]:.3f} .. {ratio['interval'][1]:.3f} |")
    print("\n| part of a step | ms | share |\n| --- | --- | --- |")
    parts["the rest"] = 2 * parts["the whole step"] - sum(parts.values())
    for name, value in parts.items():
        print(f"| {name} | {1000 * value:.2f} | {value / parts['the whole step']:.1%} |")

    packages = ("torch", "diffusers", "accelerate", "datasets", "ddm-diffusers")
    result = {
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {args.threads} threads each",
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "settings": {name: value for name, value in vars(args).items() if name not in ("training", "port", "parts")},
        "images_per_second": rates,
        "ratios": ratios,
        "seconds": seconds,
        "seconds_of_parts": parts,
    }
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    temporary = output_dir / "throughput.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, output_dir / "throughput.json")
    plot(ratios, parts, output_dir / "throughput.png")


def plot(ratios, parts, path):
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1, 1.2])
    for i, ratio in enumerate(ratios.values()):
        left.plot(ratio["values"], [i] * len(ratio["values"]), "|", color="C0", alpha=0.4)
        left.plot(ratio["interval"], [i, i], color="C0", linewidth=3)
        left.plot(ratio["median"], i, "o", color="C0")
    left.axvline(1, color="gray", linewidth=1)
    left.set_yticks(range(len(ratios)), ratios)
    left.invert_yaxis()
    left.set_xlabel("ratio of images per second, median and 95% interval")
    names = [name for name in parts if name != "the whole step"]
    right.barh(names, [1000 * parts[name] for name in names], color="C1")
    right.invert_yaxis()
    right.set_xlabel("ms of a training step, one head")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
