# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Proves that `scripts/convert_ddm_checkpoint.py` converts what the authors' trainer saves: the converted network and the original
one, which `released_networks.py` writes out, agree to 1e-5. And that what cannot be converted is refused by its name.
"""

import importlib.util
from pathlib import Path

import pytest
import released_networks as released
import torch
import yaml

from ddm_diffusers import DDMPipeline, DDMUNet2DModel


SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_ddm_checkpoint.py"

# 96 channels have 24 groups, 160 have 32; 160 channels have two heads of 80, 32 have no attention
UNET = {
    "img_resolution": 16,
    "img_channels": 3,
    "sigma_data": 1.0,
    "model_type": "DhariwalUNet",
    "model_channels": 32,
    "channel_mult": [1, 3, 5],
    "channel_mult_emb": 4,
    "num_blocks": 1,
    "attn_resolutions": [16, 4],
    "dropout": 0.1,
    "label_dropout": 0,
    "augment_dim": 9,
}
FIRST_STAGE = {
    "class_name": "ddm.encoder_decoder.AutoencoderKL",
    "embed_dim": 3,
    "lossconfig": {"disc_start": 20001},
    "ddconfig": {
        "double_z": True,
        "z_channels": 3,
        "resolution": [32, 32],
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
CASES = [
    ("uncond_unet", "ddm.ddm_const.DDPM", "ddm"),
    ("uncond_unet", "ddm.ddm_const.DDPM", "adm"),
    ("uncond_unet_sd", "ddm.ddm_const.DDPM", "ddm"),
    ("uncond_unet_sd", "ddm.ddm_const.DDPM", "adm"),
    ("uncond_unet_sd_2", "ddm.ddm_const_2.DDPM", None),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_ddm_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_release(folder, network="uncond_unet_sd_2", process="ddm.ddm_const_2.DDPM", extra=None, **options):
    """The files that the authors' trainer leaves; returns the averaged weights of the network."""
    num_decoders = 2 if network == "uncond_unet" else 1
    averaged, current = (released.unet_weights(UNET, num_decoders, seed) for seed in (0, 1))
    config = {"class_name": process, "image_size": [16, 16], "perceptual_weight": 1.0, "eps": 1e-4, "scale_input": 1}
    config |= {"unet": {"class_name": f"unet.{network}.EDMPrecond", **UNET}, **options}
    others = {"eps": torch.tensor(1e-4), "perceptual_loss.net.slice1.0.weight": torch.ones(2)}
    if process.endswith("LatentDiffusion"):
        config |= {"first_stage": FIRST_STAGE, "scale_factor": 0.165, "scale_by_std": True}
        others |= {"scale_factor": torch.tensor(0.5), "first_stage_model.loss.logvar": torch.zeros(())}
        autoencoder = released.autoencoder_weights(FIRST_STAGE)
        others |= {f"first_stage_model.{key}": weight for key, weight in autoencoder.items()}
    others |= extra or {}

    def whole(weights, prefix=""):
        return {f"{prefix}{key}": each for key, each in others.items()} | {
            f"{prefix}model.model.{key}": weight for key, weight in weights.items()
        }

    ema = {"initted": torch.tensor([1.0]), "step": torch.tensor([7])}
    ema |= whole(averaged, "ema_model.") | whole(current, "online_model.")
    opt = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"step": 7, "model": whole(current), "opt": opt, "ema": ema, "scaler": None}, folder / "model-1.pt")
    (folder / "release.yaml").write_text(yaml.safe_dump({"model": config, "trainer": {"lr": 1e-4}}))
    return averaged, current


def arguments(folder, *more):
    files = ["--checkpoint", str(folder / "model-1.pt"), "--config", str(folder / "release.yaml")]
    return [*files, "--output_dir", str(folder / "out"), *more]


def convert(script, folder, release=None, *more):
    script.main(script.parse_args([*arguments(folder, *more), *(["--release", release] if release else [])]))
    return DDMPipeline.from_pretrained(folder / "out")


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("network, process, release", CASES)
def test_converted_and_original_network_agree(script, tmp_path, network, process, release, augmented):
    weights, _ = write_release(tmp_path, network, process)
    pipeline = convert(script, tmp_path, release, "--use_ema")
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([1e-4, 0.3, 0.8, 1.0])
    labels = torch.randn(4, 9, generator=generator) if augmented else None
    with torch.no_grad():
        c, noise = released.predict(weights, UNET, network, release or "adm", x, t, labels)
        output = pipeline.unet(x, 1000 * t, augment_labels=labels)
    assert c.std() > 0.1 and noise.std() > 0.1
    torch.testing.assert_close(output.attenuation, c, rtol=1e-5, atol=1e-5)
    # a single head's noise is (x - (t - 1) c) / sigma_t in the release, which loses digits near t = 0
    slack = torch.tensor([1e-5, 1e-5, 1e-5, 1e-5]) if network == "uncond_unet" else 1e-6 / t.clamp_max(0.1)
    assert ((output.noise - noise).abs().amax(dim=(1, 2, 3)) <= slack * noise.abs().max()).all()


