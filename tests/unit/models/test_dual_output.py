# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves what holds for every model of two outputs, whatever its network is: shapes and views, the preconditioned identity,
the forward equation, continuous time, and everything that works with diffusers' own models (saving, half precision,
checkpointing, compiling). That the network between the scales is the stock one, the tests of each model prove.
"""

import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import diffusers
import pytest
import torch
from diffusers.models.embeddings import GaussianFourierProjection, Timesteps
from stock_parts import TINY_UNET, draw, perturb, tiny_conditional_unet, tiny_dit
from torch._subclasses.fake_tensor import FakeTensorMode

from ddm_diffusers import DDMDiTTransformer2DModel, DDMScheduler, DDMUNet2DConditionModel, DDMUNet2DModel
from ddm_diffusers.models.preconditioning import precondition


def tiny_unet(model_class, **options):
    torch.manual_seed(0)
    return model_class(**{**TINY_UNET, **options}).eval()


class Kind(NamedTuple):
    """A model, the one of diffusers that its network is, and options that let it be told all it can be told."""

    model_class: type
    stock_class: type
    build: Callable
    extras: dict
    # by the beginnings of its name
    last_layer: tuple[str, ...]


KINDS = {
    "unet2d": Kind(
        DDMUNet2DModel,
        diffusers.UNet2DModel,
        tiny_unet,
        {"num_class_embeds": 4, "conditioning_channels": 1},
        ("conv_out", "noise_conv_out"),
    ),
    "unet2d_condition": Kind(
        DDMUNet2DConditionModel,
        diffusers.UNet2DConditionModel,
        tiny_conditional_unet,
        {"in_channels": 9, "out_channels": 8},
        ("conv_out",),
    ),
    "dit": Kind(
        DDMDiTTransformer2DModel,
        diffusers.DiTTransformer2DModel,
        tiny_dit,
        {"num_class_embeds": 4},
        ("proj_out_2",),
    ),
}
ONE_HEAD, TWO_DECODERS, LINEAR = {"num_heads": 1}, {"num_decoders": 2}, {"attenuation": "linear"}
BASE = {"base_scheduler": {"beta_schedule": "linear", "prediction_type": "epsilon"}}
OPTIONS = {
    "one head": ONE_HEAD,
    "two heads": {"num_heads": 2},
    "linear attenuation": LINEAR,
    "linear noise": {"noise_schedule": "linear", **ONE_HEAD},
    "unit variance": {"precondition": True},
    "plain": {"precondition": False},
    "another process": BASE,
}
# DDMUNet2DModel alone has two decoders
DECODERS = {
    "two decoders": TWO_DECODERS,
    "linear attenuation, two decoders": {**LINEAR, **TWO_DECODERS},
    "plain, two decoders, linear attenuation": {"precondition": False, **LINEAR, **TWO_DECODERS},
}


def parametrize(options, decoders):
    cases = {f"{name}-{key}": (kind, value) for name, kind in KINDS.items() for key, value in options.items()}
    cases |= {f"unet2d-{key}": (KINDS["unet2d"], value) for key, value in decoders.items()}
    return pytest.mark.parametrize("kind, options", cases.values(), ids=cases.keys())


all_variants = parametrize(OPTIONS, DECODERS)
architectures = parametrize(
    {key: OPTIONS[key] for key in ("one head", "two heads")}, {"two decoders": DECODERS["two decoders"]}
)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def make(kind, **options):
    # of out_channels, one in `extras` is that of constant attenuation
    if options.get("attenuation") == "linear" and "out_channels" in options:
        options["out_channels"] = options["out_channels"] // 2 * 3
    return kind.build(kind.model_class, **options)


def noisy(model, batch_size=2, seed=1, **options):
    """What takes the place of `sample`: noise in every channel of the input."""
    return draw(batch_size, model.config.in_channels, 8, 8, seed=seed, **options)


def told(model, batch_size=2):
    """What the model needs to be told besides sample and timestep."""
    config, arguments = model.config, {}
    if isinstance(model, DDMUNet2DConditionModel):
        arguments["encoder_hidden_states"] = draw(batch_size, 5, 8, seed=3, dtype=model.dtype)
    if config.num_class_embeds is not None:
        arguments["class_labels"] = torch.arange(batch_size) * config.num_class_embeds % (config.num_class_embeds + 1)
    if config.get("conditioning_channels"):
        arguments["conditioning"] = draw(batch_size, config.conditioning_channels, 8, 8, seed=4, dtype=model.dtype)
    return arguments


def run(model, x, timestep):
    return model(x, timestep, **told(model, len(x)))


# --------------------------------------------------------------------------------------------------------- the two outputs


@all_variants
@torch.no_grad()
def test_the_output_is_what_the_scheduler_takes(kind, options):
    model = make(kind, **options)
    x, timesteps = noisy(model), torch.tensor([700.0, 30.0])
    channels = x.shape[1]
    out = run(model, x, timesteps)
    coefficients = channels * (2 if model.config.attenuation == "linear" else 1)
    assert out.sample.shape == (2, coefficients + channels, 8, 8)
    assert torch.equal(torch.cat([out.attenuation, out.noise], dim=1), out.sample)
    assert out.attenuation.shape[1] == coefficients
    for part in (out.attenuation, out.noise):
        assert part.untyped_storage().data_ptr() == out.sample.untyped_storage().data_ptr()
    as_tuple = model(x, timesteps, **told(model), return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], out.sample)
    scheduler = DDMScheduler(attenuation=model.config.attenuation, noise_schedule=model.config.noise_schedule)
    scheduler.set_timesteps(2)
    assert scheduler.step(out.sample, 1000.0, x).prev_sample.shape == x.shape


@every_kind
def test_every_option_of_diffusers_with_the_same_default(kind):
    theirs = {name: p.default for name, p in inspect.signature(kind.stock_class).parameters.items()}
    ours = {name: p.default for name, p in inspect.signature(kind.model_class).parameters.items()}
    # derived from the process; and a continuous timestep has to have a unit
    theirs |= {"out_channels": None, "num_train_timesteps": 1000}
    if "num_embeds_ada_norm" in theirs:  # by the name that UNets have for it, and with no classes by default
        del theirs["num_embeds_ada_norm"]
        theirs["num_class_embeds"] = None
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@architectures
@torch.no_grad()
def test_with_a_silent_last_layer_the_model_is_the_best_linear_estimate(kind, options, attenuation, noise_schedule):
    if attenuation == "linear" and options == ONE_HEAD:
        options = {}
    options = {"precondition": True, "sigma_data": 0.4, **options}
    model = make(kind, attenuation=attenuation, noise_schedule=noise_schedule, **options)
    silenced = [weight.zero_() for name, weight in model.named_parameters() if name.startswith(kind.last_layer)]
    assert len(silenced) >= 2
    x, timesteps = noisy(model, 3), torch.tensor([1e-3, 400.0, 1000.0])
    c_skip = precondition(model.process, timesteps / 1000, 0.4).c_skip
    expected = torch.cat([scale.reshape(-1, 1, 1, 1) * x for scale in c_skip], dim=1)
    torch.testing.assert_close(run(model, x, timesteps).sample, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options, expected", [({}, "velocity"), (LINEAR, True), (BASE, True)])
@every_kind
def test_the_config_says_what_the_default_preconditioning_is(kind, options, expected):
    model = make(kind, **options)
    assert model.config.precondition == expected
    assert type(model).from_config(model.config).config.precondition == expected
    assert type(model).from_config(model.config, **LINEAR, base_scheduler=None).config.precondition is True


@pytest.mark.parametrize("noise_schedule", ["sqrt", "linear"])
@every_kind
@torch.no_grad()
def test_a_silent_last_layer_with_velocity_scales_is_a_velocity_of_zero(kind, noise_schedule):
    model = make(kind, precondition="velocity", noise_schedule=noise_schedule)
    for name, weight in model.named_parameters():
        if name.startswith(kind.last_layer):
            weight.zero_()
    x, timesteps = noisy(model, 3), torch.tensor([1e-3, 400.0, 1000.0])
    out = run(model, x, timesteps)
    t = (timesteps / 1000).reshape(-1, 1, 1, 1)
    straight = x[:, : out.noise.shape[1]] / (1 - t + (t if noise_schedule == "linear" else t.sqrt()))
    torch.testing.assert_close(out.attenuation, -straight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.noise, straight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, BASE, {"noise_schedule": "linear"}, {"precondition": True}],
    ids=["", "another process", "linear", "unit variance"],
)
@every_kind
@torch.no_grad()
def test_one_head_satisfies_the_forward_equation(kind, options):
    model = perturb(make(kind, **ONE_HEAD, **options))
    x, timesteps = noisy(model, 3), torch.tensor([0.5, 400.0, 1000.0])
    out = run(model, x, timesteps)
    t = (timesteps / 1000).reshape(-1, 1, 1, 1)
    sigma = t if options.get("noise_schedule") == "linear" else t.sqrt()
    torch.testing.assert_close(-out.attenuation * (1 - t) + sigma * out.noise, x, rtol=0, atol=1e-5)


@all_variants
@torch.no_grad()
def test_finite_from_the_first_to_the_last_time(kind, options):
    model = perturb(make(kind, **options))
    timesteps = torch.tensor([1e-3, 1e-1, 999.999, 1000.0])
    assert run(model, noisy(model, 4), timesteps).sample.isfinite().all()


# ------------------------------------------------------------------------------------------------------------------- time

FOURIER = {"time_embedding_type": "fourier"}


@pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in KINDS), ("unet2d", FOURIER), ("unet2d_condition", FOURIER)],
    ids=lambda value: "fourier" if value == FOURIER else str(value),
)
@torch.no_grad()
def test_a_python_float_timestep_is_not_truncated(name, options):
    model = perturb(make(KINDS[name], **options))
    x = noisy(model)
    half = run(model, x, 500.5).sample
    assert not torch.allclose(half, run(model, x, 500).sample, rtol=0, atol=1e-4)
    for same in (torch.tensor(500.5), torch.tensor([500.5]), torch.tensor([500.5, 500.5]).double()):
        assert torch.equal(half, run(model, x, same).sample)
    whole = run(model, x, 500).sample
    for same in (500.0, torch.tensor(500), torch.tensor([500, 500]), torch.tensor(500, dtype=torch.float16)):
        assert torch.equal(whole, run(model, x, same).sample)


@every_kind
@torch.no_grad()
def test_a_timestep_for_each_image(kind):
    model = perturb(make(kind, **kind.extras))
    x, timesteps, arguments = noisy(model), torch.tensor([900.0, 10.0]), told(model)
    together = model(x, timesteps, **arguments).sample
    for i in range(2):
        alone = model(x[i : i + 1], timesteps[i], **{key: value[i : i + 1] for key, value in arguments.items()}).sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@every_kind
@torch.no_grad()
def test_half_precision_does_not_round_the_timestep(kind):
    # bfloat16 has 8 bits: 500.5 and 501 are one number there
    model = perturb(make(kind, precondition=False)).to(torch.bfloat16)
    seen = []
    for module in model.modules():
        if isinstance(module, (Timesteps, GaussianFourierProjection)):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run(model, noisy(model, 1, dtype=torch.bfloat16), 500.5)
    assert seen and all(timestep.dtype == torch.float32 and timestep.item() == 500.5 for timestep in seen)


# ------------------------------------------------------------------------------------------------------ what diffusers gives


@all_variants
@torch.no_grad()
def test_save_and_load(kind, options, own_memory, tmp_path):
    model = perturb(make(kind, **{**kind.extras, **options}))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "ddm_diffusers.py",
        "diffusion_pytorch_model.safetensors",
    ]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == kind.model_class.__name__
    # what the user said, not what the inner network was told
    said = {**kind.extras, **options}
    said.pop("out_channels", None)
    assert {name: saved[name] for name in said} == said
    loaded = kind.model_class.from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    own_memory(loaded)
    again = kind.model_class.from_config(model.config)
    names = set(inspect.signature(kind.model_class).parameters)
    for other in (loaded, again):
        assert {name: _listed(other.config[name]) for name in names} == {
            name: _listed(model.config[name]) for name in names
        }
    x, timesteps = noisy(model), torch.tensor([700.5, 30.0])
    assert torch.equal(run(model, x, timesteps).sample, run(loaded, x, timesteps).sample)


def _listed(value):
    return list(value) if isinstance(value, tuple) else value  # JSON has no tuples


@architectures
def test_gradient_checkpointing_gives_the_same_gradients(kind, options):
    model = perturb(make(kind, **options)).train()
    x, timesteps = noisy(model), torch.tensor([700.0, 30.0])
    calls = []
    # a part of the last block of each decoder runs once more in the backward pass, if checkpointing is at work
    if hasattr(model, "transformer_blocks"):
        parts = [model.transformer_blocks[-1].attn1]
    else:
        parts = [model.up_blocks[-1].resnets[-1]]
        parts += [model.noise_up_blocks[-1].resnets[-1]] if hasattr(model, "noise_up_blocks") else []
    for part in parts:
        part.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for checkpointing in (False, True):
        calls.clear()
        (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
        model.zero_grad()
        run(model, x, timesteps).sample.square().mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
        assert len(calls) == len(parts) * (2 if checkpointing else 1)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


@architectures
def test_every_weight_gets_a_gradient(kind, options):
    # DistributedDataParallel stops at a weight that the loss does not reach
    model = make(kind, **kind.extras, **options).train()
    run(model, noisy(model), 500.5).sample.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


COMPILED = {
    "unet2d-one head": ("unet2d", ONE_HEAD),
    "unet2d-two decoders": ("unet2d", TWO_DECODERS),
    "unet2d_condition": ("unet2d_condition", {}),
    "dit": ("dit", BASE),
}
SLOWLY_COMPILED = ("unet2d-two decoders", "unet2d_condition")


# One U-Net and the transformer by default
@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param(*COMPILED[key], id=key, marks=[pytest.mark.slow] if key in SLOWLY_COMPILED else [])
        for key in COMPILED
    ],
)
@torch.no_grad()
def test_compiles_into_one_graph(name, options):
    torch._dynamo.reset()
    # Tracing takes seconds, and what is ours lies around the blocks: as few of them, and as little attention, as there can be.
    smaller = {
        "unet2d": {
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "block_out_channels": (8,),
            "add_attention": False,
        },
        "unet2d_condition": {
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "block_out_channels": (4,),
        },
        "dit": {},
    }
    model = perturb(make(KINDS[name], **KINDS[name].extras, **smaller[name], **options))
    x, arguments = noisy(model), told(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # fullgraph: a break in the graph is an error
    timestep = torch.tensor(700.5)
    torch.testing.assert_close(compiled(x, timestep, **arguments).sample, model(x, timestep, **arguments).sample)


@every_kind
@torch.no_grad()
def test_shapes_without_numbers(kind):
    """As estimates of memory and of operations run a model."""
    with FakeTensorMode():
        model = make(kind, **kind.extras)
        x = noisy(model)
        assert run(model, x, 700.5).sample.shape[0] == len(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@all_variants
@torch.no_grad()
def test_half_precision(kind, options, dtype):
    model = perturb(make(kind, **options))
    x, timesteps = noisy(model), torch.tensor([700.5, 30.0])
    expected = run(model, x, timesteps).sample
    half = model.to(dtype)
    output = run(half, x.to(dtype), timesteps).sample
    assert output.dtype == dtype
    # the output is that of the sample, whatever the weights are: training keeps float32 samples with half weights
    assert run(half, x, timesteps).sample.dtype == torch.float32
    # Some 30 layers, each of which rounds activations of order 1. The exact growth depends on the weights: an error of
    # this size (2 to 13 percent) tells a wrong scale, not a wrong rounding.
    tolerance = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"attenuation": "cosine"}, ("`attenuation`", "'cosine'", "'constant'", "'linear'")),
        ({"noise_schedule": "cosine"}, ("`noise_schedule`", "'cosine'", "'sqrt'", "'linear'")),
        ({"num_heads": 0}, ("`num_heads`", "0", "1 or 2")),
        ({"num_heads": 1, "precondition": False}, ("`num_heads`", "1", "has to be 2", "precondition=False")),
        ({"precondition": "v"}, ("`precondition`", "'v'", "True, False, 'velocity' or 'ddm'")),
        (
            {"precondition": "velocity", "attenuation": "linear"},
            ("`precondition`", "'velocity'", "attenuation='linear'"),
        ),
        ({"num_heads": 1, "attenuation": "linear"}, ("`num_heads`", "1", "has to be 2", "attenuation='linear'")),
        ({"sigma_data": 0.0}, ("`sigma_data`", "0.0", "above 0")),
        ({"num_train_timesteps": 0}, ("`num_train_timesteps`", "0", "1 or more")),
        ({"out_channels": 3}, ("`out_channels`", "3", "None or", "(num_coefficients + 1)")),
        ({"out_channels": 10}, ("`out_channels`", "10", "None or", "(num_coefficients + 1)")),
        ({**BASE, "attenuation": "linear"}, ("`attenuation`", "'linear'", "'constant'", "base_scheduler")),
        ({**BASE, "precondition": False}, ("`precondition`", "False", "True", "base_scheduler")),
        ({**BASE, "precondition": "velocity"}, ("`precondition`", "'velocity'", "True", "base_scheduler")),
        ({**BASE, "sigma_data": 0.5}, ("`sigma_data`", "0.5", "1.0", "base_scheduler")),
        (
            {"base_scheduler": {"prediction_type": "sample"}},
            ("`base_scheduler`", "'sample'", "'epsilon'", "'v_prediction'"),
        ),
        ({"base_scheduler": {"clip_sample": True}}, ("`base_scheduler`", "clip_sample", "prediction_type")),
    ],
    ids=str,
)
@every_kind
def test_bad_options(kind, options, parts, rejects):
    with rejects(*parts):
        make(kind, **options)


@pytest.mark.parametrize("change", [1, -1, None], ids=["channel more", "channel less", "no height"])
@every_kind
def test_samples_of_a_wrong_shape(kind, change, rejects):
    model = make(kind)
    channels = model.config.in_channels
    x = noisy(model)[:, :, 0] if change is None else draw(2, channels + change, 8, 8)
    with rejects("`sample`", str(tuple(x.shape)), f"(batch_size, {channels}, height, width)"):
        run(model, x, 500)


@pytest.mark.parametrize("timestep", [1000.5, -1, torch.tensor([3.0, 1001.0])], ids=str)
def test_timesteps_that_no_time_has(timestep, rejects):
    with rejects("`timestep`", "[0, 1000]"):
        make(KINDS["unet2d"])(draw(2, 3, 8, 8), timestep)


# ---------------------------------------------------------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "build", [partial(tiny_unet, DDMUNet2DModel), partial(tiny_dit, DDMDiTTransformer2DModel)], ids=["unet", "dit"]
)
def test_class_names_are_in_the_config(build, tmp_path, rejects):
    """With whole numbers as labels, in their order, though JSON knows strings alone and sorts them."""
    names = {i: f"class {i}" for i in range(12)}
    model = build(num_class_embeds=12, id2label=names)
    assert model.config.id2label == names
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert list(loaded.config.id2label.items()) == list(names.items())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]  # as before there were names
    assert type(model).from_config(config).config.id2label is None

    for bad, part in (
        ({0: "a"}, "from 0 to 1"),
        ({1: "a", 2: "b"}, "from 0 to 1"),
        ({0: "a", 1: 1}, "from 0 to 1"),
        (["a", "b"], "from 0 to 1"),
        ({0: "a", 1: "a"}, "['a'] more than once"),
    ):
        with rejects("`id2label`", str(bad), part):
            build(num_class_embeds=2, id2label=bad)
    with rejects("`id2label`", "None without `num_class_embeds`"):
        build(id2label={0: "a"})
