# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMPipeline` makes the images that its parts define: those of a sampling loop written out here and of the
stock DDPMPipeline, with exactly one evaluation of the model a step; that guidance, latents, callbacks and a VAE act as
they do in diffusers; and that a pipeline survives saving bit by bit.
"""

import json

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from ddm_diffusers import DDMInpaintPipeline, DDMPipeline, DDMScheduler, DDMUNet2DAdapter, DDMUNet2DModel


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline(tiny_unet):
    """`pipeline(scheduler_options, **unet_options)` makes a quiet pipeline around a tiny model."""

    def make(scheduler_options=None, vae=None, **unet_options):
        scheduler = DDMScheduler(**{"clip_sample": vae is None, **(scheduler_options or {})})
        process = {name: scheduler.config[name] for name in ("attenuation", "noise_schedule")}
        pipe = DDMPipeline(tiny_unet(**{**process, **unet_options}), scheduler, vae=vae)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@torch.no_grad()
def sample_by_hand(pipe, x, num_steps, generator, model):
    pipe.scheduler.set_timesteps(num_steps)
    for timestep in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(model(x, timestep), timestep, x, generator=generator).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


def evaluations(pipe, **arguments):
    """The batch sizes with which a call evaluates the model."""
    batches = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    pipe(output_type="pt", **arguments)
    hook.remove()
    return batches


# --------------------------------------------------------------------------------------------------------------- the images


@pytest.mark.parametrize(
    "unet_options", [{}, {"in_channels": 1}, {"attenuation": "linear"}, {"num_decoders": 2}], ids=str
)
def test_the_images_are_those_of_the_loop_written_out(unet_options, pipeline):
    attenuation = unet_options.get("attenuation", "constant")
    pipe = pipeline({"attenuation": attenuation}, **unet_options)
    images = pipe(batch_size=2, num_inference_steps=3, generator=seeded(), output_type="pt").images
    generator = seeded()
    x = torch.randn(2, pipe.unet.config.in_channels, 8, 8, generator=generator)
    expected = sample_by_hand(pipe, x, 3, generator, lambda x, t: pipe.unet(x, t).sample)
    assert images.shape == expected.shape
    assert torch.equal(images, expected)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("scheduler_options", [{}, {"solver_order": 2, "eta": 0.5, "time_grid": "power"}], ids=str)
def test_the_stock_pipeline_makes_the_same_images(scheduler_options, output_type, pipeline):
    ours = pipeline(scheduler_options)
    stock = diffusers.DDPMPipeline(ours.unet, DDMScheduler(**scheduler_options))
    stock.set_progress_bar_config(disable=True)
    images, expected = (
        np.array(pipe(batch_size=2, num_inference_steps=4, generator=seeded(), output_type=output_type).images)
        for pipe in (ours, stock)
    )
    assert np.array_equal(images, expected)
    assert images.std() > 0


@pytest.mark.parametrize("in_channels, mode", [(1, "L"), (3, "RGB")])
def test_output_types(in_channels, mode, pipeline):
    pipe = pipeline(in_channels=in_channels, sample_size=(8, 12))
    outputs = {
        output_type: pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type=output_type)
        for output_type in ("pil", "np", "pt")
    }
    assert all(isinstance(output, diffusers.ImagePipelineOutput) for output in outputs.values())
    tensor, array, images = (outputs[name].images for name in ("pt", "np", "pil"))
    assert tensor.shape == (2, in_channels, 8, 12)
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for image, pixels in zip(images, array, strict=True):
        assert isinstance(image, PIL.Image.Image)
        assert (image.mode, image.size) == (mode, (12, 8))
        assert np.array_equal(np.array(image).reshape(8, 12, in_channels), (pixels * 255).round().astype("uint8"))
    as_tuple = pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type="pt", return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    assert torch.equal(as_tuple[0], tensor)


def test_defaults_make_one_image_in_ten_steps(pipeline):
    pipe = pipeline()
    assert len(pipe().images) == 1
    assert pipe.num_timesteps == 10


def test_a_plain_unet2d_is_a_valid_model(plain_unet):
    pipe = DDMPipeline(plain_unet(out_channels=6), DDMScheduler())
    pipe.set_progress_bar_config(disable=True)
    assert evaluations(pipe, num_inference_steps=3) == [1] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, pipeline):
    pipe = pipeline().to(dtype)
    seen = []
    pipe(
        num_inference_steps=2,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"].dtype),
    )
    assert seen == [dtype] * 2


# -------------------------------------------------------------------------------------------------- evaluations and randomness


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize(
    "scheduler_options",
    [{}, {"time_grid": "power"}, {"solver_order": 2}, {"eta": 0.0, "noise_schedule": "linear"}],
    ids=str,
)
def test_one_evaluation_a_step(scheduler_options, num_steps, pipeline):
    pipe = pipeline(scheduler_options, num_class_embeds=3)
    arguments = {"batch_size": 2, "num_inference_steps": num_steps, "class_labels": 1}
    assert evaluations(pipe, **arguments) == [2] * num_steps
    assert len(pipe.scheduler.timesteps) == num_steps
    assert evaluations(pipe, guidance_scale=2.0, **arguments) == [4] * num_steps


def test_a_list_of_generators_equals_one_by_one(pipeline):
    pipe = pipeline()
    arguments = {"num_inference_steps": 4, "output_type": "pt"}
    together = pipe(batch_size=3, generator=[seeded(i) for i in range(3)], **arguments).images
    for i in range(3):
        alone = pipe(generator=seeded(i), **arguments).images
        # convolutions of another batch size may round differently; 4 steps of a model of gain of order 1
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_latents_replace_the_initial_noise(pipeline):
    pipe = pipeline({"eta": 0.0})
    latents = torch.randn(2, 3, 8, 8, generator=seeded())
    kept = latents.clone()
    arguments = {"batch_size": 2, "num_inference_steps": 3, "output_type": "pt"}
    images = pipe(latents=latents, **arguments).images
    assert torch.equal(images, pipe(generator=seeded(), **arguments).images)
    assert not torch.equal(images, pipe(latents=-latents, **arguments).images)
    assert torch.equal(latents, kept)


# ------------------------------------------------------------------------------------------------------ classes and guidance


@pytest.mark.parametrize("labels", [2, [2, 2], torch.tensor([2, 2]), torch.tensor(2), np.array([2, 2])], ids=repr)
def test_class_labels(labels, pipeline):
    pipe = pipeline(num_class_embeds=3)
    arguments = {"batch_size": 2, "num_inference_steps": 2, "output_type": "pt"}
    images = pipe(class_labels=labels, generator=seeded(), **arguments).images
    generator = seeded()
    expected = sample_by_hand(
        pipe,
        torch.randn(2, 3, 8, 8, generator=generator),
        2,
        generator,
        lambda x, t: pipe.unet(x, t, torch.tensor([2, 2])).sample,
    )
    assert torch.equal(images, expected)
    assert not torch.equal(images, pipe(class_labels=[2, 1], generator=seeded(), **arguments).images)


CLASSES = {"num_class_embeds": 3, "id2label": {0: "Ankle boot", 1: "bag", 2: "dress"}}


@pytest.mark.parametrize(
    ("names", "numbers"),
    [("bag", 1), (["dress", "Ankle boot"], [2, 0]), (["dress", 0], [2, 0]), (("bag", "bag"), [1, 1])],
    ids=repr,
)
def test_class_labels_are_numbers_or_names(names, numbers, pipeline, tmp_path):
    pipeline(**CLASSES).save_pretrained(tmp_path)
    pipe = DDMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"Ankle boot": 0, "bag": 1, "dress": 2}
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    images, expected = (
        pipe(class_labels=labels, generator=seeded(), **arguments).images for labels in (names, numbers)
    )
    assert torch.equal(images, expected)
    assert pipe.get_label_ids(["dress", "bag"]) == [2, 1] and pipe.get_label_ids("bag") == [1]


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_linear_in_both_predictions(guidance_scale, pipeline):
    pipe = pipeline(num_class_embeds=3)
    images = pipe(
        batch_size=2,
        num_inference_steps=3,
        class_labels=[0, 2],
        guidance_scale=guidance_scale,
        generator=seeded(),
        output_type="pt",
    ).images

    def model(x, t):
        of_class = pipe.unet(x, t, torch.tensor([0, 2])).sample
        of_none = pipe.unet(x, t, torch.tensor([3, 3])).sample  # the label num_class_embeds stands for "no class"
        return (1 - guidance_scale) * of_none + guidance_scale * of_class

    generator = seeded()
    expected = sample_by_hand(pipe, torch.randn(2, 3, 8, 8, generator=generator), 3, generator, model)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert pipe.guidance_scale == guidance_scale
    assert pipe.do_classifier_free_guidance == (guidance_scale != 1.0)


# --------------------------------------------------------------------------------------------- callbacks, interruption, progress


def test_a_callback_sees_every_step(pipeline):
    pipe = pipeline()
    steps = []

    def callback(pipe, step_index, timestep, tensors):
        assert list(tensors) == ["latents"]
        steps.append((step_index, float(timestep), tensors["latents"].clone()))

    images = pipe(num_inference_steps=4, generator=seeded(), output_type="pt", callback_on_step_end=callback).images
    assert [step[:2] for step in steps] == list(enumerate(pipe.scheduler.timesteps.tolist())) and len(steps) == 4
    assert torch.equal((steps[-1][2] / 2 + 0.5).clamp(0, 1), images)
    assert torch.equal(images, pipe(num_inference_steps=4, generator=seeded(), output_type="pt").images)


def test_a_callback_may_replace_the_latents(pipeline):
    pipe = pipeline()
    images = pipe(
        num_inference_steps=2,
        output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": torch.full_like(tensors["latents"], 0.5 * i)},
    ).images
    assert torch.equal(images, torch.full_like(images, 0.75))


def test_a_callback_that_asks_for_nothing(pipeline):
    seen = []
    pipeline()(
        num_inference_steps=2,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}, {}]


def test_interrupt_skips_the_remaining_steps(pipeline):
    pipe = pipeline()

    def callback(pipe, step_index, timestep, tensors):
        pipe._interrupt = step_index == 1
        return {}

    assert evaluations(pipe, num_inference_steps=5, callback_on_step_end=callback) == [1, 1]
    assert pipe.interrupt
    assert evaluations(pipe, num_inference_steps=5) == [1] * 5  # the next call starts afresh


def test_progress_bar(pipeline, capsys):
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=3)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------ latent space


@pytest.fixture
def tiny_vae():
    def make(**options):
        torch.manual_seed(1)
        return diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            latent_channels=4,
            **options,
        ).eval()

    return make


@pytest.mark.parametrize(
    "vae_options", [{"scaling_factor": 0.3}, {"scaling_factor": 0.5, "shift_factor": 0.2}], ids=str
)
@torch.no_grad()
def test_a_vae_decodes_the_latents(vae_options, pipeline, tiny_vae):
    vae = tiny_vae(**vae_options)
    pipe = pipeline(vae=vae, in_channels=4)
    final = []
    images = pipe(
        batch_size=2,
        num_inference_steps=2,
        output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: final.append(tensors["latents"]),
    ).images
    # diffusers' convention: latents = (encoded - shift_factor) * scaling_factor
    latents = final[-1] / vae_options["scaling_factor"] + vae_options.get("shift_factor", 0)
    expected = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_latents_are_not_clipped_as_images_are(pipeline, tiny_vae, rejects):
    pipe = pipeline({"clip_sample": True}, vae=tiny_vae(), in_channels=4)
    with rejects("`scheduler`", "clip_sample=True", "clip_sample=False"):
        pipe(num_inference_steps=2)
    pipe.scheduler = DDMScheduler.from_config(pipe.scheduler.config, clip_sample_range=4.0)
    assert pipe(num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)


@torch.no_grad()
def test_slicing_decodes_one_image_at_a_time(pipeline, tiny_vae):
    pipe, sizes = pipeline(vae=tiny_vae(), in_channels=4), []
    pipe.vae.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    arguments = {"batch_size": 3, "num_inference_steps": 2, "output_type": "pt"}
    images = pipe(generator=seeded(), **arguments).images
    pipe.enable_vae_slicing()
    sliced = pipe(generator=seeded(), **arguments).images
    pipe.disable_vae_slicing()
    again = pipe(generator=seeded(), **arguments).images
    assert sizes == [3, 1, 1, 1, 3]
    torch.testing.assert_close(sliced, images, rtol=0, atol=1e-5)
    assert torch.equal(again, images)


@torch.no_grad()
def test_tiling_decodes_a_large_image_in_parts(pipeline, tiny_vae):
    """As many pixels a time as `sample_size` has, not the 64 of the whole image."""
    pipe, sizes = pipeline(vae=tiny_vae(sample_size=16), in_channels=4, sample_size=32), []
    pipe.vae.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    whole = pipe(generator=seeded(), **arguments).images
    pipe.enable_vae_tiling()
    tiled = pipe(generator=seeded(), **arguments).images
    assert whole.shape == tiled.shape == (1, 3, 64, 64)
    assert sizes[0] == (64, 64) and len(sizes) > 16 and max(sizes[1:]) == (16, 16)


@pytest.mark.parametrize(
    "method", ["enable_vae_slicing", "disable_vae_slicing", "enable_vae_tiling", "disable_vae_tiling"]
)
def test_pixels_have_no_slices_and_tiles(method, pipeline, rejects):
    with rejects("`vae`", "None", "autoencoder"):
        getattr(pipeline(), method)()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_in_latent_space(dtype, pipeline, tiny_vae):
    pipe = pipeline(vae=tiny_vae(scaling_factor=0.18215, force_upcast=True), in_channels=4)
    with torch.autocast("cpu", dtype=dtype):
        assert pipe(num_inference_steps=3, output_type="pt").images.isfinite().all()
    pipe.to(dtype)
    images = pipe(num_inference_steps=3, output_type="pt").images
    assert images.isfinite().all() and images.std() > 0
    assert pipe.vae.dtype == dtype  # float32 was only for the decoding


# --------------------------------------------------------------------------------------------------------------------- saving


def component_names(folder):
    index = json.loads((folder / "model_index.json").read_text())
    return {name: value for name, value in index.items() if not name.startswith("_")}


@pytest.mark.parametrize("with_vae", [False, True], ids=["", "vae"])
@pytest.mark.parametrize("attenuation", ["constant", "linear"])
def test_save_and_load(attenuation, with_vae, pipeline, tiny_vae, own_memory, tmp_path):
    pipe = pipeline(
        {"attenuation": attenuation, "eta": 0.5},
        vae=tiny_vae() if with_vae else None,
        attenuation=attenuation,
        in_channels=4 if with_vae else 3,
        num_class_embeds=3,
    )
    pipe.save_pretrained(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    # besides configs, the model card and the modules that load the classes, whose tests are in tests/integration/test_hub.py
    weights = [name for name in files if not name.endswith((".json", ".md", ".py"))]
    assert weights and all(name.endswith(".safetensors") for name in weights)
    assert component_names(tmp_path) == {
        "scheduler": ["ddm_diffusers", "DDMScheduler"],
        "unet": ["ddm_diffusers", "DDMUNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"] if with_vae else [None, None],
    }
    # an inner module's path would tie every checkpoint to the layout of the package
    for name in files:
        if name.endswith(".json"):
            assert "ddm_diffusers." not in (tmp_path / name).read_text(), name

    loaded = DDMPipeline.from_pretrained(tmp_path)
    own_memory(loaded.unet)
    if with_vae:
        own_memory(loaded.vae)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.unet, DDMUNet2DModel) and isinstance(loaded.scheduler, DDMScheduler)
    arguments = {"batch_size": 2, "num_inference_steps": 3, "class_labels": [0, 2], "guidance_scale": 2.0}
    images, again = (each(generator=seeded(), output_type="np", **arguments).images for each in (pipe, loaded))
    assert np.array_equal(images, again)


def test_the_stock_pipeline_saves_and_loads_our_components(tiny_unet, own_memory, tmp_path):
    stock = diffusers.DDPMPipeline(tiny_unet(), DDMScheduler(solver_order=2))
    stock.set_progress_bar_config(disable=True)
    stock.save_pretrained(tmp_path)
    assert component_names(tmp_path) == {
        "scheduler": ["ddm_diffusers", "DDMScheduler"],
        "unet": ["ddm_diffusers", "DDMUNet2DModel"],
    }
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    own_memory(loaded.unet)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.unet, DDMUNet2DModel) and isinstance(loaded.scheduler, DDMScheduler)
    assert loaded.scheduler.config.solver_order == 2
    images, again = (
        pipe(num_inference_steps=3, generator=seeded(), output_type="np").images for pipe in (stock, loaded)
    )
    assert np.array_equal(images, again)


def test_components_make_another_pipeline(pipeline):
    pipe = pipeline()
    assert set(pipe.components) == {"unet", "scheduler", "vae"}
    other = DDMPipeline(**pipe.components)
    assert other.unet is pipe.unet and other.vae is None


# ------------------------------------------------------------------------------------------------------------------ bad input


def generators(count):
    return [seeded(i) for i in range(count)]


@pytest.mark.parametrize(
    "unet_options, arguments, parts",
    [
        ({}, {"num_inference_steps": 0}, ("`num_inference_steps`", "0", "whole number of 1 or more")),
        ({}, {"num_inference_steps": -1}, ("`num_inference_steps`", "-1", "whole number of 1 or more")),
        ({}, {"num_inference_steps": 2.5}, ("`num_inference_steps`", "2.5", "whole number of 1 or more")),
        ({}, {"batch_size": 0}, ("`batch_size`", "0", "whole number of 1 or more")),
        ({}, {"batch_size": 1.5}, ("`batch_size`", "1.5", "whole number of 1 or more")),
        ({}, {"output_type": "jpg"}, ("`output_type`", "'jpg'", "'pil'", "'np'", "'pt'")),
        ({}, {"batch_size": 2, "generator": generators(3)}, ("`generator`", "length 3", "each of the 2")),
        ({}, {"batch_size": 2, "generator": generators(1)}, ("`generator`", "length 1", "each of the 2")),
        ({}, {"batch_size": 1, "latents": torch.zeros(2, 3, 8, 8)}, ("`latents`", "(2, 3, 8, 8)", "(1, 3, 8, 8)")),
        ({}, {"latents": torch.zeros(1, 3, 8, 4)}, ("`latents`", "(1, 3, 8, 4)", "(1, 3, 8, 8)")),
        (
            {},
            {"callback_on_step_end_tensor_inputs": ["latents", "prompt"]},
            ("`callback_on_step_end_tensor_inputs`", "'prompt'", "['latents', 'pred_original_sample']"),
        ),
        ({}, {"class_labels": 1}, ("`class_labels`", "1", "None")),
        ({}, {"guidance_scale": 2.0}, ("`guidance_scale`", "2.0", "1.0")),
        ({}, {"guidance_scale": "2"}, ("`guidance_scale`", "'2'", "finite number")),
        ({}, {"guidance_scale": float("nan")}, ("`guidance_scale`", "nan", "finite number")),
        ({}, {"generator": 0}, ("`generator`", "0", "torch.Generator")),
        ({"num_class_embeds": 3}, {}, ("`class_labels`", "None", "from 0 to 2")),
        ({"num_class_embeds": 3}, {"class_labels": 3}, ("`class_labels`", "3", "from 0 to 2")),
        ({"num_class_embeds": 3}, {"class_labels": [-1]}, ("`class_labels`", "[-1]", "from 0 to 2")),
        (
            {"num_class_embeds": 3},
            {"class_labels": [0, 1], "batch_size": 1},
            ("`class_labels`", "[0, 1]", "a list of 1, one"),
        ),
        ({}, {"timesteps": [500, 500]}, ("`timesteps`", "[500, 500]", "falling")),
        (
            {"num_class_embeds": 3},
            {"class_labels": [0], "batch_size": 2},
            ("`class_labels`", "[0]", "a list of 2, one"),
        ),
        ({"num_class_embeds": 3}, {"class_labels": 1.0}, ("`class_labels`", "1.0", "whole number")),
        ({"num_class_embeds": 3}, {"class_labels": "bag"}, ("`class_labels`", "'bag'", "no class names", "0 to 2")),
        (CLASSES, {"class_labels": [0, "BOOT"]}, ("`class_labels`", "'BOOT'", "'Ankle boot', 'bag', 'dress'")),
        (CLASSES, {"class_labels": "Dres"}, ("`class_labels`", "'Dres'", "'dress', 'Ankle boot', 'bag'")),
        (CLASSES, {}, ("`class_labels`", "None", "from 0 to 2", "`pipe.labels`")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(unet_options, arguments, parts, pipeline, rejects):
    pipe = pipeline(**unet_options)
    pipe.scheduler.set_timesteps(4)
    timesteps = pipe.scheduler.timesteps.tolist()
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    with rejects(*parts):
        pipe(**{"num_inference_steps": 2, **arguments})
    assert not evaluated
    # the scheduler has its former timesteps still, and nothing was begun
    assert pipe.scheduler.timesteps.tolist() == timesteps
    assert pipe.scheduler.step_index is None and pipe.scheduler.begin_index is None
    valid = {"class_labels": 0} if unet_options else {}
    assert len(pipe(num_inference_steps=2, **valid).images) == 1


@pytest.mark.parametrize(
    ("scheduler", "parts"),
    [
        (DDMScheduler(noise_schedule="linear"), ("noise_schedule='linear'", "noise_schedule='sqrt'")),
        (DDMScheduler(attenuation="linear"), ("attenuation='linear'", "attenuation='constant'")),
        (DDMScheduler(num_train_timesteps=500), ("num_train_timesteps=500", "num_train_timesteps=1000")),
        (DDMScheduler(prediction_type="epsilon"), ("prediction_type='epsilon'", "prediction_type='decoupled'")),
        (diffusers.DDIMScheduler(), ("DDIMScheduler", "DDMScheduler.from_config(pipe.scheduler.config)")),
    ],
    ids=["noise schedule", "attenuation", "timesteps", "prediction", "another process"],
)
def test_a_scheduler_of_another_process_is_refused(scheduler, parts, pipeline, rejects):
    pipe = pipeline()
    pipe.scheduler = scheduler
    with rejects("`scheduler`", *parts):
        pipe(num_inference_steps=2)


def test_guidance_needs_an_embedding_of_no_class(plain_unet, rejects):
    pipe = DDMPipeline(plain_unet(out_channels=6, num_class_embeds=3), DDMScheduler())
    with rejects("`guidance_scale`", "2.0", "UNet2DModel", "1.0"):
        pipe(class_labels=0, guidance_scale=2.0)


@pytest.mark.parametrize("labels", ["cat", [[0], [1, 2]], [None]], ids=str)
def test_labels_that_are_no_numbers(labels, pipeline, rejects):
    with rejects("`class_labels`", str(labels)):
        pipeline(num_class_embeds=3)(class_labels=labels)


@pytest.mark.parametrize(
    "out_channels, scheduler, parts",
    [
        (3, DDMScheduler(), ("3 output", "prediction_type='decoupled'", "needs 6", "from_config")),
        (6, DDMScheduler(prediction_type="epsilon"), ("6 output", "prediction_type='epsilon'", "needs 3")),
    ],
)
def test_a_model_without_the_channels_of_the_process(out_channels, scheduler, parts, plain_unet, rejects):
    pipe = DDMPipeline(plain_unet(out_channels=out_channels), scheduler)
    with rejects("`unet`", *parts):
        pipe(num_inference_steps=2)


def test_an_adapter_under_a_scheduler_that_it_is_not_for(tiny_unet, rejects):
    pipe = DDMPipeline(DDMUNet2DAdapter(tiny_unet(), diffusers.DDIMScheduler()), DDMScheduler())
    with rejects("`unet`", "3 output", "from_config"):
        pipe(num_inference_steps=2)


def test_labels_or_latents_tell_the_number_of_images(pipeline):
    pipe = pipeline(num_class_embeds=3)
    assert len(pipe(class_labels=[0, 1, 2], num_inference_steps=1).images) == 3
    assert len(pipe(class_labels=torch.tensor([0, 1]), num_inference_steps=1).images) == 2
    assert len(pipe(class_labels=0, latents=torch.zeros(2, 3, 8, 8), num_inference_steps=1).images) == 2
    assert len(pipe(class_labels=0, num_inference_steps=1).images) == 1


def test_latents_and_estimates(pipeline):
    pipe = pipeline()
    pipe.scheduler = DDMScheduler(solver_order=1)  # whose last step is the estimate
    estimates = []

    def keep(pipe, i, t, tensors):
        estimates.append(tensors["pred_original_sample"])

    arguments = {"num_inference_steps": 3, "output_type": "latent", "callback_on_step_end": keep}
    latents = pipe(
        generator=seeded(), callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"], **arguments
    ).images
    images = pipe(generator=seeded(), num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close((latents / 2 + 0.5).clamp(0, 1), images)
    assert len(estimates) == 3 and torch.equal(estimates[-1], latents)


def test_timesteps_in_place_of_steps(pipeline):
    pipe = pipeline()
    pipe(timesteps=[900.0, 500.0, 20.0])
    assert pipe.scheduler.timesteps.tolist() == [900.0, 500.0, 20.0] and pipe.num_timesteps == 3


def test_from_pipe(pipeline, plain_unet, rejects):
    pipe = pipeline()
    other = DDMInpaintPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and other.scheduler is pipe.scheduler and other.vae is None
    assert DDMPipeline.from_pipe(other).unet is pipe.unet
    # a pipeline of diffusers, whose model has to be swapped
    theirs = diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler())
    ours = DDMPipeline.from_pipe(theirs)
    with rejects("`scheduler`", "DDPMScheduler", "from_config"):
        ours(num_inference_steps=1)
    ours.scheduler = DDMScheduler.from_config(ours.scheduler.config)
    assert len(ours(num_inference_steps=1).images) == 1
    back = diffusers.DDPMPipeline.from_pipe(pipe, unet=pipe.unet)
    assert back.unet is pipe.unet and len(back(num_inference_steps=1).images) == 1


@pytest.mark.parametrize("sample_size", [None])
def test_a_model_without_a_size(sample_size, pipeline, rejects):
    with rejects("sample_size", "None"):
        pipeline(sample_size=sample_size)(num_inference_steps=2)
