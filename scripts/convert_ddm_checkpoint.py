# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Convert a checkpoint of the authors' releases, DDM-Public or ADM-Public, to a pipeline of this package.

    python scripts/convert_ddm_checkpoint.py --checkpoint model-80.pt --config release.yaml --use_ema --output_dir ddm-cifar10

The config is the YAML file that the release trained with. Networks: `uncond_unet`, `uncond_unet_sd`, `uncond_unet_sd_2`, with
the first-stage autoencoder of latent models. The first two are in both releases, with other scales: name yours with
`--release`. The saved pipeline has the network's weights and the release's sampler.
"""

import argparse

import torch
import yaml
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DModel


# network: (decoders, noise schedules of its scales, whether both releases have it)
NETWORKS = {
    "unet.uncond_unet.EDMPrecond": (2, "sqrt", True),
    "unet.uncond_unet_sd.EDMPrecond": (1, "sqrt", True),
    "unet.uncond_unet_sd_2.EDMPrecond": (1, "linear", False),
}
# process: its noise schedule. `ddm_linear` is not among them: its two coefficients do not fit the scales of the released
# networks, which therefore stop with an error for color images.
PROCESSES = {
    "ddm.ddm_const.DDPM": "sqrt",
    "ddm.ddm_const.LatentDiffusion": "sqrt",
    "ddm.ddm_const_2.DDPM": "linear",
    "ddm.ddm_const_2.LatentDiffusion": "linear",
}
AUTOENCODER = "ddm.encoder_decoder.AutoencoderKL"

# What a checkpoint has besides the networks: the smallest time, the scale of the latents, and networks of training losses.
IGNORED = ("eps", "scale_factor")
IGNORED_PREFIXES = ("perceptual_loss.", "first_stage_model.loss.")


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="The file that the release saved, such as model-80.pt.")
    parser.add_argument("--config", required=True, help="The YAML file that it was trained with.")
    parser.add_argument("--use_ema", action="store_true", help="Take the averaged weights.")
    parser.add_argument(
        "--release", choices=["ddm", "adm"], help="DDM-Public or ADM-Public, where both have the network."
    )
    parser.add_argument("--output_dir", required=True, help="Where the pipeline goes.")
    return parser.parse_args(input_args)


def refuse(name, value, accepted):
    raise ValueError(f"`{name}` is {value!r}, but has to be {accepted}.")


def one_of(config, name, accepted):
    value = config.get(name.split(".")[-1])
    if value not in accepted:
        refuse(name, value, f"one of {tuple(accepted)}; others cannot be converted")
    return value


def load_weights(path, use_ema):
    """The weights of the whole model under the names that the release gave them."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not use_ema:
        return dict(checkpoint["model"] if "model" in checkpoint else checkpoint)
    if "ema" not in checkpoint:
        raise ValueError(f"`--use_ema` is given, but {path} has only {sorted(checkpoint)}; leave `--use_ema` out.")
    prefix = "ema_model."
    return {key[len(prefix) :]: each for key, each in checkpoint["ema"].items() if key.startswith(prefix)}


def has_attention(config, level):
    """Whether the blocks of a level attend: at its resolution, and only with 64 channels or more, one head for each 64."""
    resolution = config["img_resolution"] >> level
    return resolution in config["attn_resolutions"] and config["model_channels"] * config["channel_mult"][level] >= 64


def make_unet(config, release, noise_schedule, num_decoders):
    """The network of a `unet` section, with weights of its own."""
    levels = range(len(config["channel_mult"]))
    channels = tuple(config["model_channels"] * factor for factor in config["channel_mult"])
    if config.get("channel_mult_emb", 4) != 4:
        refuse("unet.channel_mult_emb", config["channel_mult_emb"], 4)
    attention = [has_attention(config, level) for level in levels]
    return DDMUNet2DModel(
        sample_size=config["img_resolution"],
        in_channels=config["img_channels"],
        block_out_channels=channels,
        layers_per_block=config["num_blocks"],
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attention),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attention)),
        add_attention=channels[-1] >= 64,
        dropout=config.get("dropout", 0.1),
        noise_schedule=noise_schedule,
        num_decoders=num_decoders,
        num_heads=num_decoders,
        precondition="ddm" if release == "ddm" else True,
        architecture="released",
        augment_dim=config.get("augment_dim") or 0,
    )


