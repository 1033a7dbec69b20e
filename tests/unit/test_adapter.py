# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that decoupled models run under diffusers' samplers through the adapter: their first-order steps are the model's own,
higher orders follow the same path, `DDMScheduler` undoes the adapter, and an exact decoupled model becomes an exact model of
the other process.
"""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from stock_parts import TINY_UNET, tiny_conditional_unet, tiny_dit

from ddm_diffusers import (
    DDMDiTTransformer2DModel,
    DDMScheduler,
    DDMUNet2DAdapter,
    DDMUNet2DConditionModel,
    DDMUNet2DModel,
    DDMUNet2DOutput,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(scheduler, x, model):
    """Sample as a pipeline does that does not pass a generator."""
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, timestep), timestep), timestep, x).prev_sample
    return x


@pytest.fixture(scope="module")
def unet():
    """
    With one head both outputs fit the forward equation, so that the first-order step of both sides is the same. With
    scales of unit variance random weights predict a small image at pure noise, as trained ones do.
    """
    torch.manual_seed(0)
    return DDMUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        num_heads=1,
        precondition=True,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.mark.parametrize(
    "theirs",
    [
        DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        DDIMScheduler(clip_sample=False, prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
        DDIMScheduler(
            clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
        EulerDiscreteScheduler(timestep_spacing="trailing"),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        FlowMatchEulerDiscreteScheduler(shift=2.0),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.config.get('prediction_type')}",
)
@torch.no_grad()
def test_a_decoupled_model_under_first_order_samplers_takes_its_own_steps(theirs, unet):
    adapter = DDMUNet2DAdapter(unet, theirs)
    theirs.set_timesteps(8)
    noise = draw(2, 1, 8, 8, dtype=torch.float32)
    # Euler's state is of unit variance after scaling
    start = noise * theirs.init_noise_sigma if isinstance(theirs, EulerDiscreteScheduler) else noise
    if isinstance(theirs, FlowMatchEulerDiscreteScheduler):
        theirs.scale_model_input = lambda x, t: x
    result = run(theirs, start, lambda x, t: adapter(x, t).sample)

    a, b = adapter.parameterization.scales(theirs.timesteps.double())
    ours = DDMScheduler(eta=0.0, solver_order=1, clip_sample=False)
    ours.set_timesteps(timesteps=unet.process.time(a, b) * 1000)
    # the same start, at the scale of the decoupled path: x = a x_0 + b eps, both divided by b
    if isinstance(theirs, EulerDiscreteScheduler):
        start = start / (theirs.sigmas[0] ** 2 + 1) ** 0.5
    x = start.double() * (unet.process.sigma(unet.process.time(a[0], b[0])) / b[0])
    expected = run(ours, x.float(), lambda x, t: unet(x, t).sample)
    # their float32 sigmas, over 8 steps of a model of gain of order 1
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    "theirs", [DDIMScheduler(), DPMSolverMultistepScheduler(), DDPMScheduler()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("model", ["unet", "transformer"])
def test_the_adapter_in_a_stock_pipeline(model, theirs, unet):
    if model == "transformer":
        unet = tiny_dit(DDMDiTTransformer2DModel, in_channels=1)
    pipe = DDPMPipeline(DDMUNet2DAdapter(unet, theirs), theirs)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=5, generator=torch.manual_seed(0), output_type="np").images
    assert images.shape == (2, 8, 8, 1) and images.std() > 0.05


@torch.no_grad()
def test_higher_orders_of_others_follow_the_same_trajectory(unet):
    # DDPMPipeline passes a generator, which UniPC does not take: hence a loop. Its path begins where alpha is 0.006.
    noise = draw(2, 1, 8, 8, dtype=torch.float32)
    ours = DDMScheduler(eta=0.0, solver_order=3, clip_sample=False)
    ours.set_timesteps(100)
    expected = run(ours, noise, lambda x, t: unet(x, t).sample)
    for scheduler in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        theirs = scheduler(timestep_spacing="trailing")
        adapter = DDMUNet2DAdapter(unet, theirs)
        errors = []
        for num_steps in (10, 40):
            theirs.set_timesteps(num_steps)
            result = run(theirs, noise, lambda x, t, adapter=adapter: adapter(x, t).sample)
            errors.append((result - expected).abs().max())
        # a first-order method's error would fall to a quarter, a wrong model's would stay
        assert errors[1] < errors[0] / 4, scheduler


@torch.no_grad()
def test_the_adapter_undoes_the_scheduler(unet):
    # a decoupled model posing as another one, sampled by DDMScheduler again
    for theirs in (DDIMScheduler(clip_sample=False), FlowMatchEulerDiscreteScheduler()):
        adapter = DDMUNet2DAdapter(unet, theirs)
        swapped = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=3)
        swapped.set_timesteps(6)
        # given ones, at which the state has the model's own part of the image from the first
        swapped.set_timesteps(timesteps=swapped.timesteps)
        native = DDMScheduler(eta=0.0, solver_order=3, clip_sample=False)
        a, b = adapter.parameterization.scales(swapped.timesteps.double())
        native.set_timesteps(timesteps=1000 * unet.process.time(a, b))
        x = draw(2, 1, 8, 8, dtype=torch.float32)
        scale = float(unet.process.sigma(unet.process.time(a[0], b[0])) / b[0])
        result = run(swapped, x, lambda x, t, m=adapter: m(x, t).sample)
        expected = run(native, x * scale, lambda x, t: unet(x, t).sample)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_what_the_adapter_refuses(unet, rejects):
    with rejects("`scheduler`", "DDMScheduler"):
        DDMUNet2DAdapter(unet, DDMScheduler())
    with rejects("`unet`", "Linear", "DDMUNet2DModel"):
        DDMUNet2DAdapter(torch.nn.Linear(1, 1), DDIMScheduler())
    # which needs a text
    with rejects("`unet`", "DDMUNet2DConditionModel", "DDMUNet2DModel"):
        DDMUNet2DAdapter(tiny_conditional_unet(DDMUNet2DConditionModel), DDIMScheduler())
    linear = DDMUNet2DModel.from_config(unet.config, attenuation="linear", num_heads=2, out_channels=None)
    with rejects("`unet`", "'linear'", "'constant'"):
        DDMUNet2DAdapter(linear, DDIMScheduler())


# ----------------------------------------------------------------------------------------- against the other formulas


IMAGE = draw(1, 3, 8, 8, seed=7, dtype=torch.float32).tanh()


class ExactUNet(DDMUNet2DModel):
    """The model of a data set of one image: it solves x_t = (1 - t) x_0 + sqrt(t) noise for the noise."""

    def forward(self, sample, timestep, class_labels=None):
        self.seen = (timestep, class_labels)
        t = (timestep / 1000).reshape(-1, 1, 1, 1)
        noise = (sample - (1 - t) * IMAGE) / t.sqrt()
        attenuation = -IMAGE.expand_as(noise)
        return DDMUNet2DOutput(torch.cat([attenuation, noise], dim=1), attenuation, noise)


@pytest.fixture
def exact_unet():
    return ExactUNet(**TINY_UNET, num_class_embeds=3)


def diffusion(prediction_type):
    return DDIMScheduler(prediction_type=prediction_type, clip_sample=False)


@pytest.mark.parametrize("t", [20.0, 400.0, 950.0])
@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusion("epsilon"), lambda a, b, noise: noise),
        (diffusion("sample"), lambda a, b, noise: IMAGE.expand_as(noise)),
        (diffusion("v_prediction"), lambda a, b, noise: a * noise - b * IMAGE),
        (FlowMatchEulerDiscreteScheduler(), lambda a, b, noise: noise - IMAGE),
    ],
    ids=["epsilon", "sample", "v_prediction", "flow"],
)
def test_it_predicts_what_the_scheduler_expects(exact_unet, scheduler, expected, t):
    if isinstance(scheduler, DDIMScheduler):
        a = scheduler.alphas_cumprod[int(t)].sqrt()
        b = (1 - a**2).sqrt()
    else:
        a, b = 1 - t / 1000, t / 1000
    noise = draw(2, 3, 8, 8, dtype=torch.float32)
    prediction = DDMUNet2DAdapter(exact_unet, scheduler)(a * IMAGE + b * noise, t).sample
    torch.testing.assert_close(prediction, expected(a, b, noise), rtol=0, atol=2e-4)


def test_classes_timesteps_and_outputs(exact_unet):
    adapter = DDMUNet2DAdapter(exact_unet, diffusion("epsilon"))
    labels = torch.tensor([0, 2])
    (prediction,) = adapter(draw(2, 3, 8, 8, dtype=torch.float32), torch.tensor([10, 900]), labels, return_dict=False)
    times, seen = exact_unet.seen
    assert seen is labels and times.shape == (2,) and 0 < times[0] < times[1] < 1000
    assert prediction.shape == (2, 3, 8, 8)
    # what a pipeline asks of a model
    assert adapter.config.out_channels == adapter.config.in_channels == 3 and adapter.config.sample_size == 8
    assert (adapter.dtype, adapter.device) == (torch.float32, torch.device("cpu"))


def test_the_dtype_is_that_of_the_sample(tiny_unet):
    unet = tiny_unet().to(torch.bfloat16)
    adapter = DDMUNet2DAdapter(unet, diffusion("epsilon"))
    prediction = adapter(draw(2, 3, 8, 8, dtype=torch.bfloat16), 500).sample
    assert prediction.dtype == adapter.dtype == torch.bfloat16 and prediction.isfinite().all()


def test_it_predicts_what_edm_expects(exact_unet):
    """The network's input and output of arXiv 2206.00364, table 1, with `sigma_data = 0.5`."""
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(5)
    for sigma, timestep in zip(scheduler.sigmas[1:-1], scheduler.timesteps[1:], strict=True):
        noise = draw(2, 3, 8, 8, dtype=torch.float32)
        x = IMAGE + sigma * noise
        output = DDMUNet2DAdapter(exact_unet, scheduler)(scheduler.precondition_inputs(x, sigma), timestep).sample
        denoised = scheduler.precondition_outputs(x, output, sigma)
        torch.testing.assert_close(denoised, IMAGE.expand_as(denoised), rtol=0, atol=2e-3)
