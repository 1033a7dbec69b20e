# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Swaps the scheduler of every pipeline that diffusers' own tests build.

    pip install ftfy parameterized requests-mock sentencepiece torchsde
    git clone --depth 1 https://github.com/huggingface/diffusers
    python tests/integration/diffusers_pipelines.py --checkout diffusers --output pipelines.json

For each pipeline the script

1. runs 4 steps with the stock scheduler;
2. runs 4 steps after `pipe.scheduler = DDMScheduler.from_config(pipe.scheduler.config)`, and compares shape, dtype and the
   number of evaluations of the model;
3. compares `solver_order=1, eta=0.0` with the first-order scheduler of diffusers for that family, at its timesteps;
4. swaps back, and expects the bits of the first run.

Only the tests come from the checkout; the pipelines are the installed release's. Nothing is downloaded: `tiny_hub.py` has
stand-ins for the checkpoints that the tests load. Each pipeline runs in a forked process, so the script needs Linux or macOS.

`--only NAME` runs the pipelines, tests or modules with NAME in their name, and `--again STATUS` those whose record in
`--output` has this status. Both update the file.
"""

import argparse
import functools
import importlib
import inspect
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
import types
import unittest
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import tiny_hub
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

import ddm_diffusers
from ddm_diffusers import DDMScheduler


NUM_STEPS = 4
TOLERANCE = 1e-4

# What is no fault of the scheduler
KNOWN = {
    "IFInpaintingPipeline": "the network of its test amplifies roundings of float32 from 2e-5 after one step to 5e-4 after four",
    "LEditsPPPipelineStableDiffusion": "the pipeline itself takes no scheduler but DDIM and DPM-Solver++",
}
TIME_LIMIT = 300  # seconds for each pipeline
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "prior_prior", "decoder", "dit")
FAMILIES = {"VP": DDIMScheduler, "flow": FlowMatchEulerDiscreteScheduler, "EDM": EDMEulerScheduler}
STATUSES = ("runs", "differs", "refused", "fails", "no scheduler", "not built", "not imported", "time limit")


# ------------------------------------------------------------------------------------------------------------ the tests


def find_tests(checkout, only="", modules=None):
    """The test classes that build pipelines, one for each way of building, and the modules that do not import."""
    sys.path.insert(0, str(checkout))
    tests, missing = [], []
    for path in sorted((checkout / "tests" / "pipelines").glob("*/test_*.py")):
        name = f"tests.pipelines.{path.parent.name}.{path.stem}"
        if only not in f"{name} {path.read_text()}" or (modules is not None and name not in modules):
            continue
        try:
            module = importlib.import_module(name)
        except Exception as error:
            missing.append({"module": name, "test": "", "status": "not imported", "reason": f"{error!r}"})
            continue
        found = {}
        for test in vars(module).values():
            if isinstance(test, type) and test.__module__ == name and is_complete(test):
                if only in f"{name} {test.__name__} {name_of(test)}":
                    found.setdefault((test.pipeline_class, test.get_dummy_components), test)
        tests += found.values()
    return tests, missing


def is_complete(test):
    """Whether a class builds a pipeline, and is not the base of those that do."""
    if not isinstance(getattr(test, "pipeline_class", None), type) or not hasattr(test, "get_dummy_inputs"):
        return False
    _, *parameters = inspect.signature(
        getattr(test, "get_dummy_components", lambda self, missing: None)
    ).parameters.values()
    return all(parameter.default is not parameter.empty for parameter in parameters)


def name_of(test):
    """The name of the pipeline's class in diffusers, which a test may have derived its own from."""
    return next(kind.__name__ for kind in test.pipeline_class.__mro__ if kind.__module__.startswith("diffusers."))


def shrink_images():
    """Editing pipelines scale an image to 1024 x 1024 pixels, whatever size a call asks for. Here it becomes 64 x 64."""

    def small(original, target_area, ratio):
        return original(min(target_area, 64 * 64), ratio)

    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.pipelines.") and "calculate_dimensions" in vars(module):
            module.calculate_dimensions = functools.partial(small, module.calculate_dimensions)


