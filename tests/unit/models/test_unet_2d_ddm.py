# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMUNet2DModel` is a UNet2DModel with two outputs: its network is compared with stock UNet2DModels that hold
the same weights, so that only the preconditioning around it is ours. Its smallest variant costs what a plain UNet2DModel
costs. What holds for the other models as well is in test_dual_output.py.
"""

import inspect
import time

import diffusers
import pytest
import torch
from stock_parts import draw, perturb
from torch.utils.flop_counter import FlopCounterMode

from ddm_diffusers import DDMUNet2DModel
from ddm_diffusers.models.preconditioning import precondition


ONE_HEAD = {"num_decoders": 1, "num_heads": 1}
TWO_HEADS = {"num_decoders": 1, "num_heads": 2}
TWO_DECODERS = {"num_decoders": 2}
LINEAR = {"attenuation": "linear"}
VARIANTS = {
    "one head": ONE_HEAD,
    "two heads": TWO_HEADS,
    "two decoders": TWO_DECODERS,
    "linear attenuation": LINEAR,
    "linear attenuation, two decoders": {**LINEAR, **TWO_DECODERS},
    "linear noise": {"noise_schedule": "linear", **ONE_HEAD},
    "plain": {"precondition": False},
    "plain, two decoders, linear attenuation": {"precondition": False, **LINEAR, **TWO_DECODERS},
}
all_variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
architectures = pytest.mark.parametrize(
    "options", [ONE_HEAD, TWO_HEADS, TWO_DECODERS], ids=["one head", "two heads", "two decoders"]
)


# --------------------------------------------------------------------------------------------------------- the two outputs


def test_the_public_configuration(tiny_unet):
    unet = tiny_unet(num_class_embeds=4, conditioning_channels=2, **ONE_HEAD)
    assert isinstance(unet, diffusers.UNet2DModel)
    assert (unet.config.in_channels, unet.config.out_channels) == (3, 6)
    assert unet.config.num_class_embeds == unet.no_class_label == 4
    assert tiny_unet(attenuation="linear").config.out_channels == 9
    assert tiny_unet().no_class_label is None


# ------------------------------------------------------------------------------- the network, against stock UNet2DModels


def stock_network(unet, out_channels, prefix=""):
    """A stock UNet2DModel with the weights of the trunk and of the decoder whose names begin with `prefix`."""
    names = set(inspect.signature(diffusers.UNet2DModel).parameters)
    config = {name: value for name, value in unet.config.items() if name in names}
    config["in_channels"] += unet.config.conditioning_channels
    if config["num_class_embeds"] is not None:
        config["num_class_embeds"] += 1
    stock = diffusers.UNet2DModel(**{**config, "out_channels": out_channels}).eval()
    weights = unet.state_dict()
    decoder = ("up_blocks.", "conv_norm_out.", "conv_out.")
    stock.load_state_dict(
        {name: weights[prefix + name if name.startswith(decoder) else name] for name in stock.state_dict()}
    )
    return stock


@pytest.mark.parametrize("extras", [False, True], ids=["", "classes and condition"])
@pytest.mark.parametrize("mid_block_type", ["UNetMidBlock2D", None])
@all_variants
@torch.no_grad()
def test_the_network_is_that_of_unet2d_between_the_scales(options, mid_block_type, extras, tiny_unet):
    if extras:
        options = {**options, "num_class_embeds": 4, "conditioning_channels": 2}
    unet = perturb(tiny_unet(mid_block_type=mid_block_type, **{"precondition": True, "sigma_data": 0.5, **options}))
    config = unet.config
    num_outputs = 3 if config.attenuation == "linear" else 2
    if config.num_decoders == 2:
        # with the entries silent, each decoder stands directly behind the encoder, as in a UNet2DModel of its own
        for entry in (unet.attenuation_entry, unet.noise_entry):
            entry.conv.weight.zero_(), entry.conv.bias.zero_()
        networks = [stock_network(unet, 3 * num_outputs - 3), stock_network(unet, 3, "noise_")]
    else:
        networks = [stock_network(unet, 3 if config.num_heads == 1 else 3 * num_outputs)]

    x, timesteps = draw(2, 3, 8, 8), torch.tensor([700.3, 30.0])
    inputs = {"class_labels": torch.tensor([1, 4])} if extras else {}
    condition = draw(2, 2, 8, 8, seed=5)
    scales = precondition(unet.process, timesteps / 1000, 0.5)
    network_input = scales.scale_input(x) if config.precondition else x
    if extras:  # the condition is not scaled
        network_input = torch.cat([network_input, condition], dim=1)
    raw = torch.cat([network(network_input, timesteps, **inputs).sample for network in networks], dim=1)
    if not config.precondition:
        expected = raw
    elif config.num_heads == 1:
        expected = scales.scale_output(x, (raw, raw))
    else:
        expected = scales.scale_output(x, raw.chunk(num_outputs, dim=1))

    if extras:
        inputs["conditioning"] = condition
    torch.testing.assert_close(unet(x, timesteps, **inputs).sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attenuation", ["constant", "linear"])
@torch.no_grad()
def test_two_decoders_start_different(attenuation, tiny_unet):
    # equal decoders would get equal gradients and never part
    unet = tiny_unet(precondition=False, attenuation=attenuation, **TWO_DECODERS)
    out = unet(draw(1, 3, 8, 8), 500)
    assert (out.attenuation[:, -3:] - out.noise).abs().max() > 0.01 * out.noise.std()
    for (name, weight), other in zip(
        unet.up_blocks.named_parameters(), unet.noise_up_blocks.parameters(), strict=True
    ):
        if weight.ndim > 1:  # norms and biases may well start equal
            assert not torch.equal(weight, other), name
            # the same distribution: both are uniform within the same bounds, whose spread a sample estimates
            assert other.std().item() == pytest.approx(weight.std().item(), rel=0.3), name


@torch.no_grad()
def test_each_decoder_makes_one_output(tiny_unet):
    unet, x = perturb(tiny_unet(**TWO_DECODERS)), draw(1, 3, 8, 8)
    before = unet(x, 500)
    perturb(unet.noise_up_blocks, seed=7), perturb(unet.noise_entry, seed=7)
    after = unet(x, 500)
    assert torch.equal(before.attenuation, after.attenuation)
    assert not torch.equal(before.noise, after.noise)
    perturb(unet.attenuation_entry, seed=7)
    last = unet(x, 500)
    assert not torch.equal(after.attenuation, last.attenuation)
    assert torch.equal(after.noise, last.noise)


# --------------------------------------------------------------------------------------------------------------- the inputs


@torch.no_grad()
def test_classes_and_condition_matter(tiny_unet):
    unet = perturb(tiny_unet(num_class_embeds=3, conditioning_channels=1))
    x, condition = draw(1, 3, 8, 8), draw(1, 1, 8, 8, seed=3)
    outputs = [unet(x, 500, class_labels=torch.tensor([label]), conditioning=condition).sample for label in range(4)]
    outputs.append(unet(x, 500, class_labels=torch.tensor([0]), conditioning=-condition).sample)
    for i, output in enumerate(outputs):
        for other in outputs[:i]:
            assert (output - other).abs().max() > 1e-4


@pytest.mark.parametrize("class_embed_type, labels", [("timestep", [3.0, 7.0]), ("identity", None)])
@torch.no_grad()
def test_the_other_class_embeddings_of_unet2d(class_embed_type, labels, tiny_unet, plain_unet):
    # identity: the caller embeds, in the width of the time embedding, 4 * block_out_channels[0]
    labels = draw(2, 32, seed=4) if labels is None else torch.tensor(labels)
    unet = tiny_unet(class_embed_type=class_embed_type, precondition=False)
    stock = stock_network(unet, 6)
    x = draw(2, 3, 8, 8)
    output = unet(x, 500, class_labels=labels).sample
    torch.testing.assert_close(output, stock(x, 500, class_labels=labels).sample)
    assert not torch.allclose(output, unet(x, 500, class_labels=labels + 1).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
@torch.no_grad()
def test_any_size_that_halves(size, tiny_unet):
    assert tiny_unet(sample_size=size)(draw(1, 3, *size), 500).sample.shape == (1, 6, *size)


# --------------------------------------------------------------------------------------------------------- trained weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@architectures
@torch.no_grad()
def test_from_unet2d_starts_from_the_trained_weights(options, dtype, tiny_unet, plain_unet):
    trained = perturb(plain_unet(num_class_embeds=4)).to(dtype)
    unet = DDMUNet2DModel.from_unet2d(
        trained, conditioning_channels=2, precondition=True, sigma_data=0.5, **options
    ).eval()
    assert unet.dtype == dtype
    assert (unet.config.in_channels, unet.config.num_class_embeds) == (3, 4)
    assert all(unet.config[name] == value for name, value in options.items())
    assert all(weight.dtype == dtype for weight in unet.parameters())

    # every output comes from the trained network: the same raw field, between the scales
    x = draw(2, 3, 8, 8, dtype=dtype)
    timesteps, labels = torch.tensor([700.0, 30.0]), torch.tensor([0, 3])
    scales = precondition(unet.process, timesteps / 1000, 0.5)
    raw = trained(scales.scale_input(x).to(dtype), timesteps, class_labels=labels).sample
    expected = scales.scale_output(x, (raw, raw))
    output = unet(x, timesteps, class_labels=labels, conditioning=draw(2, 2, 8, 8, seed=9, dtype=dtype)).sample
    # the same operations on the same weights, but for an addition of zeros in the first convolution
    tolerance = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(output.float(), expected.float(), rtol=0, atol=tolerance)

    rows = unet.class_embedding.weight
    assert torch.equal(rows[:4], trained.class_embedding.weight)
    torch.testing.assert_close(rows[4], trained.class_embedding.weight.mean(dim=0))


@torch.no_grad()
def test_from_unet2d_of_another_process(plain_unet):
    # DDPM with learned variance has twice the channels (the first half is the noise); linear attenuation has three parts
    trained = perturb(plain_unet(out_channels=6))
    unet = DDMUNet2DModel.from_unet2d(trained, attenuation="linear", precondition=False).eval()
    x = draw(1, 3, 8, 8)
    expected = trained(x, torch.tensor(500.0)).sample[:, :3]
    torch.testing.assert_close(unet(x, 500.0).sample, torch.cat([expected] * 3, dim=1))
    assert unet.config.num_train_timesteps == 1000


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"block_out_channels": (16, 16)}, ("block_out_channels", "(16, 16)", "conv_in.weight", "(8, 3, 3, 3)")),
        ({"layers_per_block": 2}, ("layers_per_block", "2", "trained weight")),
        ({"in_channels": 1}, ("in_channels", "1", "conv_in.weight")),
        ({"num_class_embeds": 7}, ("num_class_embeds", "7", "class_embedding.weight", "(8, 32)")),
        ({"num_class_embeds": None}, ("num_class_embeds", "None", "class_embedding.weight")),
    ],
    ids=str,
)
def test_from_unet2d_rejects_options_that_change_the_trunk(options, parts, plain_unet, rejects):
    trained = plain_unet(num_class_embeds=4)
    with rejects("`options`", *parts):
        DDMUNet2DModel.from_unet2d(trained, **options)


# ------------------------------------------------------------------------------------------------------------------ the cost


COSTED = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "layers_per_block": 2,
}


def test_one_head_has_the_parameters_of_a_plain_unet(tiny_unet, plain_unet):
    ours, plain = tiny_unet(**COSTED, **ONE_HEAD), plain_unet(**COSTED)
    assert abs(ours.num_parameters() / plain.num_parameters() - 1) <= 0.02


def train_step(model, inputs):
    x, timesteps, target = inputs
    model(x, timesteps).sample[:, :3].sub(target).square().mean().backward()
    model.zero_grad()


def test_one_head_has_the_arithmetic_of_a_plain_unet(tiny_unet, plain_unet):
    # convolutions and matrix products, forward and backward: what decides the time of a step, and no machine disturbs it
    counts = []
    for model in (tiny_unet(**COSTED, **ONE_HEAD), plain_unet(**COSTED)):
        with FlopCounterMode(display=False) as counter:
            train_step(model.train(), (draw(2, 3, 32, 32), torch.tensor([10.0, 1000.0]), draw(2, 3, 32, 32, seed=2)))
        counts.append(counter.get_total_flops())
    assert counts[1] > 1e9
    assert abs(counts[0] / counts[1] - 1) <= 0.02


@pytest.mark.slow
@pytest.mark.timing
def test_one_head_has_the_step_time_of_a_plain_unet(tiny_unet, plain_unet):
    models = [tiny_unet(**COSTED, **ONE_HEAD).train(), plain_unet(**COSTED).train()]
    inputs = draw(16, 3, 32, 32), torch.linspace(10, 1000, 16), draw(16, 3, 32, 32, seed=2)

    def step_time(model):
        start = time.process_time()  # of this process: others on the machine do not count
        train_step(model, inputs)
        return time.process_time() - start

    for model in models * 2:
        step_time(model)
    # In pairs, one right after the other, in alternating order: what slows the machine slows both of a pair.
    ratios = []
    for i in range(21):
        times = {j: step_time(models[j]) for j in ((0, 1), (1, 0))[i % 2]}
        ratios.append(times[0] / times[1])
    ratios.sort()
    print(f"step time: median ratio {ratios[10]:.4f}, quartiles {ratios[5]:.4f} and {ratios[15]:.4f}")
    # The fifth smallest of 21 lies below the true median with a probability of 99.6 percent (the sign test), however
    # the noise of the machine is distributed. On a quiet machine it is hardly below the median itself.
    assert ratios[4] <= 1.02


# ------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"sample_size": 9}, ("`sample_size`", "9", "multiple of 2")),
        ({"sample_size": (8, 7)}, ("`sample_size`", "(8, 7)", "multiple of 2")),
        ({"num_decoders": 3}, ("`num_decoders`", "3", "1 or 2")),
        ({"num_heads": 1, "num_decoders": 2}, ("`num_heads`", "1", "has to be 2")),
        ({"conditioning_channels": -1}, ("`conditioning_channels`", "-1", "0 or more")),
        ({"out_channels": 3}, ("`out_channels`", "3", "6")),
        ({"center_input_sample": True}, ("`center_input_sample`", "True", "False")),
        ({"time_embedding_type": "learned"}, ("`time_embedding_type`", "'learned'", "'positional'", "'fourier'")),
        (
            {"down_block_types": ("SkipDownBlock2D", "DownBlock2D")},
            ("`down_block_types`", "SkipDownBlock2D", "not accepted"),
        ),
    ],
    ids=str,
)
def test_bad_options(options, parts, tiny_unet, rejects):
    with rejects(*parts):
        tiny_unet(**options)


@pytest.mark.parametrize(
    "options, change, parts",
    [
        ({}, {"sample": draw(2, 3, 8, 7)}, ("`sample`", "(8, 7)", "multiple of 2")),
        ({}, {"class_labels": torch.tensor([0, 1])}, ("`class_labels`", "no class embedding", "None")),
        ({"num_class_embeds": 4}, {}, ("`class_labels`", "None", "a label for each image")),
        ({}, {"conditioning": draw(2, 1, 8, 8)}, ("`conditioning`", "(2, 1, 8, 8)", "0")),
        ({"conditioning_channels": 1}, {}, ("`conditioning`", "None", "1")),
        (
            {"conditioning_channels": 1},
            {"conditioning": draw(2, 1, 4, 4)},
            ("`conditioning`", "(2, 1, 4, 4)", "(2, 1, 8, 8)"),
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_bad_inputs(options, change, parts, tiny_unet, rejects):
    unet = tiny_unet(**options)
    with rejects(*parts):
        unet(**{"sample": draw(2, 3, 8, 8), "timestep": 500, **change})


@pytest.mark.parametrize("count", [1, 3])
def test_labels_of_the_wrong_count(count, tiny_unet, rejects):
    # a training script calls the model without the pipeline; a single label is silently given to every image
    unet = tiny_unet(num_class_embeds=4)
    with rejects("`class_labels`", f"({count},)", "2 images"):
        unet(draw(2, 3, 8, 8), 500, class_labels=torch.zeros(count, dtype=torch.long))
