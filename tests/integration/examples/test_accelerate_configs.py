# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Every file of `examples/accelerate_configs/` is read by accelerate's own launcher, and sets up what its name says; and runs
under FSDP and DeepSpeed, on two CPU processes, are those without them.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, patch_environment
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from processes import start_distributed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "training.md"
FOLDER = ROOT / "examples" / "accelerate_configs"
SCRIPT = ROOT / "examples" / "train_ddm.py"

# kind, machines, processes of each machine
EXPECTED = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "eight_gpus": (DistributedType.MULTI_GPU, 1, 8),
    "two_nodes": (DistributedType.MULTI_GPU, 2, 8),
    "fsdp": (DistributedType.FSDP, 1, 8),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 1, 8),
    "cpu": (DistributedType.NO, 1, 1),
}


def launched(name, *options):
    """The launcher's arguments after `accelerate launch --config_file`, and the environment of the script."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *options, str(SCRIPT)])
    args, defaults, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return args, prepare_deepspeed_cmd_env(args)[1]
    if args.multi_gpu or args.use_fsdp:
        return args, prepare_multi_gpu_env(args)
    return args, prepare_simple_launcher_cmd_env(args)[1]


def test_every_file_is_checked_and_documented():
    names = {path.stem for path in FOLDER.iterdir()}
    assert names == set(EXPECTED)
    assert set(re.findall(r"examples/accelerate_configs/(\w+)\.yaml", PAGE.read_text())) == names


@pytest.mark.parametrize("name", EXPECTED)
def test_processes(name):
    kind, machines, processes = EXPECTED[name]
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (machines, machines * processes)
    assert config.use_cpu == (name == "cpu")
    args, environment = launched(name)
    assert getattr(args, "nproc_per_node", "1") == str(processes)
    assert environment.get("ACCELERATE_USE_CPU", "False") == str(config.use_cpu)
    # the options of the script count, so that a model is trained in the same way wherever it is
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment


def test_second_node():
    args, _ = launched("two_nodes", "--machine_rank", "1", "--main_process_ip", "10.1.2.3")
    assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 1, "10.1.2.3:29500")


def test_fsdp_shards_each_block(tiny_unet):
    with patch_environment(**launched("fsdp")[1]):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    unet = tiny_unet()
    plugin.set_auto_wrap_policy(unet)  # raises if the model has no such class
    wrapped = [
        module
        for module in unet.modules()
        if plugin.auto_wrap_policy(module=module, recurse=False, nonwrapped_numel=0)
    ]
    assert {type(module).__name__ for module in wrapped} == {"ResnetBlock2D", "Attention"}
    # together they are most of the model
    assert sum(p.numel() for module in wrapped for p in module.parameters()) > 0.7 * unet.num_parameters()


def test_deepspeed_leaves_the_steps_to_the_script():
    with patch_environment(**launched("deepspeed_zero2")[1]):
        config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == 2
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == "auto"


@pytest.mark.slow
def test_cpu_runs(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu.yaml")]
    command += [str(SCRIPT), "--block_out_channels", "8", "16", "--max_train_steps", "2", "--logger", "none"]
    result = subprocess.run(
        [*command, "--eval_batch_size", "1", "--output_dir", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out" / "model_index.json").is_file()


# ------------------------------------------------------------------------------------------------------------------ sharding
FEATURES = """
import torch

