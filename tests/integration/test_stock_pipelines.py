# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMScheduler` takes over the models of diffusers' own pipelines by one line, with the schedulers that
these pipelines ship with: every step evaluates the model once, at the timesteps of its own process; a seed makes the
same images again, also after saving; without noise the step is that of DDIM and Euler, image for image; and the way
back leads to the bits of the scheduler that was there before.
"""

import functools
import inspect
import json
from typing import NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from stock_parts import (
    NUM_STEPS,
    draw,
    draw_images,
    reload,
    seeded,
    tiny_conditional_unet,
    tiny_dit,
    tiny_text_parts,
    tiny_vae,
)

from ddm_diffusers import DDMScheduler


# The config of Stable Diffusion 1 and 2, whatever the scheduler
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

STABLE_DIFFUSION_XL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

FLUX = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


class Stock(NamedTuple):
    """A pipeline of diffusers as it ships, how it is called, and what a call has to do."""

    pipe: diffusers.DiffusionPipeline
    arguments: dict
    # of the images, as an array
    shape: tuple[int, ...]
    # the batch sizes with which a call of 10 steps evaluates the model
    evaluations: list[int]


# ----------------------------------------------------------------------------------------------------- tiny components


def tiny_unet(in_channels=3):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    return unet.eval()


def prompt_embeddings(hidden_size, pooled_size):
    """What text encoders make of two prompts and of two negative ones."""
    return {
        "prompt_embeds": draw(2, 5, hidden_size, seed=1),
        "negative_prompt_embeds": draw(2, 5, hidden_size, seed=2),
        "pooled_prompt_embeds": draw(2, pooled_size, seed=3),
        "negative_pooled_prompt_embeds": draw(2, pooled_size, seed=4),
    }


# ----------------------------------------------------------------------------------------------------------- pipelines


def ddpm():
    pipe = diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())
    return Stock(pipe, {"batch_size": 2}, (2, 8, 8, 3), [2] * NUM_STEPS)


def ddim():
    pipe = diffusers.DDIMPipeline(tiny_unet(), diffusers.DDIMScheduler())
    return Stock(pipe, {"batch_size": 2}, (2, 8, 8, 3), [2] * NUM_STEPS)


def latent_diffusion():
    torch.manual_seed(1)
    vqvae = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=3,
        num_vq_embeddings=64,
    )
    # as of CompVis/ldm-celebahq-256
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="leading",
    )
    pipe = diffusers.LDMPipeline(vqvae.eval(), tiny_unet(), scheduler)
    return Stock(pipe, {"batch_size": 2}, (2, 16, 16, 3), [2] * NUM_STEPS)


def dit():
    # 8 output channels: beside the noise it has learned the variance, which the pipeline cuts off
    transformer = tiny_dit(out_channels=8)
    pipe = diffusers.DiTPipeline(transformer, tiny_vae(), diffusers.DDIMScheduler(clip_sample=False))
    return Stock(pipe, {"class_labels": [1, 7], "guidance_scale": 4.0}, (2, 16, 16, 3), [4] * NUM_STEPS)


def stable_diffusion(pipeline_class, scheduler_class, evaluations, arguments=None, in_channels=4, **scheduler_options):
    pipe = pipeline_class(
        vae=tiny_vae(),
        unet=tiny_conditional_unet(in_channels=in_channels),
        scheduler=scheduler_class.from_config({**STABLE_DIFFUSION, **scheduler_options}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **tiny_text_parts(),
    )
    arguments = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["grey", ""], **(arguments or {})}
    return Stock(pipe, {"guidance_scale": 7.5, **arguments}, (2, 16, 16, 3), [4] * evaluations)


def an_image():
    return torch.rand(2, 3, 16, 16, generator=seeded(5))


def a_mask():
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 8:] = 1
    return mask


def text_to_image():
    return stable_diffusion(diffusers.StableDiffusionPipeline, diffusers.PNDMScheduler, NUM_STEPS)


def text_to_image_v_prediction():
    # as Stable Diffusion 2 with 768 pixels
    return stable_diffusion(
        diffusers.StableDiffusionPipeline, diffusers.DDIMScheduler, NUM_STEPS, prediction_type="v_prediction"
    )


def image_to_image():
    return stable_diffusion(
        diffusers.StableDiffusionImg2ImgPipeline,
        diffusers.PNDMScheduler,
        evaluations=7,
        arguments={"image": an_image(), "strength": 0.75},
    )


def inpaint():
    return stable_diffusion(
        diffusers.StableDiffusionInpaintPipeline,
        diffusers.DDIMScheduler,
        evaluations=4,
        arguments={"image": an_image(), "mask_image": a_mask(), "strength": 0.45, "height": 16, "width": 16},
    )


def inpaint_trained():
    # 9 channels: mask and masked image are the model's input
    return stable_diffusion(
        diffusers.StableDiffusionInpaintPipeline,
        diffusers.PNDMScheduler,
        evaluations=NUM_STEPS,
        arguments={"image": an_image(), "mask_image": a_mask(), "strength": 1.0, "height": 16, "width": 16},
        in_channels=9,
    )


def stable_diffusion_xl():
    unet = tiny_conditional_unet(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        # 6 numbers for sizes and crop, and the pooled prompt
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(STABLE_DIFFUSION_XL),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    arguments = {**prompt_embeddings(8, 8), "guidance_scale": 5.0}
    return Stock(pipe, arguments, (2, 16, 16, 3), [4] * NUM_STEPS)


def stable_diffusion_3(pipeline_class=diffusers.StableDiffusion3Pipeline, evaluations=NUM_STEPS, **arguments):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    pipe = pipeline_class(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.0609, scaling_factor=1.5305),
        **dict.fromkeys(
            ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        ),
    )
    arguments = {**prompt_embeddings(8, 8), "guidance_scale": 7.0, **arguments}
    return Stock(pipe, arguments, (2, 16, 16, 3), [4] * evaluations)


def image_to_image_3():
    return stable_diffusion_3(
        diffusers.StableDiffusion3Img2ImgPipeline,
        evaluations=7,
        image=an_image(),
        strength=0.7,
        height=16,
        width=16,
    )


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLUX),
        vae=tiny_vae(shift_factor=0.1159, scaling_factor=0.3611),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    embeddings = {name: value for name, value in prompt_embeddings(8, 8).items() if "negative" not in name}
    # the scale of the guidance is an input of the model, which is why there is no other half
    return Stock(
        pipe, {**embeddings, "guidance_scale": 3.5, "height": 16, "width": 16}, (2, 16, 16, 3), [2] * NUM_STEPS
    )


def sana():
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(4, 8, 8),
        decoder_block_out_channels=(4, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler
    )
    embeddings = {name: value for name, value in prompt_embeddings(8, 8).items() if "pooled" not in name}
    masks = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), torch.ones(2, 5))
    arguments = {
        **embeddings,
        **masks,
        "negative_prompt": None,
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
    }
    return Stock(pipe, arguments, (2, 32, 32, 3), [4] * NUM_STEPS)


BUILDERS = [
    ddpm,
    ddim,
    latent_diffusion,
    dit,
    text_to_image,
    image_to_image,
    inpaint,
    inpaint_trained,
    stable_diffusion_xl,
    stable_diffusion_3,
    image_to_image_3,
    flux,
    sana,
]
every_pipeline = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


# ------------------------------------------------------------------------------------------------------------- helpers


def swap(pipe, **options):
    pipe.scheduler = DDMScheduler.from_config(pipe.scheduler.config, **options)


def model_of(pipe):
    return pipe.unet if "unet" in pipe.components else pipe.transformer


@functools.cache
def original_images(build):
    """What the pipeline draws as it ships."""
    pipe, arguments, *_ = build()
    return draw_images(pipe, arguments)


@functools.cache
def swapped_images(build):
    """What it draws after the swap."""
    pipe, arguments, *_ = build()
    swap(pipe)
    return draw_images(pipe, arguments)


# ------------------------------------------------------------------------------------------------------------ the swap


@every_pipeline
def test_one_evaluation_a_step(build):
    pipe, arguments, shape, evaluations = build()
    swap(pipe)
    batches, told = [], []

    def record(module, inputs, options, output):
        batches.append(len(inputs[0] if inputs else options["hidden_states"]))
        timestep = inputs[1] if len(inputs) > 1 else options["timestep"]
        told.append(float(timestep.flatten()[0]))

    model_of(pipe).register_forward_hook(record, with_kwargs=True)
    images = draw_images(pipe, arguments)
    assert batches == evaluations

    # what the model is told are its own timesteps, the last of them where the run starts from an image
    expected = pipe.scheduler.timesteps[-len(evaluations) :].tolist()
    assert len(pipe.scheduler.timesteps) == NUM_STEPS
    if build is flux:  # which tells its model fractions
        told = [timestep * 1000 for timestep in told]
    assert told == pytest.approx(expected, rel=1e-6)
    assert told == sorted(set(told), reverse=True)

    assert images.shape == shape
    assert np.isfinite(images).all()
    assert images.std() > 0
    # another sampler, hence other images
    assert not np.array_equal(images, original_images(build))


@every_pipeline
def test_a_seed_makes_the_same_images_again(build):
    pipe, arguments, *_ = build()
    swap(pipe)
    # The seed of all draws: half of these pipelines pass no generator to the scheduler's step, as those who use
    # diffusers' own stochastic schedulers know.
    images = draw_images(pipe, arguments, torch.manual_seed(0))
    torch.rand(1)  # whatever a program draws between two calls
    assert np.array_equal(images, draw_images(pipe, arguments, torch.manual_seed(0)))
    assert not np.array_equal(images, draw_images(pipe, arguments, torch.manual_seed(1)))


@every_pipeline
def test_without_fresh_noise_a_generator_of_ones_own_is_enough(build):
    pipe, arguments, *_ = build()
    swap(pipe, eta=0.0)
    images = draw_images(pipe, arguments, seeded(0))
    torch.rand(1)
    assert np.array_equal(images, draw_images(pipe, arguments, seeded(0)))


@pytest.mark.parametrize(
    "build",
    [ddim, latent_diffusion, text_to_image, image_to_image, inpaint, stable_diffusion_xl],
    ids=lambda build: build.__name__,
)
def test_the_noise_is_the_schedulers_own(build):
    # These pipelines pass an `eta` of 0 to a step that has such an argument, without being asked.
    pipe, arguments, *_ = build()
    config = pipe.scheduler.config
    images = []
    for eta in (1.0, 0.0):
        pipe.scheduler = DDMScheduler.from_config(config, eta=eta)
        images.append(draw_images(pipe, arguments))
    assert not np.array_equal(*images)


@every_pipeline
def test_the_way_back(build):
    pipe, arguments, *_ = build()
    original = pipe.scheduler
    swap(pipe)
    draw_images(pipe, arguments)
    pipe.scheduler = type(original).from_config(pipe.scheduler.config)
    assert np.array_equal(draw_images(pipe, arguments), original_images(build))
    for name, value in original.config.items():
        if not name.startswith("_"):
            assert pipe.scheduler.config[name] == value, name


@every_pipeline
def test_a_pipeline_from_a_folder(build, own_memory, tmp_path):
    pipe, arguments, *_ = build()
    original = type(pipe.scheduler)
    # a config from a file names its class, and has lost which of its values were defaults
    loaded = reload(pipe, tmp_path, own_memory)
    swap(loaded)
    assert np.array_equal(draw_images(loaded, arguments), swapped_images(build))
    loaded.scheduler = original.from_config(loaded.scheduler.config)
    assert np.array_equal(draw_images(loaded, arguments), original_images(build))


@every_pipeline
def test_save_and_load(build, own_memory, tmp_path):
    pipe, arguments, *_ = build()
    original = type(pipe.scheduler)
    swap(pipe, solver_order=2, eta=0.5, time_grid="power", t_min=0.01, rho=1.0)
    images = draw_images(pipe, arguments)
    loaded = reload(pipe, tmp_path, own_memory)
    if build is ddim:
        # DDIMPipeline makes DDIM of every scheduler that it is given. Our options survive in its config.
        assert type(loaded.scheduler) is diffusers.DDIMScheduler
        swap(loaded)
    assert type(loaded.scheduler) is DDMScheduler
    assert np.array_equal(draw_images(loaded, arguments), images)
    assert not np.array_equal(images, swapped_images(build))
    loaded.scheduler = original.from_config(loaded.scheduler.config)
    assert np.array_equal(draw_images(loaded, arguments), original_images(build))


# ---------------------------------------------------------------------------------- the step is that of other samplers


@pytest.mark.parametrize(
    "build",
    [text_to_image_v_prediction, inpaint, stable_diffusion_xl, stable_diffusion_3, image_to_image_3, flux],
    ids=lambda build: build.__name__,
)
def test_without_noise_the_images_are_those_of_ddim_and_euler(build):
    # On one path, at the same timesteps, there is one deterministic step of first order. This is the proof that betas,
    # shift, prediction type, guidance and the point of entry are the model's own.
    pipe, arguments, *_ = build()
    if isinstance(pipe.scheduler, diffusers.DDIMScheduler):
        # Stable Diffusion's DDIM stops at the noise of timestep 0
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    grid = {}
    if "sigmas" in inspect.signature(pipe.scheduler.set_timesteps).parameters and build is not stable_diffusion_xl:
        grid = {"sigmas": np.linspace(1, 1 / NUM_STEPS, NUM_STEPS).tolist()}  # before the shift
    images = draw_images(pipe, arguments, **grid)
    if not grid:
        grid = {"timesteps": pipe.scheduler.timesteps.long().tolist()}
    swap(pipe, eta=0.0, solver_order=1)
    again = draw_images(pipe, arguments, **grid)
    # 10 steps in float32; another order, grid, shift or end of the betas changes a pixel by more than 1e-3
    np.testing.assert_allclose(again, images, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------ what a config does not spell out


def test_a_config_file_that_leaves_out_the_prediction_type(own_memory, tmp_path):
    # scheduler_config.json of google/ddpm-cifar10-32, of the time when epsilon was all there was
    pipe, arguments, shape, _ = ddpm()
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    assert file.exists()
    config = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    }
    file.write_text(json.dumps(config))
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    own_memory(loaded.unet)
    swap(loaded)
    assert loaded.scheduler.config.prediction_type == "epsilon"
    images = draw_images(loaded, arguments)
    assert images.shape == shape
    pipe.scheduler = DDMScheduler(prediction_type="epsilon", beta_start=1e-4, beta_end=0.02, clip_sample=True)
    assert np.array_equal(images, draw_images(pipe, arguments))
    # the file by itself, without a scheduler of diffusers in between
    pipe.scheduler = DDMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert np.array_equal(images, draw_images(pipe, arguments))


@pytest.mark.parametrize(
    "scheduler, adopted",
    [
        (
            diffusers.DDPMScheduler(),
            {
                "prediction_type": "epsilon",
                "clip_sample": True,
                "clip_sample_range": 1.0,
                "num_train_timesteps": 1000,
                "beta_start": 1e-4,
                "beta_end": 0.02,
                "beta_schedule": "linear",
                "trained_betas": None,
                "thresholding": False,
                "solver_order": 2,
            },
        ),
        (diffusers.DDPMScheduler(prediction_type="sample"), {"prediction_type": "sample", "clip_sample": True}),
        (diffusers.DDIMScheduler(clip_sample=False), {"prediction_type": "epsilon", "clip_sample": False}),
        (
            diffusers.DPMSolverMultistepScheduler(),
            {"prediction_type": "epsilon", "clip_sample": False, "solver_order": 2, "beta_schedule": "linear"},
        ),
        (diffusers.DPMSolverMultistepScheduler(solver_order=3), {"clip_sample": False, "solver_order": 3}),
        (diffusers.UniPCMultistepScheduler(), {"clip_sample": False, "solver_order": 2}),
        (
            diffusers.PNDMScheduler.from_config(STABLE_DIFFUSION),
            {
                "prediction_type": "epsilon",
                "clip_sample": False,
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
            },
        ),
        (
            diffusers.EulerDiscreteScheduler.from_config(STABLE_DIFFUSION_XL),
            {"prediction_type": "epsilon", "clip_sample": False, "beta_schedule": "scaled_linear"},
        ),
        (
            diffusers.EulerDiscreteScheduler(),
            {"prediction_type": "epsilon", "clip_sample": False, "beta_end": 0.02, "beta_schedule": "linear"},
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(),
            {"prediction_type": "flow_prediction", "clip_sample": False, "shift": 1.0},
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            {"prediction_type": "flow_prediction", "clip_sample": False, "shift": 3.0},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, diffusers.SchedulerMixin) else "",
)
def test_what_another_scheduler_leaves_at_its_default_is_adopted(scheduler, adopted):
    # diffusers' own `from_config` drops these, and this class's defaults, which differ, would take their place
    config = DDMScheduler.from_config(scheduler.config).config
    assert {name: config[name] for name in adopted} == adopted
    assert config["attenuation"] == "constant"
