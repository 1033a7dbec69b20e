# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
from processes import start_code

import ddm_diffusers.training


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
