# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/train_ddm.py` as a user runs it, on scikit-learn's digits: it lowers the loss, what it saves draws digits, and
what it cannot use it refuses.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import hub, start, start_command
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddm_diffusers import DDMDiTTransformer2DModel, DDMPipeline, DDMScheduler, DDMUNet2DModel


SCRIPT = Path(__file__).parents[3] / "examples" / "train_ddm.py"

# A network that is seen to learn within half a minute
SMALL = ["--block_out_channels", "16", "32", "--logging_dir", "logs"]


def train(*arguments, cwd, **environment):
    run = start(SCRIPT.name, *arguments, cwd=cwd, **environment)
    assert run.wait() == 0, run.output[-4000:]
    return run.output


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_ddm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A class-conditional run of 120 steps with a checkpoint after 90."""
    cwd = tmp_path_factory.mktemp("run")
    arguments = [*SMALL, "--output_dir", "out", "--max_train_steps", "120", "--train_batch_size", "32"]
    arguments += ["--lr_warmup_steps", "20", "--class_conditional"]
    output = train(*arguments, "--checkpointing_steps", "90", "--save_images_steps", "60", cwd=cwd)
    return cwd / "out", output


def scalars(folder, name):
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "logs" / "train_ddm")).Reload()
    return np.array([event.value for event in events.Scalars(name)])


def assert_falls(first, last):
    """The mean falls by six standard errors, so that it cannot be noise."""
    standard_error = np.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    assert last.mean() < first.mean() - 6 * standard_error


def frechet_distance(a, b):
    """Between Gaussian fits of two sets of images, pixel by pixel."""
    a, b = a.reshape(len(a), -1).astype(float), b.reshape(len(b), -1).astype(float)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the eigenvalues of the product are those of its symmetric form; some are 0, as some pixels are always black
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root


def samples(pipeline, count, seed):
    labels = np.arange(count) % 10
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(count, class_labels=labels, generator=generator, output_type="np").images


def test_loss_falls_and_is_logged(run):
    folder, output = run
    loss = scalars(folder, "loss")
    assert len(loss) == 120
    assert_falls(loss[:40], loss[-40:])
    assert (scalars(folder, "images_per_second") > 0).all()
    assert "loss=" in output and "images_per_second=" in output and "120/120" in output


def test_trained_images_are_nearer_to_the_data(run):
    pipeline = DDMPipeline.from_pretrained(run[0])
    untrained = DDMPipeline(DDMUNet2DModel.from_config(pipeline.unet.config), pipeline.scheduler)
    digits = load_digits().images / 16
    trained_distances = [frechet_distance(samples(pipeline, 100, seed), digits) for seed in range(3)]
    untrained_distances = [frechet_distance(samples(untrained, 100, seed), digits) for seed in range(3)]
    # three sets each tell how much of a distance is chance: far less than a factor of 3
    assert max(trained_distances) < 1.5 * min(trained_distances)
    assert max(untrained_distances) < 1.5 * min(untrained_distances)
    assert max(trained_distances) < min(untrained_distances) / 3


def test_folder_holds_a_pipeline_and_its_pictures(run):
    folder, _ = run
    assert {"model_index.json", "unet", "scheduler", "samples.png", "checkpoint-90"} <= {
        path.name for path in folder.iterdir()
    }
    assert {path.name for path in (folder / "unet").iterdir()} == {
        "config.json",
        "ddm_diffusers.py",
        "diffusion_pytorch_model.safetensors",
    }
    # 8 x 8 images of 8 x 8 pixels, each pixel drawn 6 x 6, with a border of 2
    with Image.open(folder / "samples.png") as grid:
        assert grid.size == (416, 416)
        assert grid.getextrema()[0] != (0, 0)
    assert list((folder / "samples").glob("step-*.png"))


def test_a_transformer_instead(tmp_path):
    arguments = ["--model_type", "dit", "--num_layers", "2", "--class_conditional", "--max_train_steps", "60"]
    arguments += [
        "--train_batch_size",
        "32",
        "--lr_warmup_steps",
        "10",
        "--eval_batch_size",
        "4",
        "--output_dir",
        "out",
    ]
    train(*arguments, "--logging_dir", "logs", cwd=tmp_path)
    loss = scalars(tmp_path / "out", "loss")
    assert_falls(loss[:20], loss[-20:])
    pipeline = DDMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipeline.unet, DDMDiTTransformer2DModel)
    assert samples(pipeline, 3, seed=0).shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_data_dir", "nowhere"], "`train_data_dir` is 'nowhere', but there is no such folder"),
        (["--resolution", "9", "--block_out_channels", "16", "32"], "a multiple of 2"),
        (["--num_heads", "1", "--attenuation", "linear"], "`num_heads` is 1"),
        (["--resume_from_checkpoint", "checkpoint-7"], "`--resume_from_checkpoint` is 'checkpoint-7'"),
    ],
)
def test_bad_arguments_are_refused(script, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        script.main(script.parse_args([*arguments, "--output_dir", str(tmp_path / "out"), "--logger", "none"]))
    assert not (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--train_batch_size", "0"],
        ["--weighting", "best"],
        ["--resolution", "-1"],
        ["--latent_cache_dir", "latents", "--center_crop"],
    ],
)
def test_bad_options_are_refused_by_the_parser(script, capsys, arguments):
    with pytest.raises(SystemExit):
        script.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_run_starts_from_weights(tiny_unet, tmp_path):
    """With the classes of the data, whose names the pipeline then takes, and the defaults of the data."""
    names = {"num_class_embeds": 2, "id2label": {0: "7", 1: "none of the digits"}}
    unet = tiny_unet(in_channels=1, noise_schedule="linear", **names)
    DDMPipeline(unet, DDMScheduler(noise_schedule="linear")).save_pretrained(tmp_path / "source")
    arguments = [
        "--pretrained_model_name_or_path",
        "source",
        "--class_conditional",
        "--no-use_ema",
        "--output_dir",
        "out",
    ]
    arguments += ["--max_train_steps", 1, "--learning_rate", 1e-12, "--eval_batch_size", 1, "--num_inference_steps", 1]
    output = train(*arguments, "--logger", "none", cwd=tmp_path)
    assert "loses the classes none of the digits" in output and "--lr_warmup_steps 0" in output
    pipe = DDMPipeline.from_pretrained(tmp_path / "out")
    assert list(pipe.labels) == list("0123456789") and pipe.scheduler.config.noise_schedule == "linear"
    x, timestep = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    with torch.no_grad():
        of_source, of_result = (
            model(x, timestep, torch.tensor([label])).sample for model, label in ((unet, 0), (pipe.unet, 7))
        )
    torch.testing.assert_close(of_result, of_source, rtol=0, atol=1e-5)


def test_push_to_hub(tmp_path):
    token = "hf_secret"
    arguments = [*SMALL, "--output_dir", "out", "--max_train_steps", "4", "--checkpointing_steps", "2"]
    arguments += ["--push_to_hub", "--push_every_checkpoint", "--hub_model_id", "user/digits", "--license", "mit"]
    with hub(token) as server:
        refused = start(SCRIPT.name, *arguments, cwd=tmp_path, HF_TOKEN="hf_wrong")
        assert refused.wait() == 1 and "`repo_id` is 'user/digits', but you cannot upload there" in refused.output
        assert not (tmp_path / "out" / "checkpoint-2").exists()
        train(*arguments, "--hub_token", token, cwd=tmp_path)
        files = server.files("user/digits")
        assert {"model_index.json", "samples.png", "unet/diffusion_pytorch_model.safetensors"} <= set(files)
        assert not [name for name in files if name.startswith(("checkpoint-", "logs", "samples/"))]
        card = files["README.md"].decode()
        for part in ("license: mit", "--max_train_steps 4", "| steps | 4 |", 'from_pretrained("user/digits")'):
            assert part in card
        weights = (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        assert files["unet/diffusion_pytorch_model.safetensors"] == weights
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_command_of_the_docstring(tmp_path):
    """The launcher and the defaults, but for the number of steps."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    run = start_command(*launcher, SCRIPT, "--max_train_steps", 40, cwd=tmp_path)
    try:
        assert run.wait() == 0, run.output[-4000:]
    finally:
        run.kill()
    pipeline = DDMPipeline.from_pretrained(tmp_path / "ddm-model")
    assert len(pipeline(batch_size=2, num_inference_steps=10).images) == 2
    with Image.open(tmp_path / "ddm-model" / "samples.png") as grid:
        assert grid.size == (416, 416)
