# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that every pipeline that diffusers' own tests build runs after the swap, or is refused by name. It takes a quarter of
an hour and a checkout of diffusers:

    DIFFUSERS_CHECKOUT=path/to/diffusers pytest -m slow -n 0 tests/integration/test_diffusers_pipelines.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).with_name("diffusers_pipelines.py")


@pytest.mark.slow
@pytest.mark.skipif("DIFFUSERS_CHECKOUT" not in os.environ, reason="DIFFUSERS_CHECKOUT names no checkout of diffusers")
def test_every_pipeline_runs_or_is_refused_by_name(tmp_path):
    records = tmp_path / "pipelines.json"
    command = [sys.executable, SCRIPT, "--checkout", os.environ["DIFFUSERS_CHECKOUT"], "--output", records]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert records.exists(), result.stdout
    records = json.loads(records.read_text())
    assert result.returncode == 0, result.stdout
    assert sum(record["status"] == "runs" for record in records) > 100, result.stdout
