# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMInpaintPipeline` gives the known pixels back as they are, that during the run they are the forward process of
the image along one path (its law against the closed form, by sampling), and that the rest follows from them.

Every Monte Carlo tolerance is 6 standard errors.
"""

import math

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DDMInpaintPipeline, DDMPipeline, DDMScheduler, DecoupledProcess
from ddm_diffusers.pipelines.pipeline_ddm_inpaint import reconstruction_guidance


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline(tiny_unet):
    def make(scheduler_options=None, **unet_options):
        scheduler = DDMScheduler(**(scheduler_options or {}))
        process = {name: scheduler.config[name] for name in ("attenuation", "noise_schedule")}
        pipe = DDMInpaintPipeline(tiny_unet(**{**process, **unet_options}), scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def image():
    return torch.rand(2, 3, 8, 8, generator=seeded(3)).mul(255).round() / 255


@pytest.fixture
def mask():
    """White on the right half."""
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    return mask


PROCESSES = [{}, {"attenuation": "linear"}, {"noise_schedule": "linear"}, {"solver_order": 3, "eta": 0.0}]


@pytest.mark.parametrize("resampling", [0, 2])
@pytest.mark.parametrize("scheduler_options", PROCESSES, ids=str)
def test_known_pixels_come_back_as_they_are(scheduler_options, resampling, pipeline, image, mask):
    pipe = pipeline(scheduler_options)
    arguments = {"num_inference_steps": 3, "num_resampling_steps": resampling}
    filled = pipe(image, mask, generator=seeded(), output_type="pt", **arguments).images
    assert torch.equal(filled[..., :4], image[..., :4])
    assert filled.isfinite().all() and filled[..., 4:].std() > 0
    pils = [PIL.Image.fromarray(each.permute(1, 2, 0).mul(255).round().numpy().astype("uint8")) for each in image]
    as_pil = pipe(pils, PIL.Image.fromarray(mask[0].mul(255).numpy().astype("uint8")), generator=seeded(), **arguments)
    for before, after in zip(pils, as_pil.images, strict=True):
        assert np.array_equal(np.array(before)[:, :4], np.array(after)[:, :4])
        assert not np.array_equal(np.array(before)[:, 4:], np.array(after)[:, 4:])


def test_the_rest_follows_from_what_is_known(pipeline, image, mask):
    pipe = pipeline()
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    filled = pipe(image, mask, generator=seeded(), **arguments).images
    other = pipe(torch.where(mask > 0, image, 1 - image), mask, generator=seeded(), **arguments).images
    assert not torch.equal(filled[..., 4:], other[..., 4:])
    # but not from what is hidden
    hidden = pipe(torch.where(mask > 0, 1 - image, image), mask, generator=seeded(), **arguments).images
    assert torch.equal(filled, hidden)


@pytest.mark.parametrize("resampling", [0, 1])
@pytest.mark.parametrize("scheduler_options", PROCESSES[:3], ids=str)
def test_the_known_region_is_the_forward_process_along_one_path(scheduler_options, resampling, pipeline):
    """A constant image of many pixels: each is a path of its own, so that their statistics are those of the process."""
    size = 64
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    pipe = pipeline(scheduler_options, in_channels=1, sample_size=size, **blocks)  # attention costs most, at this size
    process = pipe.scheduler.process
    value = 0.6
    image = torch.full((4, 1, size, size), value / 2 + 0.5)
    mask = torch.zeros(1, size, size)
    mask[:, :2] = 1
    latents = torch.randn(4, 1, size, size, generator=seeded(7))
    states = []

    def callback(pipe, step_index, timestep, tensors):
        states.append(tensors["latents"][:, :, 2:].flatten().double())

    pipe(
        image,
        mask,
        num_inference_steps=4,
        num_resampling_steps=resampling,
        latents=latents,
        generator=seeded(1),
        callback_on_step_end=callback,
    )
    times = [*(pipe.scheduler.timesteps / 1000).tolist(), 0.0]
    paths = [latents[:, :, 2:].flatten().double(), *states]
    # linear attenuation's slope k, which is drawn as clamp(N(0, 1), -1, 1), adds -k t (1 - t) / 2
    slope_variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) if process.attenuation == "linear" else 0.0
    slopes = [slope_variance**0.5 * t * (1 - t) / 2 for t in times]
    noises = [x - process.alpha(t) * value for t, x in zip(times, paths, strict=True)]
    count = len(noises[0])
    for i, (t, noise) in enumerate(zip(times, noises, strict=True)):
        variance = process.sigma(t) ** 2 + slopes[i] ** 2
        assert abs(float(noise.mean())) <= 6 * (variance / count) ** 0.5 + 1e-6
        assert abs(float(noise.var()) - variance) <= 6 * variance * (2 / count) ** 0.5 + 1e-6
        if i > 0:
            # a Wiener process on the clock sigma^2: the covariance of two times is the variance at the earlier one
            before = process.sigma(times[i - 1]) ** 2 + slopes[i - 1] ** 2
            covariance = process.sigma(t) ** 2 + slopes[i - 1] * slopes[i]
            spread = (before * variance + covariance**2) ** 0.5
            assert abs(float((noises[i - 1] * noise).mean()) - covariance) <= 6 * spread / count**0.5 + 1e-6


def test_a_mask_of_everything_is_generation(pipeline, image):
    """But for the noise that the path of the known pixels draws, which a deterministic sampler does not mix in."""
    pipe = pipeline({"eta": 0.0})
    latents = torch.randn(2, 3, 8, 8, generator=seeded())
    arguments = {"num_inference_steps": 3, "latents": latents, "output_type": "pt"}
    generated = DDMPipeline(pipe.unet, DDMScheduler(eta=0.0))
    generated.set_progress_bar_config(disable=True)
    expected = generated(batch_size=2, **arguments).images
    assert torch.equal(pipe(image, torch.ones(1, 8, 8), **arguments).images, expected)


def test_the_model_sees_the_image_at_every_step(pipeline, image, mask):
    pipe = pipeline({"eta": 0.0}, in_channels=3)
    seen = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pipe(image, mask, num_inference_steps=3, num_resampling_steps=2, generator=seeded())
    assert len(seen) == 9
    for step in range(3):  # whenever a step is taken again, the known pixels are those of the same path
        for again in (1, 2):
            assert torch.equal(seen[3 * step][..., :4], seen[3 * step + again][..., :4])
            assert not torch.equal(seen[3 * step][..., 4:], seen[3 * step + again][..., 4:])


def test_models_of_other_processes(plain_unet, image, mask):
    """A DDPM with our scheduler: what the model sees of the known pixels is the forward process of that one."""
    scheduler = DDMScheduler.from_config(diffusers.DDPMScheduler().config)
    pipe = DDMInpaintPipeline(plain_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], inputs[1])))
    arguments = {"num_inference_steps": 4, "num_resampling_steps": 1, "output_type": "pt"}
    filled = pipe(torch.full_like(image, 0.9), mask, generator=seeded(), **arguments).images
    assert torch.equal(filled[..., :4], torch.full((2, 3, 8, 4), 0.9))
    for x, timestep in seen:
        alpha_bar = float(diffusers.DDPMScheduler().alphas_cumprod[int(timestep)])
        known = x[..., :4]
        count, b = known.numel(), (1 - alpha_bar) ** 0.5
        assert abs(float(known.mean()) - 0.8 * alpha_bar**0.5) <= 6 * b / count**0.5
        assert abs(float(known.var()) - b**2) <= 6 * b**2 * (2 / count) ** 0.5


@pytest.mark.parametrize("size", [(7, 5), (9, 8)])
def test_any_size(size, pipeline):
    pipe = pipeline()
    image, mask = torch.rand(1, 3, *size, generator=seeded()), torch.zeros(1, *size)
    mask[:, 0] = 1
    filled = pipe(image, mask, num_inference_steps=2, output_type="pt").images
    assert filled.shape == image.shape and torch.equal(filled[:, :, 1:], image[:, :, 1:])


def test_masks_images_and_results(pipeline, image, mask):
    pipe = pipeline()
    masks = torch.stack([mask, 1 - mask])
    filled = pipe(
        image, masks, num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], output_type="pt"
    ).images
    assert torch.equal(filled[:2, ..., :4], image[[0, 0], ..., :4])
    assert torch.equal(filled[2:, ..., 4:], image[[1, 1], ..., 4:])
    assert not torch.equal(filled[0], filled[1])
    grey = pipe(image, 0.4 + 0.2 * mask, generator=seeded(), output_type="np", return_dict=False)
    assert len(grey) == 1 and np.array_equal(grey[0][:, :, :4], image[..., :4].permute(0, 2, 3, 1).numpy())


def test_classes(pipeline, image, mask):
    pipe = pipeline(num_class_embeds=3)
    seen = []
    pipe.unet.register_forward_pre_hook(
        lambda module, inputs, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    arguments = {"num_inference_steps": 1, "generator": seeded()}
    pipe(image, mask, **arguments)
    pipe(image, mask, class_labels=[0, 2], **arguments)
    pipe(image, mask, class_labels=1, guidance_scale=2.0, **arguments)
    assert seen == [[3, 3], [0, 2], [3, 3, 1, 1]]


class MirrorModel(torch.nn.Module):
    """
    The exact model of images whose right half mirrors the left one, of independent pixels from N(0, 1): both noisy copies
    tell a pixel, and its estimate is linear in their sum. It knows a decoupled process, or another one by its prediction.
    """

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler
        self.config = FrozenDict(in_channels=1, block_out_channels=(1,), num_class_embeds=None)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.differentiated = []

    def forward(self, x, timestep, return_dict):
        self.differentiated.append(x.requires_grad)
        process, parameterization = self.scheduler.process, self.scheduler.parameterization
        a, b = (float(scale) for scale in parameterization.scales(timestep.double()))
        x_0 = a * (x + x.flip(-1)) / (2 * a**2 + b**2)
        noise = (x - a * x_0) / b
        if self.scheduler.config.prediction_type == "decoupled":
            return (torch.cat([process.coefficients(x_0, torch.zeros_like(x_0)), noise], dim=1),)
        return (parameterization.output(x_0, noise, a, b),)


MIRROR_PROCESSES = [
    {},
    {"attenuation": "linear"},
    {"noise_schedule": "linear"},
    {"solver_order": 3, "eta": 0.0},
    {"prediction_type": "epsilon"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "flow_prediction"},
    {"prediction_type": "flow_prediction", "noise_schedule": "linear"},
]


def mirror(mask, scale, **options):
    """An image whose left half is given and what its right half was filled with, by columns from the middle."""
    scheduler = DDMScheduler(clip_sample=False, **options)
    pipe = DDMInpaintPipeline(MirrorModel(scheduler), scheduler)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(40, 1, 8, 8, generator=seeded(4))
    filled = pipe(
        image,
        mask,
        num_inference_steps=4,
        reconstruction_guidance_scale=scale,
        generator=seeded(),
        output_type="pt",
    ).images
    assert torch.equal(filled[..., :4], image[..., :4])
    assert pipe.unet.differentiated == [False, *[scale > 0] * 3]  # pure noise tells nothing
    return filled[..., :4].flip(-1), filled[..., 4:]


@pytest.mark.parametrize("scheduler_options", MIRROR_PROCESSES, ids=str)
def test_reconstruction_guidance_leads_to_what_is_known(scheduler_options, mask):
    errors = []
    for scale in (0.0, 1.0):
        expected, filled = mirror(mask, scale, **scheduler_options)
        errors.append(float((filled - expected).square().mean()))
    assert errors[1] < errors[0] / 2, errors


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
def test_reconstruction_guidance_is_the_same_whatever_the_model_predicts(noise_schedule, mask):
    """Models that know the same are asked at the same noise: on the flow's path, and on the one of variance 1."""
    for one, other in (("decoupled", "flow_prediction"), ("sample", "v_prediction")):
        results = (mirror(mask, 1.5, prediction_type=each, noise_schedule=noise_schedule)[1] for each in (one, other))
        torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheduler_options", PROCESSES[:2], ids=str)
