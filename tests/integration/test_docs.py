# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Every Python block of the README and of docs/ runs, in order, beside pipelines such as the training scripts save and a stock
one; commands of the scripts have options that these know.
"""

import importlib
import os
import re
import shlex
from pathlib import Path

import diffusers
import pytest
from accelerate.commands.launch import launch_command_parser
from processes import hub, start_code
from stock_parts import tiny_conditional_unet, tiny_text_parts, tiny_vae

from ddm_diffusers import DDMImageToImagePipeline, DDMPipeline, DDMScheduler, DDMUNet2DConditionModel


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def saved_pipelines(tmp_path, monkeypatch, tiny_unet, plain_unet):
    classes = {"num_class_embeds": 3, "id2label": dict(enumerate(("bird", "train", "truck")))}
    mine = {"num_class_embeds": 2, "id2label": {0: "clothing", 1: "face-concerned"}}
    for folder, options in (("ddm-model", {}), ("ddm-photos", classes), ("ddm-my-images", mine)):
        DDMPipeline(tiny_unet(**options), DDMScheduler()).save_pretrained(tmp_path / folder)
    diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm-model")
    pipe = DDMImageToImagePipeline(tiny_unet(conditioning_channels=3), DDMScheduler(), upscale=4)
    pipe.save_pretrained(tmp_path / "ddm-super-resolution")
    pipe = DDMPipeline(tiny_unet(in_channels=4), DDMScheduler(clip_sample=False), vae=tiny_vae())
    pipe.save_pretrained(tmp_path / "ddm-latent")
    pipe = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        unet=tiny_conditional_unet(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **tiny_text_parts(),
    )
    pipe.save_pretrained(tmp_path / "stable-diffusion")
    pipe.unet = tiny_conditional_unet(DDMUNet2DConditionModel)
    pipe.scheduler = DDMScheduler(clip_sample=False)
    pipe.save_pretrained(tmp_path / "ddm-text")
    monkeypatch.chdir(tmp_path)


COMMANDS = (
    "README.md",
    "evaluation.md",
    "fine-tuning.md",
    "high-resolution.md",
    "hub.md",
    "image-to-image.md",
    "training.md",
)
SLOW_PAGES = ("evaluation.md",)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else []) for page in PAGES],
    ids=lambda page: page.name,
)
def test_python_blocks_run(page, saved_pipelines, tmp_path):
    """In a process of their own, whose Hub is a server on loopback."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    if page.name != "benchmarks.md":  # figures only
        assert len(blocks) >= 2
    with hub():
        run = start_code("\n".join(blocks), cwd=tmp_path, HF_TOKEN="hf_test")
        assert run.wait() == 0, run.output[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    """By Accelerate's launcher and the script that they are for."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line.partition("  # ")[0] for line in "".join(blocks).replace("\\\n", " ").splitlines()]
    found = [(line, match) for line in lines if (match := re.search(r"examples/(train_\w+|evaluate)\.py", line))]
    assert found or page.name not in COMMANDS
    for line, match in found:
        words = shlex.split(line.partition("&& ")[2] or line)
        if words[0] == "srun":
            words = shlex.split(words[-1].replace("$SLURM_NODEID", "1"))
        script = words.index(match[0])
        if "accelerate" in words:
            args = launch_command_parser().parse_args(words[words.index("launch") + 1 : script + 1])
            assert args.training_script == match[0]
            assert args.config_file is None or (ROOT / args.config_file).is_file()
        importlib.import_module(match[1]).parse_args(words[script + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == [], f"{page.name} links to files that are not there, seen from {os.fspath(page.parent)}"
