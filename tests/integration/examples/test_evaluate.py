# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/evaluate.py` as a user runs it: its figures are those of the formulas, written out here in NumPy; they depend
neither on the number of processes nor on the batch size; and what it cannot use it refuses.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from processes import start, start_distributed
from sklearn.datasets import load_digits

from ddm_diffusers import DDMPipeline, DDMScheduler


SCRIPT = Path(__file__).parents[3] / "examples" / "evaluate.py"

EXTRACTORS = '''
import torch

class Pixels(torch.nn.Module):
    """The features are the grey pixels."""

    def forward(self, images):
        assert images.dtype == torch.float32 and images.shape[1] == 3 and 0 <= images.min() and images.max() <= 1
        return images.mean(dim=1).flatten(1)

class Image(torch.nn.Module):
    def forward(self, images):
        return images

class Infinite(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=1).flatten(1) / 0

def function():
    return "features"

def broken():
    raise RuntimeError("no weights")
'''


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(seed):
    """150 grey images of 8 x 8 as bytes, digits and brighter digits, so that no metric is 0 or 1."""
    digits = load_digits().images
    chosen = np.random.default_rng(seed).choice(len(digits), 150, replace=False)
    images = digits[chosen] * (255 / 16)
    images[:50] = images[:50] * 0.5 + 120 * seed
    return images.round().astype(np.uint8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def files(shared, tmp_path, monkeypatch, tiny_unet):
    """A folder to work in, with pipelines, folders of images and feature extractors, which are made once for all tests."""
    if not any(shared.iterdir()):
        for folder, options in {"grey": {"in_channels": 1}, "classes": {"num_class_embeds": 10}}.items():
            DDMPipeline(tiny_unet(**options), DDMScheduler()).save_pretrained(shared / folder)
        for folder, images in {"real": pictures(0), "other": pictures(1), "one": pictures(0)[:1]}.items():
            (shared / folder / "inner").mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(shared / folder / "inner" / f"{i:03}.png")
        (shared / "extractors.py").write_text(EXTRACTORS)
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PIXELS = ["--feature_extractor", "extractors.py:Pixels"]
OTHER = ["--images_dir", "other", "--train_data_dir", "real", "--resolution", "8"]


def evaluate(script, *arguments, output_dir="out"):
    """The rows of a run in this process."""
    script.main(script.parse_args([*PIXELS, "--output_dir", output_dir, *arguments]))
    return json.loads(Path(output_dir, "evaluation.json").read_text())["rows"]


def by_hand(a, b):
    """FID, KID, precision and recall of `a`, against `b`."""
    a, b = a.reshape(len(a), -1) / 255, b.reshape(len(b), -1) / 255

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(values.clip(min=0)) @ vectors.T

    # |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = root(root(cov_a) @ cov_b @ root(cov_a))
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross)

    # the unbiased estimate of the squared MMD with the kernel (x . y / d + 1)^3
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_off_diagonal(matrix):
        return (matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1))

    kid = mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()

    # how many are in the ball of some image of the other set, which reaches to its third neighbour
    def share(points, others):
        def distances(x, y):
            return np.linalg.norm(x[:, None] - y[None], axis=-1)

        third = min(3, len(others) - 1)  # [:, 0] is the image itself
        radii = np.sort(distances(others, others), axis=1)[:, third]
        return (distances(points, others) <= radii).any(axis=1).mean()

    return {"fid": fid, "kid": kid, "precision": share(a, b), "recall": share(b, a)}


def test_folder_by_hand(files):
    """KID takes its subsets from all 150 images, so that all subsets are the same."""
    run = start(SCRIPT.name, *OTHER, *PIXELS, cwd=files)
    assert run.wait() == 0, run.output[-4000:]

    contents = json.loads((files / "evaluation" / "evaluation.json").read_text())
    (row,) = contents["rows"]
    expected = by_hand(pictures(1), pictures(0))
    assert 0.1 < expected["precision"] < 0.9 and 0.1 < expected["recall"] < 0.9
    assert abs(expected["precision"] - expected["recall"]) > 0.05
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name
    assert row["kid_std"] == pytest.approx(0, abs=1e-9)
    assert (row["images"], row["num_images"], row["num_reference_images"]) == ("folder", 150, 150)
    assert contents["settings"]["resolution"] == 8 and contents["versions"]["torchmetrics"]
    assert os.listdir(files / "evaluation") == ["evaluation.json"]  # a folder has no steps to plot

    header, dashes, line, saved = (line for line in run.output.strip().splitlines()[-5:] if line)
    assert saved == "Saved evaluation/evaluation.json"
    assert header == "| " + " | ".join(row) + " |" and set(dashes) == set("|- ")
    assert f"| {row['fid']:.4g} |" in line
    assert "150/150" in run.output


