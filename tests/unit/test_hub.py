# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a saved folder brings along to load from the Hub, and what is refused; the Hub itself is on loopback."""

import json
import sys

import diffusers
import pytest
from processes import hub

from ddm_diffusers import DDMPipeline, DDMScheduler
from ddm_diffusers.hub import upload_pipeline
from ddm_diffusers.model_card import sign_card


TOKEN = "hf_test"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipe(tiny_unet):
    pipe = DDMPipeline(tiny_unet(), DDMScheduler(eta=0.5))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def server():
    with hub(TOKEN) as server:
        yield server


# ------------------------------------------------------------------------------------------------------------- saved folders
def test_what_a_folder_records(saved):
    """Names that outlive a move of the files of this package, and nothing of where it was."""
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["ddm_pipeline", "DDMPipeline"]
    assert index["unet"] == ["ddm_diffusers", "DDMUNet2DModel"]
    assert index["scheduler"] == ["ddm_diffusers", "DDMScheduler"]
    again = DDMPipeline.from_pretrained(saved)
    assert again.scheduler.config.eta == 0.5
    assert str(saved) in str(again.unet.config._name_or_path)
    for config in (again.to_json_string(), again.unet.to_json_string()):
        assert "_name_or_path" not in config and str(saved) not in config


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ddm_pipeline", "DDMPipeline"),
        ("unet/ddm_diffusers", "DDMUNet2DModel"),
        ("scheduler/ddm_diffusers", "DDMScheduler"),
    ],
)
def test_modules_that_load_the_classes(module, name, saved, monkeypatch):
    code = (saved / f"{module}.py").read_text()
    namespace = {}
    exec(code, namespace)
    assert namespace[name] is getattr(sys.modules["ddm_diffusers"], name)
    monkeypatch.setitem(sys.modules, "ddm_diffusers", None)  # as if it were not installed
    with pytest.raises(ImportError, match=f"{name} is part of the package ddm-diffusers: `pip install ddm-diffusers`"):
        exec(code, {})


def test_a_config_is_not_saved_over_a_file(pipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((AssertionError, OSError)):
        pipe.unet.save_config(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_components_are_looked_up_by_name():
    assert diffusers.pipelines.ddm_diffusers.DDMScheduler is DDMScheduler
    with pytest.raises(AttributeError, match="no component 'Nope', only .*'DDMUNet2DModel'"):
        _ = diffusers.pipelines.ddm_diffusers.Nope


def test_subclasses_of_users_stay_theirs(saved, tmp_path):
    class MyPipeline(DDMPipeline):
        pass

    pipe = DDMPipeline.from_pretrained(saved)
    MyPipeline(pipe.unet, pipe.scheduler).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "MyPipeline"
    assert not (tmp_path / "ddm_pipeline.py").exists()
    assert type(MyPipeline.from_pretrained(tmp_path)) is MyPipeline


def test_pickles_are_not_written(saved, tmp_path, rejects):
    pipe = DDMPipeline.from_pretrained(saved)
    for each in (pipe, pipe.unet):
        with rejects("`safe_serialization`", "False", "True"):
            each.save_pretrained(tmp_path / "out", safe_serialization=False)
        with rejects("`use_safetensors`", "False", "True"):
            type(each).from_pretrained(saved, use_safetensors=False)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------- uploads
def test_a_card_on_the_hub_that_was_edited_is_kept(server, saved):
    (saved / "samples.png").write_bytes(b"ours")
    address = upload_pipeline(saved, "user/card", commit_message="first", token=TOKEN)
    first = server.files("user/card")
    assert address.startswith(server.endpoint) and first["README.md"] == (saved / "README.md").read_bytes()
    mine = first["README.md"] + b"\nMy notes.\n"
    server.commit("user/card", {"README.md": mine, "samples.png": b"mine", f"unet/{WEIGHTS}": None})
    upload_pipeline(saved, "user/card", token=TOKEN)
    files = server.files("user/card")
    assert (files["README.md"], files["samples.png"]) == (mine, b"mine") and f"unet/{WEIGHTS}" in files


@pytest.mark.parametrize("replace_card", [True, False])
def test_a_card_on_the_hub_that_is_ours(replace_card, server, saved):
    theirs = sign_card("# Before\n\n")
    server.commit("user/ours", {"README.md": theirs.encode()})
    upload_pipeline(saved, "user/ours", token=TOKEN, replace_card=replace_card)
    expected = (saved / "README.md").read_text() if replace_card else theirs
    assert server.files("user/ours")["README.md"].decode() == expected


def test_a_hub_that_does_not_tell_whether_there_is_a_card(server, saved):
    server.commit("user/unknown", {"README.md": b"mine"})
    failing = server.fail_next("HEAD", r"README\.md$", kind="reset")
    with pytest.raises(Exception, match=".") as caught:
        upload_pipeline(saved, "user/unknown", token=TOKEN)
    assert failing.times == 0 and not isinstance(caught.value, AssertionError)
    assert server.files("user/unknown")["README.md"] == b"mine" and "model_index.json" not in server.files(
        "user/unknown"
    )


def test_what_is_uploaded_where(server, saved, pipe):
    (saved / "checkpoint-5").mkdir()
    (saved / "checkpoint-5" / "state.bin").write_bytes(b"large")
    pipe.save_pretrained(saved, push_to_hub=True, repo_id="user/whole", private=True, token=TOKEN)
    files = server.files("user/whole")
    assert server.repositories["user/whole"].private and "model_index.json" in files
    assert not [name for name in files if name.startswith("checkpoint-")]
    # a part of a repository has no card of its own
    assert pipe.push_to_hub("user/part", subfolder="model", token=TOKEN)
    files = server.files("user/part")
    assert {"model/model_index.json", f"model/unet/{WEIGHTS}"} <= set(files) and "model/README.md" not in files
    # and a whole one has samples too
    pipe.push_to_hub("user/samples", token=TOKEN)
    files = server.files("user/samples")
    assert files["samples.png"].startswith(b"\x89PNG") and b"](samples.png)" in files["README.md"]
    assert b'from_pretrained("user/samples")' in files["README.md"]
