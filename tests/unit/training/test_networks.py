# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that what the scripts build is what the options ask for: on which packages it depends, that training goes on from
what trained models predict, whatever the data are, and that nothing about the options is silent.
"""

import argparse
import shutil

import diffusers
import pytest
import torch
from accelerate import PartialState
from processes import start_code
from stock_parts import draw, perturb, tiny_dit

import ddm_diffusers.training
from ddm_diffusers import DDMDiTTransformer2DModel, DDMPipeline, DDMScheduler, DDMUNet2DModel
from ddm_diffusers.training import (
    add_model_arguments,
    add_transformer_arguments,
    build_model,
    check_model_arguments,
)


# In a process that has imported all libraries and nothing of this package.
WITHOUT = """
import argparse, sys

for module in list(sys.modules):
    if module.partition(".")[0] in sys.argv:
        sys.modules[module] = None  # importing it raises ModuleNotFoundError
"""
BASE_INSTALL = """
import torch

from ddm_diffusers import DDMScheduler
from ddm_diffusers.training import augment, ddm_loss, sample_timesteps
from ddm_diffusers.training.objective import loss_weights

scheduler, clean, noise = DDMScheduler(), torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
timesteps = sample_timesteps(scheduler, 2)
attenuation = scheduler.get_attenuation(clean)
assert ddm_loss(scheduler, torch.cat([attenuation, noise], dim=1), clean, noise, timesteps, attenuation) == 0

for name in ("TrainingRun", "ImageTransform", "build_unet"):
    try:
        getattr(__import__("ddm_diffusers.training").training, name)
    except ImportError as error:
        message = str(error)
        assert name in message and "the package datasets" in message, message
        assert 'pip install "ddm-diffusers[training]"' in message, message
    else:
        raise AssertionError(f"{name} does without datasets")
"""
NO_TRANSFORMERS = """
from ddm_diffusers.training import load_text_encoder

try:
    load_text_encoder(argparse.Namespace(pretrained_model_name_or_path="text-model"), None)
except ImportError as error:
    assert "transformers" in str(error) and 'pip install "ddm-diffusers[text]"' in str(error), error
else:
    raise AssertionError("a text encoder does without transformers")
"""


def test_the_objective_needs_the_base_install_alone(tmp_path):
    run = start_code(WITHOUT + BASE_INSTALL, "datasets", "transformers", "sklearn", cwd=tmp_path)
    assert run.wait() == 0, run.output


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    run = start_code(WITHOUT + NO_TRANSFORMERS, "transformers", cwd=tmp_path)
    assert run.wait() == 0, run.output


def test_all_exported_names_exist():
    for name in ddm_diffusers.training.__all__:
        assert getattr(ddm_diffusers.training, name) is not None
    assert set(ddm_diffusers.training.__all__) <= set(dir(ddm_diffusers.training))


# ------------------------------------------------------------------------------------------------------- start from weights


@pytest.fixture
def options():
    """`options("--noise_schedule", "linear")` parses the options of the network, and checks them."""
    PartialState()  # for the logs

    def parse(*arguments) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        parser.add_argument("--resolution", type=int, default=8)
        add_model_arguments(parser)
        add_transformer_arguments(parser)
        arguments = [str(argument) for argument in arguments]
        args = parser.parse_args(arguments)
        check_model_arguments(parser, args, arguments)
        return args

    return parse


def save(unet, folder, scheduler=None):
    DDMPipeline(unet, scheduler or DDMScheduler()).save_pretrained(folder)
    return folder


def predict(unet, *, size=8, **arguments):
    x, timesteps = draw(4, 3, size, size), torch.tensor([900.0, 500.0, 100.0, 1.0])
    with torch.no_grad():
        return unet.eval()(x, timesteps, **arguments).sample


PRETRAINED = "--pretrained_model_name_or_path"


@pytest.mark.parametrize("subfolder", ["", "unet"], ids=["pipeline", "model"])
def test_a_model_of_this_package_goes_on(subfolder, options, tiny_unet, tmp_path):
    unet = perturb(tiny_unet(noise_schedule="linear", num_heads=1))
    save(unet, tmp_path, DDMScheduler(noise_schedule="linear"))
    args = options(PRETRAINED, tmp_path / subfolder)
    assert args.noise_schedule is None
    model = build_model(args, 3, 8)
    assert (args.attenuation, args.noise_schedule) == ("constant", "linear")  # of the scheduler that is saved
    assert torch.equal(predict(model), predict(unet)) and model.dtype == torch.float32
    # at another resolution it is the same network
    model = build_model(args, 3, 16)
    assert model.config.sample_size == 16
    assert torch.equal(predict(model, size=16), predict(unet, size=16))


@pytest.mark.parametrize("layout", ["folders", "one folder"])
def test_a_model_of_diffusers_goes_on_with_its_process(layout, options, plain_unet, tmp_path):
    """Of the scheduler's own betas; older repositories have all in one folder."""
    unet = perturb(plain_unet())
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    pipe.save_pretrained(tmp_path)
    if layout == "one folder":
        for name in ("unet", "scheduler"):
            for path in (tmp_path / name).iterdir():
                shutil.move(path, tmp_path)
            (tmp_path / name).rmdir()
    model = build_model(options(PRETRAINED, tmp_path), 3, 8)
    expected = DDMUNet2DModel.from_unet2d(unet, pipe.scheduler)
    assert model.config.base_scheduler["beta_schedule"] == "squaredcos_cap_v2"
    assert torch.equal(predict(model), predict(expected))


