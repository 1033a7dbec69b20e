# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Uploads of a training run, against a Hub on loopback: what the Hub refuses is an error at the start. Uploads go on while
training does, are tried again, are reported when they fail for good, and never raise or lose a local file.
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
    uploader = HubUploader("user/run", TOKEN, waits=[0.01] * 3)
    assert uploader.repo_id == "user/run"
    assert uploader.upload(folder, "first").result() is True
    assert uploader.upload(folder, "second").result() is True
    assert uploader.upload(folder, "third").result() is False
    assert uploader.close() is False
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
    assert uploader.close() is True
    assert not any(folder.exists() for folder in folders)
    assert "WARNING The upload before 'step 2' is still under way; this one is left out." in log()
    assert set(server.files("user/run")) == {".gitattributes", "1.json"}


def test_a_snapshot_that_fails_is_not_uploaded(server):
    uploader = HubUploader("user/run", TOKEN)
    with pytest.raises(RuntimeError, match="no space"), uploader.snapshot("step 1") as folder:
        raise RuntimeError("no space")
    assert uploader.close() is True
    assert not folder.exists() and set(server.files("user/run")) == {".gitattributes"}


def test_a_token_that_is_wrong_is_an_error_at_the_start(server, rejects):
    with rejects("`repo_id` is 'user/run', but you cannot upload there", "hf auth login", "401"):
        HubUploader("user/run", "hf_wrong")


@pytest.mark.parametrize("name", ["my model", "", "a/b/c", "user/--", "run.git"])
def test_an_invalid_name_is_an_error_at_the_start(name, server, rejects):
    with rejects(f"`repo_id` is {name!r}, but you cannot upload there", "--hub_model_id user/name"):
        HubUploader(name, TOKEN)
    assert not server.requests


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("path", ["/repos/create", "/auth-check/write"])
def test_what_the_hub_refuses_is_an_error_at_the_start(path, status, server, rejects):
    server.create("user/run")  # `create_repo` accepts a repository of somebody else that it may not write to
    server.fail_next("POST" if path == "/repos/create" else "GET", path, status=status)
    if path == "/repos/create" and status in (401, 403):
        server.fail_next("GET", "/auth-check/write", status=status)
    with rejects("`repo_id` is 'user/run', but you cannot upload there", "This failure was ordered by a test"):
        HubUploader("user/run", TOKEN)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_or_broken_is_a_warning(status, server, log):
    server.fail_next("POST", "/repos/create", status=status)
    uploader = HubUploader("user/run", TOKEN)
    assert any(line.startswith("WARNING The Hub does not answer; training goes on") for line in log())
    assert uploader.close() is True


def test_offline_mode_is_an_error_at_the_start(rejects, monkeypatch):
    """It would never come to an upload."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with rejects("`repo_id` is 'user/run', but you cannot upload there", "HF_HUB_OFFLINE"):
        HubUploader("user/run", TOKEN)


def test_a_token_that_is_withdrawn_is_not_tried_again(server, folder, log):
    uploader = HubUploader("user/run", TOKEN)
    server.token = "hf_other"
    assert uploader.upload(folder, "first").result() is False
    assert uploader.close() is False
    assert any("failed after 1 attempts" in line for line in log())


def test_a_hub_that_is_away_at_the_start(server, folder, log):
    failing = server.fail_next("POST", "/repos/create", kind="reset")
    uploader = HubUploader("user/run", TOKEN)
    assert failing.times == 0
    assert any(line.startswith("WARNING The Hub does not answer; training goes on") for line in log())
    assert uploader.upload(folder, "later").result() is True
    assert uploader.close() is True
    assert server.files("user/run")["model_index.json"] == b"{}"
