# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What all tests share: one thread, reproducible property tests, tiny models, and how an error message is judged.

pytest's main process imports this file too and runs no test. So torch and diffusers are imported where they are used.
"""

import importlib
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import client_environment
from hypothesis import settings
from processes import hub


# The Hub of the tests, before its client is imported and reads where that is. No test needs the network.
CACHE = tempfile.TemporaryDirectory(prefix="ddm-tests-")
# One thread: the tests compare bits, and with several torch's last bit depends on how the work was split.
ENVIRONMENT = client_environment(hub(), CACHE.name, OMP_NUM_THREADS=1)
os.environ.clear()
os.environ.update(ENVIRONMENT)

# Derandomized: a property test that fails on one machine fails on all of them. HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """
    Every worker starts with a part of the slow tests. A slow test that came last would run alone. The tests of a module
    stay together, because they share fixtures.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    modules = list(dict.fromkeys(item.module for item in slow))
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    num_items, items[:] = len(items), []
    for worker in range(workers):  # `--dist worksteal` cuts the list into equal parts
        end = len(items) + (num_items - len(items)) // (workers - worker)
        items += [item for item in slow if modules.index(item.module) % workers == worker]
        while others and len(items) < end:
            items.append(others.pop(0))
    items += others


@pytest.fixture
def tiny_unet():
    """`tiny_unet(seed=0, **options)` makes a small DDMUNet2DModel with random weights, the same for the same seed."""

    import torch
    from stock_parts import TINY_UNET

    from ddm_diffusers import DDMUNet2DModel

    def make(seed: int = 0, **options) -> DDMUNet2DModel:
        torch.manual_seed(seed)
        return DDMUNet2DModel(**{**TINY_UNET, **options}).eval()

    return make


@pytest.fixture
def plain_unet():
    """`plain_unet(seed=0, **options)` makes the UNet2DModel of the same configuration."""

    import torch
    from diffusers import UNet2DModel
    from stock_parts import TINY_UNET

    def make(seed: int = 0, **options) -> UNet2DModel:
        torch.manual_seed(seed)
        return UNet2DModel(**{**TINY_UNET, **options}).eval()

    return make


@pytest.fixture
def own_memory():
    """
    `own_memory(model)` moves weights that are mapped from a file to memory of their own. A file aligns them differently,
    and by alignment torch chooses the kernel of a matrix product, whose last bit differs.
    """

    def move(model) -> None:
        for weight in model.parameters():
            weight.data = weight.data.clone()

    return move


@pytest.fixture(scope="module")
def benchmark_script():
    """`benchmark_script("swap")` imports a script of examples/benchmarks/, which imports its neighbours, as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture
def rejects():
    """`with rejects("name", "value", "accepted"):` expects a ValueError whose message contains all of the parts."""

    @contextmanager
    def check(*parts: str):
        with pytest.raises(ValueError) as caught:
            yield
        message = str(caught.value)
        missing = [part for part in parts if part not in message]
        assert not missing, f"the message lacks {missing}: {message}"

    return check
