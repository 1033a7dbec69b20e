# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Runs `examples/train_ddm_text_to_image.py` on images with captions: in pixels, and from Stable Diffusion's weights in its
latent space to a repository on the Hub. What it shares with train_ddm.py is tested there.
"""

import importlib
import json

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from processes import EXAMPLES, hub, start, start_code
from stock_parts import tiny_conditional_unet, tiny_text_parts, tiny_vae

import ddm_diffusers


SCRIPT = "train_ddm_text_to_image.py"
CAPTIONS = ["a red dot", "a blue dot", "a dot"]


@pytest.fixture
def captioned(tmp_path):
    """A folder of images with captions in metadata.jsonl."""
    folder, lines = tmp_path / "data", []
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(6, 8, 8, 3), dtype=np.uint8)
    for i in range(6):
        Image.fromarray(pixels[i]).resize((16, 16)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i % 3]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["--train_data_dir", folder, "--center_crop", "--train_batch_size", 3, "--seed", 0, "--logger", "none"]
    return [*arguments, "--max_train_steps", 4, "--lr_warmup_steps", 1, "--eval_batch_size", 4, "--output_dir", "out"]


def train(*arguments, cwd, **environment):
    run = start(SCRIPT, *arguments, cwd=cwd, **environment)
    assert run.wait() == 0, run.output[-4000:]
    return run.output


def draw(pipe, guidance_scale, num_inference_steps=2):
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": num_inference_steps, "output_type": "np", "generator": torch.manual_seed(0)}
    return pipe("a dot", guidance_scale=guidance_scale, **options).images


@pytest.mark.parametrize(("image_mode", "channels"), [("L", 1), ("RGB", 3)])
def test_the_script_on_pixels(captioned, tmp_path, image_mode, channels):
    """The stock pipeline loads the result and is guided."""
    for name, part in tiny_text_parts().items():
        part.save_pretrained(tmp_path / "text" / name)
    arguments = ["--resolution", 8, "--pixel_space", "--image_mode", image_mode]
    arguments += ["--block_out_channels", 8, 16, "--layers_per_block", 1]
    train(*captioned, *arguments, "--pretrained_model_name_or_path", "text", cwd=tmp_path)

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.unet, ddm_diffusers.DDMUNet2DConditionModel)
    assert pipe.vae.config.latent_channels == channels
    plain, guided = draw(pipe, 1.0), draw(pipe, 8.0)
    assert plain.shape == (1, 8, 8, channels) and not np.array_equal(plain, guided)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and 'StableDiffusionPipeline.from_pretrained("out")' in card


def test_fine_tuning_of_stable_diffusion_to_the_hub(captioned, tmp_path):
    """From its weights, in its latent space, by latents that are encoded once, in bf16; the result is one repository."""
    parts = {"vae": tiny_vae(scaling_factor=0.5), "unet": tiny_conditional_unet(), **tiny_text_parts()}
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    StableDiffusionPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(tmp_path / "stable-diffusion")
    arguments = ["--pretrained_model_name_or_path", "stable-diffusion", "--from_pretrained_unet", "--resolution", 16]
    arguments += ["--latent_cache_dir", "latents", "--mixed_precision", "bf16", "--validation_prompts", "a red dot"]
    arguments += ["--learning_rate", 1e-4, "--push_to_hub", "--hub_model_id", "user/dots"]
    with hub():
        output = train(*captioned, *arguments, cwd=tmp_path, HF_TOKEN="hf_test")
        assert "Encoding images" in output and "Uploaded" in output
        code = (
            "import numpy, torch, ddm_diffusers; from diffusers import StableDiffusionPipeline\n"
            "pipe = StableDiffusionPipeline.from_pretrained('user/dots')\n"
            "for weight in pipe.unet.parameters(): weight.data = weight.data.clone()\n"  # see test_hub.py
            "options = {'num_inference_steps': 2, 'output_type': 'np', 'generator': torch.manual_seed(0)}\n"
            "numpy.save('drawn.npy', pipe('a dot', guidance_scale=4.0, **options).images)"
        )
        loaded = start_code(code, cwd=tmp_path)
        assert loaded.wait() == 0, loaded.output[-4000:]
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(draw(pipe, 4.0), np.load(tmp_path / "drawn.npy"), atol=1e-5)
    weights = [each.dtype for each in pipe.unet.parameters()]
    assert set(weights) == {torch.float32} and all(each.isfinite().all() for each in pipe.unet.parameters())
    assert pipe.unet.config.base_scheduler and pipe.unet.config.sample_size == 8
    # it began with Stable Diffusion's weights, and went on from there
    name, before = "down_blocks.1.resnets.0.conv1.weight", parts["unet"].state_dict()
    change = (pipe.unet.state_dict()[name] - before[name]).abs()
    assert 0 < change.max() < 4 * 1e-4 * 1.1

    # and what came out is trained on, at a learning rate that leaves it as it is
    more = ["--pretrained_model_name_or_path", "out", "--from_pretrained_unet", "--resolution", 16, "--no-use_ema"]
    train(*captioned, *more, "--learning_rate", 1e-20, "--output_dir", "more", cwd=tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "more").unet
    assert again.config.base_scheduler == pipe.unet.config.base_scheduler
    torch.testing.assert_close(again.state_dict(), pipe.unet.state_dict())
    refused = start(SCRIPT, *captioned, *more, "--noise_schedule", "linear", "--output_dir", "refused", cwd=tmp_path)
    assert refused.wait() != 0 and "`--noise_schedule` is 'linear', but the model of out has 'sqrt'" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pixel_space", "--latent_cache_dir", "latents"], "--pixel_space goes without"),
        (["--pixel_space", "--vae_name_or_path", "vae"], "--pixel_space goes without"),
        (["--pixel_space", "--from_pretrained_unet"], "--pixel_space goes without"),
        (["--from_pretrained_unet", "--block_out_channels", "8", "16"], "goes without --block_out_channels"),
        (["--pixel_space", "--block_out_channels", "4", "8"], "at most as many heads as channels"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = importlib.import_module("train_ddm_text_to_image")
    with pytest.raises(SystemExit):
        script.parse_args(["--pretrained_model_name_or_path", "text", "--center_crop", *arguments])
    assert message in capsys.readouterr().err
