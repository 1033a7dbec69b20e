# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or absent: written under another name and renamed, and refused where the settings differ."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object


logger = get_logger(__name__)

PREFIX = "checkpoint-"
SETTINGS_NAME = "settings.json"
# Files that tell that a pipeline or a model was saved in a folder
RESULTS = ("model_index.json", "config.json")
# A copy on another disk is the same data: another path is a warning. The number of images is compared.
DATA_FOLDER = "train_data_dir"
# No listing of checkpoints finds folders that end like this: half written or half deleted.
TEMPORARY = ".tmp"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def refuse_used_folder(folder: Path, resume_from_checkpoint: str | None) -> None:
    """
    Refuse an output folder with a result or with checkpoints that the run does not continue, as a run touches its own only.

    Raises:
        ValueError: the folder holds another run.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints and not any((folder / name).is_file() for name in RESULTS):
        return
    found = f"checkpoints of a run, up to {checkpoints[-1].name}" if checkpoints else "a trained model"
    if resume_from_checkpoint is not None:
        elsewhere = Path(resume_from_checkpoint).resolve().parent != folder.resolve()
        if not (checkpoints and elsewhere and is_checkpoint(Path(resume_from_checkpoint))):
            return
    resume = " --resume_from_checkpoint latest continues it." if checkpoints else ""
    raise ValueError(
        f"`--output_dir` is {str(folder)!r}, which holds {found}.{resume} A new run needs another --output_dir, or an"
        " empty one."
    )


def is_checkpoint(path: Path) -> bool:
    return (path / SETTINGS_NAME).is_file() and path.suffix != TEMPORARY


def gather(accelerator: Accelerator, items: list) -> list:
    """The items of all processes. Accelerate's function refuses XLA, on which one process can train."""
    return items if accelerator.num_processes == 1 else gather_object(items)


