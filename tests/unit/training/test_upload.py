# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Uploads of a training run, against a Hub on loopback: they go on while training does, are tried again, are reported when
they fail for good, and never raise or lose a local file.
"""

import logging

import pytest
from processes import hub

from ddm_diffusers.training import HubUploader


TOKEN = "hf_test"


@pytest.fixture
def server():
    with hub(TOKEN) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def log(caplog):
    """The lines of the log so far."""
    caplog.set_level(logging.INFO, logger="ddm_diffusers")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_failures_are_retried_then_reported(server, folder, log):
    failing = server.fail_next("POST", "/commit/", times=2)
    server.fail_next("POST", "/commit/", kind="reset", skip=0)
    forever = server.fail_next("POST", "/repos/create", times=100, skip=2 + 4)
    uploader = HubUploader("user/run", TOKEN, retries=3, wait=0.01)
    assert uploader.repo_id == "user/run"
    assert uploader.upload(folder, "first").result() is True
    assert uploader.upload(folder, "second").result() is True
    assert uploader.upload(folder, "third").result() is False
    uploader.close()
    assert (folder / "model_index.json").exists()
    assert failing.times == 0 and forever.times == 100 - 4
    retried = "WARNING The upload of 'first' failed and is tried again"
    assert len([line for line in log() if line.startswith(retried)]) == 3
    assert "INFO Uploaded 'second' to user/run" in log()
    failed = "ERROR The upload of 'third' to user/run failed after 4 attempts"
    assert len([line for line in log() if line.startswith(failed)]) == 1
    assert server.files("user/run")["model_index.json"] == b"{}"


def test_snapshots_do_not_block_and_do_not_pile_up(server, log):
    uploader = HubUploader("user/run", TOKEN)
    folders = []
    with server.lock:  # the Hub does not answer
        for step in (1, 2):
            with uploader.snapshot(f"step {step}") as folder:
                (folder / f"{step}.json").write_text("{}")
                folders.append(folder)
            assert not uploader._last.done(), "the block waited for the upload"
    uploader.close()
    assert not any(folder.exists() for folder in folders)
    assert "WARNING The upload before 'step 2' is not through yet; this one is left out." in log()
    assert set(server.files("user/run")) == {".gitattributes", "1.json"}


def test_a_snapshot_that_fails_is_not_uploaded(server):
    uploader = HubUploader("user/run", TOKEN)
    with pytest.raises(RuntimeError, match="no space"), uploader.snapshot("step 1") as folder:
        raise RuntimeError("no space")
    uploader.close()
    assert not folder.exists() and set(server.files("user/run")) == {".gitattributes"}


def test_a_token_that_may_not_write_is_an_error_at_the_start(server, rejects):
    with rejects("`repo_id` is 'user/run', but the Hub does not let this token write there"):
        HubUploader("user/run", "hf_wrong")


def test_a_token_that_is_withdrawn_is_not_tried_again(server, folder, log):
    uploader = HubUploader("user/run", TOKEN, wait=100.0)
    server.token = "hf_other"
    assert uploader.upload(folder, "first").result() is False
    uploader.close()
    assert any("failed after 1 attempts" in line for line in log())


def test_a_hub_that_is_away_at_the_start(server, folder, log):
    failing = server.fail_next("POST", "/repos/create", kind="reset")
    uploader = HubUploader("user/run", TOKEN)
    assert failing.times == 0
    assert any(line.startswith("WARNING The Hub does not answer; training goes on") for line in log())
    assert uploader.upload(folder, "later").result() is True
    uploader.close()
    assert server.files("user/run")["model_index.json"] == b"{}"
