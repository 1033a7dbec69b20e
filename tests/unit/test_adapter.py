# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
An exact decoupled model becomes an exact model of the other process: with the formulas of that process, written out here.
What samplers make of it is tested beside the swapped schedulers.
"""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from stock_parts import TINY_UNET, draw

from ddm_diffusers import DDMUNet2DAdapter, DDMUNet2DModel, DDMUNet2DOutput


IMAGE = draw(1, 3, 8, 8, seed=7).tanh()


class ExactUNet(DDMUNet2DModel):
    """The model of a data set of one image: it solves x_t = (1 - t) x_0 + sqrt(t) noise for the noise."""

    def forward(self, sample, timestep, class_labels=None):
        self.seen = (timestep, class_labels)
        t = (timestep / 1000).reshape(-1, 1, 1, 1)
        noise = (sample - (1 - t) * IMAGE) / t.sqrt()
        attenuation = -IMAGE.expand_as(noise)
        return DDMUNet2DOutput(torch.cat([attenuation, noise], dim=1), attenuation, noise)


@pytest.fixture
def unet():
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
def test_it_predicts_what_the_scheduler_expects(unet, scheduler, expected, t):
    if isinstance(scheduler, DDIMScheduler):
        a = scheduler.alphas_cumprod[int(t)].sqrt()
        b = (1 - a**2).sqrt()
    else:
        a, b = 1 - t / 1000, t / 1000
    noise = draw(2, 3, 8, 8)
    prediction = DDMUNet2DAdapter(unet, scheduler)(a * IMAGE + b * noise, t).sample
    torch.testing.assert_close(prediction, expected(a, b, noise), rtol=0, atol=2e-4)


def test_classes_timesteps_and_outputs(unet):
    adapter = DDMUNet2DAdapter(unet, diffusion("epsilon"))
    labels = torch.tensor([0, 2])
    (prediction,) = adapter(draw(2, 3, 8, 8), torch.tensor([10, 900]), labels, return_dict=False)
    times, seen = unet.seen
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
