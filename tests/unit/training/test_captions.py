# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Captions become the tokens that diffusers' pipelines give their text encoders; the script trains on them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from diffusers import PNDMScheduler, StableDiffusionPipeline
from hub_server import HubServer, client_environment
from PIL import Image as PILImage
from processes import EXAMPLES, start, start_command
from stock_parts import tiny_conditional_unet, tiny_text_parts, tiny_vae

import ddm_diffusers
from ddm_diffusers.training import CaptionTransform


SCRIPT = "train_ddm_text_to_image.py"
CAPTIONS = ["a red dot", "a blue dot", "a dot"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_text_parts()["tokenizer"]


def images(count):
    pixels = np.random.default_rng(0).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    return [PILImage.fromarray(each) for each in pixels]


def transform_of(tokenizer, captions=CAPTIONS, **options):
    value = List(Value("string")) if isinstance(captions[0], list) else Value("string")
    features = Features({"image": Image(), "text": value})
    dataset = Dataset.from_dict({"image": images(len(captions)), "text": captions}, features=features)
    return CaptionTransform(dataset, tokenizer, resolution=8, center_crop=True, **options)


def tokens(tokenizer, caption):
    length = tokenizer.model_max_length
    return tokenizer(caption, padding="max_length", max_length=length, truncation=True).input_ids


def test_captions_are_tokens_of_one_length(tokenizer):
    batch = transform_of(tokenizer, [*CAPTIONS, "a dot " * 20]).dataset[:]
    assert torch.stack(batch["pixel_values"]).shape == (4, 3, 8, 8)
    ids = torch.stack(batch["input_ids"])
    assert ids.shape == (4, 16)
    assert ids.tolist() == [tokens(tokenizer, each) for each in [*CAPTIONS, "a dot " * 20]]


def test_captions_are_drawn_and_dropped(tokenizer):
    transform = transform_of(tokenizer, [["one", "two"]] * 2, caption_dropout_prob=0.25)
    rows = transform.dataset.with_format(None)[:1]
    counts = {}
    for seed in range(400):
        (ids,) = transform(rows, [torch.Generator().manual_seed(seed)])["input_ids"]
        counts[tuple(ids.tolist())] = counts.get(tuple(ids.tolist()), 0) + 1
    shares = [counts.pop(tuple(tokens(tokenizer, each))) / 400 for each in ("", "one", "two")]
    assert not counts
    # four standard errors
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=4 * 0.024)


def test_what_is_no_caption_is_refused(tokenizer, rejects):
    with rejects("`caption_column`", "caption", "text"):
        transform_of(tokenizer, caption_column="caption")
    with rejects("text", "None"):
        transform_of(tokenizer, ["a dot", None]).dataset[:]


@pytest.fixture
def captioned(tmp_path):
    """A folder of images with captions in metadata.jsonl."""
    folder, lines = tmp_path / "data", []
    folder.mkdir()
    for i, image in enumerate(images(6)):
        image.resize((16, 16)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i % 3]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["--train_data_dir", folder, "--center_crop", "--train_batch_size", 3, "--seed", 0, "--logger", "none"]
    return [*arguments, "--max_train_steps", 4, "--lr_warmup_steps", 1, "--eval_batch_size", 4, "--output_dir", "out"]


def train(*arguments, cwd, environment=None):
    if environment is None:
        run = start(SCRIPT, *arguments, cwd=cwd)
    else:  # which the Hub's client reads when it is imported
        run = start_command(EXAMPLES / SCRIPT, *arguments, cwd=cwd, environment=environment)
    assert run.wait() == 0, run.output[-4000:]
    return run.output


def draw(pipe, guidance_scale, num_inference_steps=2):
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": num_inference_steps, "output_type": "np", "generator": torch.manual_seed(0)}
    return pipe("a dot", guidance_scale=guidance_scale, **options).images


@pytest.mark.slow
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


@pytest.mark.slow
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
    with HubServer(token="hf_test") as server:
        environment = client_environment(server, tmp_path / "cache", token="hf_test")
        output = train(*captioned, *arguments, cwd=tmp_path, environment=environment)
        assert "Encoding images" in output and "Uploaded" in output
        code = (
            "import numpy, torch, ddm_diffusers; from diffusers import StableDiffusionPipeline\n"
            "pipe = StableDiffusionPipeline.from_pretrained('user/dots')\n"
            "for weight in pipe.unet.parameters(): weight.data = weight.data.clone()\n"  # see test_hub.py
            "torch.set_num_threads(1)\n"
            "options = {'num_inference_steps': 2, 'output_type': 'np', 'generator': torch.manual_seed(0)}\n"
            "numpy.save('drawn.npy', pipe('a dot', guidance_scale=4.0, **options).images)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
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
    refused = start(SCRIPT, *captioned, *more, "--noise_schedule", "linear", cwd=tmp_path)
    assert refused.wait() != 0 and "`--noise_schedule` is 'linear', but the model of out has 'sqrt'" in refused.output


@pytest.mark.parametrize(
    "arguments", [["--latent_cache_dir", "latents"], ["--vae_name_or_path", "vae"], ["--from_pretrained_unet"]]
)
def test_pixels_have_no_autoencoder(arguments, tmp_path):
    arguments = ["--pretrained_model_name_or_path", "text", "--center_crop", "--pixel_space", *arguments]
    run = start(SCRIPT, *arguments, cwd=tmp_path)
    assert run.wait() == 2 and "--pixel_space goes without" in run.output


def test_a_pretrained_unet_has_its_own_shape(tmp_path):
    arguments = ["--pretrained_model_name_or_path", "text", "--center_crop", "--from_pretrained_unet"]
    run = start(SCRIPT, *arguments, "--block_out_channels", 8, 16, cwd=tmp_path)
    assert run.wait() == 2 and "--from_pretrained_unet goes without --block_out_channels" in run.output
