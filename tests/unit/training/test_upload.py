# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Uploads of a training run, against a Hub on loopback: they go on while training does, are tried again, are reported when
they fail for good, and never raise or lose a local file.
"""

import subprocess
import sys
import textwrap

import pytest
from hub_server import HubServer, client_environment


TOKEN = "hf_test"

PRELUDE = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from ddm_diffusers.training import HubUploader
folder = Path("pipeline")
folder.mkdir(exist_ok=True)
(folder / "model_index.json").write_text("{}")
"""


@pytest.fixture
def server():
    with HubServer(token=TOKEN) as server:
        yield server


def run(server, folder, code, token=TOKEN):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=folder,
        env=client_environment(server, folder / "cache", token=token),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_failures_are_retried_then_reported(server, tmp_path):
    failing = server.fail_next("POST", "/commit/", times=2)
    server.fail_next("POST", "/commit/", kind="reset", skip=0)
    forever = server.fail_next("POST", "/repos/create", times=100, skip=2 + 4)
    result = run(
        server,
        tmp_path,
        """
        uploader = HubUploader("user/run", retries=3, wait=0.01)
        assert uploader.repo_id == "user/run"
        assert uploader.upload(folder, "first").result() is True
        assert uploader.upload(folder, "second").result() is True
        assert uploader.upload(folder, "third").result() is False
        uploader.close()
        assert (folder / "model_index.json").exists()
        """,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert failing.times == 0 and forever.times == 100 - 4
    assert result.stderr.count("WARNING The upload of 'first' failed and is tried again") == 3
    assert "INFO Uploaded 'second' to user/run" in result.stderr
    assert "ERROR The upload of 'third' to user/run failed after 4 attempts" in result.stderr
    assert server.files("user/run")["model_index.json"] == b"{}"


def test_snapshots_do_not_block_and_do_not_pile_up(server, tmp_path):
    server.fail_next("POST", "/commit/", kind="delay", seconds=3.0)
    result = run(
        server,
        tmp_path,
        """
        uploader = HubUploader("user/run")
        folders = []
        for step in (1, 2):
            with uploader.snapshot(f"step {step}") as folder:
                (folder / f"{step}.json").write_text("{}")
                folders.append(folder)
            assert not uploader._last.done(), "the block waited for the upload"
        uploader.close()
        assert not any(folder.exists() for folder in folders)
        """,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING The upload before 'step 2' is not through yet" in result.stderr
    assert set(server.files("user/run")) == {".gitattributes", "1.json"}


def test_a_token_that_may_not_write_is_an_error_at_the_start(server, tmp_path):
    result = run(server, tmp_path, 'HubUploader("user/run")', token="hf_wrong")
    assert result.returncode != 0
    assert "ValueError: `repo_id` is 'user/run', but the Hub does not let this token write there" in result.stderr


def test_a_hub_that_is_away_at_the_start(server, tmp_path):
    failing = server.fail_next("POST", "/repos/create", kind="reset")
    result = run(
        server,
        tmp_path,
        """
        uploader = HubUploader("user/run")
        assert uploader.upload(folder, "later").result() is True
        uploader.close()
        """,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert failing.times == 0
    assert "WARNING The Hub does not answer; training goes on" in result.stderr