def test_images_of_the_data_set_itself(script, files):
    (row,) = evaluate(script, "--images_dir", "real", "--train_data_dir", "real", "--resolution", "8")
    assert row["fid"] == pytest.approx(0, abs=1e-6)
    # unbiased, so that it is below 0 for the same images twice
    assert row["kid"] == pytest.approx(by_hand(pictures(0), pictures(0))["kid"], rel=1e-5)
    assert row["precision"] == row["recall"] == 1


def test_untrained_model_is_far_from_real_images(script, files, capsys):
    arguments = ["--num_inference_steps", "5", "2", "--num_samples", "200", "--floor"]
    arguments += ["--max_reference_images", "801"]
    floor, *drawn = evaluate(script, "--pretrained_model_name_or_path", "grey", *arguments)
    assert [row["num_inference_steps"] for row in drawn] == [5, 2]
    assert (floor["num_images"], floor["num_reference_images"]) == (400, 401)
    assert floor["precision"] > 0.8 and floor["recall"] > 0.8
    for row in drawn:
        assert (row["num_images"], row["num_reference_images"]) == (200, 801)
        assert row["fid"] > 30 * floor["fid"] and row["kid"] > 30 * abs(floor["kid"])
        assert row["precision"] < 0.1
    out = capsys.readouterr().out
    assert "| held out |" in out and "held out: one half of the data set against the other half" in out
    with Image.open("out/evaluation.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height
    assert sorted(os.listdir("out")) == ["evaluation.json", "evaluation.png"]


def test_floor_is_half_against_half(script, files):
    """With the brighter digits sorted to the start, halves that were not mixed would differ much more."""
    arguments = ["--images_dir", "other", "--train_data_dir", "other", "--resolution", "8", "--floor"]
    floor, _ = evaluate(script, *arguments, "--metrics", "fid")
    assert (floor["num_images"], floor["num_reference_images"]) == (75, 75)
    halves = np.array_split(pictures(1), 2)
    assert floor["fid"] < by_hand(*halves)["fid"] / 2
    assert set(floor) == {"images", "num_inference_steps", "num_images", "num_reference_images", "fid"}


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_do_not_depend_on_batches_and_processes(script, files, processes):
    """37 images in batches of 8 leave an incomplete batch, in which processes repeat images of the start."""
    arguments = ["--pretrained_model_name_or_path", "classes", "--num_inference_steps", "3", "--num_samples", "37"]
    arguments += ["--guidance_scale", "2", "--max_reference_images", "501", "--floor"]
    expected = evaluate(script, *arguments, "--batch_size", "64")
    assert [row["num_images"] for row in expected] == [250, 37]
    if processes == 1:
        rows = evaluate(script, *arguments, "--batch_size", "8")
    else:
        arguments = [*PIXELS, *arguments, "--batch_size", "8", "--output_dir", "two"]
        main, other = start_distributed(SCRIPT.name, *arguments, cwd=files)
        assert main.wait() == 0 and other.wait() == 0, main.output[-4000:] + other.output[-4000:]
        # the main process only; a bar begins once, but may be drawn twice at its end
        assert main.output.count("| drawn |") == 1 and main.output.count(" 0/501 ") == 1
        assert "| drawn |" not in other.output and " 0/501 " not in other.output
        contents = json.loads(Path("two/evaluation.json").read_text())
        assert contents["settings"]["num_processes"] == 2
        rows = contents["rows"]
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            assert row[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name


def test_images_and_classes(script, files):
    """Each number has an image of its own, and each class the same share of them."""
    arguments = ["--pretrained_model_name_or_path", "classes", "--guidance_scale", "2"]
    args = script.parse_args([*arguments, *PIXELS])
    pipeline, num_classes = script.load_pipeline(args)
    labels = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: labels.append(kwargs["class_labels"]), with_kwargs=True
    )
    images = script.draw(pipeline, num_classes, 1, args, torch.arange(30))
    no_class, classes = labels[0].chunk(2)
    assert (no_class == 10).all() and classes.bincount().tolist() == [3] * 10
    assert torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(torch.inf).min() > 1e-3

    one_by_one = torch.cat([script.draw(pipeline, num_classes, 1, args, torch.tensor([i])) for i in range(30)])
    torch.testing.assert_close(one_by_one, images, rtol=0, atol=1e-4)


def test_another_seed_gives_other_images(script, files):
    """Not the same images under other numbers."""
    args = script.parse_args(["--pretrained_model_name_or_path", "grey"])
    pipeline, num_classes = script.load_pipeline(args)
    assert num_classes is None
    images = script.draw(pipeline, None, 1, args, torch.arange(30)).flatten(1)
    args.seed = 1
    assert torch.cdist(images, script.draw(pipeline, None, 1, args, torch.arange(30)).flatten(1)).min() > 1e-3


def test_other_pipelines_of_diffusers(script, files, plain_unet):
    diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler()).save_pretrained("stock")
    arguments = ["--num_samples", "4", "--num_inference_steps", "2", "--metrics", "fid"]
    (row,) = evaluate(script, "--pretrained_model_name_or_path", "stock", *arguments)
    assert row["num_images"] == 4 and row["fid"] > 0
    with pytest.raises(ValueError, match="its DDPMPipeline does not accept .*'guidance_scale'"):
        evaluate(script, "--pretrained_model_name_or_path", "stock", *arguments, "--guidance_scale", "2")