def block_names(config, num_decoders):
    """`{block of the release: (block of this package, its index or None for a resampling block)}`, in their order."""
    num_levels, num_blocks = len(config["channel_mult"]), config["num_blocks"]
    names = {}
    for level in range(num_levels):
        size = f"{config['img_resolution'] >> level}x{config['img_resolution'] >> level}"
        if level:
            names[f"enc.{size}_down"] = f"down_blocks.{level - 1}.downsamplers.0"
        for i in range(num_blocks):
            names[f"enc.{size}_block{i}"] = f"down_blocks.{level}.resnets.{i}"
        for decoder, prefix in (("dec", ""), ("dec2", "noise_"))[:num_decoders]:
            up = f"{prefix}up_blocks.{num_levels - 1 - level}"
            if level == num_levels - 1:
                names[f"{decoder}.{size}_in0"] = f"{prefix}mid_block.resnets.0"
                names[f"{decoder}.{size}_in1"] = f"{prefix}mid_block.resnets.1"
            else:
                names[f"{decoder}.{size}_up"] = f"{prefix}up_blocks.{num_levels - 2 - level}.upsamplers.0"
            for i in range(num_blocks + 1):
                names[f"{decoder}.{size}_block{i}"] = f"{up}.resnets.{i}"
    return names


RESNET = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm2": "group_norm", "proj": "to_out.0"}


def unet_names(config, num_decoders):
    """`{layer of the release: layer of this package}` but for the attention's queries, keys and values."""
    size = config["img_resolution"]
    names = {
        "map_layer0": "time_embedding.linear_1",
        "map_layer1": "time_embedding.linear_2",
        "map_augment": "augment_embedding",
        f"enc.{size}x{size}_conv": "conv_in",
    }
    for number, prefix, entry in (("1", "", "attenuation_entry"), ("2", "noise_", "noise_entry"))[:num_decoders]:
        suffix = "" if number == "1" else "2"
        names |= {
            f"decouple{number}.0": f"{entry}.conv",
            f"decouple{number}.1.map": f"{entry}.attention.to_map",
            f"decouple{number}.1.q_conv": f"{entry}.attention.to_q",
            f"decouple{number}.1.k_conv": f"{entry}.attention.to_k",
            f"out_norm{suffix}": f"{prefix}conv_norm_out",
            f"out_conv{suffix}": f"{prefix}conv_out",
        }
    for theirs, ours in block_names(config, num_decoders).items():
        names |= {f"{theirs}.{layer}": f"{ours}.{name}" for layer, name in RESNET.items()}
        attention = ours.replace("resnets", "attentions")
        names |= {f"{theirs}.{layer}": f"{attention}.{name}" for layer, name in ATTENTION.items()}
    return names


