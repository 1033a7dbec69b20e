# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`--preset ddm` and `--preset adm` on scikit-learn's digits, end to end: what is saved reloads as that method, network and
sampler, the loss is the release's, and any option replaces the preset's own.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from released_networks import unet_weights

from ddm_diffusers import DDMImageToImagePipeline, DDMPipeline, DDMUNet2DModel, presets
from ddm_diffusers.training import augment, build_unet, ddm_loss, load_lpips


EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = ["--block_out_channels", "16", "64", "--max_train_steps", "3", "--train_batch_size", "4", "--logger", "none"]
SMALL += ["--eval_batch_size", "1", "--num_inference_steps", "2"]

EXPECTED = {
    "ddm": {
        "scheduler": {
            "attenuation": "constant",
            "noise_schedule": "sqrt",
            "solver_order": 1,
            "eta": 1.0,
            "time_grid": "uniform",
            "step_form": "increment",
            "clip_sample": True,
        },
        "unet": {"architecture": "released", "num_decoders": 2, "num_heads": 2, "precondition": "ddm"},
    },
    "adm": {
        "scheduler": {
            "attenuation": "constant",
            "noise_schedule": "linear",
            "solver_order": 1,
            "eta": 0.0,
            "time_grid": "uniform",
            "step_form": "raw",
            "clip_sample": False,
        },
        "unet": {"architecture": "released", "num_decoders": 1, "num_heads": 1, "precondition": True},
    },
}

CIFAR10 = {
    preset: {
        "img_resolution": 32,
        "img_channels": 3,
        "model_channels": width,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 3,
        "attn_resolutions": [16, 8],
        "augment_dim": 9,
    }
    for preset, width in (("ddm", 192), ("adm", 160))
}


def load_script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    return load_script("train_ddm", monkeypatch)


def assert_is_the_method(pipeline, preset):
    for part, options in EXPECTED[preset].items():
        config = getattr(pipeline, part).config
        assert {name: config[name] for name in options} == options


@pytest.mark.parametrize("preset", EXPECTED)
def test_the_saved_folder_is_the_method(preset, script, tmp_path, capsys, monkeypatch):
    losses = []

    def recorded(*arguments, **options):
        losses.append({**options, "model_output": arguments[1]})
        return ddm_loss(*arguments, **options)

    monkeypatch.setattr(script, "ddm_loss", recorded)
    script.main(script.parse_args(["--preset", preset, *SMALL, "--output_dir", str(tmp_path)]))

    # network and sampler, as a user loads them
    pipeline = DDMPipeline.from_pretrained(tmp_path)
    assert_is_the_method(pipeline, preset)
    images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 1)

    # the loss
    own = {"ddm": ("inverse_time", "ddm", 1e-4), "adm": ("adm", "adm", 1e-3)}[preset]
    assert len(losses) == 3
    for each in losses:
        assert (each["weighting"], each["reconstruction"], each["t_min"]) == own
        assert each["reconstruction_weight"] == 1.0 and not each["use_l1"]

    # what it is, at the start and in the model card, with what differs from the release
    release = {"ddm": "DDM-Public", "adm": "ADM-Public"}[preset]
    printed, card = capsys.readouterr().out, (tmp_path / "README.md").read_text()
    for text in (printed, card):
        assert f"{preset}, the method of {release}, but block_out_channels [16, 64]" in text
    assert f"--weighting {own[0]}" in printed and "--precondition" in printed


def test_a_network_is_told_of_its_augmentation(script, tmp_path, monkeypatch):
    labels = []

    def recorded(images, probability, generators):
        assert probability == 0.12
        labels.append(augment(images, 1.0, generators))
        return labels[-1]

    monkeypatch.setattr(script, "augment", recorded)
    given = {}
    forward = DDMUNet2DModel.forward

    def checked(self, *arguments, **options):
        if options.get("augment_labels") is not None:
            given[len(given)] = options["augment_labels"]
        return forward(self, *arguments, **options)

    monkeypatch.setattr(DDMUNet2DModel, "forward", checked)
    arguments = ["--preset", "adm", *SMALL, "--augment_prob", "0.12", "--output_dir", str(tmp_path)]
    script.main(script.parse_args(arguments))
    assert len(labels) == len(given) == 3
    for (images, of_images), to_network in zip(labels, given.values(), strict=True):
        assert torch.equal(of_images, to_network) and images.shape == (4, 1, 8, 8) and of_images.abs().max() > 0
    # it learns from them, and samples without
    unet = DDMPipeline.from_pretrained(tmp_path).unet
    assert unet.augment_embedding.weight.abs().max() > 0


def test_a_condition_takes_a_preset_too(tmp_path, monkeypatch, script):
    image_to_image = load_script("train_ddm_image_to_image", monkeypatch)
    arguments = ["--preset", "adm", *SMALL, "--task", "super_resolution", "--output_dir", str(tmp_path)]
    image_to_image.main(image_to_image.parse_args(arguments))
    assert_is_the_method(DDMImageToImagePipeline.from_pretrained(tmp_path), "adm")


