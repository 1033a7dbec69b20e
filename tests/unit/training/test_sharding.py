# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The average of the weights, in full and as shares of a process, and how FSDP and DeepSpeed are set up."""

from argparse import Namespace
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from processes import fork
from stock_parts import draw
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from ddm_diffusers.training.sharding import WeightAverage, configure_sharding, full_tensors


ARGS = Namespace(max_grad_norm=0.5, train_batch_size=6)


def accelerator_of(distributed_type, mixed_precision="no", **state):
    """What `configure_sharding` looks at. Sharding itself needs several processes; the integration tests have them."""
    return SimpleNamespace(
        distributed_type=distributed_type, mixed_precision=mixed_precision, state=SimpleNamespace(**state)
    )


def test_without_sharding():
    assert configure_sharding(Accelerator(cpu=True), ARGS) == "none"


def test_fsdp_keeps_times_and_gradients_in_float32():
    policy = torch.distributed.fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=policy)
    assert configure_sharding(accelerator_of(DistributedType.FSDP, fsdp_plugin=plugin), ARGS) == "FSDP"
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16 and policy.reduce_dtype == torch.float32
    assert policy.output_dtype is None and policy.cast_forward_inputs is False


def test_the_first_version_of_fsdp_is_refused(rejects):
    plugin = SimpleNamespace(fsdp_version=1)
    with rejects("`fsdp_version` is 1", "has to be 2"):
        configure_sharding(accelerator_of(DistributedType.FSDP, fsdp_plugin=plugin), ARGS)


def test_deepspeed_clips_and_counts_as_the_options_say():
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    plugin = SimpleNamespace(deepspeed_config=config)
    accelerator = accelerator_of(DistributedType.DEEPSPEED, "bf16", deepspeed_plugin=plugin)
    assert configure_sharding(accelerator, ARGS) == "DEEPSPEED"
    assert (config["gradient_clipping"], config["train_micro_batch_size_per_gpu"]) == (0.5, 6)
    assert config["bf16"] == {"enabled": False}
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}


def test_the_third_stage_of_deepspeed_is_refused(rejects):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}})
    with rejects("`zero_stage` is 3", "2 or less"):
        configure_sharding(accelerator_of(DistributedType.DEEPSPEED, deepspeed_plugin=plugin), ARGS)


def average_of(model, decay=0.75):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    return accelerator, WeightAverage(accelerator, model.parameters(), decay=decay)


def test_the_average_is_saved_and_loaded_with_the_accelerator(tmp_path):
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    accelerator, average = average_of(model)
    before = [weight.clone() for weight in average.shadow_params]
    assert {weight.dtype for weight in before} == {torch.float32}
    for _ in range(3):
        with torch.no_grad():
            model.weight += 1
        average.step(model.parameters())
    assert not torch.equal(average.shadow_params[0], before[0]) and average.optimization_step == 3
    accelerator.save_state(tmp_path)

    torch.manual_seed(1)
    accelerator, again = average_of(torch.nn.Linear(3, 2).to(torch.bfloat16), decay=0.5)
    accelerator.load_state(tmp_path)
    assert all(map(torch.equal, again.shadow_params, average.shadow_params))
    assert (again.optimization_step, again.decay) == (3, 0.75)
    assert {weight.dtype for weight in again.shadow_params} == {torch.float32}


def test_full_tensors_have_no_gradient():
    weight = torch.nn.Parameter(torch.ones(2))
    (tensor,) = full_tensors([weight])
    assert torch.equal(tensor, weight) and not tensor.requires_grad


def share_an_average(folder):
    """The share of this process of a weight, its average, and what a checkpoint has of it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    model = torch.nn.Linear(3, 4, bias=False)
    model.weight = torch.nn.Parameter(distribute_tensor(draw(4, 3), mesh, [Shard(0)]))
    accelerator = Accelerator(cpu=True)
    average = WeightAverage(accelerator, model.parameters(), decay=0.75)
    assert isinstance(average.shadow_params[0], DTensor)
    average._save([], [], folder)
    saved = torch.load(folder / "average.pt")["shadow_params"]
    assert not isinstance(saved[0], DTensor) and torch.equal(saved[0], draw(4, 3))
    torch.save({**average.state_dict(), "shadow_params": [saved[0] + 1]}, folder / "average.pt")
    average._load([], folder)
    (loaded,) = average.shadow_params
    assert isinstance(loaded, DTensor) and loaded.placements == (Shard(0),)
    assert torch.equal(loaded.full_tensor(), draw(4, 3) + 1)
    (folder / "done").touch()


def test_an_average_of_shares(tmp_path):
    process = fork(share_an_average, tmp_path)
    process.join()
    assert process.exitcode == 0 and (tmp_path / "done").exists()
