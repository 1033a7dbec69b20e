# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMDiTTransformer2DModel` is a DiTTransformer2DModel with two outputs, whose labels are dropped by nobody but
who trains it, and that it stands in a DDMPipeline. What holds for the other models as well is in test_dual_output.py.
"""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from stock_parts import draw, perturb, seeded, tiny_dit

from ddm_diffusers import DDMDiTTransformer2DModel, DDMPipeline, DDMScheduler
from ddm_diffusers.models.preconditioning import precondition


def tiny(**options):
    return perturb(tiny_dit(DDMDiTTransformer2DModel, **options))


def stock_network(model):
    """A stock DiTTransformer2DModel with the weights of the model."""
    names = set(inspect.signature(diffusers.DiTTransformer2DModel).parameters)
    config = {name: value for name, value in model.config.items() if name in names}
    config["num_embeds_ada_norm"] = model.config.num_class_embeds
    config["out_channels"] = model.config.out_channels // (2 if model.config.num_heads == 1 else 1)
    stock = diffusers.DiTTransformer2DModel(**config).eval()
    stock.load_state_dict(model.state_dict())
    return stock


@pytest.mark.parametrize(
    "options",
    [{"num_heads": 1}, {"num_heads": 2}, {"attenuation": "linear"}, {"patch_size": 4}, {"in_channels": 1}],
    ids=str,
)
@torch.no_grad()
def test_the_network_is_that_of_dit_between_the_scales(options):
    model = tiny(num_class_embeds=3, precondition=True, sigma_data=0.5, **options)
    x, timesteps = draw(2, model.config.in_channels, 8, 8), torch.tensor([700.3, 30.0])
    labels = torch.tensor([1, 3])
    scales = precondition(model.process, timesteps / 1000, 0.5)
    raw = stock_network(model)(scales.scale_input(x), timesteps, labels).sample
    num_outputs = 3 if model.config.attenuation == "linear" else 2
    fields = (raw, raw) if model.config.num_heads == 1 else raw.chunk(num_outputs, dim=1)
    out = model(x, timesteps, labels)
    torch.testing.assert_close(out.sample, scales.scale_output(x, fields), rtol=1e-5, atol=1e-5)


def test_the_public_configuration():
    model = tiny(num_class_embeds=3)
    assert isinstance(model, diffusers.DiTTransformer2DModel)
    assert (model.config.in_channels, model.config.out_channels, model.num_channels) == (4, 8, 4)
    assert model.no_class_label == model.config.num_class_embeds == 3
    assert tiny().no_class_label is None
    assert (model.size_multiple, tiny(patch_size=4).size_multiple) == (2, 4)


def test_no_label_is_dropped():
    # in training mode, where DiTTransformer2DModel drops one in ten
    model = tiny(num_class_embeds=3).train()
    x, labels = draw(4, 4, 8, 8), torch.arange(4)
    with torch.no_grad():
        outputs = [model(x, 500.0, labels).sample for _ in range(40)]
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    for i, output in enumerate(model(x[:1].expand(4, -1, -1, -1), 500.0, labels).sample.split(1)):
        for other in outputs[0][:i]:
            assert (output - other).abs().max() > 1e-4


@torch.no_grad()
def test_other_sizes():
    # the position embedding is that of the middle of the trained one
    assert tiny()(draw(1, 4, 4, 4), 500).sample.shape == (1, 8, 4, 4)


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"sample_size": 9}, ("`sample_size`", "9", "multiple of 2")),
        ({"sample_size": (8, 8)}, ("`sample_size`", "(8, 8)", "whole number")),
        ({"out_channels": 6}, ("`out_channels`", "6", "None or", "in_channels")),
    ],
    ids=str,
)
def test_bad_options(options, parts, rejects):
    with rejects(*parts):
        tiny(**options)


@pytest.mark.parametrize(
    "options, sample, labels, parts",
    [
        ({}, draw(2, 4, 8, 6), None, ("`sample`", "(8, 6)", "equal", "multiple of 2")),
        ({}, draw(2, 4, 7, 7), None, ("`sample`", "(7, 7)", "multiple of 2")),
        ({}, draw(2, 4, 8, 8), torch.tensor([0, 1]), ("`class_labels`", "no class embedding", "None")),
        ({"num_class_embeds": 3}, draw(2, 4, 8, 8), None, ("`class_labels`", "None", "a label for each image")),
        ({"num_class_embeds": 3}, draw(2, 4, 8, 8), torch.tensor([0]), ("`class_labels`", "(1,)", "2 images")),
    ],
)
def test_bad_inputs(options, sample, labels, parts, rejects):
    model = tiny(**options)
    with rejects(*parts):
        model(sample, 500, labels)


# ------------------------------------------------------------------------------------------------------------- in a pipeline


def pipeline(**options):
    pipe = DDMPipeline(tiny(in_channels=3, **options), DDMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, **arguments):
    return pipe(batch_size=2, generator=seeded(), output_type="np", **arguments).images


@pytest.mark.parametrize("size, patch_size", [(8, 2), (12, 4)])
def test_a_pipeline_without_classes(size, patch_size):
    drawn = images(pipeline(sample_size=size, patch_size=patch_size), num_inference_steps=3)
    assert drawn.shape == (2, size, size, 3) and np.isfinite(drawn).all() and drawn.std() > 0


def test_a_pipeline_with_classes_and_guidance(rejects):
    pipe = pipeline(num_class_embeds=3)
    batches = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    plain = images(pipe, class_labels=[0, 2])
    assert batches == [2] * 10
    batches.clear()
    guided = images(pipe, class_labels=[0, 2], guidance_scale=3.0)
    assert batches == [4] * 10
    others = images(pipe, class_labels=[1, 1])
    assert all((plain[i] != others[i]).any() and (plain[i] != guided[i]).any() for i in range(2))
    with rejects("`class_labels`", "[0, 3]", "0 to 2"):
        images(pipe, class_labels=[0, 3])


def test_a_pipeline_saved_and_loaded(own_memory, tmp_path):
    pipe = pipeline(num_class_embeds=3)
    pipe.save_pretrained(tmp_path)
    loaded = DDMPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is DDMDiTTransformer2DModel
    own_memory(loaded.unet)
    loaded.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [0, 2], "guidance_scale": 2.0, "num_inference_steps": 3}
    assert np.array_equal(images(pipe, **arguments), images(loaded, **arguments))


@torch.no_grad()
def test_it_is_exported_with_a_dynamic_batch():
    """As the stock transformer is, for any number of images."""

    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, sample, timestep):
            return self.model(sample, timestep, return_dict=False)[0]

    model = Wrapper(tiny())
    batch = torch.export.Dim("batch", min=2, max=64)
    arguments = (draw(3, 4, 8, 8), torch.full((3,), 400.0))
    exported = torch.export.export(model, arguments, dynamic_shapes=({0: batch}, {0: batch}), strict=False).module()
    for num_images in (3, 5):
        x, timesteps = draw(num_images, 4, 8, 8, seed=num_images), torch.full((num_images,), 300.0)
        torch.testing.assert_close(exported(x, timesteps), model(x, timesteps))