def convert_unet(weights, config, num_decoders, unet):
    """
    The weights of the network under this package's names.

    Args:
        weights (`dict`): Under the release's names, without `model.model.`.
        config (`dict`): The `unet` section.
        num_decoders (`int`): 1 or 2.
        unet ([`DDMUNet2DModel`]): The network that they are for.

    Returns:
        The converted weights and the names that are unknown.
    """
    names, blocks = unet_names(config, num_decoders), block_names(config, num_decoders)
    heads = {name: module.heads for name, module in unet.named_modules() if hasattr(module, "heads")}
    known = unet.state_dict().keys()
    converted, unknown = {}, []
    for key, weight in weights.items():
        layer, _, kind = key.rpartition(".")
        if kind == "resample_filter":
            if weight.shape[-2:] != (2, 2) or not torch.allclose(weight, torch.tensor(0.25)):
                refuse(key, weight.tolist(), "the mean of 2x2 values")
        elif layer.endswith(".qkv") and blocks.get(layer[:-4], "").replace("resnets", "attentions") in heads:
            attention = blocks[layer[:-4]].replace("resnets", "attentions")
            # the release lists query, key and value of each channel next to each other
            parts = weight.reshape(heads[attention], -1, 3, *weight.shape[1:]).unbind(2)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                converted[f"{attention}.{name}.{kind}"] = part.reshape(weight.shape[0] // 3, *weight.shape[1:2])
        elif layer in names and f"{names[layer]}.{kind}" in known:
            is_linear = layer.endswith(".proj") and kind == "weight"
            converted[f"{names[layer]}.{kind}"] = weight.flatten(1) if is_linear else weight
        else:
            unknown.append(key)
    return converted, unknown


def convert_autoencoder(weights, config, scale_factor):
    """The first-stage autoencoder, which has the names of latent diffusion models (arXiv 2112.10752)."""
    one_of(config, "first_stage.class_name", (AUTOENCODER,))
    options = config["ddconfig"]
    if options["attn_resolutions"]:
        refuse("first_stage.ddconfig.attn_resolutions", options["attn_resolutions"], "empty")
    if options["z_channels"] != config["embed_dim"]:
        refuse("first_stage.embed_dim", config["embed_dim"], f"`z_channels`, {options['z_channels']}")
    num_levels = len(options["ch_mult"])
    vae = AutoencoderKL(
        in_channels=options["in_channels"],
        out_channels=options["out_ch"],
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=tuple(options["ch"] * factor for factor in options["ch_mult"]),
        layers_per_block=options["num_res_blocks"],
        latent_channels=options["z_channels"],
        sample_size=options["resolution"][0],
        scaling_factor=float(scale_factor),
    )
    # the conversion leaves out what it does not know
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{key}": weights[key] for key in weights}, vae.config)
    used = {each.data_ptr() for each in converted.values()}
    unknown = sorted(f"first_stage_model.{key}" for key, each in weights.items() if each.data_ptr() not in used)
    if unknown:
        raise ValueError(f"`--checkpoint` has weights that are not known: {unknown}.")
    load(vae, converted)
    return vae


def load(model, weights):
    """Load weights that have to be all of the model's."""
    missing = [name for name in model.state_dict() if name not in weights and name != "time_proj.weight"]
    if missing:
        raise ValueError(f"`--checkpoint` has no weights for {missing}, which the network of `--config` has.")
    model.load_state_dict(weights, strict=False)
    model.eval()


def convert(weights, config, release=None):
    """
    The pipeline of a released model.

    Args:
        weights (`dict`): The weights of the whole model under the release's names.
        config (`dict`): The `model` section of the release's config.
        release (`"ddm"` or `"adm"`, *optional*): Needed for networks that both releases have.

    Returns:
        [`DDMPipeline`]

    Raises:
        ValueError: A network, process or option cannot be converted, or a weight is unknown. The message names it.
    """
    process = one_of(config, "model.class_name", PROCESSES)
    network = one_of(config["unet"], "unet.class_name", NETWORKS)
    one_of({"model_type": "DhariwalUNet", **config["unet"]}, "unet.model_type", ("DhariwalUNet",))
    num_decoders, noise_schedule, in_both = NETWORKS[network]
    if PROCESSES[process] != noise_schedule:
        refuse("unet.class_name", network, f"a network with the scales of {process}")
    if in_both and release is None:
        refuse("--release", None, f"'ddm' or 'adm': both have {network}, with other scales")
    release = release if in_both else "adm"
    if config.get("scale_input", 1) != 1:
        refuse("model.scale_input", config["scale_input"], 1)

    unet = make_unet(config["unet"], release, noise_schedule, num_decoders)
    first_stage = "first_stage" in config and process.endswith("LatentDiffusion")
    of_unet, of_autoencoder, unknown = {}, {}, []
    for key, weight in weights.items():
        if key in IGNORED or key.startswith(IGNORED_PREFIXES):
            continue
        if key.startswith("model.model."):
            of_unet[key.removeprefix("model.model.")] = weight
        elif first_stage and key.startswith("first_stage_model."):
            of_autoencoder[key.removeprefix("first_stage_model.")] = weight
        else:
            unknown.append(key)
    converted, unknown_layers = convert_unet(of_unet, config["unet"], num_decoders, unet)
    unknown += [f"model.model.{key}" for key in unknown_layers]
    if unknown:
        raise ValueError(f"`--checkpoint` has weights that are not known: {sorted(unknown)}.")
    load(unet, converted)

    vae = None
    if first_stage:
        if config.get("scale_by_softsign", False):
            refuse("model.scale_by_softsign", True, "False")
        scale_factor = weights.get("scale_factor", config.get("scale_factor", 1.0))
        vae = convert_autoencoder(of_autoencoder, config["first_stage"], scale_factor)
    sampler = {"noise_schedule": noise_schedule}
    if vae is not None or not config.get("clip_x_start", True):
        sampler["clip_sample"] = False
    if release == "ddm":
        scheduler = DDMScheduler.paper(**sampler)
    else:
        kind = config.get("sample_type", "deterministic")
        one_of({"sample_type": kind}, "model.sample_type", ("deterministic", "stochastic"))
        scheduler = DDMScheduler.adm(**sampler, eta=1.0 if kind == "stochastic" else 0.0)
    return DDMPipeline(unet, scheduler, vae=vae)


def main(args):
    with open(args.config, encoding="utf-8") as file:
        config = yaml.safe_load(file)
    pipeline = convert(load_weights(args.checkpoint, args.use_ema), config["model"], args.release)
    pipeline.save_pretrained(args.output_dir)
    num_parameters = sum(each.numel() for each in pipeline.unet.parameters())
    print(f"{args.output_dir}: a DDMPipeline whose network has {num_parameters / 1e6:.1f} million parameters.")


if __name__ == "__main__":
    main(parse_args())
