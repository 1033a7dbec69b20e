# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Model cards: what a repository tells of the model in it, with a picture of its samples."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from huggingface_hub import ModelCardData
from PIL import Image, ImageOps


LIBRARY_NAME = __name__.split(".")[0]
CARD_NAME = "README.md"
SAMPLES_NAME = "samples.png"
SAMPLES_LINK = f"![Samples of the model]({SAMPLES_NAME})"


def sample_grid(pipeline: DiffusionPipeline, num_images: int = 16, num_inference_steps: int = 10) -> Image.Image:
    """
    A square grid of samples, always from the same seeds; a class-conditional model goes through its classes.

    Args:
        pipeline ([`DDMPipeline`]): The pipeline.
        num_images (`int`, defaults to 16): How many.
        num_inference_steps (`int`, defaults to 10): Steps of each.
    """
    num_classes = pipeline.unet.config.num_class_embeds
    images = pipeline(
        batch_size=num_images,
        num_inference_steps=num_inference_steps,
        class_labels=None if num_classes is None else [i % num_classes for i in range(num_images)],
        generator=torch.Generator().manual_seed(0),
    ).images
    return framed_grid(images, math.ceil(math.sqrt(num_images)))


def framed_grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """
    A grid of images of one size, row by row. Small ones are enlarged, so that their pixels can be seen, and framed, so
    that they can be told apart.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images, of any mode.
        columns (`int`): How many stand side by side.
    """
    zoom = max(1, 48 // max(images[0].size))
    images = [ImageOps.scale(image.convert("RGB"), zoom, Image.Resampling.NEAREST) for image in images]
    images = [ImageOps.expand(image, border=2, fill="gray") for image in images]
    rows = math.ceil(len(images) / columns)
    images += [Image.new("RGB", images[0].size, "gray")] * (rows * columns - len(images))
    return make_image_grid(images, rows=rows, cols=columns)


def write_model_card(
    folder: str | os.PathLike,
    pipeline: DiffusionPipeline,
    repo_id: str,
    license: str | None = None,
    datasets: str | list[str] | None = None,
    training_command: str | None = None,
    settings: dict | None = None,
    evaluation: list[dict] | None = None,
    pipeline_tag: str | None = None,
    description: str | None = None,
    usage: str | None = None,
) -> bool:
    """
    Write `README.md`, the model card of a saved pipeline, unless there is one that somebody wrote or edited.

    Args:
        folder (`str` or `os.PathLike`): The folder of the pipeline. The card shows its `samples.png`, if there is one.
        pipeline ([`DDMPipeline`] or another pipeline or model):
            What is in it. One that is not of this package needs the last three arguments.
        repo_id (`str`): Where others load it from: a repository, or the name of the folder.
        license (`str`, *optional*): An identifier of the Hub, `"apache-2.0"` say.
        datasets (`str` or `list[str]`, *optional*): Data sets on the Hub that it was trained on.
        training_command (`str`, *optional*): The command that trained it.
        settings (`dict`, *optional*): The main settings of the training.
        evaluation (`list[dict]`, *optional*): The rows of a table.
        pipeline_tag (`str`, *optional*): The task, as the Hub names it. Default: that of the pipeline.
        description (`str`, *optional*): A sentence on what it is. Default: a decoupled diffusion model.
        usage (`str`, *optional*): Code that uses it, with `{repo_id}` where it is loaded. Default: a call of the pipeline.

    Returns:
        `bool`: whether the card was written.
    """
    path = Path(folder, CARD_NAME)
    if path.exists() and not is_generated_card(path.read_text(encoding="utf-8")):
        return False
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=pipeline_tag or pipeline.pipeline_tag,
        license=license,
        datasets=datasets,
        tags=[LIBRARY_NAME.replace("_", "-"), "decoupled-diffusion", "arxiv:2306.13720"],
    )
    description = description or (
        "A decoupled diffusion model ([arXiv 2306.13720](https://arxiv.org/abs/2306.13720)) for"
        " [diffusers](https://github.com/huggingface/diffusers), made with ddm-diffusers."
    )
    parts = [f"# {repo_id.split('/')[-1]}", description]
    if Path(folder, SAMPLES_NAME).exists():
        parts.append(SAMPLES_LINK)
    usage = (usage or _usage(pipeline)).replace("{repo_id}", repo_id)
    parts += ["## Use", "After `pip install ddm-diffusers`:", f"```python\n{usage}\n```"]
    if names := getattr(pipeline, "labels", None):
        parts.append(f"Classes: {listing([f'{label} {name}' for name, label in names.items()])}.")
    if LIBRARY_NAME in type(pipeline).__module__:
        parts.append(
            "`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads it too, with the package installed."
        )
    if training_command is not None:
        parts += ["## Training", f"```bash\n{training_command}\n```"]
        parts += [_table([{"setting": key, "value": value} for key, value in (settings or {}).items()])]
    if evaluation:
        parts += ["## Evaluation", _table(evaluation)]
    body = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n\n"
    path.write_text(sign_card(body), encoding="utf-8")
    return True


def _usage(pipeline: DiffusionPipeline) -> str:
    """The code that calls a pipeline of this package."""
    class_name, num_classes = type(pipeline).__name__, pipeline.unet.config.num_class_embeds
    arguments, imports = "batch_size=16, num_inference_steps=10", ""
    if pipeline.labels:
        arguments = f"class_labels={json.dumps(list(pipeline.labels)[:4], ensure_ascii=False)}, num_inference_steps=10"
    elif num_classes is not None:
        arguments += f", class_labels=[i % {num_classes} for i in range(16)]"
    if pipeline.image_arguments:
        opened = ", ".join(f'Image.open("{name}.png")' for name in pipeline.image_arguments)
        arguments, imports = f"{opened}, num_inference_steps=10", "from PIL import Image\n\n"
    return (
        f"{imports}from {LIBRARY_NAME} import {class_name}\n\n"
        f'pipe = {class_name}.from_pretrained("{{repo_id}}")\nimages = pipe({arguments}).images'
    )


def is_generated_card(text: str) -> bool:
    """Whether a model card is as [`write_model_card`] wrote it: the digest at its end is that of what precedes it."""
    match = re.fullmatch(r"(.*)<!-- generated by ddm-diffusers, ([0-9a-f]{64}) -->\s*", text, flags=re.DOTALL)
    return match is not None and _digest(match[1]) == match[2]


def sign_card(body: str) -> str:
    return body + f"<!-- generated by ddm-diffusers, {_digest(body)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def listing(items: list, most: int = 100) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most:,} more" if len(items) > most else "")


def _table(rows: list[dict]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