class Checkpoints:
    """
    The checkpoints of a run in its output folder, `checkpoint-{step}`.

    Args:
        folder (`Path`): The output folder.
        settings (`dict`): What a run has to agree in with the one that it continues; JSON values.
        total_limit (`int`, *optional*): How many to keep; the oldest are deleted.
    """

    def __init__(self, folder: Path, settings: dict, total_limit: int | None = None):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.total_limit = total_limit

    def list(self) -> list[Path]:
        """The checkpoints in the order of their steps."""
        return list_checkpoints(self.folder)

    def find(self, name: str | None) -> Path | None:
        """
        The folder to resume from.

        Args:
            name (`str`, *optional*): A checkpoint's path, the name of its folder in the output folder, or `latest`.

        Returns:
            `Path` or `None`: to start from scratch, without a name or where `latest` finds nothing.

        Raises:
            ValueError: there is no such checkpoint, or it was written with other settings.
        """
        if name is None:
            return None
        checkpoints = self.list()
        if name == "latest":
            if not checkpoints:
                logger.info(f"There is no checkpoint in {self.folder}: starting from scratch")
                return None
            checkpoint = checkpoints[-1]
        else:
            checkpoint = next(filter(is_checkpoint, (self.folder / name, Path(name))), None)
            if checkpoint is None:
                inside = (
                    f" {name} has {[path.name for path in list_checkpoints(Path(name))]}."
                    if Path(name).is_dir()
                    else ""
                )
                raise ValueError(
                    f"`--resume_from_checkpoint` is {name!r}, but neither that path nor {self.folder / name} is a checkpoint."
                    f" {self.folder} has {[path.name for path in checkpoints]}.{inside}"
                )
        path = checkpoint / SETTINGS_NAME
        saved = json.loads(path.read_text()) if path.is_file() else {}
        self.settings.setdefault("seed", saved.get("seed"))  # without one of its own a run goes on with this one
        there, now = (dict(settings) for settings in (saved, self.settings))
        folders = there.pop(DATA_FOLDER, None), now.pop(DATA_FOLDER, None)
        if differences := _differences(there, now):
            longer = ""
            if there.get("max_train_steps") != now.get("max_train_steps"):
                longer = " To train a result for longer, start from it with --pretrained_model_name_or_path."
            raise ValueError(
                f"`--resume_from_checkpoint` is {checkpoint.name!r}, but that run had other settings. Give the same ones,"
                f" or another --output_dir.{longer} " + "; ".join(differences)
            )
        if folders[0] != folders[1]:
            logger.warning(f"--{DATA_FOLDER} was {folders[0]} and is {folders[1]}: it has to hold the same images.")
        return checkpoint

    def save(self, accelerator: Accelerator, name: str) -> Path | None:
        """
        Save the state of the run as a folder of that name, which is there once it is whole. What is over the limit is
        deleted afterwards. Every process calls this.

        Args:
            accelerator ([`~accelerate.Accelerator`]): Whose state is saved.
            name (`str`): The name of the folder.

        Returns:
            `Path` or `None`: `None` if it could not be written, for example when the disk is full; that is logged.
        """
        path, temporary = self.folder / name, self.folder / f"{name}{TEMPORARY}"
        old = self.folder / f"{name}.old{TEMPORARY}"
        if accelerator.is_main_process:
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)
        accelerator.wait_for_everyone()

        error = None
        try:
            accelerator.save_state(temporary)
            if accelerator.is_main_process:
                (temporary / SETTINGS_NAME).write_text(json.dumps(self.settings, indent=1) + "\n")
                _flush(temporary)
        except Exception as raised:  # torch and safetensors raise errors of their own on a full disk
            error = f"{type(raised).__name__}: {raised}"
        error = next((each for each in gather(accelerator, [error]) if each is not None), None)  # of any process
        if error is not None:
            free = shutil.disk_usage(self.folder).free / 2**20  # torch's error does not tell that the disk is full
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            kept = [each.name for each in self.list()]
            logger.error(
                f"{name} could not be saved, with {free:,.1f} MB free: {error}. "
                + (f"The last good one is {kept[-1]}." if kept else "There is no checkpoint yet.")
            )
            return None
        if accelerator.is_main_process:
            # one of that name from an earlier run stays until now, as the disk may have been full
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
            if self.total_limit is not None and path in self.list():
                # not later ones, which a run that was resumed from an earlier one has yet to replace
                earlier = self.list()[: self.list().index(path)]
                for each in earlier[: max(0, len(earlier) + 1 - self.total_limit)]:
                    os.replace(each, temporary)  # so that it is never there in part
                    shutil.rmtree(temporary)
        accelerator.wait_for_everyone()
        return path

    def remove_leftovers(self) -> None:
        """Delete what a run that was killed had half written or half deleted."""
        for path in self.folder.glob(f"*{TEMPORARY}"):
            if path.is_dir():
                shutil.rmtree(path)


def replace_contents(folder: Path, write: Callable[[Path], None]) -> None:
    """
    Write files, then put each into its place in one go: a process that is killed leaves the old file or the new one, and
    none that is cut off.

    Args:
        folder (`Path`): Where they go; what else is there stays.
        write (`Callable`): Writes files and folders to the empty folder that it is called with.
    """
    temporary = folder / f"new{TEMPORARY}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for new in sorted(path for path in temporary.rglob("*") if path.is_file()):
            old = folder / new.relative_to(temporary)
            old.parent.mkdir(parents=True, exist_ok=True)
            os.replace(new, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _differences(there: dict, now: dict, prefix: str = "") -> list[str]:
    """What differs between two settings, key by key, also within those that have keys of their own."""
    differences = []
    for key in sorted(there.keys() | now.keys()):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            differences += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            differences.append(f"{prefix}{key}: {a!r} there, {b!r} now")
    return differences


def _flush(folder: Path) -> None:
    """Have the disk write a folder's files, so that not even a power cut leaves an empty one under a final name."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
