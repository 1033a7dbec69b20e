# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A first signal is noted, a second one ends the process once some seconds have passed, and handlers are put back."""

import os
import signal
import threading
import time

import pytest
from accelerate import PartialState
from processes import fork

from ddm_diffusers.training import signals
from ddm_diffusers.training.signals import StopSignal, ignore_signals


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a test does, the handlers after it are those before it."""
    PartialState()  # for the log
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_is_noted(number, handlers):
    stop = StopSignal()
    with stop as entered:
        assert entered is stop and stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
        # the same one, passed on by a launcher, and another one so soon after: the first one counts
        for again in signals.SIGNALS:
            signal.raise_signal(again)
        assert stop.number == number
    assert {each: signal.getsignal(each) for each in signals.SIGNALS} == handlers


def test_a_context_can_be_entered_again(handlers):
    stop = StopSignal()
    for _ in range(2):
        with stop:
            assert signal.getsignal(signal.SIGTERM) == stop._on_signal
        assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]


def test_another_thread_sets_no_handlers(handlers):
    seen = []

    def enter():
        with StopSignal():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handlers[signal.SIGTERM]]


def two_signals(seconds, folder):
    PartialState()
    signals.SECOND_SIGNAL_SECONDS = seconds
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)
        (folder / "survived").write_text(str(stop.number))


@pytest.mark.parametrize(("seconds", "exit_code"), [(0.01, -signal.SIGINT), (60, 0)])
def test_a_second_signal_ends_the_process_if_it_comes_later(seconds, exit_code, tmp_path):
    process = fork(two_signals, seconds, tmp_path)
    process.join()
    assert process.exitcode == exit_code
    assert (tmp_path / "survived").exists() == (exit_code == 0)


def test_workers_ignore_signals():
    ignore_signals(0)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == [signal.SIG_IGN] * 2
    for number in signals.SIGNALS:
        os.kill(os.getpid(), number)
