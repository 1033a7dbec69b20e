# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""SIGTERM and Ctrl-C end a run when its state is saved: after the step that is under way, or with the result."""

import signal
import threading
import time
from types import FrameType

from accelerate.logging import get_logger


logger = get_logger(__name__, log_level="INFO")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_SIGNAL_SECONDS = 5


class StopSignal:
    """
    A context in which SIGTERM and Ctrl-C are noted. A second one, some seconds later, ends the process at once.

    Attributes:
        number (`int` or `None`): The signal that came.
    """

    def __init__(self):
        self.number = None
        self._previous_handlers = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # no other one may set handlers
            for each in SIGNALS:
                self._previous_handlers[each] = signal.signal(each, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for each, handler in self._previous_handlers.items():
            signal.signal(each, handler)
        self._previous_handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # launchers pass a signal on to processes that have it already: a second one counts when it comes later
        if self.number is not None and time.monotonic() - self._time > SECOND_SIGNAL_SECONDS:
            # not a KeyboardInterrupt, after which Python waits for an upload that is under way
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self.number is None:
            self.number, self._time = number, time.monotonic()
            logger.warning(
                f"{signal.Signals(number).name}: the run ends once it is saved; a second one, after more than"
                f" {SECOND_SIGNAL_SECONDS} seconds, ends it at once"
            )


def ignore_signals(worker_index: int) -> None:
    """
    For the workers of a DataLoader, which a signal from a terminal, Slurm or systemd reaches too. They have to go on until
    the step is through, and end with the process that they work for.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
