# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Measure FID, KID, precision and recall of a pipeline, or of a folder of images, against a data set.

    accelerate launch examples/evaluate.py --pretrained_model_name_or_path ddm-model --num_inference_steps 5 10 20
    accelerate launch examples/evaluate.py --images_dir drawn --train_data_dir photos --resolution 64

Without a data set the images are compared with scikit-learn's digits. docs/evaluation.md explains the options.
"""

import argparse
import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from datasets import Dataset, Features, Image, load_dataset
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.auto import tqdm

import ddm_diffusers
from ddm_diffusers.training import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    SEED,
    HelpFormatter,
    ImageTransform,
    check_output_dir,
    list_images,
    load_image_dataset,
    number,
)


logger = get_logger(__name__)

METRICS = ("fid", "kid", "precision", "recall")

# Of precision and recall, as in the paper (arXiv 1904.06991); a third nearest neighbour needs three images beside one
NEIGHBORS = 3
MIN_IMAGES = NEIGHBORS + 1

FLOOR = """
held out: one half of the data set against the other half, the distance that as many held-out real images score. FID
falls with the number of images, so a model with more of them, or measured against more, can score less."""

# Packages whose versions can change a result
PACKAGES = ("ddm-diffusers", "diffusers", "torch", "torchmetrics", "accelerate", "datasets", "pillow")


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    enough_images = number(f"[{MIN_IMAGES}, inf)", int)
    images = parser.add_argument_group("images to measure")
    images.add_argument("--pretrained_model_name_or_path", help="A pipeline: a folder, or a repository on the Hub.")
    images.add_argument("--images_dir", help="A folder of images, instead of a pipeline.")
    images.add_argument("--num_inference_steps", type=COUNT, nargs="+", help="Each gives a row. Default: 10.")
    images.add_argument(
        "--num_samples", type=enough_images, help="How many to draw. Default: as the data has, 10,000 at most."
    )
    images.add_argument("--guidance_scale", type=NOT_NEGATIVE, help="Guidance scale of a class-conditional pipeline.")
    images.add_argument("--batch_size", type=COUNT, default=64, help="Batch size per process.")
    images.add_argument(
        "--seed", type=SEED, default=0, help="Gives the same images for any batch size and number of processes."
    )

    data = parser.add_argument_group("data to compare with")
    data.add_argument("--dataset_name", help="A data set on the Hub, or a local path that datasets can load.")
    data.add_argument("--dataset_config_name", help="The configuration of the data set.")
    data.add_argument("--split", default="train", help="The split of the data set that --dataset_name names.")
    data.add_argument("--train_data_dir", help="A folder of images, of parquet or of arrow files.")
    data.add_argument("--image_column", help="The column of images. Default: the only one.")
    data.add_argument("--cache_dir", help="Where downloaded and converted data sets are kept.")
    data.add_argument(
        "--resolution",
        type=COUNT,
        help="Images are cropped to it. Default: the pipeline's; 64 for --images_dir; 8 for the digits.",
    )
    data.add_argument(
        "--max_reference_images", type=enough_images, help="Compare with as many, a fixed choice. Default: all."
    )
    data.add_argument(
        "--skip_bad_images", action="store_true", help="Leave images out that do not decode, instead of stopping."
    )
    data.add_argument("--dataloader_num_workers", type=COUNT_OR_ZERO, default=0, help="0 loads in the main process.")

    metrics = parser.add_argument_group("metrics")
    metrics.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="What to measure.")
    metrics.add_argument(
        "--feature_extractor",
        help="path/to/file.py:Name or package.module:Name, a torch.nn.Module or a function that returns one: from images"
        " (N, 3, height, width) in [0, 1] to features (N, any). Default: Inception, which needs torch-fidelity.",
    )
    metrics.add_argument("--floor", action="store_true", help="Also measure real images: half the data by the rest.")
    metrics.add_argument("--output_dir", default="evaluation", help="Where evaluation.json and evaluation.png go.")

    args = parser.parse_args(input_args)
    if (args.pretrained_model_name_or_path is None) == (args.images_dir is None):
        parser.error(
            f"--pretrained_model_name_or_path is {args.pretrained_model_name_or_path!r} and --images_dir is"
            f" {args.images_dir!r}, but exactly one of them is needed."
        )
    for name in ("num_inference_steps", "num_samples", "guidance_scale"):
        if args.images_dir is not None and getattr(args, name) is not None:
            parser.error(f"--{name} is {getattr(args, name)}, but only a pipeline takes it, not --images_dir.")
    if args.dataset_name is None and args.split != "train":
        parser.error(f"--split is {args.split!r}, but without --dataset_name only 'train' is accepted.")
    if args.images_dir is None and args.num_inference_steps is None:
        args.num_inference_steps = [10]
    if args.resolution is None:  # None: the pipeline's
        of_digits = args.dataset_name is None and args.train_data_dir is None
        args.resolution = 8 if of_digits else None if args.images_dir is None else 64
    args.metrics = [metric for metric in METRICS if metric in args.metrics]  # each once
    return args


def load_data(args):
    """The data set to compare with; fewer than all are a fixed choice, as data sets often come sorted by class."""
    if args.split == "train" or args.train_data_dir is not None:  # which refuses a name and a folder
        dataset = load_image_dataset(args.dataset_name, args.dataset_config_name, args.train_data_dir, args.cache_dir)
    else:
        dataset = load_dataset(args.dataset_name, args.dataset_config_name, cache_dir=args.cache_dir, split=args.split)
    if args.max_reference_images is not None and args.max_reference_images < len(dataset):
        dataset = dataset.shuffle(seed=0).select(range(args.max_reference_images))
    least = 2 * MIN_IMAGES if args.floor else MIN_IMAGES
    if len(dataset) < least:
        raise ValueError(f"The data set has {len(dataset)} images, but at least {least} are needed.")
    return dataset


def load_folder(args):
    """All images of a folder and its subfolders, whatever they are called, without hidden ones."""
    if not Path(args.images_dir).is_dir():
        raise ValueError(f"`--images_dir` is {args.images_dir!r}, but there is no such folder.")
    paths = list_images(args.images_dir, args.cache_dir)
    if len(paths) < MIN_IMAGES:
        raise ValueError(
            f"`--images_dir` is {args.images_dir!r}, where {len(paths)} images are, but at least {MIN_IMAGES} are needed."
        )
    column = args.image_column or "image"
    return Dataset.from_dict({column: paths}, features=Features({column: Image()}))


def check_results(args):
    """Refuse to overwrite the results of another model."""
    path = Path(args.output_dir, "evaluation.json")
    names = ("pretrained_model_name_or_path", "images_dir")
    try:
        settings = json.loads(path.read_text())["settings"]
        there = next(settings[name] for name in names if settings[name] is not None)
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError, StopIteration):  # it is not ours
        there = "something else"
    now = args.pretrained_model_name_or_path or args.images_dir
    if there != now:
        raise ValueError(
            f"`--output_dir` is {args.output_dir!r}, which has the results of {there!r}, but those of {now!r} need another"
            f" folder, for example --output_dir {args.output_dir}-{Path(now).name}."
        )


def load_pipeline(args):
    """A pipeline of this package or of diffusers, and what its call takes besides the common arguments."""
    name = args.pretrained_model_name_or_path
    try:
        class_name = DiffusionPipeline.load_config(name)["_class_name"]
    except OSError as error:
        raise ValueError(f"`--pretrained_model_name_or_path` is {name!r}, but holds no pipeline: {error}") from error
    # [module, class] for other packages than diffusers. The pipelines of this one load without remote code.
    class_name = class_name[-1] if isinstance(class_name, list) else class_name
    pipeline = getattr(ddm_diffusers, class_name, DiffusionPipeline).from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)

    # DDMUNet2DModel does not count its row for "no class", which nothing is drawn for
    num_classes = pipeline.unet.config.get("num_class_embeds") if hasattr(pipeline, "unet") else None
    needed = ["batch_size", "num_inference_steps", "generator", "output_type"]
    needed += [] if num_classes is None else ["class_labels"]
    needed += [] if args.guidance_scale is None else ["guidance_scale"]
    missing = [argument for argument in needed if argument not in inspect.signature(pipeline.__call__).parameters]
    if missing:
        raise ValueError(
            f"`--pretrained_model_name_or_path` is {name!r}, but its {type(pipeline).__name__} does not accept {missing},"
            " as it has to."
        )
    return pipeline, num_classes


def draw(pipeline, num_classes, num_inference_steps, args, indices):
    """The images with these numbers. Each has its own generator: batches and processes do not change it."""
    indices = indices.tolist()
    # mixed from both, so that another seed does not give the same images shifted by one
    seeds = [int(np.random.SeedSequence([args.seed, i]).generate_state(1, np.uint64)[0]) for i in indices]
    options = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    if num_classes is not None:
        options["class_labels"] = [i % num_classes for i in indices]
    options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    options["output_type"] = "np"
    images = pipeline(batch_size=len(indices), num_inference_steps=num_inference_steps, **options).images
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    if args.resolution is None:
        args.resolution = images.shape[2]
    if images.shape[1] not in (1, 3) or images.shape[2:] != (args.resolution, args.resolution):
        raise ValueError(
            f"`--resolution` is {args.resolution}, but the pipeline draws images of the shape {tuple(images.shape[1:])}:"
            " they have to be square, of that size, and grey or RGB. Without --resolution it is the pipeline's, or 8 if neither"
            " --train_data_dir nor --dataset_name is given."
        )
    return images.expand(-1, 3, -1, -1)


class Inception(torch.nn.Module):
    """Inception as torchmetrics uses it, for images in [0, 1]."""

    def __init__(self):
        super().__init__()
        try:
            self.network = FrechetInceptionDistance().inception
        except (ImportError, OSError) as error:  # torch-fidelity is missing, or the weights are not to be had
            raise ValueError(
                "`--feature_extractor` is not given, but Inception does not load. It needs `pip install torch-fidelity`"
                f" and, once, a download; docs/evaluation.md has modules that work offline. Loading it says: {error}"
            ) from error

    def forward(self, images):
        return self.network((images * 255).round().byte())


def load_feature_extractor(name):
    """Inception, or what `--feature_extractor` names."""
    if name is None:
        return Inception()
    try:
        source, _, attribute = name.rpartition(":")
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.append(os.getcwd())  # a script's path holds its own folder only
            module = importlib.import_module(source)
        found = getattr(module, attribute)
        extractor = found if isinstance(found, torch.nn.Module) else found()
        if not isinstance(extractor, torch.nn.Module):
            raise TypeError(f"it gives a {type(extractor).__name__}")
        return extractor
    except Exception as error:  # it is the user's code and may raise anything
        raise ValueError(
            f"`--feature_extractor` is {name!r}, but has to be path/to/file.py:Name or package.module:Name, where Name is"
            f" a torch.nn.Module or a function that returns one. Loading it says: {error!r}"
        ) from error


class Images(torch.utils.data.Dataset):
    """The images of a data set in [0, 1]. Instead of one that does not decode there is an error, or its message."""

    def __init__(self, dataset, args):
        self.transform = ImageTransform(
            dataset, args.resolution, center_crop=True, image_mode="RGB", image_column=args.image_column
        )
        self.skip_bad_images = args.skip_bad_images

    def __len__(self):
        return len(self.transform.dataset)

    def __getitem__(self, i):
        try:
            return {"images": self.transform.dataset[i]["pixel_values"] / 2 + 0.5, "error": ""}
        except ValueError as error:
            if not self.skip_bad_images:
                raise ValueError(f"{error} With --skip_bad_images it is left out.") from error
            return {
                "images": torch.zeros(3, self.transform.resolution, self.transform.resolution),
                "error": str(error),
            }


@torch.no_grad()
def extract_features(accelerator, extractor, dataset, description, args, make_images=None):
    """
    The features of a data set, or of what `make_images` makes of numbers, in their order, on the main process; None on the
    others.
    """
    workers = 0
    if make_images is None:
        dataset, workers = Images(dataset, args), args.dataloader_num_workers
    # not by the accelerator itself, which would save the state of this data loader in the checkpoints of a training run
    dataloader = prepare_data_loader(
        DataLoader(dataset, batch_size=args.batch_size, num_workers=workers), accelerator.device, put_on_device=True
    )
    features, errors = [], {}
    progress_bar = tqdm(total=len(dataset), desc=description, unit="image", disable=not accelerator.is_main_process)
    for batch in dataloader:
        # to 8 bits, as the images of a data set and of a folder are
        images = batch["images"] if make_images is None else make_images(batch)
        images = (images.clamp(0, 1) * 255).round() / 255
        result = extractor(images.to(accelerator.device))
        if not isinstance(result, torch.Tensor) or result.ndim != 2 or len(result) != len(images):
            found = getattr(result, "shape", type(result).__name__)
            raise ValueError(
                f"`--feature_extractor` is {args.feature_extractor!r}, but for images of the shape"
                f" {tuple(images.shape)} it gives {found} instead of a tensor of the shape ({len(images)}, features)."
            )
        if not (images.isfinite().all() and result.isfinite().all()):
            raise ValueError(f"{description}: some images, or their features, are not finite.")
        if make_images is None and any(batch["error"]):
            errors.update(dict.fromkeys(filter(None, batch["error"])))
            is_bad = torch.tensor([bool(error) for error in batch["error"]], device=result.device)
            result = result.masked_fill(is_bad[:, None], torch.nan)
        # the last batches are filled up with images from the start, which this leaves out again
        result = accelerator.gather_for_metrics(result.contiguous())
        progress_bar.update(len(result))
        if accelerator.is_main_process:
            features.append(result.cpu().double())
    progress_bar.close()
    for error in errors:
        logger.warning(f"Skipped: {error}", main_process_only=False)
    if not accelerator.is_main_process:
        return None
    features = torch.cat(features)
    features = features[~features.isnan().any(dim=1)]
    if len(features) == 0:
        raise ValueError(f"{description}: none of the {len(dataset)} images decodes. {next(iter(errors), '')}")
    return features


def warn_about_few_images(metrics, num_features, counts):
    """FID compares covariances, which do not have full rank unless there are more images than features."""
    few = [f"{count:,} {name}" for name, count in counts.items() if count <= num_features]
    if "fid" in metrics and few:
        logger.warning(
            f"FID is biased with {' and '.join(few)} images: covariances of {num_features} features need more than"
            f" {num_features:,} images. Compare it with FIDs of as many images only, or measure more images, or use KID."
        )


def share_inside(points, others):
    """
    The share of the points that lie in the manifold of the others (arXiv 1904.06991, eq. 1 and 2): not farther from one
    of them than its third nearest neighbour is. torchmetrics does not have it.
    """
    # the nearest is the point itself, hence + 1
    radii = torch.cat([torch.cdist(part, others).kthvalue(NEIGHBORS + 1).values for part in others.split(1000)])
    inside = torch.cat([(torch.cdist(part, others) <= radii).any(dim=1) for part in points.split(1000)])
    return inside.double().mean()


def score(features, reference, metrics):
    """A row of the table: what `metrics` lists, of features against those of the reference."""
    identity = torch.nn.Identity()  # the features are extracted once, for all metrics
    identity.num_features = features.shape[1]
    row = {"num_images": len(features), "num_reference_images": len(reference)}
    if "fid" in metrics:
        # the other processes have no part in it, so there is nothing to synchronize
        fid = FrechetInceptionDistance(identity, sync_on_compute=False)
        fid.update(reference, real=True)
        fid.update(features, real=False)
        row["fid"] = fid.compute()
    if "kid" in metrics:
        size = min(1000, len(features), len(reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it keeps the features
            kid = KernelInceptionDistance(identity, subset_size=size, sync_on_compute=False)
        kid.update(reference, real=True)
        kid.update(features, real=False)
        torch.manual_seed(0)  # its subsets are drawn at random
        row["kid"], row["kid_std"] = kid.compute()
    if "precision" in metrics:
        row["precision"] = share_inside(features, reference)
    if "recall" in metrics:
        row["recall"] = share_inside(reference, features)
    # further digits are rounding errors
    return {name: float(f"{value:.6g}") if torch.is_tensor(value) else value for name, value in row.items()}


def markdown_table(rows):
    def cell(value):
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(rows, metrics):
    """Each metric over the number of steps; dashed, that of real images."""
    figure = Figure(figsize=(4 * len(metrics), 3.5), layout="constrained")
    drawn = sorted((row for row in rows if row["images"] == "drawn"), key=lambda row: row["num_inference_steps"])
    steps = [row["num_inference_steps"] for row in drawn]
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        errors = [row["kid_std"] for row in drawn] if metric == "kid" else None
        axes.errorbar(steps, [row[metric] for row in drawn], errors, marker="o", capsize=3, label="drawn")
        for row in rows:
            if row["images"] == "held out":
                axes.axhline(row[metric], color="gray", linestyle="--", label="held-out real images")
        axes.set(title=metric.upper() if metric in ("fid", "kid") else metric, xlabel="inference steps", xscale="log")
        axes.set_xticks(steps, labels=steps)
        axes.minorticks_off()
        axes.legend()
    return figure


def replace(path, write):
    """Write a file under a temporary name and rename it, so that there is never half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    temporary.replace(path)


