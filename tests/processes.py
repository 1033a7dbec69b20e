# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Processes that tests watch, signal and kill: runs of the example scripts, and code of a user.

    run = start("train_ddm.py", "--max_train_steps", 10, cwd=folder)
    run.until(lambda: (folder / "ddm-model" / "checkpoint-5").exists())
    run.kill()

A fresh interpreter spends six seconds on importing torch and diffusers. So these processes are forked from one that has
imported all libraries, and nothing of this package. From there on they run as `python examples/train_ddm.py` does.
`start_command` starts a fresh interpreter, for tests that need one.

In all of them the Hugging Face Hub is at the address of `hub()`, and its cache is the folder `cache` of the working
directory.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

from hub_server import HubServer, client_environment


EXAMPLES = Path(__file__).parents[1] / "examples"
TIMEOUT = 600.0  # in seconds; a busy machine may take a minute for the imports alone

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "accelerate",
        "datasets",
        "diffusers.models.auto_model",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.optimization",
        "diffusers.pipelines.ddpm.pipeline_ddpm",
        "diffusers.pipelines.pipeline_utils",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "diffusers.schedulers.scheduling_flow_match_euler_discrete",
        "diffusers.training_utils",
        "pytest",
        "sklearn.datasets",
        "torch.distributed.tensor",
        "torch.utils.tensorboard",
        "torchmetrics.image.fid",
        "transformers",
    ]
)


def _free_port(taken: int | None = None) -> int:
    """
    None of those that the system hands out, nor of those that tests in other processes take, so that it is still free when
    the first process listens.
    """
    first = 10_000 + 50 * (os.getpid() % 400)
    for port in range(first, first + 50):
        if port != taken:
            with socket.socket() as free, contextlib.suppress(OSError):
                free.bind(("127.0.0.1", port))
                return port
    raise OSError("no port is free")


HUB_PORT = _free_port()


def hub(token: str | None = "hf_test") -> HubServer:
    """The Hub of the processes. Give them `HF_TOKEN` in their environment."""
    return HubServer(token=token, port=HUB_PORT)


def fork(target: Callable, *args) -> multiprocessing.process.BaseProcess:
    """Start a function of a test in a process of this kind, which imports the file that the function is in."""
    before, environment = dict(os.environ), client_environment(hub(), "cache")
    try:  # the client of the Hub reads its settings when it is imported
        os.environ.clear()
        os.environ.update(environment)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    process = _FORKED.Process(target=_call, args=(target.__code__.co_filename, target.__name__, args))
    process.start()
    return process


def _call(path: str, name: str, args: tuple) -> None:
    sys.dont_write_bytecode = False  # hundreds of processes import this package
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(*args)


def until(condition: Callable[[], bool], running: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """Watch a process until a condition holds, and tell whether it did before the process ended."""
    end = time.monotonic() + timeout
    while not condition():
        if not running():
            return condition()
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.0005)
    return True


def _set_up(cwd: str, environment: dict[str, str], output: str) -> None:
    import torch
    from diffusers.utils import dynamic_modules_utils

    os.setsid()  # a process group, as a terminal and a cluster signal it
    os.chdir(cwd)
    dynamic_modules_utils.HF_MODULES_CACHE = os.path.abspath("cache/modules")  # it takes no relative path
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # the loaders of the data are started as the platform does it, not like this process
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(1)


def _run_script(script: str, arguments: list[str], *set_up) -> None:
    _set_up(*set_up)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str((EXAMPLES / script).parent))
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def _run_code(code: str, arguments: list[str], *set_up) -> None:
    _set_up(*set_up)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


class Run:
    """A process that runs a script; see `start`."""

    def __init__(self, output: Path):
        self.output_path = output

    @property
    def output(self) -> str:
        """What it has written to stdout and stderr."""
        return self.output_path.read_text() if self.output_path.exists() else ""

    @property
    def running(self) -> bool:
        return self.exit_code() is None

    def exit_code(self, timeout: float = 0.0) -> int | None:
        raise NotImplementedError

    def until(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
        """Watch until a condition holds, and tell whether it did before the process ended."""
        return until(condition, lambda: self.running, timeout)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code, negative for a signal."""
        exit_code = self.exit_code(timeout)
        assert exit_code is not None, self.output[-4000:]
        return exit_code

    def send(self, number: int, group: bool = False) -> None:
        """Signal the process, or with it all that it has started."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and all that it has started."""
        try:
            self.send(signal.SIGKILL, group=True)
        except ProcessLookupError:  # it has ended, or has no group yet
            self.process.kill()
        self.wait()


class ForkedRun(Run):
    def __init__(self, target: Callable, what: str, arguments: tuple, cwd: Path, environment: dict, output: Path):
        super().__init__(output)
        self.process = fork(target, what, list(map(str, arguments)), str(cwd), environment, str(output))

    def exit_code(self, timeout: float = 0.0) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode


class CommandRun(Run):
    """With an interpreter of its own, for what is read from the environment when a module is imported."""

    def __init__(self, command: list[str], cwd: Path, environment: dict[str, str], output: Path):
        super().__init__(output)
        with open(output, "w") as file:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def exit_code(self, timeout: float = 0.0) -> int | None:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


def start(script: str, *arguments, cwd: Path, output: str = "output.txt", **environment: str) -> Run:
    """Start a script; further keywords are variables of its environment."""
    return ForkedRun(_run_script, str(script), arguments, cwd, environment, cwd / output)


def start_code(code: str, *arguments, cwd: Path, **environment: str) -> Run:
    """Start what `python -c code` runs; further keywords are variables of its environment."""
    return ForkedRun(_run_code, code, arguments, cwd, environment, cwd / "output.txt")


def start_command(*command, cwd: Path, environment: dict[str, str] | None = None) -> Run:
    """`python` with this command line, in an interpreter of its own."""
    environment = {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"}
    return CommandRun([sys.executable, *map(str, command)], cwd, environment, cwd / "output.txt")


def start_distributed(script: str, *arguments, cwd: Path, num_processes: int = 2, **environment: str) -> list[Run]:
    """Start a script in processes that know of each other as those of `torchrun` do."""
    port = _free_port(taken=HUB_PORT)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(num_processes), "ACCELERATE_USE_CPU": "true", **environment}
    return [
        start(script, *arguments, cwd=cwd, output=f"output-{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(num_processes)
    ]