@pytest.mark.parametrize("preset", EXPECTED)
def test_all_options_are_the_preset_s(preset, script):
    args = script.parse_args(["--preset", preset, "--train_data_dir", "photos"])
    for name, value in presets.training_options(preset).items():
        assert getattr(args, name) == value, name
    assert presets.describe(preset, vars(args)) == f"{preset}, the method of {presets.RELEASES[preset]}"


@pytest.mark.parametrize("preset", EXPECTED)
def test_the_network_is_that_of_the_release_s_config(preset, script):
    """The configs for CIFAR-10: attention at 16x16 and 8x8, but at 4x4 in the middle alone."""
    args = script.parse_args(["--preset", preset, "--train_data_dir", "photos", "--resolution", "32"])
    with torch.device("meta"):
        unet = build_unet(args, 3, 32)
    blocks = [*unet.down_blocks, *reversed(unet.up_blocks)]
    assert [hasattr(block, "attentions") for block in blocks] == 2 * [False, True, True, False]
    assert len(unet.mid_block.attentions) == 1
    assert all(len(block.resnets) == 3 for block in unet.down_blocks)
    assert unet.config.dropout == args.dropout and unet.config.augment_dim == 9
    expected = unet_weights(CIFAR10[preset], unet.config.num_decoders)
    filters = sum(each.numel() for name, each in expected.items() if name.endswith("resample_filter"))
    frequencies = unet.time_proj.weight.numel()
    of_release = sum(each.numel() for each in expected.values()) - filters
    assert unet.num_parameters() - frequencies == of_release


@pytest.mark.parametrize("after", [True, False])
def test_other_options_replace_the_preset_s(after, script):
    own = [
        "--augment_prob",
        "0.5",
        "--weighting",
        "none",
        "--no-lpips",
        "--no-random_flip",
        "--noise_schedule",
        "sqrt",
        "--dropout",
        "0.3",
    ]
    preset = ["--preset", "adm"]
    args = script.parse_args([*(preset + own if after else own + preset), "--train_data_dir", "photos"])
    assert (args.weighting, args.lpips, args.random_flip, args.dropout) == ("none", False, False, 0.3)
    assert args.reconstruction == "adm" and args.num_heads == 1  # the others stay
    # the later release's sampler for sqrt noise
    config = script.build_scheduler(args, clip_sample=True).config
    assert (config.noise_schedule, config.time_grid, config.rho, config.clip_sample) == ("sqrt", "power", 1.0, True)
    description = presets.describe("adm", vars(args))
    assert description == (
        "adm, the method of ADM-Public, but noise_schedule sqrt, dropout 0.3, weighting none, lpips False,"
        " random_flip False, augment_prob 0.5"
    )


@pytest.mark.parametrize("preset", EXPECTED)
def test_latents_have_the_releases_term_for_latents(preset, script):
    args = script.parse_args(["--preset", preset, "--train_data_dir", "photos", "--vae_name_or_path", "vae"])
    assert (args.reconstruction, args.lpips, args.augment_prob) == (f"{preset}_latent", False, 0.0)
    assert not script.build_scheduler(args, clip_sample=False).config.clip_sample


def test_without_a_preset_nothing_changes(script):
    args = script.parse_args(["--train_data_dir", "photos"])
    assert (args.weighting, args.reconstruction_weight, args.architecture) == ("velocity", 0.0, "diffusers")
    assert script.build_scheduler(args, clip_sample=True).config.step_form == "posterior"


def test_lpips_joins_the_loss(script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)  # not installed
    with pytest.raises(ImportError, match="`--lpips` needs `pip install lpips`; `--no-lpips` leaves it out"):
        load_lpips("cpu")

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, images, others):
            assert images.shape[1] == 3
            return (images - others).square().mean(dim=(1, 2, 3), keepdim=True)

    lpips = type(sys)("lpips")
    lpips.LPIPS = LPIPS
    monkeypatch.setitem(sys.modules, "lpips", lpips)
    images = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(load_lpips("cpu")(images, -images), 4 * images.square().mean(dim=(1, 2, 3)))

    losses = []

    def recorded(*arguments, **options):
        loss, parts = ddm_loss(*arguments, **options)
        without, _ = ddm_loss(*arguments, **{**options, "perceptual_loss": None})
        losses.append((loss, without))
        return loss, parts

    monkeypatch.setattr(script, "ddm_loss", recorded)
    script.main(script.parse_args(["--preset", "ddm", *SMALL, "--lpips", "--output_dir", str(tmp_path)]))
    assert losses and all(loss > without for loss, without in losses)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "ddm", "--model_type", "dit"], "--preset is ddm, whose network is --model_type unet"),
        (["--lpips"], "--lpips is for --reconstruction ddm and adm, not squared"),
        (["--augment_prob", "0.1"], "--augment_prob needs --architecture released"),
        (["--preset", "edm"], "invalid choice: 'edm'"),
    ],
)
def test_what_a_preset_does_not_take(arguments, message, script, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([*arguments, "--train_data_dir", "photos"])
    assert message in capsys.readouterr().err
