# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that a model which starts from a trained one, with its scheduler, starts from what that one predicts: at the same
share of noise both see the same clean image and the same noise, exactly, whatever the betas and the prediction type are.
"""

import json

import diffusers
import pytest
import torch
from stock_parts import draw, perturb, tiny_conditional_unet

from ddm_diffusers import DDMScheduler, DDMUNet2DConditionModel, DDMUNet2DModel
from ddm_diffusers.models.dual_output import SMALLEST_ALPHA


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
SCHEDULERS = {
    "DDPM": diffusers.DDPMScheduler(),
    "cosine": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "DDIM, v": diffusers.DDIMScheduler(**SCALED, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "PNDM": diffusers.PNDMScheduler(**SCALED),
    "Euler, 100 steps": diffusers.EulerDiscreteScheduler(num_train_timesteps=100, beta_end=0.2),
    "own betas": diffusers.DDPMScheduler(
        trained_betas=torch.linspace(1e-3, 0.05, 200).tolist(), num_train_timesteps=200
    ),
}


@pytest.fixture(params=["unet2d", "unet2d_condition"])
def trained(request, plain_unet):
    """A trained model, the function that starts from it, and what both are told besides sample and timestep."""
    if request.param == "unet2d":
        return perturb(plain_unet()), DDMUNet2DModel.from_unet2d, {}
    text = {"encoder_hidden_states": draw(3, 5, 8, seed=3)}
    return perturb(tiny_conditional_unet()), DDMUNet2DConditionModel.from_unet2d_condition, text


def column(values):
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("options", [{}, {"num_heads": 1}, {"noise_schedule": "linear"}], ids=str)
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@torch.no_grad()
def test_the_start_is_what_the_trained_model_predicts(scheduler, options, trained):
    unet, from_trained, arguments = trained
    model = from_trained(unet, scheduler, **options).double().eval()
    unet, arguments = unet.double(), {name: value.double() for name, value in arguments.items()}

    # three states of the trained model's process, the last one with as little of the image as is divided by
    alphas_cumprod = scheduler.alphas_cumprod.double()
    latest = int((alphas_cumprod.sqrt() >= SMALLEST_ALPHA).sum()) - 1
    if scheduler.config.prediction_type == "v_prediction":
        latest = len(alphas_cumprod) - 1  # a v is not divided by anything
    timesteps = torch.tensor([0, latest // 2, latest])
    a, b = column(alphas_cumprod[timesteps].sqrt()), column((1 - alphas_cumprod[timesteps]).sqrt())
    x = draw(3, unet.config.in_channels, 8, 8).double()
    predicted = unet(x, timesteps, **arguments).sample
    if scheduler.config.prediction_type == "v_prediction":
        x_0, noise = a * x - b * predicted, b * x + a * predicted
    else:
        x_0, noise = (x - b * predicted) / a, predicted

    # the same states, as the decoupled process scales and times them
    t = torch.tensor([model.process.time(*each) for each in zip(a.flatten(), b.flatten(), strict=True)]).double()
    out = model(x * column(model.process.sigma(t)) / b, 1000 * t, **arguments)
    scale = 1 + predicted.abs().max()
    assert (out.noise - noise).abs().max() < 1e-7 * scale
    # an error of the noise is divided by alpha
    assert (-out.attenuation - x_0).abs().max() < 1e-7 * scale / SMALLEST_ALPHA


@torch.no_grad()
def test_without_the_scheduler_only_the_weights_are_taken(trained):
    unet, from_trained, arguments = trained
    model = from_trained(unet).eval()
    assert model.config.base_scheduler is None
    x, timesteps = draw(3, unet.config.in_channels, 8, 8), torch.tensor([30.0, 400.0, 1000.0])
    t = column(timesteps / 1000)
    out = model(x, timesteps, **arguments)
    # the input lies on the straight path, and both outputs come from the same velocity
    x, share = x / (1 - t + t.sqrt()), t.sqrt() / (1 - t + t.sqrt())
    velocity = unet(x, timesteps, **arguments).sample
    torch.testing.assert_close(out.noise, x + (1 - share) * velocity)
    torch.testing.assert_close(-out.attenuation, x - share * velocity)


@torch.no_grad()
def test_the_trained_model_is_left_alone(trained):
    unet, from_trained, _ = trained
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    perturb(from_trained(unet, diffusers.DDPMScheduler()))
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


@torch.no_grad()
def test_the_process_is_saved_with_the_model(trained, own_memory, tmp_path):
    unet, from_trained, arguments = trained
    model = from_trained(unet, SCHEDULERS["own betas"]).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["base_scheduler"]
    assert saved["prediction_type"] == "epsilon" and len(saved["trained_betas"]) == 200
    loaded = type(model).from_pretrained(tmp_path)
    own_memory(loaded)
    x = draw(3, unet.config.in_channels, 8, 8)
    assert torch.equal(model(x, 300.5, **arguments).sample, loaded(x, 300.5, **arguments).sample)


def test_betas_that_no_option_gives_are_saved_themselves(plain_unet):
    scheduler = diffusers.CogVideoXDDIMScheduler()
    model = DDMUNet2DModel.from_unet2d(plain_unet(), scheduler)
    a = torch.tensor(model.base.a, dtype=torch.float64)
    torch.testing.assert_close(a**2, scheduler.alphas_cumprod.double(), rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_a_model_made_on_the_meta_device_runs_with_loaded_weights(plain_unet, own_memory):
    """As big models are loaded: nothing but the weights may depend on the device that they were made on."""
    model = DDMUNet2DModel.from_unet2d(plain_unet(), diffusers.DDPMScheduler()).eval()
    with torch.device("meta"):
        other = DDMUNet2DModel(**{key: model.config[key] for key in model.config if not key.startswith("_")}).eval()
    other.load_state_dict(model.state_dict(), assign=True)
    x = draw(2, 3, 8, 8)
    assert torch.equal(other(x, torch.tensor(500.0)).sample, model(x, torch.tensor(500.0)).sample)


@pytest.mark.parametrize(
    "scheduler, parts",
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), ("`scheduler`", "FlowMatchEuler", "beta_schedule")),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), ("`use_flow_sigmas`", "flow_prediction")),
        (diffusers.DDPMScheduler(prediction_type="sample"), ("'sample'", "'epsilon'", "'v_prediction'")),
        (DDMScheduler(), ("'decoupled'", "'epsilon'", "'v_prediction'")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, diffusers.SchedulerMixin) else "",
)
def test_schedulers_of_an_unknown_process(scheduler, parts, trained, rejects):
    unet, from_trained, _ = trained
    with rejects(*parts):
        from_trained(unet, scheduler)


def test_options_that_contradict_the_process(trained, rejects):
    unet, from_trained, _ = trained
    with rejects("`sigma_data`", "0.5", "1.0", "base_scheduler"):
        from_trained(unet, diffusers.DDPMScheduler(), sigma_data=0.5)


def test_other_models(trained, rejects):
    unet, from_trained, _ = trained
    expected = type(unet).__name__
    for other in (from_trained(unet), torch.nn.Linear(1, 1), torch.compile(unet, backend="eager")):
        with rejects("`unet`", type(other).__name__, f"has to be a {expected}"):
            from_trained(other)