def test_reconstruction_guidance_with_classes_and_resampling(scheduler_options, dtype, pipeline, image, mask):
    pipe = pipeline(scheduler_options, num_class_embeds=3)
    arguments = {"num_inference_steps": 3, "num_resampling_steps": 1, "class_labels": [0, 2], "guidance_scale": 1.5}
    arguments |= {"output_type": "pt", "latents": torch.randn(2, 3, 8, 8, generator=seeded(5))}
    states = []
    arguments["callback_on_step_end"] = lambda pipe, i, t, tensors: states.append(tensors["latents"])

    def fill(scale):
        return pipe(image, mask, generator=seeded(), reconstruction_guidance_scale=scale, **arguments).images

    guided, unguided = fill(1.0), fill(0.0)
    filled = fill(1.0) if dtype == torch.float32 else None
    if filled is None:
        pipe.to(dtype)
        filled = fill(1.0)
        # the rounding of a few evaluations, against what guidance does
        assert (filled - guided).abs().mean() < (guided - unguided).abs().mean()
    else:
        assert torch.equal(filled, guided)
    assert torch.equal(filled[..., :4], image[..., :4]) and filled.isfinite().all()
    assert not any(state.requires_grad for state in states) and states[-1].dtype == dtype
    assert all(weight.grad is None for weight in pipe.unet.parameters())


