# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that diffusers' own text pipelines take `DDMUNet2DConditionModel` and `DDMScheduler` as they are: text to image, image
to image, inpainting with 4 and with 9 channels and Stable Diffusion XL evaluate the model once a step; guidance, negative
prompts, callbacks, LoRA, IP-Adapter, half precision, saving and loading work as they do with diffusers' own parts.
"""

import functools
import json

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from stock_parts import (
    NUM_STEPS,
    draw,
    draw_images,
    perturb,
    reload,
    seeded,
    tiny_conditional_unet,
    tiny_text_parts,
    tiny_vae,
)

from ddm_diffusers import DDMScheduler, DDMUNet2DConditionModel


PROMPTS = {"prompt": ["a cat", "two dogs"]}


def an_image():
    return torch.rand(2, 3, 16, 16, generator=seeded(5))


def a_mask():
    """The right half is to be filled."""
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 8:] = 1
    return mask


def build(pipeline_class=diffusers.StableDiffusionPipeline, scheduler=None, **unet_options):
    pipe = pipeline_class(
        vae=tiny_vae(),
        unet=perturb(tiny_conditional_unet(DDMUNet2DConditionModel, **unet_options)),
        scheduler=DDMScheduler(clip_sample=False) if scheduler is None else scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **tiny_text_parts(),
    )
    return pipe


def text_to_image():
    return build(), {**PROMPTS, "guidance_scale": 4.0}, NUM_STEPS


def image_to_image():
    arguments = {**PROMPTS, "guidance_scale": 4.0, "image": an_image(), "strength": 0.75}
    return build(diffusers.StableDiffusionImg2ImgPipeline), arguments, 7


def inpaint(**unet_options):
    pipe = build(diffusers.StableDiffusionInpaintPipeline, **unet_options)
    arguments = {**PROMPTS, "guidance_scale": 4.0, "image": an_image(), "mask_image": a_mask()}
    return pipe, {**arguments, "height": 16, "width": 16, "strength": 1.0}, NUM_STEPS


def inpaint_9_channels():
    return inpaint(in_channels=9, out_channels=8)


def stable_diffusion_xl():
    unet = tiny_conditional_unet(
        DDMUNet2DConditionModel,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        unet=perturb(unet),
        scheduler=DDMScheduler(clip_sample=False),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        add_watermarker=False,
    )
    arguments = {
        "prompt_embeds": draw(2, 5, 8, seed=1),
        "negative_prompt_embeds": draw(2, 5, 8, seed=2),
        "pooled_prompt_embeds": draw(2, 8, seed=3),
        "negative_pooled_prompt_embeds": draw(2, 8, seed=4),
    }
    return pipe, {**arguments, "guidance_scale": 4.0}, NUM_STEPS


BUILDERS = [text_to_image, image_to_image, inpaint, inpaint_9_channels, stable_diffusion_xl]
every_pipeline = pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)


@functools.cache
def expected_images(builder=text_to_image):
    pipe, arguments, _ = builder()
    return draw_images(pipe, arguments)


def record_evaluations(pipe):
    """A list of the batch sizes and timesteps with which the model will have been evaluated."""
    evaluations = []
    pipe.unet.register_forward_hook(
        lambda module, inputs, options, output: evaluations.append((len(inputs[0]), float(inputs[1]))),
        with_kwargs=True,
    )
    return evaluations


# ------------------------------------------------------------------------------------------------------------ the pipelines


@every_pipeline
def test_one_evaluation_a_step(builder):
    pipe, arguments, steps = builder()
    evaluations = record_evaluations(pipe)
    images = draw_images(pipe, arguments)
    # with guidance both halves are one batch
    timesteps = pipe.scheduler.timesteps[-steps:].tolist()
    assert evaluations == [(4, timestep) for timestep in timesteps]
    evaluations.clear()
    plain = draw_images(pipe, arguments, guidance_scale=1.0)
    assert evaluations == [(2, timestep) for timestep in timesteps]
    for each in (images, plain):
        assert each.shape == (2, 16, 16, 3) and np.isfinite(each).all() and each.std() > 0
    assert not np.array_equal(images, plain)


@every_pipeline
def test_saved_and_loaded(builder, own_memory, tmp_path):
    pipe, arguments, _ = builder()
    index = tmp_path / "model_index.json"
    loaded = reload(pipe, tmp_path, own_memory)
    assert json.loads(index.read_text())["unet"] == ["ddm_diffusers", "DDMUNet2DConditionModel"]
    assert (type(loaded.unet), type(loaded.scheduler)) == (DDMUNet2DConditionModel, DDMScheduler)
    assert np.array_equal(draw_images(loaded, arguments), expected_images(builder))


@pytest.mark.parametrize(
    "options", [{"num_heads": 1}, {"attenuation": "linear"}, {"noise_schedule": "linear"}], ids=str
)
def test_the_other_processes(options):
    process = {name: value for name, value in options.items() if name != "num_heads"}
    pipe = build(scheduler=DDMScheduler(clip_sample=False, **process), **options)
    images = draw_images(pipe, {**PROMPTS, "guidance_scale": 4.0})
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all() and images.std() > 0


def test_prompts_and_guidance_matter():
    pipe = build()
    calls = [
        {**PROMPTS, "guidance_scale": 4.0},
        {**PROMPTS, "guidance_scale": 6.0},
        {**PROMPTS, "guidance_scale": 1.0},
        {**PROMPTS, "guidance_scale": 4.0, "negative_prompt": ["grey", "grey"]},
        {**PROMPTS, "guidance_scale": 4.0, "guidance_rescale": 0.7},
        {"prompt": ["a dog", "a bird"], "guidance_scale": 4.0},
    ]
    drawn = [draw_images(pipe, arguments) for arguments in calls]
    for i, images in enumerate(drawn):
        for others in drawn[:i]:
            assert all((image != other).any() for image, other in zip(images, others, strict=True))
    # of an empty negative prompt there is nothing to be heard
    empty = draw_images(pipe, {**calls[0], "negative_prompt": ["", ""]})
    assert np.array_equal(empty, drawn[0])


def test_the_less_strength_the_nearer_to_the_image():
    pipe, arguments, _ = image_to_image()
    latents = pipe.vae.encode(2 * an_image() - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    distances = []
    for strength in (0.1, 0.5, 1.0):
        drawn = draw_images(pipe, {**arguments, "strength": strength, "output_type": "latent"})
        distances.append((drawn - latents).square().mean().item())
    assert distances[0] < distances[1] < distances[2]


def test_inpainting_keeps_what_is_not_masked():
    pipe, arguments, _ = inpaint()
    first, second = (
        draw_images(pipe, {**arguments, "prompt": prompt, "output_type": "latent"})
        for prompt in (["a cat"] * 2, ["two dogs"] * 2)
    )
    assert torch.equal(first[..., :4], second[..., :4])
    assert not torch.equal(first[..., 4:], second[..., 4:])


def test_a_model_trained_for_inpainting_sees_mask_and_image():
    pipe, arguments, _ = inpaint_9_channels()
    image = draw_images(pipe, {**arguments, "image": 1 - an_image()})
    mask = draw_images(pipe, {**arguments, "mask_image": 1 - a_mask()})
    for images in (image, mask):
        assert not np.array_equal(images, expected_images(inpaint_9_channels))


def test_callbacks():
    pipe, arguments, steps = text_to_image()
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), tensors["latents"].shape))
        return tensors

    images = draw_images(pipe, arguments, callback_on_step_end=watch)
    assert seen == [(i, t, (2, 4, 8, 8)) for i, t in enumerate(pipe.scheduler.timesteps.tolist())]
    assert np.array_equal(images, expected_images())

    def silence(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not np.array_equal(draw_images(pipe, arguments, callback_on_step_end=silence), images)

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 2
        return tensors

    evaluations = record_evaluations(pipe)
    draw_images(pipe, arguments, callback_on_step_end=stop)
    assert len(evaluations) == 3


@pytest.mark.parametrize(
    "pipeline_class", [diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline], ids=str
)
def test_two_pipelines_turn_clipping_off(pipeline_class):
    # The others leave it on: docs/models.md tells. Latents are not in [-1, 1].
    scheduler = DDMScheduler()
    with pytest.warns(FutureWarning, match="clip_sample"):
        pipe = build(pipeline_class, scheduler=scheduler)
    assert pipe.scheduler.config.clip_sample is False
    if pipeline_class is diffusers.StableDiffusionPipeline:
        assert np.array_equal(draw_images(pipe, text_to_image()[1]), expected_images())


# ------------------------------------------------------------------------------------------------------------ add-ons


def add_lora(unet, seed=6):
    """Put a LoRA that is not silent on the attention of a UNet; its weights."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    generator = seeded(seed)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return get_peft_model_state_dict(unet)


