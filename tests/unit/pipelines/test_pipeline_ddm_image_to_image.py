# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `DDMImageToImagePipeline` makes the images of a sampling loop written out here, whatever the condition comes as;
that one tile changes nothing and several leave no seam; that an ensemble's mean and deviation are those of its draws; and
that a pipeline survives saving.
"""

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from stock_parts import tiny_vae

from ddm_diffusers import DDMImageToImagePipeline, DDMScheduler
from ddm_diffusers.model_card import is_generated_card
from ddm_diffusers.pipelines.images import make_tiles


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline(tiny_unet):
    """`pipeline(scheduler_options, upscale, **unet_options)`: RGB conditions, grey targets, multiples of 2."""

    def make(scheduler_options=None, upscale=1, **unet_options):
        unet = tiny_unet(**{"in_channels": 1, "conditioning_channels": 3, **unet_options})
        pipe = DDMImageToImagePipeline(unet, DDMScheduler(**(scheduler_options or {})), upscale=upscale)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@torch.no_grad()
def sample_by_hand(pipe, condition, num_steps, generator, guidance_scale=1.0):
    """`condition` in [0, 1], of the target's size, which the model takes as it is."""
    condition = 2 * condition - 1
    x = torch.randn(len(condition), pipe.unet.config.in_channels, *condition.shape[2:], generator=generator)
    pipe.scheduler.set_timesteps(num_steps)
    for timestep in pipe.scheduler.timesteps:
        output = pipe.unet(x, timestep, conditioning=condition).sample
        if guidance_scale != 1:
            without = pipe.unet(x, timestep, conditioning=torch.zeros_like(condition)).sample
            output = (1 - guidance_scale) * without + guidance_scale * output
        x = pipe.scheduler.step(output, timestep, x, generator=generator).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


def evaluations(pipe, *inputs, **arguments):
    """The shapes of the samples with which a call evaluates the model."""
    shapes = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    pipe(*inputs, output_type="pt", **arguments)
    hook.remove()
    return shapes


@pytest.fixture
def condition():
    return torch.rand(2, 3, 8, 12, generator=seeded(5))


# --------------------------------------------------------------------------------------------------------------- the images
@pytest.mark.parametrize("options", [{}, {"in_channels": 3, "conditioning_channels": 2}, {"num_decoders": 2}], ids=str)
def test_the_images_are_those_of_the_loop_written_out(options, pipeline, condition):
    pipe = pipeline(**options)
    condition = condition[:, : pipe.unet.config.conditioning_channels]
    images = pipe(condition, num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert torch.equal(images, sample_by_hand(pipe, condition, 3, seeded()))
    other = pipe(1 - condition, num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert not torch.equal(images, other)


def test_the_condition_may_come_as_anything(pipeline, condition):
    pipe = pipeline()
    condition = (condition * 255).round() / 255
    arrays = condition.permute(0, 2, 3, 1).numpy()
    pils = [PIL.Image.fromarray((array * 255).round().astype("uint8")) for array in arrays]
    expected = pipe(condition, num_inference_steps=2, generator=seeded(), output_type="pt").images
    for each in (
        list(condition),
        arrays,
        list(arrays),
        arrays.astype("float64"),
        pils,
        [condition[:1], condition[1:]],
    ):
        images = pipe(each, num_inference_steps=2, generator=seeded(), output_type="pt").images
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    one = pipe(pils[0], num_inference_steps=2, output_type="pt").images
    assert one.shape == pipe(condition[0], num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 12)


def test_grey_conditions_need_no_channel(pipeline):
    pipe = pipeline(conditioning_channels=1)
    grey = torch.rand(8, 8, generator=seeded(1)).mul(255).round() / 255
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(grey[None, None], generator=seeded(), **arguments).images
    pil = PIL.Image.fromarray(grey.mul(255).round().numpy().astype("uint8"))
    for each in (grey, grey.numpy(), pil, pil.convert("RGB")):  # colour is turned into grey
        torch.testing.assert_close(pipe(each, generator=seeded(), **arguments).images, expected, rtol=0, atol=1e-6)


def test_what_is_transparent_is_white(pipeline):
    pipe, arguments = pipeline(), {"num_inference_steps": 2, "output_type": "np"}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype="uint8")
    pixels[..., 3] = 255 * (np.arange(8) < 4)  # the right half
    on_white = np.where(pixels[..., 3:] == 0, 255, pixels[..., :3])
    images = [PIL.Image.fromarray(each) for each in (pixels, on_white)]
    results = [pipe(image, generator=seeded(), **arguments).images for image in images]
    assert np.array_equal(*results)


def test_four_channels_are_no_latents(pipeline):
    pipe = pipeline(conditioning_channels=4)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype="uint8"), "RGBA")
    expected = sample_by_hand(pipe, torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255, 2, seeded())
    images = pipe(image, num_inference_steps=2, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (8, 11)])
