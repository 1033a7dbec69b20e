# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What FSDP and DeepSpeed need to train as other runs do, and a moving average of weights that are shared out."""

import dataclasses
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor, distribute_tensor


FILE_NAME = "average.pt"


def configure_sharding(accelerator: Accelerator, args: Namespace) -> str:
    """
    Make precision, clipping and batch size under FSDP and DeepSpeed those that they are without them.

    Returns:
        `str`: `"FSDP"`, `"DEEPSPEED"` or `"none"`: which of them writes the files of a checkpoint.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError(
                f"`fsdp_version` is {plugin.fsdp_version} in accelerate's configuration, but has to be 2."
            )
        if plugin.mixed_precision_policy is not None:
            # accelerate's policy rounds the times that the model is told, its output and the sum of the gradients
            plugin.mixed_precision_policy = dataclasses.replace(
                plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
            )
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        if config["zero_optimization"]["stage"] == 3:
            raise ValueError("`zero_stage` is 3 in accelerate's configuration, but has to be 2 or less; or use FSDP.")
        config["gradient_clipping"] = args.max_grad_norm
        # for DeepSpeed's own logs; the default follows the data, which are not there yet
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size or 1
        if accelerator.mixed_precision == "bf16":
            # DeepSpeed's own bf16 rounds the weights, of which the average is to be in float32
            config["bf16"]["enabled"] = False
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    else:
        return "none"
    return accelerator.distributed_type.value


def full_tensors(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """
    Tensors of which each process may have only a part, one whole one after the other, as a device may have no room for
    all of them. Every process has to call this.
    """
    for tensor in tensors:
        tensor = tensor.detach()
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WeightAverage(EMAModel):
    """
    diffusers' [`~diffusers.training_utils.EMAModel`] in float32, saved and loaded with the state of an accelerator.

    With FSDP each process averages its own part of every weight. A checkpoint has the whole, so that it suits any number
    of processes: they bring their parts together, which what accelerate saves by itself does not, on the main process
    alone.

    Args:
        accelerator ([`~accelerate.Accelerator`]): With whose state it is saved.
        parameters (`Iterable[torch.nn.Parameter]`): Of the model as the accelerator prepared it.
        options: Those of [`~diffusers.training_utils.EMAModel`].
    """

    def __init__(self, accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter], **options):
        super().__init__(parameters, **options)
        self.to(dtype=torch.float32)
        self.accelerator = accelerator
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def _save(self, models: list, weights: list, folder: str | Path) -> None:
        is_main_process = self.accelerator.is_main_process
        averages = [average.cpu() if is_main_process else None for average in full_tensors(self.shadow_params)]
        if is_main_process:
            torch.save({**self.state_dict(), "shadow_params": averages}, Path(folder, FILE_NAME))

    def _load(self, models: list, folder: str | Path) -> None:
        parts = self.shadow_params
        self.load_state_dict(torch.load(Path(folder, FILE_NAME), map_location="cpu", weights_only=True))
        self.shadow_params = [
            distribute_tensor(average.to(part.device), part.device_mesh, part.placements)
            if isinstance(part, DTensor)
            else average.to(part.device)
            for average, part in zip(self.shadow_params, parts, strict=True)
        ]
