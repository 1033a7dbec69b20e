# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMScheduler` takes over the models of other processes: it is exact for a model that knows the image, in first
order it is DDIM (or Euler, for velocities and EDM), its estimates are those of the scheduler that owns the model, over all
options that change the process, configs survive the way there and back, and what is not understood is refused.
"""

import json

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    RePaintScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from ddm_diffusers import DDMScheduler


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
    CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=2.0),
    HeunDiscreteScheduler(beta_schedule="exp"),
    EDMEulerScheduler(sigma_max=40.0),
]


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("theirs", OTHERS, ids=lambda s: type(s).__name__)
def test_a_config_survives_the_way_there_and_back(theirs, from_file, tmp_path):
    config = theirs.config
    if isinstance(theirs, FlowMatchHeunDiscreteScheduler):
        config = {**config, "_class_name": "FlowMatchHeunDiscreteScheduler"}  # else another class could have it
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
        (ScoreSdeVeScheduler().config, ("`config`", "ScoreSdeVeScheduler", "DDIMScheduler")),
        (IPNDMScheduler().config, ("`config`", "IPNDMScheduler", "DDIMScheduler")),
        (DDIMInverseScheduler().config, ("`config`", "DDIMInverseScheduler")),
        (DPMSolverMultistepInverseScheduler().config, ("`config`", "DPMSolverMultistepInverseScheduler")),
        (RePaintScheduler().config, ("`config`", "RePaintScheduler")),
        (LCMScheduler().config, ("`config`", "LCMScheduler")),
        (SCMScheduler().config, ("`config`", "SCMScheduler")),
        (FlowMatchLCMScheduler().config, ("`config`", "FlowMatchLCMScheduler")),
        # two classes have these options, and one of them is for distilled models
        (FlowMatchHeunDiscreteScheduler().config, ("`config`", "FlowMapEuler", "FlowMatchHeun", "_class_name")),
        ({"_class_name": "RePaintScheduler"}, ("`config`", "RePaintScheduler")),
        ({"_class_name": "os", "beta_schedule": "linear"}, ("`config`", "os")),
        (DDIMScheduler(), ("`config`", "DDIMScheduler", "pipe.scheduler.config")),
        ({"beta_start": 1e-4, "num_train_timesteps": 500}, ("`config`", "prediction_type", "_class_name")),
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


# --------------------------------------------------------------------------- the estimates of the scheduler that owns them

betas = st.one_of(
    st.fixed_dictionaries(
        {
            "beta_schedule": st.sampled_from(["linear", "scaled_linear"]),
            "beta_start": st.floats(1e-5, 1e-3),
            "beta_end": st.floats(2e-3, 0.03),
        }
    ),
    st.just({"beta_schedule": "squaredcos_cap_v2"}),
    st.lists(st.floats(1e-4, 0.05), min_size=20, max_size=20).map(
        lambda betas: {"trained_betas": betas, "num_train_timesteps": 20}
    ),
)
fractions = st.floats(0, 1)


def own_estimate(theirs, output, timestep, x):
    """The clean sample that another scheduler reads off a model output."""
    return theirs.step(output, timestep, x).pred_original_sample


@given(betas, st.sampled_from(VP_TYPES), st.booleans(), st.booleans(), fractions, st.integers(0, 100))
def test_estimates_are_those_of_ddim(options, prediction_type, zero_snr, clip, fraction, seed):
    options = {**options, "rescale_betas_zero_snr": zero_snr and prediction_type != "epsilon"}
    theirs = DDIMScheduler(prediction_type=prediction_type, clip_sample=clip, clip_sample_range=1.5, **options)
    theirs.set_timesteps(theirs.config.num_train_timesteps)
    timestep = round(fraction * (theirs.config.num_train_timesteps - 1))
    if theirs.alphas_cumprod[timestep] == 0 and prediction_type == "sample":
        timestep -= 1  # DDIM's own noise is 0 / 0 there
    ours = DDMScheduler.from_config(theirs.config)
    x, output = draw(2, 3, 4, seed=seed), draw(2, 3, 4, seed=seed + 1)
    a, b = ours.parameterization.scales(torch.tensor(timestep).double())
    expected = own_estimate(theirs, output, timestep, x)
    estimate = ours.convert_model_output(output, x, a, b)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(estimate.x_0, expected, rtol=0, atol=2e-4 * scale if a < 0.1 else 2e-6 * scale)
    # and back
    if a > 1e-3:
        unclipped = ours.parameterization.estimate(output, x, a, b)
        back = ours.parameterization.output(unclipped.x_0, unclipped.noise, a, b)
        torch.testing.assert_close(back, output, rtol=0, atol=1e-9)
        torch.testing.assert_close(a * unclipped.x_0 + b * unclipped.noise, x, rtol=0, atol=1e-9)


@given(
    st.floats(0.002, 0.1),
    st.floats(10, 700),
    st.floats(0.2, 2),
    st.sampled_from(["epsilon", "v_prediction"]),
    st.sampled_from([EDMEulerScheduler, EDMDPMSolverMultistepScheduler]),
    st.integers(0, 9),
)
def test_estimates_are_those_of_edm(sigma_min, sigma_max, sigma_data, prediction_type, kind, index):
    theirs = kind(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data, prediction_type=prediction_type)
    theirs.set_timesteps(10)
    ours = DDMScheduler.from_config(theirs.config)
    sigma, timestep = theirs.sigmas[index].double(), theirs.timesteps[index]
    x, output = draw(2, 3, 4, seed=index) * sigma, draw(2, 3, 4, seed=index + 1)
    _, found = ours.parameterization.scales(timestep.double())
    torch.testing.assert_close(found, sigma, rtol=1e-5, atol=0)
    expected = theirs.precondition_outputs(x, output, sigma)
    estimate = ours.convert_model_output(output, x, 1.0, float(sigma))
    torch.testing.assert_close(estimate.x_0, expected, rtol=1e-6, atol=1e-9)
    back = ours.parameterization.output(estimate.x_0, estimate.noise, 1.0, float(sigma))
    torch.testing.assert_close(back, output, rtol=0, atol=1e-6 * (1 + float(sigma)))
    expected = theirs.precondition_inputs(x, sigma)
    scaled = ours.parameterization.scale_input(x, float(sigma))
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.parameterization.undo_scale_input(scaled, float(sigma)), x, rtol=1e-6, atol=1e-9)


@given(st.floats(0.5, 10), st.integers(1, 9), st.integers(0, 100))
def test_estimates_are_those_of_flow_matching(shift, index, seed):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(10)
    ours = DDMScheduler.from_config(theirs.config)
    sigma = theirs.sigmas[index].double()
    x, output = draw(2, 3, 4, seed=seed), draw(2, 3, 4, seed=seed + 1)
    a, b = ours.parameterization.scales(theirs.timesteps[index].double())
    torch.testing.assert_close(b, sigma, rtol=1e-6, atol=0)
    estimate = ours.convert_model_output(output, x, a, b)
    # Euler's step all the way to 0 arrives at the clean sample
    torch.testing.assert_close(estimate.x_0, x - sigma * output, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.parameterization.output(*estimate[:2], a, b), output, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "theirs",
    [
        CogVideoXDDIMScheduler(),
        CogVideoXDDIMScheduler(snr_shift_scale=1.0, rescale_betas_zero_snr=False),
        HeunDiscreteScheduler(beta_schedule="exp"),
        EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        UnCLIPScheduler(),
        DDPMScheduler(beta_schedule="laplace"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_process_is_that_of_the_schedulers_own_numbers(theirs, tmp_path):
    ours = DDMScheduler.from_config(theirs.config, prediction_type="v_prediction")
    ours.save_pretrained(tmp_path)
    for each in (ours, DDMScheduler.from_config(ours.config), DDMScheduler.from_pretrained(tmp_path)):
        torch.testing.assert_close(each.alphas_cumprod, torch.as_tensor(theirs.alphas_cumprod).float())
        if not isinstance(theirs, CogVideoXDDIMScheduler) and not theirs.config.get("rescale_betas_zero_snr"):
            torch.testing.assert_close(each.betas, torch.as_tensor(theirs.betas).float(), rtol=0, atol=1e-6)
        assert not hasattr(each, "sigmas")


@given(st.floats(0, 999), betas)
def test_timesteps_at_undoes_scales(timestep, options):
    parameterization = DDMScheduler.from_config(DDPMScheduler(**options).config).parameterization
    timestep = torch.tensor(timestep * parameterization.timestep_range[1] / 999, dtype=torch.float64)
    back = parameterization.timesteps_at(*parameterization.scales(timestep))
    torch.testing.assert_close(back, timestep, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- EDM


@pytest.mark.parametrize(
    "theirs",
    [
        EDMEulerScheduler(),
        EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0, sigma_max=700.0),
        EulerDiscreteScheduler(
            timestep_type="continuous",
            prediction_type="v_prediction",
            sigma_min=0.002,
            sigma_max=700.0,
            use_karras_sigmas=True,
        ),
    ],
    ids=["EDM", "EDM, v", "Stable Video Diffusion"],
)
def test_first_order_is_euler_for_edm(theirs):
    theirs.set_timesteps(8)
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    ours.set_timesteps(timesteps=theirs.timesteps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=0)
    start = draw(2, 3, 4, dtype=torch.float32) * float(theirs.sigmas[0])
    results = []
    for scheduler in (theirs, ours):
        x = start
        for timestep in scheduler.timesteps:
            output = toy_output(scheduler.scale_model_input(x, timestep))
            x = scheduler.step(output, timestep, x).prev_sample
        results.append(x)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3)  # of samples of up to 700


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.0, "solver_order": 3}], ids=str)
def test_a_perfect_edm_model_gives_back_the_image(options, num_steps):
    theirs = EDMEulerScheduler()
    scheduler = DDMScheduler.from_config(theirs.config, **options)
    scheduler.set_timesteps(num_steps)
    assert scheduler.init_noise_sigma == 80.0 and len(scheduler.timesteps) == num_steps
    x_0, x = draw(2, 3, 4, seed=1).clamp(-1, 1), draw(2, 3, 4) * scheduler.init_noise_sigma
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        x = scheduler.step((x_0 - c_skip * x) / c_out, timestep, x).prev_sample
    torch.testing.assert_close(x, x_0, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- what pipelines rely on


def test_learned_variances_are_left_out():
    theirs = DDPMScheduler(variance_type="learned_range")
    ours = DDMScheduler.from_config(theirs.config, eta=0.0)
    assert ours.config.variance_type == "learned_range"
    x, variances, results = draw(2, 3, 4), draw(2, 3, 4, seed=1), []
    for with_variances in (False, True):
        ours.set_timesteps(4)

        def model(x, t, with_variances=with_variances):
            output = toy_output(x)
            return torch.cat([output, variances], dim=1) if with_variances else output

        results.append(run(ours, x, model))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_add_noise_in_half_precision_keeps_the_noise(dtype):
    config = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config
    scheduler = DDMScheduler.from_config(config)
    clean = torch.zeros(1, 1, 8, dtype=dtype)
    noise = draw(1, 1, 8, dtype=dtype)
    b = float((1 - scheduler.alphas_cumprod[1]) ** 0.5)
    assert b == pytest.approx(0.041, abs=1e-3)
    torch.testing.assert_close(scheduler.add_noise(clean, noise, torch.tensor([1])), (b * noise.float()).to(dtype))


def test_sigmas_of_velocities_and_nothing_of_the_kind_for_others():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = DDMScheduler.from_config(theirs.config, time_grid="uniform")
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    for name in ("betas", "alphas_cumprod"):
        assert not hasattr(ours, name)
    for name in ("sigmas", "betas", "alphas_cumprod"):
        assert not hasattr(DDMScheduler(), name)


def test_timesteps_beside_sigmas():
    """As CogView4 passes them: the model is told the timesteps, the noise levels are shifted."""
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(timesteps=[1000.0, 600.0, 200.0], sigmas=[1.0, 0.6, 0.2], mu=0.7)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    torch.testing.assert_close(run(ours, draw(1, 2)), run(theirs, draw(1, 2, dtype=torch.float32)), check_dtype=False)


def test_sigmas_that_end_with_0():
    """The model is evaluated as often as in diffusers; the last step stays where it is."""
    theirs = FlowMatchEulerDiscreteScheduler()
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2, 0.0])
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = draw(1, 2, dtype=torch.float32)
    torch.testing.assert_close(run(ours, x), run(theirs, x))


def test_tokens_at_timesteps_of_their_own():
    """As LTX passes them: the model output has the other sign, tokens of a condition are nearly clean."""
    theirs = FlowMatchEulerDiscreteScheduler()
    ours = DDMScheduler.from_config(theirs.config, eta=0.0, solver_order=1)
    x = results = None
    per_token = torch.tensor([[1000.0, 1000.0, 300.0, 0.0]])
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
        x = draw(1, 4, 3, dtype=torch.float32)
        for timestep in scheduler.timesteps:
            tokens = torch.minimum(per_token, timestep)
            x = scheduler.step(-toy_output(x), timestep, x, per_token_timesteps=tokens).prev_sample
        results.append(x)
    torch.testing.assert_close(*results)


def test_the_next_timestep_of_unclip():
    scheduler = DDMScheduler.from_config(UnCLIPScheduler().config)
    scheduler.set_timesteps(3)
    timesteps = scheduler.timesteps
    x = draw(1, 2)
    for i, timestep in enumerate(timesteps):
        following = timesteps[i + 1] if i + 1 < len(timesteps) else None
        x = scheduler.step(toy_output(x), timestep, x, prev_timestep=following).prev_sample
    assert x.isfinite().all()


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("theirs", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)], ids=["VP", "flow"])
def test_strength_means_the_same_noise_on_the_models_own_grid(theirs, strength):
    ours = DDMScheduler.from_config(theirs.config, time_grid="model")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    first = 20 - int(20 * strength)  # what image-to-image pipelines leave out
    assert float(ours.timesteps[first]) == pytest.approx(float(theirs.timesteps[first]), abs=51)  # a step of 20


def test_thresholding_of_velocities():
    scheduler = DDMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, thresholding=True, solver_order=1)
    scheduler.set_timesteps(3)
    assert run(scheduler, draw(1, 2, 4, 4)).abs().max() <= 1


def test_a_config_that_went_through_several_schedulers():
    """It has the options of all of them, and names none."""
    config = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").config
    for other in (UniPCMultistepScheduler, EulerDiscreteScheduler):
        config = other.from_config(config).config
    ours = DDMScheduler.from_config(config)
    assert ours.config.prediction_type == "v_prediction" and ours.config.beta_schedule == "scaled_linear"


def test_options_of_another_process_are_refused(rejects):
    flow = FlowMatchEulerDiscreteScheduler().config
    with rejects("`sigma_max` is 80", "(0, 1]"):
        DDMScheduler.from_config({**flow, "sigma_max": 80.0})
    with rejects("`prediction_type` is 'sample'", "'epsilon' or 'v_prediction'"):
        DDMScheduler.from_config({**EDMEulerScheduler().config, "prediction_type": "sample"})
    with rejects("`model_output` has the shape (1, 4, 2)", "predicts variances"):
        ours = DDMScheduler.from_config(DDPMScheduler().config)
        ours.set_timesteps(2)
        ours.step(torch.zeros(1, 4, 2), ours.timesteps[0], torch.zeros(1, 2, 2))
