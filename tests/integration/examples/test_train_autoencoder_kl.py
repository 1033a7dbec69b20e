# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
An autoencoder and a model in its latent space, trained by the two scripts on scikit-learn's digits: the first learns, is
resumed bit by bit, and the second makes images with it, by latents that were encoded once.
"""

import re

import diffusers
import pytest
import torch
from processes import start
from safetensors.torch import load_file

from ddm_diffusers import DDMPipeline
from ddm_diffusers.training import ImageTransform, LatentSpace, load_image_dataset


pytestmark = pytest.mark.slow

AUTOENCODER = ["--resolution", "8", "--center_crop", "--block_out_channels", "8", "16", "--layers_per_block", "1"]
AUTOENCODER += ["--max_train_steps", "90", "--lr_warmup_steps", "5", "--learning_rate", "3e-3", "--logger", "none"]
AUTOENCODER += ["--train_batch_size", "32", "--seed", "0", "--checkpointing_steps", "75", "--save_images_steps", "50"]
AUTOENCODER += ["--adversarial_weight", "0.05", "--adversarial_start_step", "20", "--output_dir", "autoencoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where an autoencoder was trained, with a discriminator that sets in early in the run."""
    folder = tmp_path_factory.mktemp("autoencoder")
    run = start("train_autoencoder_kl.py", *AUTOENCODER, cwd=folder)
    assert run.wait() == 0, run.output[-4000:]
    return folder


def test_the_autoencoder_learns(folder):
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "autoencoder").eval()
    torch.manual_seed(0)
    untrained = diffusers.AutoencoderKL.from_config(vae.config).eval()
    transform = ImageTransform(load_image_dataset(), resolution=8, center_crop=True)
    images = torch.stack(transform.dataset[:200]["pixel_values"])
    with torch.no_grad():
        errors = [(model(images).sample - images).abs().mean() for model in (vae, untrained)]
    # the best that one image can do for all
    constant = (images - images.median(dim=0).values).abs().mean()
    assert errors[0] < constant < errors[1]
    # latents of deviation 1, which train_ddm.py measures again
    channels, deviation = LatentSpace(vae, "cpu").measure(transform)
    assert (channels, deviation) == (4, pytest.approx(1, abs=0.02))
    card = (folder / "autoencoder" / "README.md").read_text()
    assert 'AutoencoderKL.from_pretrained("autoencoder")' in card and "| latents | 4 x 4 x 4 |" in card
    assert (folder / "autoencoder" / "samples.png").is_file()


def test_the_autoencoder_is_resumed_with_its_discriminator(folder, tmp_path):
    checkpoint = folder / "autoencoder" / "checkpoint-75"
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / checkpoint.name).symlink_to(checkpoint)
    run = start("train_autoencoder_kl.py", *AUTOENCODER, "--resume_from_checkpoint", "latest", cwd=tmp_path)
    assert run.wait() == 0, run.output[-4000:]
    assert "Resuming from autoencoder/checkpoint-75" in run.output
    name = "autoencoder/diffusion_pytorch_model.safetensors"
    weights, again = load_file(folder / name), load_file(tmp_path / name)
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_a_model_in_its_latent_space(folder):
    arguments = ["--vae_name_or_path", "autoencoder", "--latent_cache_dir", "latents", "--class_conditional"]
    arguments += ["--block_out_channels", "16", "32", "--max_train_steps", "4", "--lr_warmup_steps", "1"]
    arguments += ["--logger", "none", "--seed", "0", "--eval_batch_size", "4"]
    outputs = []
    for output_dir in ("latent", "again"):
        run = start("train_ddm.py", *arguments, "--output_dir", output_dir, cwd=folder)
        assert run.wait() == 0, run.output[-4000:]
        outputs.append(run.output)
    assert "Encoding images" in outputs[0] and "Encoding images" not in outputs[1]

    pipe = DDMPipeline.from_pretrained(folder / "latent")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.unet.config.in_channels, pipe.unet.config.sample_size) == (4, 4)
    assert pipe.unet.config.sigma_data == pytest.approx(1, abs=0.02) and not pipe.scheduler.config.clip_sample
    images = pipe(4, class_labels=[0, 1, 2, 3], num_inference_steps=3, output_type="pt").images
    assert images.shape == (4, 1, 8, 8)
    assert re.search(r"\| latents \| 4 x 4 x 4, of autoencoder", (folder / "latent" / "README.md").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "9", "--block_out_channels", "8", "16"], "--resolution is 9, but has to be a multiple of 2"),
        (["--evaluation_steps", "5"], "--evaluation_steps draws images"),
    ],
)
def test_bad_options_are_refused(arguments, message, tmp_path):
    run = start("train_autoencoder_kl.py", *arguments, cwd=tmp_path)
    assert run.wait() == 2 and message in run.output