class PipelineEvaluation:
    """
    FID of a pipeline by the data that it is trained on, for a training script. Every process has to call it.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the script.
        dataset (`datasets.Dataset`): The training data.
        resolution (`int`): Of the pipeline's images.
        feature_extractor (`str`, *optional*): As `--feature_extractor`.
        num_samples (`int`, defaults to 1000): How many images are drawn, always from the same seeds.
        batch_size (`int`, defaults to 64): How many at once.
        image_column (`str`, *optional*): As `--image_column`.
    """

    def __init__(
        self,
        accelerator,
        dataset,
        resolution,
        feature_extractor=None,
        num_samples=1000,
        batch_size=64,
        image_column=None,
    ):
        self.accelerator = accelerator
        self.num_samples = num_samples
        self.args = argparse.Namespace(
            resolution=resolution,
            feature_extractor=feature_extractor,
            batch_size=batch_size,
            dataloader_num_workers=0,
            guidance_scale=None,
            seed=0,
            image_column=image_column,
            skip_bad_images=True,  # it is the training that decides whether a bad image is an error
        )
        with accelerator.main_process_first():
            self.extractor = load_feature_extractor(feature_extractor).to(accelerator.device).eval()
        self.reference = self._features(dataset, "data")
        if accelerator.is_main_process:
            counts = {"drawn": num_samples, "reference": len(self.reference)}
            warn_about_few_images(["fid"], self.reference.shape[1], counts)
            if len(self.reference) == 1:  # of which torchmetrics takes no covariance; it is 0
                self.reference = self.reference.repeat(2, 1)

    def __call__(self, pipeline, num_inference_steps):
        """The FID, on the main process; None on the others."""
        num_classes = pipeline.unet.config.get("num_class_embeds")
        make_images = functools.partial(draw, pipeline, num_classes, num_inference_steps, self.args)
        features = self._features(range(self.num_samples), "evaluation", make_images)
        return score(features, self.reference, ["fid"])["fid"] if self.accelerator.is_main_process else None

    def _features(self, dataset, description, make_images=None):
        # nothing of it may change how the training goes on
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return extract_features(self.accelerator, self.extractor, dataset, description, self.args, make_images)