class Built:
    """The pipeline of a test, and its calls."""

    def __init__(self, test):
        self.test = test()
        if isinstance(self.test, unittest.TestCase):
            try:
                self.test.setUp()
            except (unittest.SkipTest, pytest.skip.Exception):  # deprecated pipelines
                pass
        self.pipe = test.pipeline_class(**self.test.get_dummy_components())
        self.pipe.set_progress_bar_config(disable=True)
        self.evaluations = {}
        for name, component in self.pipe.components.items():
            if isinstance(component, torch.nn.Module):
                component.eval()
                if name in DENOISERS:
                    component.register_forward_pre_hook(functools.partial(self._count, name))

    def _count(self, name, *arguments):
        self.evaluations[name] = self.evaluations.get(name, 0) + 1

    @property
    def scheduler(self):
        return getattr(self.pipe, "scheduler", None)

    def swap(self, scheduler):
        # pipelines made of two keep them as attributes
        parts = [part for part in vars(self.pipe).values() if isinstance(part, DiffusionPipeline)]
        old = self.scheduler
        for pipe in (self.pipe, *parts):
            if getattr(pipe, "scheduler", None) is old:
                pipe.scheduler = scheduler

    def run(self):
        """The output of a call of 4 steps as tensors, the samples between the steps, and the evaluations of the models."""
        parameters = inspect.signature(self.test.get_dummy_inputs).parameters
        torch.manual_seed(0)
        np.random.seed(0)
        inputs = self.test.get_dummy_inputs(*(["cpu"] if "device" in parameters else []))
        if "num_inference_steps" in inspect.signature(self.pipe.__call__).parameters:
            inputs["num_inference_steps"] = NUM_STEPS
        # binning would draw 1024 x 1024 pixels, and an intermediate timestep goes with 2 steps only
        for name, value in (("use_resolution_binning", False), ("intermediate_timesteps", None)):
            if name in inspect.signature(self.pipe.__call__).parameters:
                inputs[name] = value
        if inputs.get("strength", 1) * NUM_STEPS < 1:
            inputs["strength"] = 0.5
        if hasattr(self.test, "get_dummy_inversion_inputs"):  # edits an image that it has inverted before
            self.pipe.invert(**self.test.get_dummy_inversion_inputs("cpu"))
        self.evaluations, states = {}, []
        record_states(self.scheduler, states)
        torch.manual_seed(0)
        with torch.no_grad():
            output = self.pipe(**inputs)
        return Run(list(tensors_of(output)), states, self.evaluations)


class Run:
    def __init__(self, output, states, evaluations):
        self.output, self.states, self.evaluations = output, states, evaluations

    @property
    def kinds(self):
        """Shape and dtype of all tensors."""
        return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in [*self.output, *self.states[-1:]]]

    @property
    def finite(self):
        return all(bool(torch.isfinite(tensor.float()).all()) for tensor in self.output)

    def equals(self, other):
        return self.kinds == other.kinds and self.output_difference(other) == 0

    def difference(self, other):
        """The largest difference of the samples between the steps, relative to values above 1."""
        return max(relative_difference(a, b) for a, b in zip(self.states, other.states, strict=True))

    def output_difference(self, other):
        """The same of the outputs. Some decoders round to a codebook, so that small differences grow."""
        return max(relative_difference(a, b) for a, b in zip(self.output, other.output, strict=True))


def relative_difference(a, b):
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def tensors_of(output):
    """All tensors, arrays and images in an output, in order; 8 bits become [0, 1]."""
    if isinstance(output, torch.Tensor):
        yield output.detach().clone()
    elif isinstance(output, np.ndarray):
        yield torch.from_numpy(output.copy())
    elif isinstance(output, PIL.Image.Image):
        yield torch.from_numpy(np.asarray(output) / 255)
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_of(value)


# ------------------------------------------------------------------------------------------------------- the schedulers