def test_a_model_of_diffusers_without_a_scheduler(options, plain_unet, tmp_path, caplog):
    plain_unet().save_pretrained(tmp_path)
    model = build_model(options(PRETRAINED, tmp_path, "--noise_schedule", "linear"), 3, 8)
    assert model.config.base_scheduler is None and model.config.noise_schedule == "linear"
    assert f"{tmp_path} has no scheduler" in caplog.text


NAMES = {"num_class_embeds": 3, "id2label": {0: "bird", 1: "train", 2: "truck"}}


def build_tiny_dit(**options):
    return perturb(tiny_dit(DDMDiTTransformer2DModel, **options))


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize(
    ("trained", "names", "labels", "message"),
    [
        # labels: those of the trained model that predict what the labels of the data do; 3 is its "no class". A new class
        # differs from it, and from other new ones.
        (NAMES, ["truck", "bird"], [2, 0, 3], "loses the classes train"),
        (NAMES, ["bird", "cat", "train"], [0, "new", 1, 3], "does not know the classes cat"),
        ({"num_class_embeds": 3}, ["a", "b", "c"], [0, 1, 2, 3], "no class names: the labels 0 to 2"),
        ({"num_class_embeds": 3}, ["a", "b"], ["new", "new", 3], "does not know the classes a, b"),
        ({}, ["a", "b"], ["new", "new", None], "does not know the classes a, b"),
        (NAMES, None, [3], "3 classes and the data none"),
        (NAMES, ["bird", "train", "truck"], [0, 1, 2, 3], None),
    ],
)
def test_classes_keep_what_is_known_of_them(
    kind, trained, names, labels, message, options, tiny_unet, tmp_path, caplog
):
    unet = build_tiny_dit(**trained) if kind == "dit" else perturb(tiny_unet(**trained))
    args = options(PRETRAINED, save(unet, tmp_path, DDMScheduler(clip_sample=False)))
    channels, size = unet.config.in_channels, unet.config.sample_size
    model = build_model(args, channels, size, names)
    assert model.config.id2label == (names and dict(enumerate(names)))
    x, timesteps = draw(1, channels, size, size), torch.tensor([300.0])

    def of(model, label):
        with torch.no_grad():
            return model.eval()(x, timesteps, class_labels=None if label is None else torch.tensor([label])).sample

    predictions = [of(model, None if names is None else label) for label in range(len(labels))]
    for predicted, same in zip(predictions, labels, strict=True):
        if same != "new":
            torch.testing.assert_close(predicted, of(unet, same), rtol=0, atol=1e-5)
        else:
            others = [each for each in predictions if each is not predicted]
            assert all(1e-4 < (predicted - each).abs().max() < 1 for each in others)
    assert message in caplog.text if message else not caplog.text