def test_callbacks_and_progress(pipeline, image, mask, capsys):
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=False)
    seen = []

    def callback(pipe, step_index, timestep, tensors):
        seen.append(step_index)
        pipe._interrupt = step_index == 1

    pipe(image, mask, num_inference_steps=3, num_resampling_steps=1, callback_on_step_end=callback)
    assert seen == [0, 1]
    assert "4/6" in capsys.readouterr().err


def test_a_checkpoint_of_another_pipeline_loads_and_saves(tiny_unet, image, mask, tmp_path):
    DDMPipeline(tiny_unet(num_class_embeds=2), DDMScheduler()).save_pretrained(tmp_path / "generation")
    pipe = DDMInpaintPipeline.from_pretrained(tmp_path / "generation")
    pipe.save_pretrained(tmp_path / "inpainting")
    again = DDMInpaintPipeline.from_pretrained(tmp_path / "inpainting")
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
        for weight in each.unet.parameters():
            weight.data = weight.data.clone()
    one, two = (
        each(image, mask, num_inference_steps=2, generator=seeded(), output_type="np").images for each in (pipe, again)
    )
    assert np.array_equal(one, two)


WHITE, GOOD = torch.ones(1, 8, 8), torch.full((1, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    "image, mask, arguments, parts",
    [
        (None, WHITE, {}, ("`image`", "None")),
        (GOOD, None, {}, ("`mask_image`", "None")),
        (GOOD[:, :1], WHITE, {}, ("`image`", "(1, 1, 8, 8)", "(batch_size, 3,")),
        (GOOD, 0 * WHITE, {}, ("`mask_image`", "no pixel", "white")),
        (GOOD.expand(2, -1, -1, -1), torch.stack([WHITE, 0 * WHITE]), {}, ("`mask_image`", "no pixel")),
        (GOOD, WHITE[:, :4], {}, ("`mask_image`", "(4, 8)", "(8, 8)")),
        (GOOD, torch.ones(1, 3, 8, 8), {}, ("`mask_image`", "(1, 3, 8, 8)", "(batch_size, 1,")),
        (GOOD, torch.ones(2, 1, 8, 8), {}, ("`mask_image`", "2 masks", "each of the 1")),
        (GOOD, WHITE * 255, {}, ("`mask_image`", "255", "[0, 1]")),
        (GOOD, WHITE, {"num_inference_steps": 0}, ("`num_inference_steps`", "0")),
        (GOOD, WHITE, {"num_resampling_steps": -1}, ("`num_resampling_steps`", "-1", "0 or more")),
        (GOOD, WHITE, {"num_images_per_prompt": 0}, ("`num_images_per_prompt`", "0", "1 or more")),
        (GOOD, WHITE, {"class_labels": 1}, ("`class_labels`", "1", "None")),
        (GOOD, WHITE, {"guidance_scale": 2.0}, ("`guidance_scale`", "2.0", "1.0")),
        (
            GOOD,
            WHITE,
            {"reconstruction_guidance_scale": -1.0},
            ("`reconstruction_guidance_scale`", "-1.0", "0 or more"),
        ),
        (
            GOOD,
            WHITE,
            {"reconstruction_guidance_scale": math.inf},
            ("`reconstruction_guidance_scale`", "inf", "finite"),
        ),
        (GOOD, WHITE, {"reconstruction_guidance_scale": None}, ("`reconstruction_guidance_scale`", "None", "number")),
        (GOOD, WHITE, {"latents": torch.zeros(2, 3, 8, 8)}, ("`latents`", "(2, 3, 8, 8)", "(1, 3, 8, 8)")),
        (GOOD, WHITE, {"generator": [seeded()] * 2}, ("`generator`", "length 2", "each of the 1")),
        (GOOD, WHITE, {"output_type": "jpg"}, ("`output_type`", "'jpg'")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(image, mask, arguments, parts, pipeline, rejects):
    pipe = pipeline()
    pipe.scheduler.set_timesteps(4)
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    with rejects(*parts):
        pipe(image, mask, **{"num_inference_steps": 2, **arguments})
    assert not evaluated and len(pipe.scheduler.timesteps) == 4 and pipe.scheduler.step_index is None


def test_reconstruction_guidance_needs_gradients(pipeline, rejects):
    with rejects("`reconstruction_guidance_scale`", "0.5", "inference_mode"), torch.inference_mode():
        pipeline()(GOOD, WHITE, reconstruction_guidance_scale=0.5)


def test_models_of_another_kind_are_refused(pipeline, plain_unet, rejects):
    with rejects("`unet`", "2 `conditioning_channels`", "DDMImageToImagePipeline"):
        pipeline(conditioning_channels=2)(GOOD, WHITE)
    with rejects("`class_labels`", "None", "UNet2DModel"):
        DDMInpaintPipeline(plain_unet(out_channels=6, num_class_embeds=3), DDMScheduler())(GOOD, WHITE)
    with rejects("`guidance_scale`", "2.0", "without `class_labels`"):
        pipeline(num_class_embeds=3)(GOOD, WHITE, guidance_scale=2.0)
    with rejects("`vae`", "AutoencoderKL"):
        vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
        DDMInpaintPipeline(plain_unet(out_channels=6), DDMScheduler(), vae=vae)


# ------------------------------------------------------------------------------------------------- the guidance in closed form


def draw_rows(seed):
    """Known images and noisy ones, of 6 pixels."""
    return torch.randn(2, 3, 6, generator=seeded(seed), dtype=torch.float64).unbind()


def gaussian_estimate(process, covariance, x_t, t):
    """The exact estimate of images of a Gaussian law, `(N, pixels)`."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    variance = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance), dtype=covariance.dtype)
    return x_t @ torch.linalg.solve(variance, alpha * covariance)


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@given(t=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_guidance_by_independent_pixels_gives_the_known_ones(noise_schedule, t, seed):
    process, (known, x_t) = DecoupledProcess(noise_schedule=noise_schedule), draw_rows(seed)
    x_t.requires_grad_()
    is_known = torch.arange(6) < 4
    x_0 = gaussian_estimate(process, torch.eye(6, dtype=torch.float64), x_t, t)
    guided = x_0 + reconstruction_guidance(x_0, x_t, known, is_known, process.alpha(t), process.sigma(t))
    torch.testing.assert_close(guided[:, :4], known[:, :4], rtol=0, atol=1e-12)
    assert torch.equal(guided[:, 4:], x_0[:, 4:])


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@given(seed=st.integers(0, 2**32 - 1))
def test_guidance_near_pure_noise_is_regression_on_the_known_pixels(noise_schedule, seed):
    """Where `x_t` tells nothing of the image, `E[x_0 | known]` is all there is to say: `Cov(x_0, known) known`."""
    process, (known, x_t) = DecoupledProcess(noise_schedule=noise_schedule), draw_rows(seed)
    weights = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # four independent pixels, and two that are sums of them and of what they do not tell
    covariance = torch.eye(6, dtype=torch.float64)
    covariance[:4, 4:], covariance[4:, :4] = weights, weights.T
    covariance[4:, 4:] += weights.T @ weights
    t = 1 - 1e-7
    x_t.requires_grad_()
    x_0 = gaussian_estimate(process, covariance, x_t, t)
    guided = x_0 + reconstruction_guidance(x_0, x_t, known, torch.arange(6) < 4, process.alpha(t), process.sigma(t))
    torch.testing.assert_close(guided[:, 4:], known[:, :4] @ weights, rtol=0, atol=1e-4)
