# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every Python block of the README and of docs/ runs, in order, beside pipelines such as the training script saves and a stock one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from hub_server import HubServer, client_environment
from stock_parts import tiny_conditional_unet, tiny_text_parts, tiny_vae

from ddm_diffusers import DDMImageToImagePipeline, DDMPipeline, DDMScheduler


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def saved_pipelines(tmp_path, monkeypatch, tiny_unet):
    for folder, num_classes in (("ddm-model", None), ("ddm-photos", 10)):
        DDMPipeline(tiny_unet(num_class_embeds=num_classes), DDMScheduler()).save_pretrained(tmp_path / folder)
    pipe = DDMImageToImagePipeline(tiny_unet(conditioning_channels=3), DDMScheduler(), upscale=4)
    pipe.save_pretrained(tmp_path / "ddm-super-resolution")
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
    monkeypatch.chdir(tmp_path)


SLOW_PAGES = ("evaluation.md", "image-to-image.md")  # 20 seconds and more


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else []) for page in PAGES],
    ids=lambda page: page.name,
)
def test_python_blocks_run(page, saved_pipelines, tmp_path):
    """In a fresh process, whose Hub is a server on loopback."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    if page.name != "benchmarks.md":  # figures only
        assert len(blocks) >= 2
    with HubServer(token="hf_test") as server:
        environment = client_environment(server, tmp_path / "cache", token="hf_test")
        result = subprocess.run(
            [sys.executable, "-c", "\n".join(blocks)], env=environment, capture_output=True, text=True
        )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == [], f"{page.name} links to files that are not there, seen from {os.fspath(page.parent)}"