def override(scheduler, name, method):
    """Replace a method of a scheduler, and of its copies. Its class stays, which some pipelines look at."""
    method = functools.wraps(getattr(type(scheduler), name))(method)
    setattr(scheduler, name, types.MethodType(method, scheduler))


def record_states(scheduler, states):
    """Append what each step returns to `states`."""
    inner = getattr(scheduler.step, "recorded", scheduler.step.__func__)

    def step(self, *args, **kwargs):
        output = inner(self, *args, **kwargs)
        states.append(next(tensors_of(output)))
        return output

    override(scheduler, "step", step)
    scheduler.step.__func__.recorded = inner


def family_of(scheduler):
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith(("EDM", "CosineDPM")) or config.get("timestep_type") == "continuous":
        return "EDM"
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        return "flow"
    if hasattr(scheduler, "alphas_cumprod") and config.get("prediction_type", "epsilon") != "flow":
        return "VP"
    return "other"


def reference_of(stock, family):
    """The first-order deterministic scheduler of diffusers for the models of another scheduler."""
    config = {key: value for key, value in stock.config.items() if not key.startswith("_")}
    kind = type(stock) if config.get("timestep_type") == "continuous" else FAMILIES[family]
    if type(stock).__name__ == "CosineDPMSolverMultistepScheduler":
        raise NotImplementedError("diffusers has no deterministic scheduler for these models")
    parameters = inspect.signature(kind.__init__).parameters
    options = {key: value for key, value in config.items() if key in parameters}
    if family == "VP":
        options |= {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True}
        options.setdefault("clip_sample", False)
        options.setdefault("prediction_type", "epsilon")
        options |= {"beta_schedule": "linear", "trained_betas": None}  # replaced below
    elif family == "EDM":
        options["final_sigmas_type"] = "zero"
    elif family == "flow":
        options |= {"stochastic_sampling": False, "shift": config.get("flow_shift", config.get("shift", 1.0))}
    reference = kind(**options)
    if family == "VP":
        # whatever the other scheduler makes of its betas
        reference.alphas_cumprod = stock.alphas_cumprod.clone()
    learned = str(config.get("variance_type", "")).startswith("learned")
    if learned or type(stock).__name__ == "UnCLIPScheduler":
        reference.register_to_config(variance_type=config["variance_type"])

        def step(self, model_output, timestep, sample, *args, prev_timestep=None, **kwargs):
            model_output = model_output[:, : sample.shape[1]]
            return FAMILIES[family].step(self, model_output, timestep, sample, *args, **kwargs)

        override(reference, "step", step)
    return reference


def at_timesteps_of(scheduler, reference):
    """Make `set_timesteps` of the scheduler take the timesteps that the reference would have."""

    def set_timesteps(self, num_inference_steps=None, device=None, **kwargs):
        if kwargs.get("timesteps") is not None and kwargs.get("sigmas") is not None:  # these say all
            return type(self).set_timesteps(self, num_inference_steps, device=device, **kwargs)
        reference.set_timesteps(num_inference_steps, device=device, **kwargs)
        type(self).set_timesteps(self, timesteps=reference.timesteps.tolist(), device=device)

    override(scheduler, "set_timesteps", set_timesteps)


# ---------------------------------------------------------------------------------------------------------- one pipeline