def test_the_resolution_is_the_pipelines(script, files, tiny_unet):
    DDMPipeline(tiny_unet(in_channels=1, sample_size=16), DDMScheduler()).save_pretrained("large")
    arguments = ["--pretrained_model_name_or_path", "large", "--num_samples", "4", "--num_inference_steps", "1"]
    arguments += ["--max_reference_images", "5", "--metrics", "fid"]
    evaluate(script, *arguments, "--train_data_dir", "real")
    assert json.loads(Path("out/evaluation.json").read_text())["settings"]["resolution"] == 16
    with pytest.raises(ValueError, match="`--resolution` is 8, but .*--train_data_dir"):
        evaluate(script, *arguments)


def test_few_images_are_warned_of(script, files, caplog):
    """There are 64 features."""
    arguments = ["--pretrained_model_name_or_path", "grey", "--num_inference_steps", "1", "2"]
    arguments += ["--train_data_dir", "real"]
    evaluate(script, *arguments, "--num_samples", "65", "--max_reference_images", "65", "--metrics", "fid")
    evaluate(script, *arguments, "--num_samples", "64", "--metrics", "recall")
    assert not caplog.records
    evaluate(script, *arguments, "--num_samples", "64", "--max_reference_images", "63", "--metrics", "fid")
    (record,) = caplog.records
    assert "FID is biased with 64 drawn and 63 reference images: covariances of 64 features" in record.message


def test_results_of_another_model_are_kept(script, files, rejects):
    few = ["--train_data_dir", "real", "--max_reference_images", "5", "--metrics", "fid"]
    model = ["--pretrained_model_name_or_path", "grey", "--num_samples", "4", "--num_inference_steps", "1", *few]
    evaluate(script, *model)
    evaluate(script, *model)  # its own it replaces
    before = Path("out/evaluation.json").read_text()
    for other in (["--images_dir", "other"], ["--pretrained_model_name_or_path", "classes"]):
        with rejects("`--output_dir` is 'out'", "'grey'", other[1], f"--output_dir out-{other[1]}"):
            evaluate(script, *other, *few)
    assert Path("out/evaluation.json").read_text() == before
    Path("mine").mkdir()
    Path("mine/evaluation.json").write_text("[]")
    with rejects("`--output_dir` is 'mine'", "something else"):
        evaluate(script, *model, output_dir="mine")


def test_files_that_are_no_images(script, files, rejects, caplog):
    shutil.copytree("other", "folder")
    folder = Path("folder")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "inner" / "000.png", folder / ".hidden")
    (folder / "inner" / "._000.png").write_bytes(b"Mac OS X")
    (folder / "notes.txt").write_text("no image")
    arguments = ["--images_dir", "folder", "--train_data_dir", "real", "--resolution", "8", "--metrics", "fid"]
    (row,) = evaluate(script, *arguments)
    assert row["num_images"] == 150 and "Left out: 1 .txt" in caplog.text
    whole = row["fid"]

    bad = folder / "inner" / "149.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with rejects("149.png", "does not decode", "--skip_bad_images"):
        evaluate(script, *arguments)
    caplog.clear()
    (row,) = evaluate(script, *arguments, "--skip_bad_images", "--batch_size", "16")
    assert row["num_images"] == 149 and row["fid"] != whole
    assert row["fid"] == pytest.approx(by_hand(pictures(1)[:149], pictures(0))["fid"], rel=1e-5)
    assert caplog.text.count("149.png does not decode") == 1


