# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMUNet2DConditionModel` is a UNet2DConditionModel with two outputs: between the scales its network is a
stock one that holds the same weights, whatever it is told besides the latents. What holds for the other models as well is
in test_dual_output.py, starting from a trained model in test_warm_start.py.
"""

import inspect

import diffusers
import pytest
import torch
from stock_parts import draw, perturb, tiny_conditional_unet

from ddm_diffusers import DDMUNet2DConditionModel
from ddm_diffusers.models.preconditioning import precondition


def tiny(**options):
    return perturb(tiny_conditional_unet(DDMUNet2DConditionModel, **options))


def stock_network(model):
    """A stock UNet2DConditionModel with the weights of the model."""
    names = set(inspect.signature(diffusers.UNet2DConditionModel).parameters)
    config = {name: value for name, value in model.config.items() if name in names}
    stock = diffusers.UNet2DConditionModel(**{**config, "out_channels": len(model.conv_out.weight)}).eval()
    stock.load_state_dict(model.state_dict())
    return stock


TEXT = {"encoder_hidden_states": draw(2, 5, 8, seed=3)}
TEXT_TIME = {"text_embeds": draw(2, 8, seed=4), "time_ids": torch.arange(12.0).reshape(2, 6)}
CASES = {
    "one head": ({"num_heads": 1}, {}),
    "two heads": ({}, {}),
    "linear attenuation": ({"attenuation": "linear"}, {}),
    "inpainting": ({"in_channels": 9, "out_channels": 8}, {}),
    "inpainting, one head": ({"in_channels": 9, "out_channels": 8, "num_heads": 1}, {}),
    "classes": ({"num_class_embeds": 3}, {"class_labels": torch.tensor([0, 2])}),
    "guidance distilled": ({"time_cond_proj_dim": 6}, {"timestep_cond": draw(2, 6, seed=4)}),
    "text mask": ({}, {"encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])}),
    # sizes, crop and a pooled text, as Stable Diffusion XL has them
    "text and sizes": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 8,
        },
        {"added_cond_kwargs": TEXT_TIME},
    ),
    "ControlNet": (
        {},
        {
            "down_block_additional_residuals": tuple(
                draw(2, channels, size, size, seed=size) for channels, size in ((4, 8), (4, 8), (4, 4), (8, 4))
            ),
            "mid_block_additional_residual": draw(2, 8, 4, 4, seed=6),
        },
    ),
    "T2I-Adapter": ({}, {"down_intrablock_additional_residuals": (draw(2, 4, 4, 4), draw(2, 8, 4, 4))}),
}


@pytest.mark.parametrize("options, arguments", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_the_network_is_that_of_unet2d_condition_between_the_scales(options, arguments):
    model = tiny(precondition=True, sigma_data=0.5, **options)
    x, timesteps = draw(2, model.config.in_channels, 8, 8, seed=1), torch.tensor([700.3, 30.0])
    latents, condition = x[:, :4], x[:, 4:]
    scales = precondition(model.process, timesteps / 1000, 0.5)
    # the condition is not scaled
    network_input = torch.cat([scales.scale_input(latents), condition], dim=1)

    def fresh():  # diffusers takes the residuals of an adapter out of their list
        return {name: list(v) if name.startswith("down_intrablock") else v for name, v in arguments.items()}

    raw = stock_network(model)(network_input, timesteps, **TEXT, **fresh()).sample
    num_outputs = 3 if model.config.attenuation == "linear" else 2
    fields = (raw, raw) if model.config.num_heads == 1 else raw.chunk(num_outputs, dim=1)
    out = model(x, timesteps, **TEXT, **fresh())
    torch.testing.assert_close(out.sample, scales.scale_output(latents, fields), rtol=1e-5, atol=1e-5)
    for name in arguments:  # each is heard
        if name not in ("class_labels", "added_cond_kwargs", "mid_block_additional_residual"):
            without = {key: value for key, value in fresh().items() if key != name and "block" not in key}
            assert (model(x, timesteps, **TEXT, **without).sample - out.sample).abs().max() > 1e-5
    other_text = {"encoder_hidden_states": draw(2, 5, 8, seed=9)}
    assert (model(x, timesteps, **other_text, **fresh()).sample - out.sample).abs().max() > 1e-5


def test_the_public_configuration():
    model = tiny()
    assert isinstance(model, diffusers.UNet2DConditionModel)
    assert (model.config.in_channels, model.config.out_channels, model.num_channels) == (4, 8, 4)
    assert tiny(attenuation="linear").config.out_channels == 12
    inpainting = tiny(in_channels=9, out_channels=8)
    assert (inpainting.config.in_channels, inpainting.config.out_channels, inpainting.num_channels) == (9, 8, 4)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (5, 7)])
@torch.no_grad()
def test_any_size(size):
    # as UNet2DConditionModel, which interpolates to what does not halve
    assert tiny()(draw(1, 4, *size), 500, draw(1, 5, 8)).sample.shape == (1, 8, *size)


@torch.no_grad()
def test_from_an_inpainting_model():
    trained = perturb(tiny_conditional_unet(in_channels=9))
    model = DDMUNet2DConditionModel.from_unet2d_condition(trained, diffusers.DDIMScheduler()).eval()
    assert (model.config.in_channels, model.config.out_channels, model.num_channels) == (9, 8, 4)
    x, text = draw(1, 9, 8, 8), draw(1, 5, 8)
    # at half of the trained model's timesteps
    alpha = diffusers.DDIMScheduler().alphas_cumprod[500].double()
    a, b = alpha.sqrt(), (1 - alpha).sqrt()
    t = model.process.time(a, b)
    state = torch.cat([x[:, :4] * model.process.sigma(t) / b, x[:, 4:]], dim=1).float()
    expected = trained(x, 500, text).sample
    torch.testing.assert_close(model(state, 1000 * t, text).noise, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_from_a_model_with_learned_variance():
    # twice the channels, the first half of which is the noise; linear attenuation has three parts
    trained = perturb(tiny_conditional_unet(out_channels=8))
    options = {"attenuation": "linear", "precondition": False}
    model = DDMUNet2DConditionModel.from_unet2d_condition(trained, **options).eval()
    x, text = draw(1, 4, 8, 8), draw(1, 5, 8)
    expected = trained(x, torch.tensor(500.0), text).sample[:, :4]
    torch.testing.assert_close(model(x, 500.0, text).sample, torch.cat([expected] * 3, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_from_unet2d_condition_keeps_the_dtype(dtype):
    trained = tiny_conditional_unet().to(dtype)
    model = DDMUNet2DConditionModel.from_unet2d_condition(trained)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"block_out_channels": (8, 8)}, ("block_out_channels", "(8, 8)", "conv_in.weight", "(4, 4, 3, 3)")),
        ({"cross_attention_dim": 16}, ("cross_attention_dim", "16", "trained weight")),
        ({"in_channels": 9}, ("in_channels", "9", "conv_in.weight")),
    ],
    ids=str,
)
def test_from_unet2d_condition_rejects_options_that_change_the_trunk(options, parts, rejects):
    with rejects("`options`", *parts):
        DDMUNet2DConditionModel.from_unet2d_condition(tiny_conditional_unet(), **options)


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"center_input_sample": True}, ("`center_input_sample`", "True", "False")),
        ({"time_embedding_type": "learned"}, ("`time_embedding_type`", "'learned'", "'positional'", "'fourier'")),
        ({"in_channels": 9, "out_channels": 9}, ("`out_channels`", "9", "multiple of 2 up to 18")),
        ({"in_channels": 9, "out_channels": 20}, ("`out_channels`", "20", "multiple of 2 up to 18")),
        ({"attenuation": "linear", "out_channels": 8}, ("`out_channels`", "8", "multiple of 3 up to 12")),
    ],
    ids=str,
)
def test_bad_options(options, parts, rejects):
    with rejects(*parts):
        tiny(**options)