def test_any_size_is_padded_and_cropped_back(size, pipeline):
    pipe = pipeline()
    condition = torch.rand(1, 3, *size, generator=seeded(1))
    padded = tuple(side + side % 2 for side in size)
    assert evaluations(pipe, condition, num_inference_steps=1) == [(1, 1, *padded)]
    images = pipe(condition, num_inference_steps=2, generator=seeded(), output_type="pt").images
    repeated = F.pad(condition, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    assert torch.equal(images, sample_by_hand(pipe, repeated, 2, seeded())[..., : size[0], : size[1]])


def test_smaller_conditions_are_enlarged(pipeline):
    pipe = pipeline(upscale=4)
    small = torch.rand(1, 3, 2, 3, generator=seeded(1))
    large = F.interpolate(2 * small - 1, (8, 12), mode="bicubic").clamp(-1, 1) / 2 + 0.5
    expected = sample_by_hand(pipe, large, 2, seeded())
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    torch.testing.assert_close(pipe(small, generator=seeded(), **arguments).images, expected, rtol=0, atol=1e-6)
    # the size may be given instead
    assert torch.equal(
        pipe(small, height=8, width=12, generator=seeded(), **arguments).images,
        pipe(small, generator=seeded(), **arguments).images,
    )
    assert pipe(small, height=6, width=7, **arguments).images.shape == (1, 1, 6, 7)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
def test_guidance_is_against_a_condition_of_zeros(guidance_scale, pipeline, condition):
    pipe = pipeline()
    images = pipe(
        condition, num_inference_steps=2, guidance_scale=guidance_scale, generator=seeded(), output_type="pt"
    ).images
    expected = sample_by_hand(pipe, condition, 2, seeded(), guidance_scale)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert evaluations(pipe, condition, num_inference_steps=2, guidance_scale=2.0) == [(4, 1, 8, 12)] * 2


def test_several_images_for_each_condition(pipeline, condition):
    pipe = pipeline()
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    images = pipe(condition, num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], **arguments).images
    assert len(images) == 4
    for i in range(4):
        alone = pipe(condition[i // 2], generator=seeded(i), **arguments).images
        torch.testing.assert_close(images[i : i + 1], alone, rtol=0, atol=1e-5)


def test_output_types_and_tuples(pipeline, condition):
    pipe = pipeline()
    outputs = {
        name: pipe(condition, num_inference_steps=2, ensemble_size=2, generator=seeded(), output_type=name)
        for name in ("pil", "np", "pt")
    }
    assert outputs["pt"].images.shape == outputs["pt"].uncertainty.shape == (2, 1, 8, 12)
    for name in ("pil", "np"):
        assert np.array_equal(outputs[name].uncertainty, outputs["pt"].uncertainty.permute(0, 2, 3, 1).numpy())
    assert [(image.mode, image.size) for image in outputs["pil"].images] == [("L", (12, 8))] * 2
    images, uncertainty = pipe(condition, num_inference_steps=2, output_type="np", return_dict=False)
    assert images.shape == (2, 8, 12, 1) and uncertainty is None
    assert pipe(condition).images and pipe.num_timesteps == 10


def test_latents_replace_the_initial_noise(pipeline, condition):
    pipe = pipeline({"eta": 0.0})
    latents = torch.randn(2, 1, 8, 12, generator=seeded())
    images = pipe(condition, num_inference_steps=2, latents=latents, output_type="pt").images
    assert torch.equal(images, pipe(condition, num_inference_steps=2, generator=seeded(), output_type="pt").images)


def test_half_precision(pipeline, condition):
    pipe = pipeline().to(torch.bfloat16)
    images = pipe(condition, num_inference_steps=2, tile_size=8, output_type="pt").images
    assert images.isfinite().all()


# ------------------------------------------------------------------------------------------------------------------ ensembles
def test_an_ensemble_is_the_mean_of_its_draws_and_their_deviation(pipeline, condition):
    pipe = pipeline(in_channels=3)
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    output = pipe(condition, ensemble_size=4, generator=seeded(), **arguments)
    generator = seeded()
    draws = torch.stack([pipe(condition, generator=generator, **arguments).images for _ in range(4)])
    torch.testing.assert_close(output.images, draws.mean(dim=0), rtol=0, atol=1e-6)
    deviation = draws.var(dim=0).mean(dim=1, keepdim=True).sqrt()
    assert output.uncertainty.shape == (2, 1, 8, 12) and deviation.min() > 0.01
    torch.testing.assert_close(output.uncertainty, deviation, rtol=0, atol=1e-6)
    assert evaluations(pipe, condition, ensemble_size=3, num_inference_steps=2) == [(2, 3, 8, 12)] * 6


# ---------------------------------------------------------------------------------------------------------------------- tiles
@pytest.mark.parametrize("tile_size, tile_overlap", [(16, 4), (20, 0), (512, None)])
def test_one_tile_that_covers_the_image_changes_nothing(tile_size, tile_overlap, pipeline):
    pipe = pipeline()
    condition = torch.rand(1, 3, 15, 13, generator=seeded(1))
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    tiled = pipe(condition, tile_size=tile_size, tile_overlap=tile_overlap, generator=seeded(), **arguments).images
    assert torch.equal(tiled, pipe(condition, generator=seeded(), **arguments).images)


@pytest.mark.parametrize(
    "height, width, size, overlap, multiple",
    [(64, 48, 16, 4, 2), (30, 16, 16, 14, 2), (16, 16, None, 0, 2), (18, 34, 16, 0, 2), (128, 40, 32, 20, 4)],
)
def test_tiles_cover_the_image_with_weights_that_sum_to_one(height, width, size, overlap, multiple):
    tiles = make_tiles(height, width, size, overlap, multiple)
    total = torch.zeros(1, 1, height, width)
    for tile in tiles:
        rows, columns = tile.rows, tile.columns
        assert rows.start % multiple == columns.start % multiple == 0
        assert rows.stop <= height and columns.stop <= width
        if size is not None:
            assert rows.stop - rows.start == min(size, height) and columns.stop - columns.start == min(size, width)
        assert tile.row_weights.min() > 0 and tile.column_weights.min() > 0
        tile.add(total, torch.ones_like(tile.crop(total)))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
    starts = sorted({tile.columns.start for tile in tiles})
    assert all(after - before <= (size or width) - overlap for before, after in zip(starts, starts[1:], strict=False))


def test_the_model_never_sees_more_than_a_tile(pipeline):
    pipe = pipeline()
    condition = torch.rand(1, 3, 40, 24, generator=seeded(1))
    shapes = evaluations(pipe, condition, num_inference_steps=2, tile_size=16, tile_overlap=4)
    # 40 in steps of 12: 0, 12, 24; 24: 0, 8
    assert shapes == [(1, 1, 16, 16)] * (2 * 3 * 2)


def test_a_local_model_is_not_changed_by_tiles_nor_are_there_seams(pipeline):
    """
    A model that sees a few pixels around each predicts in the middle of a tile what it does in the whole image. Where tiles
    meet, it predicts something else at their borders; without an overlap that shows as a seam, with one it does not.
    """
    # without the attention and the group statistics, which see all of a tile
    pipe = pipeline(
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        mid_block_type=None,
        conditioning_channels=1,
    )
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    pipe.scheduler = DDMScheduler(clip_sample=False, eta=0.0)
    with torch.no_grad():  # the borders matter, as in a trained model
        for weight in pipe.unet.parameters():
            weight.mul_(1.5)
    condition = torch.full((1, 1, 128, 128), 0.75)
    arguments = {"num_inference_steps": 1, "output_type": "pt"}
    latents = torch.zeros(1, 1, 128, 128)

    def middle(**tiles):
        row = pipe(condition, latents=latents, **tiles, **arguments).images[0, 0, 64, 24:-24]
        return row, row.diff().abs().max()

    whole, untiled = middle()
    _, with_overlap = middle(tile_size=48, tile_overlap=32)
    _, without = middle(tile_size=48, tile_overlap=0)
    assert untiled < 1e-5
    assert without > 1e-3
    assert with_overlap < without / 8


# ------------------------------------------------------------------------------------------ callbacks, interruption, progress
def test_a_callback_sees_every_step_of_every_draw(pipeline, condition):
    pipe = pipeline()
    steps = []

    def callback(pipe, step_index, timestep, tensors):
        steps.append((step_index, tensors["latents"].shape))
        return {"latents": torch.full_like(tensors["latents"], 0.5)}

    output = pipe(condition, num_inference_steps=2, ensemble_size=2, callback_on_step_end=callback, output_type="pt")
    assert steps == [(0, (2, 1, 8, 12)), (1, (2, 1, 8, 12))] * 2
    assert torch.equal(output.images, torch.full((2, 1, 8, 12), 0.75)) and output.uncertainty.abs().max() == 0


def test_interrupt_skips_the_remaining_steps_and_draws(pipeline, condition):
    pipe = pipeline()

    def callback(pipe, step_index, timestep, tensors):
        pipe._interrupt = True
        return {}

    arguments = {"num_inference_steps": 3, "ensemble_size": 2}
    assert len(evaluations(pipe, condition, callback_on_step_end=callback, **arguments)) == 1
    assert len(evaluations(pipe, condition, **arguments)) == 6


def test_the_progress_bar_counts_tiles(pipeline, capsys):
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(torch.rand(1, 3, 16, 16), num_inference_steps=2, ensemble_size=2, tile_size=8, tile_overlap=0)
    assert "16/16" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------- saving
def test_save_and_load(pipeline, condition, own_memory, tmp_path):
    pipe = pipeline(upscale=2)
    pipe.save_pretrained(tmp_path)
    loaded = DDMImageToImagePipeline.from_pretrained(tmp_path)
    own_memory(loaded.unet)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.upscale == 2
    images, again = (
        each(condition, num_inference_steps=2, generator=seeded(), output_type="np").images for each in (pipe, loaded)
    )
    assert images.shape == (2, 16, 24, 1) and np.array_equal(images, again)
    card = (tmp_path / "README.md").read_text()
    assert is_generated_card(card) and "pipeline_tag: image-to-image" in card


def test_the_code_of_the_card_runs(pipeline, tmp_path, monkeypatch):
    pipeline().save_pretrained(tmp_path / "model")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"][0].size == (8, 8)


# ------------------------------------------------------------------------------------------------------------------ bad input
GOOD = torch.full((1, 3, 16, 16), 0.5)


@pytest.mark.parametrize(
    "image, arguments, parts",
    [
        (None, {}, ("`image`", "None")),
        ([], {}, ("`image`", "[]")),
        ("photo.png", {}, ("`image`", "str")),
        (PIL.Image.new("F", (16, 16)), {}, ("`image`", "mode F", "array in [0, 1]")),
        (GOOD, {"tile_size": 0}, ("`tile_size`", "0", "positive multiple of 2")),
        (GOOD[:, :1], {}, ("`image`", "(1, 1, 16, 16)", "(batch_size, 3,")),
        (np.zeros((16, 16, 4)), {}, ("`image`", "(1, 4, 16, 16)", "(batch_size, 3,")),
        (torch.zeros(16), {}, ("`image`", "(16,)")),
        (torch.zeros(1, 3, 0, 4), {}, ("`image`", "(1, 3, 0, 4)")),
        (2 * GOOD + 1, {}, ("`image`", "2 to 2", "[0, 1]")),
        (GOOD - 1, {}, ("`image`", "-0.5", "[0, 1]")),
        (GOOD * float("nan"), {}, ("`image`", "nan", "[0, 1]")),
        ((GOOD * 255).to(torch.uint8), {}, ("`image`", "torch.uint8", "floats in [0, 1]")),
        ([GOOD[0], GOOD[0, :, :8]], {}, ("`image`", "(3, 8, 16)", "one size")),
        ([PIL.Image.new("RGB", (8, 8)), PIL.Image.new("RGB", (8, 9))], {}, ("`image`", "(8, 9)", "one size")),
        ([PIL.Image.new("RGB", (8, 8)), GOOD[0]], {}, ("`image`", "Tensor", "list of one of these")),
        (GOOD, {"num_inference_steps": 0}, ("`num_inference_steps`", "0")),
        (GOOD, {"num_images_per_prompt": 0}, ("`num_images_per_prompt`", "0", "1 or more")),
        (GOOD, {"ensemble_size": 1.5}, ("`ensemble_size`", "1.5", "1 or more")),
        (GOOD, {"height": 8}, ("`height`", "8", "16 or more")),
        (GOOD, {"width": 0}, ("`width`", "0", "1 or more")),
        (GOOD, {"guidance_scale": float("inf")}, ("`guidance_scale`", "inf", "finite")),
        (GOOD, {"generator": [seeded()] * 2}, ("`generator`", "length 2", "each of the 1")),
        (GOOD, {"output_type": "jpg"}, ("`output_type`", "'jpg'", "'pil'")),
        (GOOD, {"callback_on_step_end_tensor_inputs": ["image"]}, ("`callback_on_step_end_tensor_inputs`", "'image'")),
        (GOOD, {"latents": torch.zeros(1, 1, 8, 8)}, ("`latents`", "(1, 1, 8, 8)", "(1, 1, 16, 16)")),
        (GOOD, {"latents": torch.zeros(1, 1, 16, 16), "ensemble_size": 2}, ("`latents`", "`ensemble_size`")),
        (GOOD, {"tile_size": 8, "tile_overlap": 8}, ("`tile_overlap`", "8", "[0, 6]")),
        (GOOD, {"tile_size": 8, "tile_overlap": 12}, ("`tile_overlap`", "12", "[0, 6]")),
        (GOOD, {"tile_size": 8, "tile_overlap": -1}, ("`tile_overlap`", "-1", "[0, 6]")),
        (GOOD, {"tile_size": 9}, ("`tile_size`", "9", "multiple of 2")),
        (GOOD, {"tile_size": 0}, ("`tile_size`", "0", "multiple of 2")),
        (GOOD, {"tile_overlap": 4}, ("`tile_overlap`", "4", "`tile_size`")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(image, arguments, parts, pipeline, rejects):
    pipe = pipeline()
    pipe.scheduler.set_timesteps(4)
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    with rejects(*parts):
        pipe(image, **{"num_inference_steps": 2, **arguments})
    assert not evaluated and len(pipe.scheduler.timesteps) == 4 and pipe.scheduler.step_index is None
    assert len(pipe(GOOD, num_inference_steps=1).images) == 1


def test_a_condition_is_needed(pipeline):
    with pytest.raises(TypeError, match="image"):
        pipeline()()


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"conditioning_channels": 0}, ("`unet`", "DDMUNet2DModel", "`conditioning_channels`")),
        ({"num_class_embeds": 3}, ("`unet`", "3 classes")),
    ],
    ids=str,
)
def test_models_of_another_kind_are_refused(options, parts, pipeline, rejects):
    with rejects(*parts):
        pipeline(**options)(GOOD)


def test_a_pil_image_has_no_alpha_channel_of_its_own(pipeline, rejects):
    with rejects("`image`", "mode RGB", "4 channels", "RGBA"):
        pipeline(conditioning_channels=4)(PIL.Image.new("RGB", (8, 8)))
    with rejects("`image`", "mode RGB", "5 channels", "arrays and tensors"):
        pipeline(conditioning_channels=5)(PIL.Image.new("RGB", (8, 8)))


@torch.no_grad()
def test_a_vae_encodes_the_condition_and_decodes_the_sample(tiny_unet, tmp_path):
    """Against a loop written out; of a size that is padded: the model's grid of 2 is one of 4 pixels."""
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.2)
    unet = tiny_unet(in_channels=4, conditioning_channels=4)
    pipe = DDMImageToImagePipeline(unet, DDMScheduler(clip_sample=False), vae)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.size_multiple == 4
    image = torch.rand(2, 3, 8, 11, generator=seeded(5))
    images = pipe(image, num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert images.shape == image.shape

    padded = torch.cat([image, image[..., -1:]], dim=3)
    condition = (vae.encode(2 * padded - 1).latent_dist.mean - 0.2) * 0.5
    x = torch.randn(2, 4, 4, 6, generator=(generator := seeded()))
    pipe.scheduler.set_timesteps(3)
    for timestep in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(
            unet(x, timestep, conditioning=condition).sample, timestep, x, generator=generator
        ).prev_sample
    expected = (vae.decode(x / 0.5 + 0.2).sample / 2 + 0.5)[..., :11].clamp(0, 1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)

    # one tile changes nothing; several are counted in pixels
    tiled = pipe(image, num_inference_steps=3, generator=seeded(), output_type="pt", tile_size=16).images
    assert torch.equal(tiled, images)
    sizes = evaluations(pipe, image, num_inference_steps=1, tile_size=8, tile_overlap=4)
    assert sizes == [(2, 4, 4, 4)] * 2

    pipe.save_pretrained(tmp_path)
    loaded = DDMImageToImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(image, num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert torch.equal(again, images)


def test_bad_components(tiny_unet, rejects):
    with rejects("`unet`", "1 `conditioning_channels`", "4 channels"):
        pipe = DDMImageToImagePipeline(
            tiny_unet(in_channels=4, conditioning_channels=1), DDMScheduler(clip_sample=False), vae=tiny_vae()
        )
        pipe(GOOD)
    with rejects("`upscale`", "0", "1 or more"):
        DDMImageToImagePipeline(tiny_unet(conditioning_channels=1), DDMScheduler(), upscale=0)
    pipe = DDMImageToImagePipeline(tiny_unet(conditioning_channels=3), DDMScheduler(noise_schedule="linear"))
    with rejects("`scheduler`", "noise_schedule='linear'"):
        pipe(GOOD)
