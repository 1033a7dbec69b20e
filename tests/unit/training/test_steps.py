# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The losses of a step are means over its batches, counts are sums, and the state of the random generators comes back."""

import time

import torch
from accelerate import Accelerator

from ddm_diffusers.training.steps import StepRecord


def test_means_over_batches_and_sums_of_counts():
    record = StepRecord()
    for loss, part in ((1.0, 0.25), (4.0, 0.75)):
        record.add({"loss": torch.tensor(loss, requires_grad=True), "part": torch.tensor(part, dtype=torch.bfloat16)})
    values, counts = record.reduce(Accelerator(cpu=True), 2, torch.tensor(3.0, dtype=torch.float64), [2, 0, 5.0])
    assert values == {"loss": 2.5, "part": 0.5, "grad_norm": 3.0}
    assert counts == [2.0, 0.0, 5.0]


def test_a_norm_that_is_a_number():
    record = StepRecord()
    record.add({"loss": torch.tensor(float("inf"))})
    values, counts = record.reduce(Accelerator(cpu=True), 1, 0.5, [])
    assert values == {"loss": float("inf"), "grad_norm": 0.5} and counts == []


def test_a_record_keeps_no_graph():
    loss = torch.ones((), requires_grad=True) * 2
    record = StepRecord()
    record.add({"loss": loss})
    record.add({"loss": loss})
    assert not record._sums.requires_grad


def test_the_time_is_that_of_the_step():
    record = StepRecord()
    time.sleep(0.02)
    record.end()
    seconds = record.seconds
    assert 0.02 <= seconds < 60
    time.sleep(0.01)
    assert record.seconds == seconds


def test_random_numbers_are_drawn_again():
    torch.manual_seed(3)
    torch.rand(5)
    record = StepRecord()
    drawn = torch.rand(4)
    assert not torch.equal(torch.rand(4), drawn)
    record.restore_random_state()
    assert torch.equal(torch.rand(4), drawn)