class Pixels(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.mean(dim=1), 2).flatten(1)
"""
ARGUMENTS = ["--block_out_channels", "8", "16", "--max_train_steps", "6", "--train_batch_size", "8"]
ARGUMENTS += ["--lr_warmup_steps", "1", "--checkpointing_steps", "3", "--eval_batch_size", "1"]
ARGUMENTS += ["--evaluation_steps", "3", "--evaluation_samples", "32", "--feature_extractor", "features.py:Pixels"]
# a limit that changes the steps, as DeepSpeed clips by itself
ARGUMENTS += ["--gradient_accumulation_steps", "2", "--max_grad_norm", "0.05"]


def start_training(cwd, output_dir, *arguments, name="eight_gpus", **variables):
    """Two processes on the CPU, in the environment that a file of the folder makes."""
    (cwd / "features.py").write_text(FEATURES)
    environment = {key: value for key, value in launched(name)[1].items() if os.environ.get(key) != value}
    environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", **variables}
    scripts = ["train_ddm.py"]
    if name != "eight_gpus":
        scripts = [ROOT / "tests" / "sharded_on_cpu.py", SCRIPT]
    return start_distributed(*scripts, *ARGUMENTS, "--output_dir", output_dir, *arguments, cwd=cwd, **environment)


def train(*arguments, **options):
    """Both processes to their end; what the first one said."""
    runs = start_training(*arguments, **options)
    try:
        for run in runs:
            assert run.wait() == 0, run.output[-4000:]
    finally:
        for run in runs:
            run.kill()
    return runs[0].output


def refused(*arguments, **options):
    """What the first one said of two that end with an error."""
    runs = start_training(*arguments, **options)
    try:
        assert all(run.wait() != 0 for run in runs)
    finally:
        for run in runs:
            run.kill()
    return runs[0].output


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def distance(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def scalars(folder):
    """What TensorBoard shows but for the speed, by name."""
    events = EventAccumulator(str(folder / "logs" / "train_ddm")).Reload()
    names = set(events.Tags()["scalars"]) - {"images_per_second"}
    return {name: [event.value for event in events.Scalars(name)] for name in names}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run on two processes that is not sharded."""
    cwd = tmp_path_factory.mktemp("plain")
    train(cwd, "out")
    return cwd / "out"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2"])
def test_sharded_run(name, plain, tmp_path):
    """It trains what a run without it trains, and goes on from a checkpoint as if nothing had happened."""
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    train(tmp_path, "out", name=name)
    assert distance(weights(tmp_path / "out"), weights(plain)) < 1e-4
    logged, expected = scalars(tmp_path / "out"), scalars(plain)
    # the last one is of images that both processes drew, so that both have to have the weights
    assert logged.keys() == expected.keys() >= {"loss", "grad_norm", "lr", "fid"}
    for key, values in expected.items():
        assert logged[key] == pytest.approx(values, rel=1e-3), key

    # the average is whole in a checkpoint, whoever had which part
    averages = [torch.load(each / "checkpoint-3" / "average.pt") for each in (tmp_path / "out", plain)]
    assert averages[0]["optimization_step"] == averages[1]["optimization_step"] == 3
    for sharded, whole in zip(*(average["shadow_params"] for average in averages), strict=True):
        assert sharded.dtype == torch.float32
        torch.testing.assert_close(sharded, whole, atol=1e-4, rtol=0)

    (tmp_path / "out").rename(tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "out" / "checkpoint-3")
    output = train(tmp_path, "out", "--resume_from_checkpoint", "latest", name=name)
    assert "Resuming from out/checkpoint-3" in output
    assert distance(weights(tmp_path / "out"), weights(tmp_path / "whole")) == 0

    # its files are none that another kind of run could read
    message = refused(tmp_path, "out", "--resume_from_checkpoint", "checkpoint-3")
    assert re.search(r"sharding: '(FSDP|DEEPSPEED)' there, 'none' now", message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2"])
def test_sharded_run_in_bf16(name, tmp_path):
    """The weights and their average stay in float32, and the loss of the first step is that of an unsharded run."""
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    arguments = ["--mixed_precision", "bf16", "--max_train_steps", "1", "--checkpointing_steps", "1"]
    losses = []
    for each in ("eight_gpus", name):
        output = train(tmp_path, each, *arguments, name=each)
        losses.append(float(re.findall(r"1/1 .*?loss=([\d.]+)", output)[0]))
        # after the first step the average is that of one model
        average = torch.load(tmp_path / each / "checkpoint-1" / "average.pt")["shadow_params"]
        assert any(not torch.equal(part, part.bfloat16().float()) for part in average)
    # times that are rounded to bf16 change it by 0.005
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("fsdp", {"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}, "`fsdp_version` is 1"),
        ("deepspeed_zero2", {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "`zero_stage` is 3"),
    ],
)
@pytest.mark.slow
def test_what_would_lose_the_average_is_refused(name, variables, message, tmp_path):
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    assert message in refused(tmp_path, "out", name=name, **variables)
    assert not (tmp_path / "out").exists()