def main(args):
    check_results(args)
    for folder in (args.train_data_dir, args.dataset_name, args.images_dir):
        check_output_dir(args.output_dir, folder)
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        disable_progress_bar()  # of loading
    set_seed(args.seed)  # a feature extractor with random weights is the same on all processes
    with accelerator.main_process_first():  # the others find what it downloaded
        extractor = load_feature_extractor(args.feature_extractor).to(accelerator.device).eval()
        data = load_data(args)
        if args.images_dir is not None:
            folder = load_folder(args)
        else:
            pipeline, num_classes = load_pipeline(args)
            pipeline.to(accelerator.device)
            num_samples = args.num_samples or min(10_000, len(data))
            # gives the resolution, and refuses what the pipeline does not take before the long work on the data begins
            draw(pipeline, num_classes, min(args.num_inference_steps), args, torch.tensor([0]))

    features_of = functools.partial(extract_features, accelerator, extractor, args=args)
    reference = features_of(data, "data")
    packages = PACKAGES if args.feature_extractor else (*PACKAGES, "torch-fidelity")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**vars(args), "num_processes": accelerator.num_processes},
        "versions": {name: version(name) for name in packages},
        "rows": [],
    }
    if args.images_dir is None:
        result["pipeline"] = type(pipeline).__name__
        result["scheduler"] = dict(pipeline.scheduler.config)
    path = Path(args.output_dir, "evaluation.json")
    path.parent.mkdir(parents=True, exist_ok=True)

    def add_row(images, num_inference_steps, features, reference):
        if accelerator.is_main_process:
            for each in (features, reference):
                if len(each) < MIN_IMAGES:
                    raise ValueError(f"{len(each)} images decode, but at least {MIN_IMAGES} are needed.")
            if all(row["images"] != images for row in result["rows"]):
                counts = {images: len(features), "reference": len(reference)}
                warn_about_few_images(args.metrics, features.shape[1], counts)
            row = {"images": images, "num_inference_steps": num_inference_steps}
            result["rows"].append(row | score(features, reference, args.metrics))
            text = json.dumps(result, indent=2, default=str) + "\n"
            replace(path, lambda file: file.write_text(text))  # after each row, as the next one may take hours

    if args.floor and accelerator.is_main_process:
        # halves at random, as data sets often come sorted by class
        halves = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0)).chunk(2)
        add_row("held out", None, reference[halves[1]], reference[halves[0]])
    if args.images_dir is not None:
        add_row("folder", None, features_of(folder, "folder"), reference)
    for steps in args.num_inference_steps or []:
        make_images = functools.partial(draw, pipeline, num_classes, steps, args)
        add_row("drawn", steps, features_of(range(num_samples), f"{steps} steps", make_images=make_images), reference)

    if accelerator.is_main_process:
        print(markdown_table(result["rows"]))
        print(FLOOR if args.floor else "")
        print(f"Saved {path}")
        if args.images_dir is None:
            figure = plot(result["rows"], args.metrics)
            replace(path.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=120))
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