def examine(test):
    """The record of one pipeline."""
    record = {"module": test.__module__, "test": test.__name__, "pipeline": name_of(test)}
    record |= {
        "scheduler": None,
        "family": None,
        "status": "not built",
        "stage": "build",
        "reason": None,
        "frames": [],
    }
    record |= {"evaluations": {}, "max_difference": None, "problems": []}
    try:
        built = Built(test)
        stock = built.scheduler
        if stock is None:
            return {**record, "status": "no scheduler", "reason": f"components: {', '.join(built.pipe.components)}"}
        record |= {"scheduler": type(stock).__name__, "family": family_of(stock), "stage": "stock"}
        before = built.run()
    except Exception as error:
        return {**record, **describe(error)}
    record["evaluations"]["stock"] = before.evaluations

    try:
        record["stage"] = "swap"
        swapped = DDMScheduler.from_config(stock.config)
        built.swap(swapped)
        record["stage"] = "run"
        after = built.run()
        record["evaluations"]["swapped"] = after.evaluations
        record["stage"] = "swap back"
        built.swap(type(stock).from_config(built.scheduler.config))
        restored = built.run()
    except Exception as error:
        return {**record, **describe(error), "status": "refused" if is_refusal(error) else "fails"}

    record |= {"status": "runs", "stage": "done"}
    problems = record["problems"]
    if after.kinds != before.kinds:
        problems.append(f"shape and dtype: {after.kinds} instead of {before.kinds}")
    if before.finite and not after.finite:
        problems.append("not finite")
    if restored.kinds != before.kinds or restored.difference(before) > 0:
        built.swap(stock)
        again = built.run()
        what = (
            "" if again.kinds == before.kinds and again.difference(before) == 0 else ", but neither is the stock run"
        )
        problems.append(f"swapped back, the output is not the same{what}")
    compare(record, built, stock, after)
    if problems:
        record |= {"status": "differs", "reason": "; ".join(problems)}
    return record


def compare(record, built, stock, after):
    """Evaluations and numbers beside those of the first-order scheduler of the family."""
    expected, problems = record["evaluations"]["stock"], record["problems"]
    if record["family"] in FAMILIES:
        try:
            built.swap(reference_of(stock, record["family"]))
            reference = built.run()
        except Exception as error:
            record["reference"] = f"fails: {describe(error)['reason']}"
        else:
            expected = record["evaluations"]["reference"] = reference.evaluations
            record["reference"] = type(built.scheduler).__name__
            try:
                ours = DDMScheduler.from_config(stock.config, solver_order=1, eta=0.0)
                at_timesteps_of(ours, reference_of(stock, record["family"]))
                built.swap(ours)
                first_order = built.run()
                record["max_difference"] = first_order.difference(reference)
                record["output_difference"] = first_order.output_difference(reference)
                if record["max_difference"] > TOLERANCE:
                    problems.append(f"differs from {record['reference']} by {record['max_difference']:.2g}")
            except Exception as error:
                problems.append(f"at the timesteps of {record['reference']}: {describe(error)['reason']}")
                record["frames"] = describe(error)["frames"]
    # of two models each has its share of the timesteps
    if sum(after.evaluations.values()) != sum(expected.values()):
        problems.append(f"evaluations: {after.evaluations} instead of {expected}")


def describe(error):
    frames = []
    for frame in traceback.extract_tb(error.__traceback__)[-4:]:
        file = re.sub(r".*/(?=(diffusers|ddm_diffusers|transformers|torch)/)", "", frame.filename)
        frames.append(f"{file}:{frame.lineno} {frame.line}")
    return {"reason": f"{type(error).__name__}: {error}"[:500], "frames": frames}


def is_refusal(error):
    """Whether our package refuses by name: a ValueError that names the argument."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(last).is_relative_to(Path(ddm_diffusers.__file__).parent)
    return ours and isinstance(error, ValueError) and re.search(r"`\w+`", str(error)) is not None


def isolated(test):
    """`examine` in a process of its own, with a time limit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work():
        # warnings of diffusers and transformers, and progress bars
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            record = examine(test)
        except Exception as error:
            record = {"module": test.__module__, "test": test.__name__, "pipeline": name_of(test)}
            record |= {"status": "fails", "stage": "harness", **describe(error)}
        sender.send(record)

    start = time.monotonic()
    process = context.Process(target=work)
    process.start()
    sender.close()
    status, reason = "time limit", f"takes more than {TIME_LIMIT} s"
    try:
        record = receiver.recv() if receiver.poll(TIME_LIMIT) else None
    except EOFError:
        record, status, reason = None, "fails", "the process died"
    if record is None:
        process.kill()
        record = {"module": test.__module__, "test": test.__name__, "pipeline": name_of(test)}
        record |= {"status": status, "stage": "process", "reason": reason}
    process.join()
    return {**record, "seconds": round(time.monotonic() - start, 1)}