@pytest.mark.parametrize("trained_on", ["ours", "diffusers"])
def test_lora(trained_on, tmp_path):
    pipe, arguments, _ = text_to_image()
    # a LoRA of the stock model has the same names and shapes
    trained = pipe.unet if trained_on == "ours" else tiny_conditional_unet()
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=add_lora(trained))
    pipe = text_to_image()[0]
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert pipe.get_active_adapters() == ["style"]
    adapted = draw_images(pipe, arguments)
    assert not np.allclose(adapted, expected_images(), rtol=0, atol=1e-3)
    if trained_on == "ours":
        trained_pipe = build()
        trained_pipe.unet = trained
        assert np.array_equal(draw_images(trained_pipe, arguments), adapted)

    half = draw_images(pipe, {**arguments, "cross_attention_kwargs": {"scale": 0.5}})
    pipe.set_adapters("style", 0.5)
    assert np.array_equal(draw_images(pipe, arguments), half) and not np.array_equal(half, adapted)
    # a scale for each block
    pipe.set_adapters("style", {"unet": {"down": 0.0, "mid": 0.0, "up": 0.0}})
    assert np.array_equal(draw_images(pipe, arguments), expected_images())
    pipe.set_adapters("style", {"unet": {"down": 1.0, "mid": 0.0, "up": 0.0}})
    down = draw_images(pipe, arguments)
    pipe.set_adapters("style", {"unet": {"down": {"block_1": 1.0}, "mid": 0.0, "up": 0.0}})
    assert np.array_equal(draw_images(pipe, arguments), down)  # the other block has no attention
    assert not np.array_equal(down, expected_images()) and not np.array_equal(down, adapted)

    pipe.set_adapters("style", 1.0)
    pipe.fuse_lora()
    np.testing.assert_allclose(draw_images(pipe, arguments), adapted, rtol=0, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert not any("lora" in name for name in pipe.unet.state_dict())
    np.testing.assert_allclose(draw_images(pipe, arguments), expected_images(), rtol=0, atol=1e-4)


def test_lora_training_reaches_its_weights_alone():
    unet = build().unet.train()
    unet.requires_grad_(False)
    add_lora(unet)
    unet(draw(1, 4, 8, 8), 500.0, draw(1, 5, 8)).sample.square().mean().backward()
    reached = {name for name, weight in unet.named_parameters() if weight.grad is not None}
    assert reached == {name for name in unet.state_dict() if "lora_" in name}


def test_ip_adapter(tmp_path):
    pipe, arguments, _ = text_to_image()
    weights = {
        "image_proj.proj.weight": draw(4 * 8, 6, seed=1),
        "image_proj.proj.bias": draw(4 * 8, seed=2),
        "image_proj.norm.weight": torch.ones(8),
        "image_proj.norm.bias": torch.zeros(8),
    }
    # one pair for each attention to the text; the attention of the image to itself has the even numbers
    for number, name in enumerate(name for name in pipe.unet.attn_processors if "attn2" in name):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for part in ("k", "v"):
            weights[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = draw(width, 8, seed=10 + number)
    save_file(weights, tmp_path / "ip_adapter.safetensors")
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)

    def embeddings(seed):
        image = draw(2, 1, 6, seed=seed)
        return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(image), image])]}

    evaluations = record_evaluations(pipe)
    first, second = (draw_images(pipe, {**arguments, **embeddings(seed)}) for seed in (1, 2))
    assert len(evaluations) == 2 * NUM_STEPS
    assert not np.array_equal(first, second) and not np.array_equal(first, expected_images())
    pipe.set_ip_adapter_scale(0.0)
    np.testing.assert_allclose(draw_images(pipe, {**arguments, **embeddings(1)}), expected_images(), rtol=0, atol=1e-5)
    pipe.unload_ip_adapter()
    assert np.array_equal(draw_images(pipe, arguments), expected_images())


def test_freeu():
    pipe, arguments, _ = text_to_image()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert draw_images(pipe, arguments).shape == (2, 16, 16, 3)
    pipe.disable_freeu()
    assert np.array_equal(draw_images(pipe, arguments), expected_images())


# ------------------------------------------------------------------------------------------------------------ precision


def test_autocast():
    pipe, arguments, _ = text_to_image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = draw_images(pipe, arguments)
    # some 30 layers round, as in tests/unit/models; a wrong scale or time changes images by far more
    assert 0 < np.abs(images - expected_images()).max() < 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, tmp_path):
    pipe, arguments, _ = text_to_image()
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype, safety_checker=None)
    drawn = []
    for each in (pipe.to(dtype), loaded):
        assert each.unet.dtype == dtype
        drawn.append(draw_images(each, {**arguments, "generator": seeded(), "latents": draw(2, 4, 8, 8).to(dtype)}))
    full = draw_images(text_to_image()[0], {**arguments, "generator": seeded(), "latents": draw(2, 4, 8, 8)})
    for images in drawn:
        # the fresh noise is float32's in all of them
        assert 0 < np.abs(images - full).max() < 16 * torch.finfo(dtype).eps