def test_the_column_of_images(script, files, rejects):
    paths = [{"path": f"{files}/real/inner/{i:03}.png", "bytes": None} for i in range(150)]
    Path("pairs").mkdir()
    Dataset.from_dict({"mask": paths[::-1], "photo": paths}).to_parquet("pairs/pairs.parquet")
    arguments = ["--images_dir", "real", "--train_data_dir", "pairs", "--resolution", "8", "--metrics", "fid"]
    with rejects("`image_column`", "['mask', 'photo']"):
        evaluate(script, *arguments)
    (row,) = evaluate(script, *arguments, "--image_column", "photo")
    assert row["fid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_evaluation_of_a_training_run_on_few_images(count, script, files, caplog, rejects):
    """Also on a single one, of which the covariance is 0; images that do not decode are left out."""
    images = [Path(f"real/inner/{i:03}.png").read_bytes() for i in range(3)]
    images = [image if i < count else image[:50] for i, image in enumerate(images)]
    rows = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    dataset = Dataset.from_dict({"mask": rows, "photo": rows})
    arguments = [Accelerator(), dataset, 8, "extractors.py:Pixels", 40]
    if count == 0:
        with rejects("none of the 3 images decodes", "0.png does not decode"):
            script.PipelineEvaluation(*arguments, image_column="photo")
        return
    evaluation = script.PipelineEvaluation(*arguments, image_column="photo")
    assert caplog.text.count("does not decode") == 3 - count
    assert f"40 drawn and {max(count, 1)} reference images" in caplog.text
    pipeline, _ = script.load_pipeline(script.parse_args(["--pretrained_model_name_or_path", "grey"]))
    drawn = script.draw(pipeline, None, 1, evaluation.args, torch.arange(40))
    drawn = (drawn.mean(dim=1) * 255).round().numpy()
    reference = pictures(0)[:count] if count > 1 else pictures(0)[[0, 0]]
    assert evaluation(pipeline, 1) == pytest.approx(by_hand(drawn, reference)["fid"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pretrained_model_name_or_path is None and --images_dir is None, but exactly one of them is needed"),
        (["--images_dir", "a", "--pretrained_model_name_or_path", "b"], "exactly one of them is needed"),
        (["--images_dir", "a", "--num_inference_steps", "5"], "--num_inference_steps is [5], but only a pipeline"),
        (["--images_dir", "a", "--metrics", "fid", "best"], "invalid choice: 'best'"),
        (["--images_dir", "a", "--split", "test"], "--split is 'test', but without --dataset_name"),
        (["--images_dir", "a", "--max_reference_images", "1"], "only a whole number of 4 or more is accepted"),
    ],
)
def test_bad_options_are_refused_by_the_parser(script, capsys, arguments, message):
    with pytest.raises(SystemExit):
        script.parse_args(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images_dir", "nowhere"], "`--images_dir` is 'nowhere', but there is no such folder"),
        ([*OTHER, "--output_dir", "real/out"], "`output_dir` is 'real/out', which is inside the data folder 'real'"),
        ([*OTHER, "--output_dir", "other"], "`output_dir` is 'other', which is inside the data folder 'other'"),
        (["--images_dir", "one"], "`--images_dir` is 'one', where 1 images are, but at least 4"),
        ([*OTHER, "--train_data_dir", "one"], "The data set has 1 images, but at least 4"),
        ([*OTHER, "--train_data_dir", "nowhere"], "`train_data_dir` is 'nowhere', but there is no such folder"),
        ([*OTHER, "--dataset_name", "a", "--split", "test"], "only one is accepted"),
        (["--pretrained_model_name_or_path", "real"], "`--pretrained_model_name_or_path` is 'real', but holds no"),
        (["--pretrained_model_name_or_path", "grey", "--resolution", "16"], "`--resolution` is 16, but the pipeline"),
        (["--pretrained_model_name_or_path", "grey", "--guidance_scale", "2"], "accepts only 1.0"),
        ([*OTHER, "--feature_extractor", "extractors.py"], "`--feature_extractor` is 'extractors.py', but has to be"),
        ([*OTHER, "--feature_extractor", "nowhere.py:Pixels"], "No such file"),
        ([*OTHER, "--feature_extractor", "no_package.module:Pixels"], "No module named 'no_package'"),
        ([*OTHER, "--feature_extractor", "extractors.py:Other"], "no attribute 'Other'"),
        ([*OTHER, "--feature_extractor", "extractors.py:function"], "it gives a str"),
        ([*OTHER, "--feature_extractor", "extractors.py:broken"], "no weights"),
        ([*OTHER, "--feature_extractor", "extractors.py:Image"], "of the shape (64, features)"),
        ([*OTHER, "--feature_extractor", "extractors.py:Infinite"], "are not finite"),
    ],
)
def test_bad_arguments_are_refused(script, files, rejects, arguments, message):
    with rejects(message):
        evaluate(script, *arguments)
    assert not Path("out").exists() or not os.listdir("out")


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity(script, files, rejects):
    with rejects("`--feature_extractor` is not given", "pip install torch-fidelity", "docs/evaluation.md"):
        script.main(script.parse_args(OTHER))
