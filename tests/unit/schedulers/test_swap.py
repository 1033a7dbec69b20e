# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMScheduler` takes over the models of other processes: it is exact for a model that knows the image, in first
order it is DDIM (or Euler, for velocities) and in second order DPM-Solver++(2M), configs survive the way there and back,
and what contradicts itself is refused. And that decoupled models run under diffusers' samplers through the adapter.
"""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from stock_parts import tiny_conditional_unet, tiny_dit

from ddm_diffusers import (
    DDMDiTTransformer2DModel,
    DDMScheduler,
    DDMUNet2DAdapter,
    DDMUNet2DConditionModel,
    DDMUNet2DModel,
)


VP_TYPES = ["epsilon", "sample", "v_prediction"]
BETAS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.001 * (1 + i / 10) for i in range(100)], "num_train_timesteps": 100},
]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def toy_output(x):
    """A model of nothing in particular, not linear, whose estimates leave the range of images."""
    return (1.1 * x).tanh() * 0.7 + 0.05


def run(scheduler, x, model=None):
    """Sample as a pipeline does that does not pass a generator."""
    for timestep in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = toy_output(x_in) if model is None else model(x_in, timestep)
        x = scheduler.step(output, timestep, x).prev_sample
    return x


def run_for(num_steps, scheduler, x):
    scheduler.set_timesteps(num_steps)
    return run(scheduler, x)


def vp_output(prediction_type, x, x_0, alphas_cumprod):
    a, b = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
    noise = (x - a * x_0) / b
    return {"epsilon": noise, "sample": x_0, "v_prediction": a * noise - b * x_0}[prediction_type]


# ---------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.0, "solver_order": 3, "time_grid": "ratio"}], ids=str)
@pytest.mark.parametrize("prediction_type", VP_TYPES)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_perfect_model_gives_back_the_image(prediction_type, options, betas, num_steps):
    config = DDPMScheduler(prediction_type=prediction_type, **betas).config
    scheduler = DDMScheduler.from_config(config, **options)
    alphas_cumprod = DDPMScheduler(**betas).alphas_cumprod.double()
    scheduler.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == num_steps
    if prediction_type != "epsilon" or num_steps == 1:
        assert scheduler.timesteps[0] == len(alphas_cumprod) - 1
    assert not scheduler.timesteps.is_floating_point()
    x_0 = draw(2, 3, 4, seed=1).clamp(-1, 1)
    result = run(scheduler, draw(2, 3, 4), lambda x, t: vp_output(prediction_type, x, x_0, alphas_cumprod[t]))
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.0, "solver_order": 3, "time_grid": "ratio"}], ids=str)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_perfect_velocity_gives_back_the_image(options, shift, num_steps):
    scheduler = DDMScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=shift).config, **options)
    scheduler.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == num_steps and scheduler.timesteps[0] == 1000
    x_0 = draw(2, 3, 4, seed=1)
    result = run(scheduler, draw(2, 3, 4), lambda x, t: (x - x_0) / (t.double() / 1000))
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver_order", [1, 2])
@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_a_noise_prediction_is_asked_in_the_middle_of_the_first_step(num_steps, solver_order):
    scheduler = DDMScheduler(prediction_type="epsilon", eta=0.0, solver_order=solver_order, clip_sample=False)
    scheduler.set_timesteps(num_steps)
    alphas_cumprod = DDPMScheduler().alphas_cumprod.double()
    ratios = (alphas_cumprod / (1 - alphas_cumprod)).sqrt()[scheduler.timesteps[:2]]
    assert float(ratios[0] / ratios[1]) == pytest.approx(0.5, rel=0.03)  # timesteps are whole numbers

    # The state is pure noise, whose part that the step keeps has nothing of the image.
    x, x_0, first = draw(2, 3), draw(2, 3, seed=1), scheduler.timesteps[0]
    output = vp_output("epsilon", x, x_0, alphas_cumprod[first])
    a, b = alphas_cumprod[scheduler.timesteps[1]] ** 0.5, (1 - alphas_cumprod[scheduler.timesteps[1]]) ** 0.5
    result = scheduler.step(output, first, x).prev_sample
    torch.testing.assert_close(result, a * x_0 + b * x, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the same trajectories


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("betas", [b for b in BETAS if b.get("beta_schedule") != "sigmoid"], ids=str)  # not DDIM's
@pytest.mark.parametrize("prediction_type", VP_TYPES)
def test_first_order_is_ddim(prediction_type, betas, clip_sample, noise_schedule):
    theirs = DDIMScheduler(
        prediction_type=prediction_type, clip_sample=clip_sample, timestep_spacing="trailing", **betas
    )
    expected = run_for(10, theirs, draw(2, 3, 8))
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1, noise_schedule=noise_schedule)
    ours.set_timesteps(timesteps=theirs.timesteps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    # DDIM keeps alphas_cumprod in float32, and the first epsilon is divided by its root
    torch.testing.assert_close(run(ours, draw(2, 3, 8)), expected, rtol=0, atol=1e-5 * max(1, expected.abs().max()))


# Theirs computes in float32, and the first estimate from a noise prediction is divided by alpha, 0.006 at timestep 999: what
# is compared to 1e-5 begins where that is 0.28, at 500.
@pytest.mark.parametrize("first, tolerance", [(999, 2e-4), (500, 1e-5)])
@pytest.mark.parametrize("prediction_type", VP_TYPES)
def test_second_order_is_dpm_solver(prediction_type, first, tolerance):
    theirs = DPMSolverMultistepScheduler(prediction_type=prediction_type, final_sigmas_type="zero")
    theirs.set_timesteps(timesteps=torch.linspace(first, first / 10, 10).round().long().tolist())
    expected = run(theirs, draw(2, 3, 8))
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, extrapolation="log_snr")
    assert ours.config.solver_order == 2 and not ours.config.clip_sample
    ours.set_timesteps(timesteps=theirs.timesteps)
    torch.testing.assert_close(run(ours, draw(2, 3, 8)), expected, rtol=0, atol=tolerance)


def test_second_order_is_dpm_solver_for_velocities():
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    theirs.set_timesteps(10)
    # from where alpha is not 0, which theirs takes the logarithm of
    sigmas = theirs.sigmas[1:-1]
    timesteps = theirs.timesteps[1:]
    theirs.set_begin_index(1)
    x = draw(2, 3, 8)
    expected = x
    for timestep in timesteps:
        expected = theirs.step(toy_output(expected), timestep, expected).prev_sample
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, extrapolation="log_snr")
    ours.set_timesteps(timesteps=1000 * sigmas)
    torch.testing.assert_close(run(ours, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_first_order_is_euler_for_velocities(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(10)
    expected = run(theirs, draw(2, 3, 8, dtype=torch.float32))
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    ours.set_timesteps(timesteps=theirs.timesteps)
    torch.testing.assert_close(run(ours, draw(2, 3, 8, dtype=torch.float32)), expected, rtol=0, atol=1e-5)


def test_custom_sigmas_are_shifted_as_diffusers_does():
    sigmas = [1.0, 0.7, 0.2]
    for config, mu in (({"shift": 3.0}, None), ({"use_dynamic_shifting": True}, 0.8)):
        theirs = FlowMatchEulerDiscreteScheduler(**config)
        theirs.set_timesteps(sigmas=sigmas, mu=mu)
        ours = DDMScheduler.from_config(theirs.config)
        ours.set_timesteps(sigmas=sigmas, mu=mu)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps)
        ours.set_timesteps(3, sigmas=sigmas, mu=mu)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps)


def test_thresholding_is_that_of_diffusers():
    theirs = DDIMScheduler(thresholding=True, sample_max_value=1.5, timestep_spacing="trailing", clip_sample=False)
    expected = run_for(10, theirs, draw(2, 3, 8))
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    ours.set_timesteps(timesteps=theirs.timesteps)
    torch.testing.assert_close(run(ours, draw(2, 3, 8)), expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- start points


@pytest.mark.parametrize("theirs", [DDPMScheduler(), DDIMScheduler(beta_schedule="scaled_linear")])
def test_add_noise_is_the_models_own(theirs):
    ours = DDMScheduler.from_config(theirs.config)
    clean, noise, timesteps = draw(3, 2, 4, seed=1), draw(3, 2, 4), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        ours.add_noise(clean, noise, timesteps), theirs.add_noise(clean, noise, timesteps), rtol=0, atol=1e-6
    )


def test_scale_noise_is_the_models_own():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    ours = DDMScheduler.from_config(theirs.config)
    clean, noise, timesteps = draw(2, 2, 4, seed=1), draw(2, 2, 4), theirs.timesteps[[3, 7]]
    torch.testing.assert_close(
        ours.scale_noise(clean, timesteps, noise), theirs.scale_noise(clean, timesteps, noise), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("make", [DDIMScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_run_may_begin_in_the_middle(make):
    scheduler = DDMScheduler.from_config(make().config, eta=0.0, solver_order=3)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[6:]
    results = []
    for begin_index in (None, 6):
        scheduler.set_timesteps(10)
        if begin_index is not None:
            scheduler.set_begin_index(begin_index)
        x = draw(2, 3)
        for timestep in timesteps:
            x = scheduler.step(toy_output(x), timestep, x).prev_sample
        assert scheduler.step_index == 10
        results.append(x)
    assert torch.equal(*results)


# -------------------------------------------------------------------------------------------------------------- configs

OTHERS = [
    DDPMScheduler(),
    DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    EulerDiscreteScheduler(use_karras_sigmas=True),
    DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0),
    UniPCMultistepScheduler(),
    DEISMultistepScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.4, shift_terminal=0.02),
    FlowMatchHeunDiscreteScheduler(shift=2.0),
]


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("theirs", OTHERS, ids=lambda s: type(s).__name__)
def test_a_config_survives_the_way_there_and_back(theirs, from_file, tmp_path):
    config = theirs.config
    if from_file:
        theirs.save_pretrained(tmp_path / "theirs")
        config = type(theirs).load_config(tmp_path / "theirs")
    ours = DDMScheduler.from_config(config)
    shared = set(ours.config) & set(theirs.config) - {"_use_default_values", "_class_name", "_diffusers_version"}
    assert {key: ours.config[key] for key in shared} == {key: theirs.config[key] for key in shared}

    # through a file as well
    ours.save_pretrained(tmp_path / "ours")
    for each in (ours, DDMScheduler.from_pretrained(tmp_path / "ours")):
        back = type(theirs).from_config(each.config)
        keys = set(theirs.config) - {"_use_default_values", "_class_name", "_diffusers_version"}
        assert {key: back.config[key] for key in keys} == {key: theirs.config[key] for key in keys}
        options = {"mu": 0.7} if theirs.config.get("use_dynamic_shifting") else {}
        for scheduler in (theirs, back):
            scheduler.set_timesteps(4, **options)
        results = []
        for scheduler in (theirs, back):
            torch.manual_seed(0)  # DDPM draws noise
            results.append(run(scheduler, draw(2, 3, dtype=torch.float32)))
        assert torch.equal(*results)


def test_a_file_that_does_not_spell_out_the_defaults(tmp_path):
    # as google/ddpm-cifar10-32's
    config = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "num_train_timesteps": 500}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    for scheduler in (DDMScheduler.from_config(config), DDMScheduler.from_pretrained(tmp_path)):
        assert scheduler.config.prediction_type == "epsilon" and scheduler.config.num_train_timesteps == 500
        assert scheduler.config.clip_sample and scheduler.config.beta_end == 0.02


def test_own_configs_stay_own():
    assert DDMScheduler.from_config({"eta": 0.5}).config.prediction_type == "decoupled"
    assert DDMScheduler.from_config(DDMScheduler(eta=0.5).config).config.eta == 0.5
    scheduler, unused = DDMScheduler.from_config({"eta": 0.5, "clip_sample": False}, return_unused_kwargs=True, foo=1)
    assert scheduler.config.eta == 0.5 and unused == {"foo": 1}


@pytest.mark.parametrize(
    "config, parts",
    [
        (EDMEulerScheduler().config, ("`config`", "sigma_data", "beta_schedule")),
        (ScoreSdeVeScheduler().config, ("`config`", "sampling_eps")),
        (IPNDMScheduler().config, ("`config`", "trained_betas")),
        (EulerDiscreteScheduler(timestep_type="continuous").config, ("`timestep_type`", "'continuous'", "'discrete'")),
        ({"_class_name": "LCMFooScheduler", "shift": 1.0}, ("`config`", "LCMFooScheduler")),
        ({**DDIMScheduler().config, "prediction_type": "score"}, ("`prediction_type`", "'score'", "epsilon")),
        (
            {**DPMSolverMultistepScheduler().config, "use_flow_sigmas": True},
            ("`prediction_type`", "'epsilon'", "`use_flow_sigmas`", "flow_prediction"),
        ),
        (DDIMScheduler(rescale_betas_zero_snr=True).config, ("`rescale_betas_zero_snr`", "True", "epsilon")),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config, ("`invert_sigmas`", "True")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_unknown_or_contradictory_configs(config, parts, rejects):
    with rejects(*parts):
        DDMScheduler.from_config(config)


@pytest.mark.parametrize(
    "options, call, parts",
    [
        ({"prediction_type": "epsilon"}, {"timesteps": [500, 500]}, ("`timesteps`", "[500, 500]", "falling")),
        ({"prediction_type": "epsilon"}, {"timesteps": [1000, 3]}, ("`timesteps`", "[0, 999]")),
        ({"prediction_type": "epsilon"}, {"timesteps": [10.5, 3]}, ("`timesteps`", "10.5", "whole")),
        ({"prediction_type": "epsilon"}, {"sigmas": [1.0]}, ("`sigmas`", "[1.0]", "flow_prediction")),
        ({"prediction_type": "epsilon"}, {"num_inference_steps": 1001}, ("`num_inference_steps`", "1001", "1000")),
        ({"prediction_type": "flow_prediction"}, {"sigmas": [0.2, 0.7]}, ("`sigmas`", "falling", "(0, 1]")),
        ({"prediction_type": "flow_prediction"}, {"timesteps": [1200.0]}, ("`timesteps`", "(0, 1000]")),
        ({}, {"sigmas": [1.0]}, ("`sigmas`", "[1.0]", "None")),
        ({}, {"num_inference_steps": 3, "mu": 1.0}, ("`mu`", "1.0", "None")),
        ({}, {"num_inference_steps": 3, "timesteps": [5.0]}, ("`timesteps`", "exactly one")),
    ],
)
def test_bad_timesteps(options, call, parts, rejects):
    scheduler = DDMScheduler(**options)
    scheduler.set_timesteps(4)
    before = scheduler.timesteps
    with rejects(*parts):
        scheduler.set_timesteps(**call)
    assert scheduler.timesteps is before


def test_step_takes_what_ddim_pipeline_passes_and_nothing_else():
    scheduler = DDMScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(2)
    x = draw(1, 2)
    scheduler.step(toy_output(x), scheduler.timesteps[0], x, eta=0.0, use_clipped_model_output=None)
    with pytest.raises(TypeError, match="noise_level"):
        scheduler.step(toy_output(x), scheduler.timesteps[1], x, noise_level=1)


# -------------------------------------------------------------------------------------------------------- the adapter


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
    result = run(theirs, start, lambda x, t: adapter(x, t).sample)

    a, b = adapter.model_process.scales(theirs.timesteps.double())
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


@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
@torch.no_grad()
def test_higher_orders_of_others_follow_the_same_trajectory(scheduler, unet):
    # DDPMPipeline passes a generator, which UniPC does not take: hence a loop. Its path begins where alpha is 0.006.
    theirs = scheduler(timestep_spacing="trailing")
    adapter = DDMUNet2DAdapter(unet, theirs)
    noise = draw(2, 1, 8, 8, dtype=torch.float32)
    ours = DDMScheduler(eta=0.0, solver_order=3, clip_sample=False)
    ours.set_timesteps(200)
    expected = run(ours, noise, lambda x, t: unet(x, t).sample)
    errors = []
    for num_steps in (10, 40):
        theirs.set_timesteps(num_steps)
        errors.append((run(theirs, noise, lambda x, t: adapter(x, t).sample) - expected).abs().max())
    assert (
        errors[1] < errors[0] / 4
    )  # a first-order method's error would fall to a quarter, a wrong model's would stay


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
        native.set_timesteps(timesteps=[1000 * t for t in swapped._times[:-1]])
        x = draw(2, 1, 8, 8, dtype=torch.float32)
        a, b = adapter.model_process.scales(swapped.timesteps.double())
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