@pytest.mark.parametrize(
    "network, process, release, options, expected",
    [
        ("uncond_unet", "ddm.ddm_const.DDPM", "ddm", {}, ("sqrt", "increment", 1.0, "uniform", True)),
        ("uncond_unet_sd", "ddm.ddm_const.DDPM", "adm", {}, ("sqrt", "raw", 0.0, "power", True)),
        (
            "uncond_unet_sd_2",
            "ddm.ddm_const_2.DDPM",
            None,
            {"sample_type": "stochastic"},
            ("linear", "increment", 1.0, "power", True),
        ),
        ("uncond_unet_sd_2", "ddm.ddm_const_2.LatentDiffusion", None, {}, ("linear", "raw", 0.0, "uniform", False)),
    ],
)
def test_the_release_s_sampler_is_saved(script, tmp_path, network, process, release, options, expected):
    write_release(tmp_path, network, process, **options)
    pipeline = convert(script, tmp_path, release)
    names = ("noise_schedule", "step_form", "eta", "time_grid", "clip_sample")
    assert tuple(pipeline.scheduler.config[name] for name in names) == expected
    size = 32 if process.endswith("LatentDiffusion") else 16
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, size, size, 3)


def test_average_and_last_weights(script, tmp_path):
    averaged, current = write_release(tmp_path)
    for flags, weights in ((["--use_ema"], averaged), ([], current)):
        unet = convert(script, tmp_path, None, *flags).unet
        torch.testing.assert_close(unet.conv_in.weight, weights["enc.16x16_conv.weight"], rtol=0, atol=0)


def test_the_autoencoder_and_its_scale(script, tmp_path):
    write_release(tmp_path, process="ddm.ddm_const_2.LatentDiffusion")
    vae = convert(script, tmp_path).vae
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        latents, decoded = released.autoencode(released.autoencoder_weights(FIRST_STAGE), FIRST_STAGE, images)
        torch.testing.assert_close(vae.encode(images).latent_dist.mean, latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vae.decode(latents).sample, decoded, rtol=1e-5, atol=1e-5)
    assert vae.config.scaling_factor == 0.5  # the checkpoint's, not the config's


@pytest.mark.parametrize(
    "key",
    [
        "model.model.dec3.4x4_in0.conv0.weight",
        "model.model.enc.16x16_block0.qkv.weight",  # 32 channels have no attention
        "model.model.map_label.weight",
        "cond_stage.weight",
    ],
)
def test_unknown_weights_are_named(script, tmp_path, key):
    write_release(tmp_path, extra={key: torch.ones(96, 32, 1, 1)})
    with pytest.raises(ValueError, match="weights that are not known.*" + key.replace(".", r"\.")):
        convert(script, tmp_path)


def test_unknown_weights_of_the_autoencoder_are_named(script, tmp_path):
    key = "first_stage_model.encoder.extra.weight"
    write_release(tmp_path, process="ddm.ddm_const_2.LatentDiffusion", extra={key: torch.ones(2)})
    with pytest.raises(ValueError, match="weights that are not known.*" + key):
        convert(script, tmp_path)


def test_missing_weights_are_named(script, tmp_path):
    write_release(tmp_path)
    checkpoint = torch.load(tmp_path / "model-1.pt", weights_only=True)
    del checkpoint["model"]["model.model.out_conv.bias"]
    torch.save(checkpoint, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match="no weights for .'conv_out.bias'"):
        convert(script, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"process": "ddm.ddm_linear.DDPM"}, "`model.class_name` is 'ddm.ddm_linear.DDPM'"),
        ({"network": "cond_unet"}, "`unet.class_name` is 'unet.cond_unet.EDMPrecond'"),
        ({"network": "uncond_unet_sd_3"}, "`unet.class_name` is 'unet.uncond_unet_sd_3.EDMPrecond'"),
        (
            {"process": "ddm.ddm_const.DDPM"},
            "`unet.class_name` .* has to be a network with the scales of ddm.ddm_const",
        ),
        ({"unet": {**UNET, "class_name": "unet.uncond_unet_sd_2.EDMPrecond", "model_type": "SongUNet"}}, "'SongUNet'"),
        ({"scale_input": 0.5}, "`model.scale_input` is 0.5, but has to be 1"),
        ({"sample_type": "euler"}, "`model.sample_type` is 'euler'"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(script, tmp_path, options, message):
    write_release(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        convert(script, tmp_path)


def test_a_network_of_both_releases_needs_one(script, tmp_path):
    write_release(tmp_path, "uncond_unet_sd", "ddm.ddm_const.DDPM")
    with pytest.raises(ValueError, match="`--release` is None, but has to be 'ddm' or 'adm'"):
        convert(script, tmp_path)


def test_a_checkpoint_without_an_average(script, tmp_path):
    write_release(tmp_path)
    checkpoint = torch.load(tmp_path / "model-1.pt", weights_only=True)
    del checkpoint["ema"]
    torch.save(checkpoint, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match="`--use_ema` is given, but"):
        convert(script, tmp_path, None, "--use_ema")


def test_code_in_a_checkpoint_does_not_run(script, tmp_path):
    write_release(tmp_path)
    torch.save({"model": Path("x")}, tmp_path / "model-1.pt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        convert(script, tmp_path)


def test_a_released_network_starts_with_empty_residual_branches():
    # as in EDM: each residual branch is zero at first, and so the blocks but for their shortcuts
    unet = DDMUNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        architecture="released",
        num_decoders=2,
        precondition="ddm",
    )
    for name, weight in unet.named_parameters():
        is_zero = name.endswith(("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias"))
        assert (weight.abs().max() == 0) == (is_zero or (name.endswith(".bias") and "norm" in name)), name
