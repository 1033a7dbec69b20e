# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images from images, measured: super-resolution and inpainting on Fashion-MNIST, saliency on colour emoji, tiles.

    apt install dataset-fashion-mnist fonts-noto-color-emoji          # Debian, Ubuntu
    python examples/benchmarks/image_to_image.py --output_dir image-to-image                  # tens of minutes on one core
    python examples/benchmarks/image_to_image.py --output_dir image-to-image --parts inpainting
    python examples/benchmarks/image_to_image.py --output_dir image-to-image --quick          # only to see that it runs

Each part writes `{part}.json` and a picture; models that are trained are kept there too, and a training that was stopped
goes on. All test images are held out; of the emoji whole families are, whatever their skin and hair.

The networks see squares of 2x2 pixels as channels (`pixel_unshuffle`, a permutation of the pixels, so that white noise stays
white noise), which costs a quarter.
"""

import argparse
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, RePaintScheduler, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from fashion_mnist import (
    DEBIAN_FOLDER,
    Classifier,
    FrechetDistance,
    load_fashion_mnist,
    predict,
    to_tensor,
    train_classifier,
)
from PIL import Image
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm.auto import tqdm

from ddm_diffusers import (
    DDMImageToImagePipeline,
    DDMInpaintPipeline,
    DDMScheduler,
    DDMUNet2DAdapter,
    DDMUNet2DModel,
    DDMUNet2DOutput,
)
from ddm_diffusers.model_card import framed_grid
from ddm_diffusers.pipelines.images import resize
from ddm_diffusers.training import ddm_loss, sample_timesteps


PARTS = ("inpainting", "super_resolution", "saliency", "tiles")
EMOJI_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
CHECKPOINT = Path(__file__).parents[1] / "pretrained" / "ddm-fashion-mnist"
# of reconstruction, chosen among 1, 2 and 3 by 500 test images that the benchmark does not report on
GUIDANCE = 2.0
PATCH = 2
UPSCALE = 4
TRUNK = {
    "block_out_channels": (32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}


# -------------------------------------------------------------------------------------------------------------- models
class PatchedUNet(nn.Module):
    """A [`DDMUNet2DModel`] on squares of 2x2 pixels, with the interface of one on pixels."""

    def __init__(self, channels, conditioning_channels):
        super().__init__()
        self.unet = DDMUNet2DModel(
            in_channels=channels * PATCH**2, conditioning_channels=conditioning_channels * PATCH**2, **TRUNK
        )
        levels = (*TRUNK["block_out_channels"], TRUNK["block_out_channels"][-1])  # one more halving
        own = {"in_channels": channels, "conditioning_channels": conditioning_channels, "block_out_channels": levels}
        self.config = FrozenDict({**self.unet.config, **own})

    @property
    def dtype(self):
        return self.unet.dtype

    @property
    def device(self):
        return self.unet.device

    def forward(self, sample, timestep, conditioning, return_dict=True):
        sample, conditioning = (F.pixel_unshuffle(each, PATCH) for each in (sample, conditioning))
        output = self.unet(sample, timestep, conditioning=conditioning)
        sample = torch.cat([F.pixel_shuffle(part, PATCH) for part in (output.attenuation, output.noise)], dim=1)
        return DDMUNet2DOutput(sample=sample) if return_dict else (sample,)


class RegressionUNet(nn.Module):
    """The same trunk, to predict the target at once."""

    def __init__(self, channels, conditioning_channels):
        super().__init__()
        self.unet = UNet2DModel(
            in_channels=conditioning_channels * PATCH**2, out_channels=channels * PATCH**2, **TRUNK
        )

    def forward(self, conditioning):
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(conditioning, PATCH), 0).sample, PATCH)


def ddm_objective(model, target, conditioning, generator, **distribution):
    scheduler = DDMScheduler()
    noise = torch.randn(target.shape, generator=generator)
    timesteps = sample_timesteps(scheduler, len(target), generator=generator, **distribution)
    attenuation = scheduler.get_attenuation(target)
    noisy = scheduler.add_noise(target, noise, timesteps, attenuation)
    output = model(noisy, timesteps, conditioning).sample
    return ddm_loss(scheduler, output, target, noise, timesteps, attenuation, weighting="velocity")


def regression_objective(model, target, conditioning, generator):
    return F.mse_loss(model(conditioning), target)


def train(name, model, objective, batch, args, num_steps=None):
    """The model with averaged weights, trained on `batch(generator)` or loaded; and the seconds that its training took."""
    path, num_steps = Path(args.output_dir, f"{name}.pt"), num_steps or args.train_steps
    if args.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=num_steps)
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    step, seconds = 0, 0.0
    if path.is_file():
        state = torch.load(path, weights_only=False)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        step, seconds = state["step"], state["seconds"]
    progress = tqdm(total=num_steps, initial=step, desc=name, mininterval=30)
    while step < num_steps:
        began = time.process_time()
        generator = torch.Generator().manual_seed(step)
        target, conditioning = batch(generator)
        loss = objective(model, target, conditioning, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        step, seconds = step + 1, seconds + time.process_time() - began
        progress.update()
        if step % 50 == 0 or step == num_steps:
            state = {key: part.state_dict() for key, part in parts.items()} | {"step": step, "seconds": seconds}
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    progress.close()
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False), seconds


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def in_batches(function, *tensors, batch_size=250):
    """`function` of tensors that go together, batch by batch, its results put together again."""
    results = [function(*each) for each in zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)]
    if torch.is_tensor(results[0]):
        return torch.cat(results)
    return tuple(map(torch.cat, zip(*results, strict=True)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*columns):
    """A grid of one row for each image, of `(N, C, H, W)` in [0, 1]."""
    rows = zip(*columns, strict=True)
    arrays = [np.uint8(each.clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()) for row in rows for each in row]
    images = [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]
    return framed_grid(images, len(columns))


# ---------------------------------------------------------------------------------------------------------- inpainting
def inpainting(args):
    """
    The right or the lower half of test images filled by the checkpoint in the box, without telling it the class, at the
    same number of evaluations as RePaint, with and without reconstruction guidance; the classifier tells whether the class is still that of the label.
    """
    classifier, accuracy = train_classifier(Path(args.output_dir, "classifier.safetensors"), args.data_dir)
    images, labels = load_fashion_mnist("test", args.data_dir)
    images, labels = to_tensor(images[: args.num_images]), torch.from_numpy(labels[: args.num_images].astype(np.int64))
    pipe = quiet(DDMInpaintPipeline.from_pretrained(CHECKPOINT))
    pipe.scheduler = DDMScheduler()
    given = images / 2 + 0.5
    rows, shown = [], {}

    def judge(name, evaluations, half, filled, mask):
        recovered = float((predict(classifier, filled * 2 - 1) == labels).float().mean())
        same = bool((torch.where(mask > 0, 0.0, filled) == torch.where(mask > 0, 0.0, given)).all())
        rows.append(
            {"half": half, "sampler": name, "evaluations": evaluations, "recovered": recovered, "known same": same}
        )
        print(rows[-1], flush=True)
        shown[half, name, evaluations] = filled

    masks = {"right": torch.zeros(1, 28, 28), "lower": torch.zeros(1, 28, 28)}
    masks["right"][..., 14:] = 1
    masks["lower"][:, 14:] = 1
    by_half = classifier_of_halves(masks, args)
    known = [classes_by_known_half(by_half, half, images, labels, mask) for half, mask in masks.items()]
    for half, mask in masks.items():
        judge("nothing (the image)", 0, half, given, mask)
        judge("nothing (grey)", 0, half, torch.where(mask > 0, 0.5, given), mask)
        for steps, again, scale in args.inpainting_steps:
            filled = in_batches(partial(fill, pipe, mask, steps, again, scale), given, batch_size=100)
            name = "DDMInpaintPipeline" + (f", {again} resampling" if again else "")
            name += f", reconstruction guidance {scale:g}" if scale else ""
            judge(name, steps * (1 + again), half, filled, mask)
            # none at the first step
            rows[-1]["backward passes"] = (steps - 1) * (1 + again) if scale else 0
        for steps, samples in args.repaint_steps:
            filled, evaluations = repaint(pipe.unet, images, mask, steps, samples)
            filled = torch.where(mask > 0, filled, given)
            judge(f"RePaint, {samples} passes" if samples > 1 else "RePaint", evaluations, half, filled, mask)
    filled = f"DDMInpaintPipeline, reconstruction guidance {GUIDANCE:g}"
    columns = []
    for half, mask in masks.items():
        columns += [torch.where(mask > 0, 0.5, given)[:12], shown[half, filled, 10][:12]]
    pictures(given[:12], *columns).save(Path(args.output_dir, "inpainting.png"))
    ratio = guidance_cost(pipe, masks["right"], given[:100], args)
    facts = {"classifier accuracy": accuracy, "images": len(images), "known half": known}
    return facts | {"CPU time with guidance over without": ratio, "rows": rows}


def fill(pipe, mask, steps, again, scale, batch):
    return pipe(
        batch,
        mask,
        num_inference_steps=steps,
        num_resampling_steps=again,
        reconstruction_guidance_scale=scale,
        generator=seeded(),
        output_type="pt",
    ).images


def guidance_cost(pipe, mask, batch, args):
    """The CPU time of 10 steps with guidance over that without, run in turns: the median ratio and its quartiles."""
    ratios = []
    for _ in range(args.cost_rounds):
        seconds = []
        for scale in (0.0, GUIDANCE):
            began = time.process_time()
            fill(pipe, mask, 10, 0, scale, batch)
            seconds.append(time.process_time() - began)
        ratios.append(seconds[1] / seconds[0])
    ratio = np.quantile(ratios, (0.5, 0.25, 0.75)).tolist()
    print("CPU time with guidance over without", ratio, flush=True)
    return ratio


def classifier_of_halves(masks, args):
    """A classifier of training images of which one of the masks hides a half: how far what is left tells the class."""
    images, labels = load_fashion_mnist("train", args.data_dir)
    images, labels = to_tensor(images), torch.from_numpy(labels.astype(np.int64))
    masks = torch.stack(list(masks.values()))

    def batch(generator):
        index = torch.randint(len(images), (128,), generator=generator)
        mask = masks[torch.randint(len(masks), (128,), generator=generator)]
        return labels[index], torch.where(mask > 0, 0.0, images[index])

    def objective(model, target, conditioning, generator):
        return F.cross_entropy(model(conditioning), target)

    torch.manual_seed(0)
    return train("halves", Classifier(), objective, batch, args, args.classifier_steps)[0]


@torch.no_grad()
def classes_by_known_half(classifier, half, images, labels, mask):
    """
    How often a filled half could agree with the label: if it were of the most probable class, or of a class drawn by its
    probability, as a perfect sampler does it. If the probabilities are right, the second figure is their mean square sum
    as well, and the first one their mean maximum.
    """
    p = in_batches(lambda batch: classifier(batch).softmax(dim=1), torch.where(mask > 0, 0.0, images))
    facts = {
        "half": half,
        "most probable": float((p.argmax(dim=1) == labels).float().mean()),
        "mean maximum": float(p.amax(dim=1).mean()),
        "drawn": float(p.gather(1, labels[:, None]).mean()),
        "mean square sum": float(p.square().sum(dim=1).mean()),
    }
    print(facts, flush=True)
    return facts


@torch.no_grad()
def repaint(unet, images, mask, steps, samples):
    """
    RePaint (arXiv 2201.09865) as diffusers has it, with the same network seen as a DDPM.

    Returns:
        `tuple`: images in [0, 1], and how often the network was evaluated.
    """
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    adapter = DDMUNet2DAdapter(unet, DDPMScheduler(**schedule))
    labels = torch.full((len(images),), unet.no_class_label)
    generator = seeded()
    scheduler = RePaintScheduler(**schedule, eta=1.0)
    scheduler.set_timesteps(steps, jump_length=1, jump_n_sample=samples)
    scheduler.eta = 1.0
    sample, last, evaluations = torch.randn(images.shape, generator=generator), math.inf, 0
    for t in scheduler.timesteps:
        if t < last:
            output = adapter(sample, t, class_labels=labels).sample
            evaluations += 1
            sample = scheduler.step(output, t, sample, images, 1 - mask, generator).prev_sample
        else:
            sample = scheduler.undo_step(sample, last, generator)
        last = t
    return (sample / 2 + 0.5).clamp(0, 1), evaluations


# ---------------------------------------------------------------------------------------------------- super-resolution
def super_resolution(args):
    """Fashion-MNIST from 7x7 pixels, the means of 4x4, to 28x28, against bicubic interpolation."""
    pipe, seconds = super_resolution_pipeline(args)
    classifier, _ = train_classifier(Path(args.output_dir, "classifier.safetensors"), args.data_dir)
    images, _ = load_fashion_mnist("test", args.data_dir)
    frechet = FrechetDistance(classifier)
    for batch in to_tensor(images).split(500):
        frechet.update(batch, real=True)
    target = to_tensor(images[: args.num_images]) / 2 + 0.5
    # in 8 bits, as files have them
    small = (F.avg_pool2d(target, UPSCALE) * 255).round() / 255
    rows, shown = [], {}

    def judge(name, evaluations, result):
        result = (result * 255).round() / 255
        rows.append(
            {
                "method": name,
                "evaluations": evaluations,
                "PSNR": float(peak_signal_noise_ratio(result, target, data_range=1.0)),
                "SSIM": float(structural_similarity_index_measure(result, target, data_range=1.0)),
                "Frechet distance": frechet.distance(result * 2 - 1),
            }
        )
        print(rows[-1], flush=True)
        shown[name, evaluations] = result

    judge("test images", 0, target)
    judge("bicubic", 0, F.interpolate(small, scale_factor=UPSCALE, mode="bicubic").clamp(0, 1))
    for steps, eta, ensemble_size in args.super_resolution_steps:
        pipe.scheduler = DDMScheduler(eta=eta)
        result = in_batches(
            lambda batch, steps=steps, ensemble_size=ensemble_size: (
                pipe(
                    batch,
                    num_inference_steps=steps,
                    ensemble_size=ensemble_size,
                    generator=seeded(),
                    output_type="pt",
                ).images
            ),
            small,
        )
        name = f"DDM, eta {eta:g}" + (f", mean of {ensemble_size}" if ensemble_size > 1 else "")
        judge(name, steps * ensemble_size, result)
    nearest = F.interpolate(small, scale_factor=UPSCALE, mode="nearest")
    columns = [shown[key][:12] for key in shown if key[0] != "test images"]
    pictures(nearest[:12], *columns, target[:12]).save(Path(args.output_dir, "super_resolution.png"))
    return {"images": len(target), "training": training_facts(args, seconds, pipe.unet), "rows": rows}


@cache
def training_images(data_dir):
    return to_tensor(load_fashion_mnist("train", data_dir)[0])


def super_resolution_pipeline(args):
    def batch(generator):
        images = training_images(args.data_dir)
        index = torch.randint(len(images), (args.train_batch_size,), generator=generator)
        # the task "super_resolution" of a batch
        return images[index], resize(F.avg_pool2d(images[index], UPSCALE), (28, 28))

    torch.manual_seed(0)
    unet, seconds = train("super_resolution", PatchedUNet(1, 1), ddm_objective, batch, args)
    return quiet(DDMImageToImagePipeline(unet, DDMScheduler(), upscale=UPSCALE)), seconds


def training_facts(args, seconds, *models):
    return {
        "steps": args.train_steps,
        "batch size": args.train_batch_size,
        "parameters": [sum(p.numel() for p in model.parameters()) for model in models],
        "CPU seconds": seconds,
    }


# ------------------------------------------------------------------------------------------------------------ saliency
def load_emoji(size, font=EMOJI_FONT):
    """
    The bitmaps of the font in RGBA, `(N, 4, size, size)` in [0, 1], and for each whether it is held out: a fifth of the
    families of glyphs that begin with the same code point.
    """
    from fontTools.ttLib import TTFont

    if not Path(font).is_file():
        raise FileNotFoundError(f"{font} is missing. Install Debian's package fonts-noto-color-emoji.")
    glyphs = TTFont(font)["CBDT"].strikeData[0]
    images, held_out = [], []
    for name in sorted(glyphs):
        if not getattr(glyphs[name], "imageData", None):
            continue
        image = Image.open(io.BytesIO(glyphs[name].imageData)).convert("RGBA")
        square = Image.new("RGBA", (max(image.size),) * 2)
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        images.append(np.asarray(square.resize((size, size), Image.Resampling.BOX)))
        family = name.split("_")[0]
        held_out.append(sum(family.encode()) % 5 == 0)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor(held_out)


def on_noisy_background(emoji, generator):
    """The alpha channel, and what is to tell it: the emoji on a background of smooth colours, under noise; in [-1, 1]."""
    size = emoji.shape[-2:]
    background = F.interpolate(torch.rand(len(emoji), 3, 4, 4, generator=generator), size, mode="bicubic").clamp(0, 1)
    alpha = emoji[:, 3:]
    image = alpha * emoji[:, :3] + (1 - alpha) * background
    image = image + 0.15 * torch.randn(image.shape, generator=generator)
    return 2 * alpha - 1, 2 * image.clamp(0, 1) - 1


def saliency(args):
    """The mask of an emoji on a noisy background, against a regression by the same trunk, trained on the same batches."""
    pipe, regression, seconds, emoji = saliency_models(args)
    alpha, conditioning = on_noisy_background(emoji[: args.num_images], seeded(1))
    alpha, conditioning = alpha / 2 + 0.5, conditioning / 2 + 0.5
    rows = []

    def judge(name, evaluations, result):
        chosen, truth = result >= 0.5, alpha >= 0.5
        hits = (chosen & truth).sum().item()
        precision, recall = hits / max(1, chosen.sum().item()), hits / truth.sum().item()
        rows.append(
            {
                "method": name,
                "evaluations": evaluations,
                # of beta^2 = 0.3, as in the literature on saliency
                "F-measure": 1.3 * precision * recall / (0.3 * precision + recall),
                "mean absolute error": float((result - alpha).abs().mean()),
            }
        )
        print(rows[-1], flush=True)

    regressed = in_batches(lambda c: (regression(2 * c - 1) / 2 + 0.5).clamp(0, 1), conditioning)
    judge("regression", 1, regressed)
    for steps, eta, ensemble_size in args.saliency_steps:
        pipe.scheduler = DDMScheduler(eta=eta)

        def draw(batch, steps=steps, ensemble_size=ensemble_size):
            output = pipe(
                batch,
                num_inference_steps=steps,
                ensemble_size=ensemble_size,
                generator=seeded(),
                output_type="pt",
            )
            return output.images, output.images if output.uncertainty is None else output.uncertainty

        result, uncertainty = in_batches(draw, conditioning)
        name = f"DDM, {steps} steps, eta {eta:g}" + (f", mean of {ensemble_size}" if ensemble_size > 1 else "")
        judge(name, steps * ensemble_size, result)
        if ensemble_size > 1:
            error = (result - alpha).abs()
            rows[-1]["correlation of uncertainty and error"] = correlation(uncertainty, error)
            rows[-1]["rank correlation"] = correlation(ranks(uncertainty), ranks(error))
            by_image = (each.mean(dim=(1, 2, 3)) for each in (uncertainty, error))
            rows[-1]["correlation by image"] = correlation(*by_image)
            print(rows[-1], flush=True)
            ensemble, map_of_it = result, uncertainty
    shown = slice(0, 12)
    uncertain = map_of_it[shown] / map_of_it[shown].amax()
    pictures(conditioning[shown], regressed[shown], ensemble[shown], uncertain, alpha[shown]).save(
        Path(args.output_dir, "saliency.png")
    )
    return {
        "images": len(alpha),
        "size": args.emoji_size,
        "training": training_facts(args, seconds, pipe.unet, regression),
        "rows": rows,
    }


def saliency_models(args):
    emoji, held_out = load_emoji(args.emoji_size, args.emoji_font)
    known, held_out = emoji[~held_out], emoji[held_out]
    print(f"{len(known)} emoji to train on, {len(held_out)} held out")
    held_out = held_out[torch.randperm(len(held_out), generator=seeded())]

    def batch(generator):
        index = torch.randint(len(known), (args.train_batch_size,), generator=generator)
        return on_noisy_background(known[index], generator)

    torch.manual_seed(0)
    # a mask shows through much noise, since its pixels agree: only near pure noise is the condition needed
    objective = partial(ddm_objective, logit_mean=2.0, logit_std=2.0)
    unet, ddm_seconds = train("saliency", PatchedUNet(1, 3), objective, batch, args)
    torch.manual_seed(0)
    regression, seconds = train("saliency_regression", RegressionUNet(1, 3), regression_objective, batch, args)
    return quiet(DDMImageToImagePipeline(unet, DDMScheduler())), regression, [ddm_seconds, seconds], held_out


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def ranks(values):
    return values.flatten().argsort().argsort().double()


# --------------------------------------------------------------------------------------------------------------- tiles
def tiles(args):
    """Seams, and memory: of super-resolution of a mosaic, since tiles are cut through whatever is there."""
    pipe, _ = super_resolution_pipeline(args)
    images, _ = load_fashion_mnist("test", args.data_dir)
    side = 4 if args.quick else 10
    width = 28 * side
    mosaic = to_tensor(images[: side**2]).reshape(side, side, 28, 28).permute(0, 2, 1, 3).reshape(1, 1, width, width)
    small = F.avg_pool2d(mosaic / 2 + 0.5, UPSCALE)
    whole = pipe(small, generator=seeded(), output_type="pt").images
    one_tile = pipe(small, generator=seeded(), output_type="pt", tile_size=width, tile_overlap=64).images
    facts = {"one tile equals no tiles": torch.equal(whole, one_tile), "rows": []}
    for size, overlap in ((64, 16), (64, 0)):
        stride = size - overlap
        result = pipe(small, generator=seeded(), output_type="pt", tile_size=size, tile_overlap=overlap).images
        # where a tile begins or ends, from left to right
        seams = {x for begin in range(0, width - size, stride) for x in (begin + size, begin + stride)}
        seams |= {width - size}
        seams = torch.tensor(sorted(x for x in seams if 0 < x < width))
        facts["rows"].append(
            {"tile": size, "overlap": overlap}
            | {
                name: seam_ratio(each, seams)
                for name, each in (("tiled", result), ("untiled, same places", whole), ("data, same places", mosaic))
            }
        )
        print(facts["rows"][-1], flush=True)
    image = Image.fromarray(np.uint8(result[0, 0].mul(255).round()))
    image.save(Path(args.output_dir, "tiles-without-overlap.png"))
    command = [sys.executable, __file__, "--output_dir", args.output_dir, "--data_dir", args.data_dir]
    command += ["--train_steps", str(args.train_steps), "--large_image"]
    facts["memory"] = []
    for sizes in args.large_images:
        process = subprocess.run([*command, *map(str, sizes)], check=True, stdout=subprocess.PIPE, text=True)
        facts["memory"].append(json.loads(process.stdout))
    print(facts["memory"])
    return facts


def seam_ratio(image, columns):
    """The mean gradient across these columns, over that across all others; and its standard error over the columns."""
    gradient = image.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    at_seams = torch.zeros(len(gradient), dtype=torch.bool)
    at_seams[columns - 1] = True
    seams, others = gradient[at_seams], gradient[~at_seams]
    return [float(seams.mean() / others.mean()), float(seams.std() / len(seams) ** 0.5 / others.mean())]


def large_image(args):
    """In a process of its own: the memory that a large image takes, at its peak, over what there was before."""
    size, tile_size, steps = args.large_image
    pipe, _ = super_resolution_pipeline(args)
    pipe.register_to_config(upscale=1)  # the condition is as large as the target
    image = np.random.default_rng(0).random((size, size, 1), dtype=np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    pipe(image, num_inference_steps=steps, tile_size=tile_size or None, output_type="np")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"size": size, "tile": tile_size, "steps": steps, "seconds": time.perf_counter() - began}
    print(json.dumps(facts | {"peak MB": peak / 1024, "above MB": (peak - before) / 1024}))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's *-ubyte.gz files.")
    parser.add_argument("--emoji_font", default=EMOJI_FONT)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--num_images", type=int, default=500, help="Test images.")
    parser.add_argument("--emoji_size", type=int, default=32)
    parser.add_argument("--train_steps", type=int, default=1500)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="torch.compile: less time, after a minute.")
    parser.add_argument("--quick", action="store_true", help="Only to see that it runs.")
    parser.add_argument("--large_image", type=int, nargs=3, metavar=("SIZE", "TILE", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.inpainting_steps = (
        *((10, 0, 0.0), (10, 0, GUIDANCE)),
        *((5, 1, 0.0), (5, 0, 0.0), (5, 0, GUIDANCE), (10, 1, 0.0)),
    )
    args.cost_rounds = 1 if args.quick else 5
    args.classifier_steps = 2500
    args.repaint_steps = ((10, 1), (5, 2), (20, 1))
    args.super_resolution_steps = ((5, 1.0, 1), (10, 1.0, 1), (5, 0.0, 1), (10, 0.0, 1), (5, 1.0, 8))
    args.saliency_steps = ((5, 1.0, 1), (10, 1.0, 1), (1, 1.0, 8), (5, 1.0, 8), (5, 1.0, 16))
    args.large_images = ((512, 256, 2), (2048, 256, 2))
    if args.quick:
        args.num_images, args.train_steps, args.classifier_steps, args.large_images = 4, 2, 2, ((128, 64, 1),)
        args.train_batch_size = 8
        args.inpainting_steps, args.repaint_steps = ((10, 0, GUIDANCE), (5, 1, 0.0)), ((5, 2),)
    return args


def main():
    args = parse_args()
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    if args.large_image is not None:
        large_image(args)
        return
    for part in args.parts:
        facts = globals()[part](args)
        path = Path(args.output_dir, f"{part}.json")
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
