# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are whole or absent, also where the process is killed or the disk is full, and belong to their settings."""

import itertools
import logging
import random
import resource
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from processes import fork, until
from safetensors.torch import load_file

from ddm_diffusers.training import Checkpoints, replace_contents
from ddm_diffusers.training.checkpoints import refuse_used_folder


SETTINGS = {"resolution": 8, "model": {"channels": (8, 16), "dropout": 0.5}, "flip": None}


class Saver:
    """A model of which each checkpoint is full of the number of the checkpoint, and what saves it."""

    def __init__(self, folder, settings=SETTINGS, **options):
        self.accelerator = Accelerator()
        self.model = torch.nn.Linear(100, 100)
        self.model = self.accelerator.prepare(self.model)
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(self.model.parameters()))
        self.model(torch.ones(100)).sum().backward()
        self.optimizer.step()  # now it has something to save
        self.checkpoints = Checkpoints(folder, settings, **options)

    def save(self, number):
        for parameter in self.model.parameters():
            parameter.data.fill_(number)
        return self.checkpoints.save(self.accelerator, f"checkpoint-{number}")


def assert_whole(checkpoint, saver):
    """All files are there, and those of the number that the name says."""
    files = {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "settings.json"}
    assert files <= {path.name for path in checkpoint.iterdir()}
    number = int(checkpoint.name.removeprefix("checkpoint-"))
    for weight in load_file(checkpoint / "model.safetensors").values():
        assert (weight == number).all()
    assert saver.checkpoints.find(checkpoint.name) == checkpoint  # the settings are there and agree
    saver.accelerator.load_state(checkpoint)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size):
    """No file can be written beyond this size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def save_forever(folder):
    saver = Saver(folder, total_limit=2)
    for number in itertools.count(1):
        saver.save(number)


def test_a_process_that_is_killed_leaves_whole_checkpoints(tmp_path):
    moments, interrupted = random.Random(0), 0
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        saver = Saver(folder)
        process = fork(save_forever, folder)
        until(lambda found=saver.checkpoints.list: len(found()) >= 2, process.is_alive)
        if attempt % 2:
            time.sleep(moments.uniform(0, 0.1))
        else:  # during a save
            until(lambda folder=folder: any(folder.glob("*.tmp")), process.is_alive)
        process.kill()
        process.join()
        interrupted += any(path.suffix == ".tmp" for path in folder.iterdir())
        found = saver.checkpoints.list()
        # at the limit of 2, or one more before the oldest is deleted
        assert len(found) in (2, 3)
        for checkpoint in found:
            assert_whole(checkpoint, saver)
        saver.checkpoints.remove_leftovers()
        assert names(folder) == sorted(path.name for path in found)
    assert interrupted >= 2


def test_the_newest_are_kept(tmp_path):
    saver = Saver(tmp_path, total_limit=2)
    for number in (2, 9, 10, 11):
        assert saver.save(number) == tmp_path / f"checkpoint-{number}"
    assert [path.name for path in saver.checkpoints.list()] == ["checkpoint-10", "checkpoint-11"]
    for checkpoint in saver.checkpoints.list():
        assert_whole(checkpoint, saver)
    saver.checkpoints.total_limit = None
    saver.save(12)
    assert len(saver.checkpoints.list()) == 3


def test_the_one_that_was_just_saved_is_not_deleted(tmp_path):
    # a run that is resumed from before a later checkpoint
    Saver(tmp_path).save(300)
    saver = Saver(tmp_path, total_limit=1)
    assert saver.save(100).is_dir()
    assert_whole(tmp_path / "checkpoint-100", saver)


def test_a_checkpoint_is_saved_again_in_the_place_of_the_old_one(tmp_path):
    saver = Saver(tmp_path)
    saver.save(1)
    (tmp_path / "checkpoint-1" / "old").touch()
    saver.save(1)
    assert names(tmp_path) == ["checkpoint-1"]
    assert_whole(tmp_path / "checkpoint-1", saver)
    assert not (tmp_path / "checkpoint-1" / "old").exists()


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    saver = Saver(tmp_path)
    saver.save(1)
    for name in ("checkpoint-2.tmp", "new.tmp", "nonfinite-3.tmp", "samples", "checkpoint-x"):
        (tmp_path / name / "unet").mkdir(parents=True)
    (tmp_path / "notes.tmp").write_text("a file of the user")
    saver.checkpoints.remove_leftovers()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-x", "notes.tmp", "samples"]
    assert_whole(tmp_path / "checkpoint-1", saver)


def test_finding(tmp_path, rejects):
    saver = Saver(tmp_path)
    checkpoints = saver.checkpoints
    assert checkpoints.find(None) is None
    assert checkpoints.find("latest") is None
    for number in (9, 10):
        saver.save(number)
    checkpoints.save(saver.accelerator, "nonfinite-12")
    (tmp_path / "checkpoint-11.tmp").mkdir()
    (tmp_path / "checkpoint-11.tmp" / "settings.json").write_text("{}")
    assert checkpoints.find(None) is None
    assert checkpoints.find("latest") == tmp_path / "checkpoint-10"
    assert checkpoints.find("checkpoint-9/") == tmp_path / "checkpoint-9"
    assert checkpoints.find("nonfinite-12") == tmp_path / "nonfinite-12"
    for name in ("checkpoint-11", "checkpoint-11.tmp", "8"):
        with rejects(repr(name), "has ['checkpoint-9', 'checkpoint-10']"):
            checkpoints.find(name)


def test_the_data_may_lie_elsewhere(tmp_path, caplog):
    Saver(tmp_path, {"train_data_dir": "photos", "num_images": 7}).save(1)
    assert Checkpoints(tmp_path, {"train_data_dir": "/scratch/photos", "num_images": 7}).find("latest") is not None
    assert "--train_data_dir was photos and is /scratch/photos: it has to hold the same images." in caplog.text


def test_the_folder_of_a_run_is_no_checkpoint(tmp_path, rejects):
    Saver(tmp_path / "a").save(3)
    with rejects("a has ['checkpoint-3']"):
        Checkpoints(tmp_path / "b", SETTINGS).find(str(tmp_path / "a"))


def test_a_path_elsewhere(tmp_path):
    saver = Saver(tmp_path / "a")
    saver.save(3)
    there = Checkpoints(tmp_path / "b", SETTINGS)
    assert there.find(str(tmp_path / "a" / "checkpoint-3")) == tmp_path / "a" / "checkpoint-3"


def test_a_folder_of_another_run_is_refused(tmp_path, rejects):
    a, b, new = (tmp_path / name for name in ("a", "b", "new"))
    for folder, number in ((a, 3), (b, 20)):
        Saver(folder).save(number)
    for resume in (None, "latest", "checkpoint-3", str(a / "checkpoint-3")):
        refuse_used_folder(new, resume)
    for resume in ("latest", "checkpoint-3", "checkpoint-3/", str(a / "checkpoint-3")):
        refuse_used_folder(a, resume)
    for resume in (None, str(a / "checkpoint-3")):
        with rejects(f"{str(b)!r}", "up to checkpoint-20", "latest continues it", "another --output_dir"):
            refuse_used_folder(b, resume)
    for name in ("config.json", "model_index.json"):  # a model, and a pipeline
        (tmp_path / name).write_text("{}")
        with rejects("a trained model", "another --output_dir"):
            refuse_used_folder(tmp_path, None)
        (tmp_path / name).unlink()


def test_the_limit_spares_checkpoints_that_are_yet_to_be_replaced(tmp_path):
    saver = Saver(tmp_path, total_limit=2)
    for number in (5, 20):
        saver.save(number)
    for number in (6, 7):  # resumed from 5
        saver.save(number)
    assert [path.name for path in saver.checkpoints.list()] == ["checkpoint-6", "checkpoint-7", "checkpoint-20"]


def test_other_settings_are_refused_with_a_list_of_all_differences(tmp_path, rejects):
    Saver(tmp_path, {**SETTINGS, "gone": 1}).save(1)
    model = {"channels": (8, 32), "dropout": 0.5, "heads": 2}
    other = {"resolution": 16, "model": model, "flip": None, "added": "yes"}
    for name in ("latest", "checkpoint-1"):
        with rejects(
            "'checkpoint-1', but that run had other settings",
            "another --output_dir. added: None there, 'yes' now; gone: 1 there, None now; model.channels: [8, 16] there, [8,"
            " 32] now; model.heads: None there, 2 now; resolution: 8 there, 16 now",
        ):
            Checkpoints(tmp_path, other).find(name)
    with rejects("max_train_steps: 2 there, 3 now", "--pretrained_model_name_or_path"):
        Saver(tmp_path / "steps", {"max_train_steps": 2}).save(1)
        Checkpoints(tmp_path / "steps", {"max_train_steps": 3}).find("latest")
    same = {"flip": None, "model": {"dropout": 0.5, "channels": [8, 16]}, "resolution": 8, "gone": 1}
    assert Checkpoints(tmp_path, same).find("latest") == tmp_path / "checkpoint-1"


def test_a_folder_that_does_not_tell_its_settings_is_refused(tmp_path, rejects):
    (tmp_path / "checkpoint-5").mkdir()
    with rejects("checkpoint-5", "resolution: None there, 8 now"):
        Checkpoints(tmp_path, SETTINGS).find("latest")


@pytest.mark.parametrize("size", [0, 2000, 60_000], ids=["at once", "within the model", "within the optimizer"])
def test_what_cannot_be_written_leaves_the_last_good_one(size, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    saver = Saver(tmp_path, total_limit=1)
    with largest_file(size):
        assert saver.save(1) is None
    assert "checkpoint-1 could not be saved" in caplog.text and "There is no checkpoint yet" in caplog.text
    saver.save(2)
    caplog.clear()
    for number in (3, 2):  # also where it would take the place of the last good one
        with largest_file(size):
            assert saver.save(number) is None
        assert f"checkpoint-{number} could not be saved" in caplog.text
        assert "The last good one is checkpoint-2" in caplog.text
        assert names(tmp_path) == ["checkpoint-2"]
        assert_whole(tmp_path / "checkpoint-2", saver)
    assert saver.save(4) is not None
    assert names(tmp_path) == ["checkpoint-4"]
    assert_whole(tmp_path / "checkpoint-4", saver)


def test_a_full_disk_keeps_the_last_good_one(small_disk, caplog):
    saver = Saver(small_disk)
    saved = [saver.save(number) for number in range(1, 7)]
    count = saved.index(None)  # some fit
    assert count > 0 and saved[count:] == [None] * (6 - count)
    assert f"checkpoint-{count + 1} could not be saved, with 0.0 MB free" in caplog.text
    assert f"The last good one is checkpoint-{count}" in caplog.text
    assert names(small_disk) == [f"checkpoint-{number}" for number in range(1, count + 1)]
    for checkpoint in saver.checkpoints.list():
        assert_whole(checkpoint, saver)


# --------------------------------------------------------------------------------------------------------- replace_contents
FILES = ("a.txt", "b.txt", "unet/c.txt", "z.txt")


def write(folder, text):
    for name in FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text * 1000)


def test_contents_are_replaced_and_other_files_stay(tmp_path):
    folder = tmp_path / "new" / "pipeline"
    replace_contents(folder, lambda temporary: write(temporary, "1"))
    (folder / "mine.txt").write_text("stays")
    replace_contents(folder, lambda temporary: write(temporary, "2"))
    assert all((folder / name).read_text() == "2" * 1000 for name in FILES)
    assert names(folder) == ["a.txt", "b.txt", "mine.txt", "unet", "z.txt"]
    assert (folder / "mine.txt").read_text() == "stays"


def test_contents_that_cannot_be_written_leave_the_old_ones(tmp_path):
    replace_contents(tmp_path, lambda temporary: write(temporary, "1"))
    with pytest.raises(OSError), largest_file(500):
        replace_contents(tmp_path, lambda temporary: write(temporary, "2"))
    assert all((tmp_path / name).read_text() == "1" * 1000 for name in FILES)
    assert names(tmp_path) == ["a.txt", "b.txt", "unet", "z.txt"]


def replace_forever(folder: Path):
    for number in itertools.count():
        replace_contents(folder, lambda temporary, text=f"{number % 10}": write(temporary, text))


def test_contents_are_never_cut_off(tmp_path):
    moments, interrupted, last = random.Random(0), 0, tmp_path / FILES[-1]
    for attempt in range(6):
        process = fork(replace_forever, tmp_path)
        before = last.stat().st_mtime_ns if last.exists() else None
        # on a busy machine it takes a while until it writes
        until(lambda before=before: last.exists() and last.stat().st_mtime_ns != before, process.is_alive)
        if attempt % 2:
            time.sleep(moments.uniform(0, 0.05))
        else:  # while it writes
            until((tmp_path / "new.tmp").exists, process.is_alive)
        process.kill()
        process.join()
        interrupted += (tmp_path / "new.tmp").exists()
        for name in FILES:
            text = (tmp_path / name).read_text()
            assert len(text) == 1000 and len(set(text)) == 1
    assert interrupted >= 2
    replace_contents(tmp_path, lambda temporary: write(temporary, "x"))
    assert not (tmp_path / "new.tmp").exists()
