# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every option of every script has a range; a card has the command that repeats its run; a seed is asked for or resumed."""

import argparse
import copy
import importlib
import math
import pickle
import shlex

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from processes import EXAMPLES

from ddm_diffusers import presets
from ddm_diffusers.training import check_mixed_precision, command_line, number, parse_arguments
from ddm_diffusers.training.arguments import FREE_OPTIONS, SEED, settings_that_matter


SCRIPTS = {
    "evaluate": ["--images_dir", "drawn"],
    "train_autoencoder_kl": ["--train_data_dir", "photos"],
    "train_ddm": ["--train_data_dir", "photos"],
    "train_ddm_image_to_image": ["--train_data_dir", "photos"],
    "train_ddm_text_to_image": ["--pretrained_model_name_or_path", "text"],
}
# What each of these options refuses, whichever script it is of. Whole numbers are counts, unless they are listed here.
REFUSED = {
    "adam_beta1": (-0.1, 1),
    "adam_beta2": (-0.1, 1),
    "adam_epsilon": (0, -1e-8),
    "adam_weight_decay": (-1,),
    "adversarial_start_step": (-1,),
    "adversarial_weight": (-1,),
    "augment_prob": (-0.1, 1.1),
    "caption_dropout_prob": (-0.1, 1.1),
    "class_dropout_prob": (-0.1, 1.1),
    "conditioning_dropout_prob": (-0.1, 1.1),
    "dataloader_num_workers": (-1,),
    "dropout": (-0.1, 1),
    "ema_inv_gamma": (0, -1),
    "ema_max_decay": (-0.1, 1.1),
    "ema_power": (0, -1),
    "evaluation_samples": (3,),
    "guidance_scale": (-1,),
    "kl_weight": (-1,),
    "learning_rate": (0, -1),
    "logit_mean": (),
    "logit_std": (0, -1),
    "lpips_weight": (-1,),
    "lr_warmup_steps": (-1,),
    "max_grad_norm": (0, -1),
    "max_reference_images": (3,),
    "num_samples": (3,),
    "reconstruction_weight": (-1,),
    "seed": (-1, 4294967295),
    "sigma_data": (0, -1),
    "t_min": (0, 1),
}