def test_a_condition_starts_without_influence(options, tiny_unet, tmp_path):
    unet = perturb(tiny_unet())
    args = options(PRETRAINED, save(unet, tmp_path / "unconditional"))
    model = build_model(args, 3, 8, conditioning_channels=2)
    assert torch.equal(predict(model, conditioning=draw(4, 2, 8, 8, seed=1)), predict(unet))
    model.save_pretrained(tmp_path / "conditional")
    again = build_model(options(PRETRAINED, tmp_path / "conditional"), 3, 8, conditioning_channels=2)
    assert again.config.conditioning_channels == 2


def test_weights_that_do_not_fit_are_refused(options, tiny_unet, plain_unet, tmp_path, rejects):
    folder = str(save(tiny_unet(), tmp_path / "model"))
    args = options(PRETRAINED, folder)
    with rejects("`--pretrained_model_name_or_path`", folder, "3 channels", "have 1", "`--image_mode RGB`"):
        build_model(args, 1, 8)
    with rejects("`--resolution`", "9 x 9", "a multiple of 2"):
        build_model(args, 3, 9)
    with rejects("`--noise_schedule`", "'linear'", "'sqrt'"):
        build_model(options(PRETRAINED, folder, "--noise_schedule", "linear"), 3, 8)
    tiny_unet(conditioning_channels=1).save_pretrained(tmp_path / "condition")
    with rejects("`--pretrained_model_name_or_path`", "a condition of 1 channels", "it has 0"):
        build_model(options(PRETRAINED, tmp_path / "condition"), 3, 8)
    DDMPipeline(plain_unet(out_channels=6), DDMScheduler()).save_pretrained(tmp_path / "plain")
    with rejects("DDMScheduler", "one of diffusers"):
        build_model(options(PRETRAINED, tmp_path / "plain"), 3, 8)
    diffusers.AutoencoderTiny().save_pretrained(tmp_path / "vae")
    with rejects("`--pretrained_model_name_or_path`", "AutoencoderTiny", "UNet2DModel"):
        build_model(options(PRETRAINED, tmp_path / "vae"), 3, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="`--pretrained_model_name_or_path` is .*unet/config.json"):
        build_model(options(PRETRAINED, tmp_path / "empty"), 3, 8)


def test_options_of_the_network_beside_weights_are_refused(options, capsys):
    with pytest.raises(SystemExit):  # the default as well, if it was typed
        options(PRETRAINED, "model", "--layers_per_block", 2, "--block_out_channels", 8, 16)
    assert "leave out --block_out_channels, --layers_per_block" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- new networks


def test_a_config_alone_leaves_the_weights(options, tiny_unet, tmp_path, caplog, rejects):
    unet = tiny_unet()
    save(unet, tmp_path)
    for path in (tmp_path, tmp_path / "unet"):  # a pipeline, or its model
        caplog.clear()
        model = build_model(options("--model_config_name_or_path", path), 1, 16, ["a", "b"])
        assert tuple(model.config.block_out_channels) == unet.config.block_out_channels
        assert (model.config.in_channels, model.config.sample_size, model.config.num_class_embeds) == (1, 16, 2)
        assert "takes the config of" in caplog.text and PRETRAINED in caplog.text
    caplog.clear()
    build_model(options("--model_config_name_or_path", tmp_path / "unet" / "config.json"), 3, 8)
    assert not caplog.text
    with rejects("`--model_config_name_or_path`", "a DDMUNet2DModel", "DDMDiTTransformer2DModel", "`--model_type`"):
        build_model(options("--model_config_name_or_path", tmp_path, "--model_type", "dit"), 3, 8)