# ------------------------------------------------------------------------------------------------------------- summary


def summary(records):
    """Tables in Markdown: what runs by family and stock scheduler, all counts, and the reasons of all that do not run."""
    lines = ["| family | stock scheduler | pipelines that run | first-order reference | largest difference |"]
    lines.append("| --- | --- | --- | --- | --- |")
    groups = {}
    for record in records:
        if record["status"] == "runs":
            key = (record["family"], record["scheduler"], record.get("reference") or "-")
            groups.setdefault(key, []).append(record)
    for (family, scheduler, reference), group in sorted(groups.items()):
        names = {record["pipeline"] for record in group}
        differences = [record["max_difference"] for record in group if record["max_difference"] is not None]
        largest = f"{max(differences):.1e}" if differences else "-"
        lines.append(f"| {family} | {scheduler} | {len(names)} | {reference} | {largest} |")
    used = [status for status in STATUSES if any(record["status"] == status for record in records)]
    lines += ["", f"| family | {' | '.join(used)} |", "| --- |" + " --- |" * len(used)]
    for family in (*FAMILIES, "other", None, "all"):
        chosen = [record for record in records if family in (record.get("family"), "all")]
        names = [{record.get("pipeline") for record in chosen if record["status"] == status} for status in used]
        if chosen:
            lines.append(f"| {family or '-'} | {' | '.join(str(len(each)) for each in names)} |")
    for status in used:
        reasons = {}
        for record in records:
            if record["status"] == status != "runs":
                reason = re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", record["reason"] or "")[:160].replace("|", "/")
                key = (record.get("family") or "-", record.get("scheduler") or "-", reason)
                reasons.setdefault(key, []).append(record.get("pipeline") or record["module"])
        if reasons:
            lines += ["", f"| {status} | family | scheduler | reason |", "| --- | --- | --- | --- |"]
            for (family, scheduler, reason), names in sorted(reasons.items()):
                lines.append(
                    f"| {', '.join(sorted(set(names)))} | {family} | {scheduler} | {' '.join(reason.split())} |"
                )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="Folder of a checkout of diffusers.")
    parser.add_argument("--output", type=Path, help="JSON file for the records, one for each pipeline.")
    parser.add_argument("--only", default="", help="Run the pipelines, tests or modules with this in their name.")
    parser.add_argument(
        "--again", nargs="+", choices=STATUSES, help="Run those whose record in `--output` has this status."
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    records, chosen = {}, None
    if (options.only or options.again) and options.output and options.output.exists():
        records = {(record["module"], record["test"]): record for record in json.loads(options.output.read_text())}
    if options.again:
        chosen = {key for key, record in records.items() if record["status"] in options.again}
    modules = None if chosen is None else {module for module, test in chosen}
    tests, missing = find_tests(options.checkout.resolve(), options.only, modules)
    if chosen is not None:
        tests = [test for test in tests if {(test.__module__, test.__name__), (test.__module__, "")} & chosen]
    imported = {test.__module__ for test in tests}
    records = {key: record for key, record in records.items() if record["test"] or key[0] not in imported}
    diffusers.utils.logging.set_verbosity_error()
    tiny_hub.install()
    shrink_images()
    done = {(record["module"], record["test"]): record for record in missing}
    for test in tests:
        record = isolated(test)
        done[record["module"], record["test"]] = record
        print(
            f"{record['status']:12} {record['seconds']:5.1f} s  {record['pipeline']}  {record['reason'] or ''}"[:200],
            flush=True,
        )
        if options.output:
            options.output.write_text(json.dumps(list((records | done).values()), indent=1) + "\n")
    print("\n" + summary(list((records | done).values())))
    for record in done.values():
        if record["status"] in ("differs", "fails") and record["pipeline"] in KNOWN:
            print(f"{record['pipeline']}: {KNOWN[record['pipeline']]}")
    faults = [
        each for each in done.values() if each["status"] in ("differs", "fails") and each["pipeline"] not in KNOWN
    ]
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
