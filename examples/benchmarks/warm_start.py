# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
How much training a trained epsilon model saves: DDM from scratch and from its weights, on Fashion-MNIST.

    python examples/benchmarks/warm_start.py --output_dir warm --base_dir training     # an hour on a CPU; resumes
    python examples/benchmarks/warm_start.py --output_dir warm --quick                 # minutes, only to see that it runs

Three starts see the same batches, with the same noise and times, the same optimizer, and a learning rate that is constant
after its warm-up:

- `scratch`: random weights;
- `weights`: `from_unet2d(unet)`, the trained weights and nothing else;
- `predictions`: `from_unet2d(unet, scheduler)`, which begins with what the epsilon model predicts.

The loss is that of the averaged weights on test images, always with the same noise and times. The question is after how
many steps each start has reached the loss that `scratch` has at its end. `unet2d` starts from the DDPM of training.py,
which is trained in `--base_dir` if it is not there; `unet2d_condition` from an epsilon model that is trained here, a
small UNet2DConditionModel to which the class is a text of one token.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from fashion_mnist import DEBIAN_FOLDER, load_fashion_mnist, to_tensor
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from training import CHANNELS, METHODS, PATCH, SIZE, TRUNK, VP, ddpm_loss, plain_unet, train, versions, write_json

from ddm_diffusers import DDMUNet2DConditionModel, DDMUNet2DModel