@pytest.fixture
def script(monkeypatch):
    """`script("train_ddm")` is that script of examples/."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def parser_of(script, monkeypatch):
    """`parser_of("train_ddm")` is the parser of that script with its options."""

    def parser_of(name) -> argparse.ArgumentParser:
        parsers, parse = [], argparse.ArgumentParser.parse_args

        def record(parser, *arguments):
            parsers.append(parser)
            return parse(parser, *arguments)

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", record)
        script(name).parse_args(SCRIPTS[name])
        return parsers[0]

    return parser_of


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_a_range(name, script, parser_of, capsys):
    refused = []
    for action in parser_of(name)._actions:
        if action.choices or action.nargs == 0:  # a switch
            continue
        if action.type is None:
            assert action.default is None or isinstance(action.default, str), action.dest
        else:
            values = REFUSED.get(action.dest, (0, -1, 1.5))
            refused += [(action.dest, value) for value in (*values, math.nan, math.inf, -math.inf, "x")]
            defaults = action.default if isinstance(action.default, list) else [action.default]
            assert all(each is None or action.type(str(each)) == each for each in defaults), action.dest
    assert len(refused) > 5 * 7
    for option, value in refused:
        with pytest.raises(SystemExit) as ended:
            script(name).parse_args([*SCRIPTS[name], f"--{option}={value}"])
        error = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2
        assert f"argument --{option}: '{value}' is given, but only a " in error, error


def test_presets_and_digits_are_in_their_ranges(parser_of, script):
    types = {action.dest: action.type for action in parser_of("train_ddm")._actions}
    for options in (*presets.PRESETS.values(), script("train_ddm").DIGITS_DEFAULTS):
        for name, value in options.items():
            for each in value if isinstance(value, list) else [value]:
                assert types[name] is None or types[name](str(each)) == each, name


@pytest.mark.parametrize(
    ("interval", "accepted", "refused"),
    [
        ("[0, 1)", ("0", "-0", "0.5", "1e-300"), ("1", "-1e-9", "nan", "inf", "", "half")),
        ("(0, inf)", ("1e300", "0.1"), ("0", "inf", "1e400")),
        ("[-2, 2]", ("-2", "2"), ("2.1",)),
        ("(-inf, inf)", ("-2", "2"), ("-inf", "inf")),
    ],
)
def test_intervals(interval, accepted, refused):
    limits = {"(0, inf)": "above 0"}.get(interval, f"in {interval}")
    for text in accepted:
        assert number(interval)(text) == float(text)
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError) as error:
            number(interval)(text)
        assert str(error.value) == f"{text!r} is given, but only a number {limits} is accepted."
    assert number("[1, inf)", int)("1" * 400) == int("1" * 400)


def test_every_process_may_add_its_number_to_the_largest_seed():
    """As accelerate's set_seed(device_specific=True) does; NumPy takes 32 bits."""
    assert SEED(str(2**31 - 1)) + 2**31 <= 2**32 - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streaming"], "--streaming needs it"),
        (["--streaming", "--max_train_steps", "5", "--evaluation_steps", "5"], "--evaluation_steps compares"),
        (["--feature_extractor", "a:b"], "Give --evaluation_steps too"),
        (["--vae_name_or_path", "vae", "--latent_cache_dir", "latents"], "needs --center_crop"),
        (["--hub_model_id", "user/run"], "need --push_to_hub"),
        (["--block_out_channels", "9", "--architecture", "released"], "needs an even number first"),
        (["--model_type", "dit", "--attention_head_dim", "5"], "has to be a multiple of 4"),
        (["--block_out_channels", "8", "4"], "only a whole number of 8 or more is accepted"),
    ],
)
def test_options_that_contradict_each_other(arguments, message, script, capsys):
    with pytest.raises(SystemExit):
        script("train_ddm").parse_args([*SCRIPTS["train_ddm"], *arguments])
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- precision
@pytest.fixture
def new_accelerator():
    """Accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("new_accelerator")
def test_fp16_on_a_cpu_is_refused(make_run, rejects):
    with rejects("`--mixed_precision` is fp16", "give bf16 or no"):
        make_run("--mixed_precision", "fp16")


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_other_precisions_are_not(precision):
    check_mixed_precision(Accelerator(cpu=True, mixed_precision=precision))


# ---------------------------------------------------------------------------------------------------------------- the command
def words_of(args, seed=7, name="train_ddm"):
    words = shlex.split(command_line(name, args, seed))
    assert words[:3] == ["accelerate", "launch", f"examples/{name}.py"] and words[-2:] == ["--seed", str(seed)]
    return words[3:-2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--train_data_dir", "my photos", "--logit_mean=-1e-05", "--no-use_ema", "--center_crop"],
        ["--preset", "adm", "--train_data_dir", "photos", "--dropout", "0.3", "--block_out_channels", "8", "16"],
    ],
)
def test_the_command_has_the_options(arguments, script, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel.json"])  # a notebook
    args = script("train_ddm").parse_args(arguments)
    assert sorted(words_of(args)) == sorted(arguments)
    again = script("train_ddm").parse_args(words_of(args))
    assert again == args and words_of(again) == words_of(args)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "evaluate"])
def test_every_script_repeats_its_command(name, script):
    arguments = [*SCRIPTS[name], "--eval_batch_size", "3", "--resolution", "32"]
    args = script(name).parse_args(arguments)
    assert script(name).parse_args(words_of(args, name=name)) == args


def test_the_command_has_no_secrets_and_starts_anew(script):
    arguments = ["--push_to_hub", "--hub_tok", "hf_secret", "--resume_from_checkpoint", "latest", "--seed", "3"]
    assert words_of(script("train_ddm").parse_args(arguments)) == ["--push_to_hub"]


def test_the_command_has_options_that_were_changed_in_a_notebook(script):
    args = script("train_ddm").parse_args([])
    args.learning_rate = 0.5
    assert words_of(args) == ["--learning_rate", "0.5"]


def test_the_defaults_are_no_options(script):
    args = script("train_ddm").parse_args(["--train_data_dir", "photos"])
    assert "defaults" not in vars(args) and "defaults" not in settings_that_matter(args)
    for other in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert other == args and words_of(other) == words_of(args)
    assert command_line("train_ddm", argparse.Namespace(**vars(args)), 0) is None


# ------------------------------------------------------------------------------------------------------------------- the seed
def test_only_a_seed_that_is_given_is_a_setting(script):
    parse_args = script("train_ddm").parse_args
    resume = ["--resume_from_checkpoint", "latest"]
    assert parse_args([]).seed == settings_that_matter(parse_args([]))["seed"] == 0  # of the digits
    assert "seed" not in settings_that_matter(parse_args(resume))
    assert settings_that_matter(parse_args([*resume, "--seed", "0"]))["seed"] == 0


@pytest.mark.parametrize("seed", [7, None], ids=["given", "drawn"])
def test_a_run_resumes_with_the_seed_of_its_checkpoint(seed, prepared, train, rejects):
    options = ["--max_train_steps", 2, "--checkpointing_steps", 1, "--resume_from_checkpoint"]
    run = prepared(*options, "latest", seed=seed)
    train(run)
    seed = run.seed
    again = prepared(*options, "checkpoint-1", seed=None)
    assert again.seed == seed
    train(again)
    # the same is no other, also of a checkpoint from a resumed run
    assert prepared(*options, "checkpoint-2", seed=seed).seed == seed
    with rejects(f"seed: {seed} there, {seed + 1} now"):
        prepared(*options, "checkpoint-2", seed=seed + 1)


def test_free_options_exist(parser_of):
    names = {action.dest for script in SCRIPTS if script != "evaluate" for action in parser_of(script)._actions}
    assert set(FREE_OPTIONS) <= names


def test_without_a_data_set_the_digits_defaults_count():
    def parse(*arguments):
        parser = argparse.ArgumentParser()
        for option in ("--dataset_name", "--train_data_dir", "--resume_from_checkpoint", "--feature_extractor"):
            parser.add_argument(option)
        for option in ("--size", "--evaluation_steps", "--seed"):
            parser.add_argument(option, type=int)
        parser.set_defaults(streaming=False, push_to_hub=False, push_every_checkpoint=False, hub_model_id=None)
        return parse_arguments(parser, arguments, {"size": 8, "seed": 0, "unknown": 1})

    assert (parse().size, parse("--size", "9").size, parse("--dataset_name", "x").size) == (8, 9, None)
    assert not hasattr(parse(), "unknown")
