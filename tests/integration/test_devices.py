# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that nothing waits for a device and nothing on it is float64, which MPS does not have. The device is "meta": its tensors
have no values, so whatever reads one fails, and every operation on it is watched.
"""

import diffusers
import pytest
import torch
from stock_parts import draw
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddm_diffusers import DDMScheduler
from ddm_diffusers.training import ddm_loss, sample_timesteps


class NoFloat64(TorchDispatchMode):
    """Fails if an operation makes a float64 tensor on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, f"{function} made a float64 tensor on the device"
        return result


def test_the_watch_sees_float64_and_the_device_has_no_values():
    with NoFloat64(), pytest.raises(AssertionError, match="float64"):
        torch.zeros(2, dtype=torch.float64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device="meta").tolist()


SCHEDULERS = {
    "decoupled": DDMScheduler(),
    "first order": DDMScheduler(solver_order=1),
    "linear attenuation": DDMScheduler(attenuation="linear"),
    "epsilon": DDMScheduler.from_config(diffusers.DDIMScheduler().config),
    "thresholding": DDMScheduler.from_config(diffusers.DDIMScheduler(thresholding=True).config),
    "flow": DDMScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config),
    "EDM": DDMScheduler.from_config(diffusers.EDMEulerScheduler().config),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_sampling(scheduler, dtype):
    with NoFloat64():
        scheduler.set_timesteps(4, device="meta")
        scheduler.set_begin_index(0)
        x = draw(2, 3, 8, 8, dtype=dtype).to("meta") * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, timestep)
            output = torch.cat([x_in.sin()] * scheduler.parameterization.quantities[0], dim=1)
            x = scheduler.step(output, timestep, x).prev_sample
        assert scheduler.step_index == 4 and x.dtype == dtype
        if scheduler.config.attenuation == "constant":
            scheduler.add_noise(x, x, scheduler.timesteps[:2])


@pytest.mark.parametrize("attenuation", ["constant", "linear"])
def test_a_training_step(attenuation, tiny_unet):
    scheduler = DDMScheduler(attenuation=attenuation)
    unet = tiny_unet(attenuation=attenuation).to("meta")
    with NoFloat64():
        clean = draw(2, 3, 8, 8).to("meta")
        timesteps = sample_timesteps(scheduler, 2, device="meta")
        coefficients = scheduler.get_attenuation(clean)
        noisy = scheduler.add_noise(clean, clean, timesteps, coefficients)
        loss = ddm_loss(scheduler, unet(noisy, timesteps).sample, clean, clean, timesteps, coefficients)
        loss.backward()
    assert all(weight.grad is not None for weight in unet.parameters())


def test_a_model_that_started_from_another_process(plain_unet):
    from ddm_diffusers import DDMUNet2DModel

    unet = DDMUNet2DModel.from_unet2d(plain_unet(), diffusers.DDPMScheduler()).to("meta")
    with NoFloat64():
        unet(draw(2, 3, 8, 8).to("meta"), torch.full((2,), 500.0, device="meta"))