STARTS = ("predictions", "weights", "scratch")
CONDITION_TRUNK = {
    "sample_size": SIZE,
    "in_channels": CHANNELS,
    "block_out_channels": (32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
}


class Labelled:
    """A text-conditional model that is told the classes of a batch, as a function of sample and timestep alone."""

    def __init__(self, model, labels):
        self.model, self.config = model, model.config
        self.tokens = F.one_hot(labels, CONDITION_TRUNK["cross_attention_dim"])[:, None].float()

    def __call__(self, sample, timestep):
        return self.model(sample, timestep, self.tokens)


def told(model, labels):
    return Labelled(model, labels) if isinstance(model, UNet2DConditionModel) else model


class Data:
    """Images as the networks see them, with their labels."""

    def __init__(self, split, folder):
        images, labels = load_fashion_mnist(split, folder)
        self.images = F.pixel_unshuffle(to_tensor(images), PATCH)
        self.labels = torch.from_numpy(labels.astype(int))

    def batch(self, size, step):
        """The same for every start."""
        index = torch.randint(len(self.images), (size,), generator=torch.Generator().manual_seed(step))
        return self.images[index], self.labels[index]


@torch.no_grad()
def evaluate(model, data, num_images):
    """The mean loss of the first images, in batches of 64."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    batches = zip(data.images[:num_images].split(64), data.labels[:num_images].split(64), strict=True)
    losses = [METHODS["ddm"].loss(told(model, labels), images, generator).item() for images, labels in batches]
    model.train()
    return sum(losses) / len(losses)


def fit(model, loss, data, num_steps, args, desc, test=None):
    """
    Train a model, whose weights are their average in the end. With test images, the losses
    `[(step, loss, loss without averaging), ...]` on them.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=args.warmup_steps)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    generator = torch.Generator().manual_seed(1)
    losses = []

    def record(step):
        plain = evaluate(model, test, args.num_test_images)
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        losses.append((step, evaluate(model, test, args.num_test_images), plain))
        ema.restore(model.parameters())
        print(f"{desc} step {step}: loss {losses[-1][1]:.4f}, without averaging {plain:.4f}", flush=True)

    for step in tqdm(range(num_steps), desc=desc, mininterval=10):
        if test is not None and step % args.evaluation_steps == 0:
            record(step)
        images, labels = data.batch(args.train_batch_size, step)
        loss(told(model, labels), images, generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
    if test is not None:
        record(num_steps)
    ema.copy_to(model.parameters())
    return losses


def base_unet2d(data, args):
    """The DDPM of training.py."""
    path = Path(args.base_dir, "ddpm-0.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = argparse.Namespace(**{**vars(args), "compile": False, "train_steps": args.base_steps})
    train(METHODS["ddpm"], 0, data.images, options, path)
    unet = plain_unet()
    unet.load_state_dict(load_file(path))
    return unet


def base_unet2d_condition(data, args):
    path = Path(args.output_dir, "ddpm_condition.safetensors")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**CONDITION_TRUNK, out_channels=CHANNELS)
    if not path.is_file():
        fit(unet, ddpm_loss, data, args.condition_base_steps, args, "epsilon model with a condition")
        save_file(unet.state_dict(), path)
    unet.load_state_dict(load_file(path))
    return unet


def start(kind, name, unet):
    """The model of a start."""
    torch.manual_seed(0)
    if name == "scratch":
        if kind == "unet2d":
            return DDMUNet2DModel(in_channels=CHANNELS, **TRUNK)
        return DDMUNet2DConditionModel(**CONDITION_TRUNK)
    from_trained = {
        "unet2d": DDMUNet2DModel.from_unet2d,
        "unet2d_condition": DDMUNet2DConditionModel.from_unet2d_condition,
    }
    return from_trained[kind](unet, DDPMScheduler(**VP) if name == "predictions" else None)


def report(args, folder):
    """Print after how many steps each start was where `scratch` ends; write `warm_start.json` and `warm_start.png`."""
    import matplotlib.pyplot as plt

    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("unet2d*.json"))}
    summary = {}
    figure, axes = plt.subplots(1, len(args.kinds), figsize=(6 * len(args.kinds), 4.5), squeeze=False)
    for axis, kind in zip(axes[0], args.kinds, strict=True):
        num_steps, last, _ = runs[f"{kind}-scratch"][-1]
        rows = summary[kind] = {"scratch_steps": num_steps, "scratch_loss": last}
        for name in STARTS:
            losses = runs[f"{kind}-{name}"]
            reached = next((step for step, loss, _ in losses if loss <= last), None)
            rows[name] = {"first_loss": losses[0][1], "last_loss": losses[-1][1], "reached_after": reached}
            print(f"{kind:18} {name:12} first {losses[0][1]:.4f} last {losses[-1][1]:.4f}: {last:.4f} after {reached}")
            axis.semilogy([step for step, *_ in losses], [loss for _, loss, _ in losses], label=name)
        axis.axhline(last, color="gray", linewidth=1, linestyle="--")
        axis.axvline(num_steps / 3, color="gray", linewidth=1, linestyle=":")
        axis.set_title(kind)
        axis.set_xlabel("steps")
        axis.set_ylabel("loss on test images")
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "warm_start.png", dpi=120)
    settings = {key: value for key, value in vars(args).items() if not key.endswith("_dir")}
    write_json(
        folder / "warm_start.json",
        {
            "date": date.today().isoformat(),
            "versions": versions(),
            "settings": settings,
            "summary": summary,
            "runs": runs,
        },
    )


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="warm", help="Losses, table, plot, and the condition's epsilon model.")
    parser.add_argument("--base_dir", default="training", help="The --output_dir of training.py.")
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's four files.")
    kinds = ["unet2d", "unet2d_condition"]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument(
        "--train_steps", type=int, default=1500, help="From scratch; a third of it from a trained model."
    )
    parser.add_argument("--condition_train_steps", type=int, default=1500, help="The same with a condition.")
    parser.add_argument("--base_steps", type=int, default=6000, help="Of the DDPM, if it is not there.")
    parser.add_argument(
        "--condition_base_steps", type=int, default=3000, help="Of the epsilon model with a condition."
    )
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--evaluation_steps", type=int, default=50)
    parser.add_argument("--num_test_images", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="A few steps of everything.")
    args = parser.parse_args(arguments)
    if args.quick:
        args.train_steps = args.condition_train_steps = 30
        args.base_steps = args.condition_base_steps = 20
        args.evaluation_steps, args.num_test_images = 10, 128
    return args


def main(arguments=None):
    args = parse_args(arguments)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data, test = Data("train", args.data_dir), Data("test", args.data_dir)
    for kind in args.kinds:
        unet = {"unet2d": base_unet2d, "unet2d_condition": base_unet2d_condition}[kind](data, args)
        for name in STARTS:
            path = folder / f"{kind}-{name}.json"
            if not path.is_file():
                num_steps = args.train_steps if kind == "unet2d" else args.condition_train_steps
                num_steps = num_steps if name == "scratch" else num_steps // 3
                model = start(kind, name, unet)
                write_json(path, fit(model, METHODS["ddm"].loss, data, num_steps, args, f"{kind} {name}", test))
    report(args, folder)


if __name__ == "__main__":
    main()
