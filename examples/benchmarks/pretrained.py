# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the model in `examples/pretrained` draws: how often a classifier names the class that was asked for, and a picture.

    python examples/benchmarks/pretrained.py --output_dir pretrained

The classifier is trained on Fashion-MNIST's photographs alone. The Frechet distance to the test images is in its
features, as in `training.py`; as many training images score the floor.
"""

import argparse
import time
from datetime import date
from pathlib import Path

import matplotlib
import torch
from fashion_mnist import DEBIAN_FOLDER, FrechetDistance, load_fashion_mnist, predict, to_tensor, train_classifier
from tqdm.auto import tqdm
from training import versions, write_json

from ddm_diffusers import DDMPipeline


matplotlib.use("Agg")

FOLDER = Path(__file__).parents[1] / "pretrained" / "ddm-fashion-mnist"
GRID = 8  # images of a row, and classes, in the picture


def draw(pipe, labels, num_steps, guidance_scale, seed, batch_size=250):
    """Images `(N, 1, 28, 28)` in [-1, 1] of these classes."""
    generator, images = torch.Generator().manual_seed(seed), []
    for part in labels.split(batch_size):
        images.append(
            pipe(
                batch_size=len(part),
                class_labels=part.tolist(),
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                output_type="pt",
            ).images
        )
    return (torch.cat(images).mul(255).round() / 127.5 - 1).float()


def save_picture(pipe, args, path):
    """The same initial noise at each number of steps, a row for each class."""
    import matplotlib.pyplot as plt

    labels = torch.arange(GRID).repeat_interleave(GRID)
    size = (2.6 * len(args.steps), 2.9)
    figure, axes = plt.subplots(1, len(args.steps), figsize=size, squeeze=False, layout="constrained")
    for axis, num_steps in zip(axes[0], args.steps, strict=True):
        images = draw(pipe, labels, num_steps, max(args.guidance_scales), seed=0)
        mosaic = images.reshape(GRID, GRID, 28, 28).transpose(1, 2).reshape(28 * GRID, 28 * GRID)
        axis.imshow(mosaic, cmap="gray", vmin=-1, vmax=1)
        axis.set_title(f"{num_steps} steps", fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=FOLDER, help="A class-conditional DDMPipeline.")
    parser.add_argument("--output_dir", default="pretrained", help="Where pretrained.json and pretrained.png go.")
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's four files.")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 50])
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--num_samples", type=int, default=1000)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    classifier, accuracy = train_classifier(folder / "classifier.safetensors", args.data_dir)
    metric = FrechetDistance(classifier)
    for batch in to_tensor(load_fashion_mnist("test", args.data_dir)[0]).split(500):
        metric.update(batch, real=True)
    floor = metric.distance(to_tensor(load_fashion_mnist("train", args.data_dir)[0])[: args.num_samples])
    pipe = DDMPipeline.from_pretrained(args.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)

    began = time.perf_counter()
    draw(pipe, torch.arange(64) % 10, 10, 1.0, seed=0)
    seconds = time.perf_counter() - began
    rows = []
    settings = [(steps, scale) for steps in args.steps for scale in args.guidance_scales]
    for num_steps, scale in tqdm(settings, desc="settings"):
        labels = torch.arange(args.num_samples) % 10
        images = draw(pipe, labels, num_steps, scale, seed=1)
        named = (predict(classifier, images) == labels).double().mean().item()
        distance = metric.distance(images)
        rows.append({"steps": num_steps, "guidance_scale": scale, "named": named, "distance": distance})

    print(
        f"classifier: {accuracy:.2%} of the test images; 64 images in 10 steps in {seconds:.1f} s; floor {floor:.2f}"
    )
    print("| steps | guidance scale | named as requested | Frechet distance |\n| --- | --- | --- | --- |")
    for row in rows:
        print("| {steps} | {guidance_scale} | {named:.1%} | {distance:.1f} |".format(**row))
    save_picture(pipe, args, folder / "pretrained.png")
    contents = {
        "date": date.today().isoformat(),
        "versions": versions(),
        "num_samples": args.num_samples,
        "classifier_accuracy": accuracy,
        "floor": floor,
        "seconds_of_64_images_in_10_steps": seconds,
        "rows": rows,
    }
    write_json(folder / "pretrained.json", contents)


if __name__ == "__main__":
    main()
