# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The networks of the authors' releases, DDM-Public and ADM-Public, as functions of weights that have the releases' names.
Written from their formulas: a second implementation, which shares no code with `DDMUNet2DModel`.
"""

import math

import torch
import torch.nn.functional as F


def level_sizes(config):
    return [config["img_resolution"] >> level for level in range(len(config["channel_mult"]))]


def attends(config, size, channels):
    return size in config["attn_resolutions"] and channels >= 64


def encoder_blocks(config):
    """`(name, channels in, channels out, kind, attention)` in their order, kind being "", "down" or "up"."""
    blocks, current = [], config["model_channels"] * config["channel_mult"][0]
    for level, (size, factor) in enumerate(zip(level_sizes(config), config["channel_mult"], strict=True)):
        if level:
            blocks.append((f"enc.{size}x{size}_down", current, current, "down", False))
        for i in range(config["num_blocks"]):
            channels = config["model_channels"] * factor
            blocks.append((f"enc.{size}x{size}_block{i}", current, channels, "", attends(config, size, channels)))
            current = channels
    return blocks


def decoder_blocks(config, decoder):
    """As `encoder_blocks`; a block that takes a skip has the name of it in the kind's place: "skip"."""
    skips = [config["model_channels"] * config["channel_mult"][0], *(block[2] for block in encoder_blocks(config))]
    blocks, current = [], skips[-1]
    sizes = level_sizes(config)
    for level in reversed(range(len(sizes))):
        name = f"{decoder}.{sizes[level]}x{sizes[level]}"
        if level == len(sizes) - 1:
            blocks.append((f"{name}_in0", current, current, "", current >= 64))
            blocks.append((f"{name}_in1", current, current, "", False))
        else:
            blocks.append((f"{name}_up", current, current, "up", False))
        for i in range(config["num_blocks"] + 1):
            channels = config["model_channels"] * config["channel_mult"][level]
            attention = attends(config, sizes[level], channels)
            blocks.append((f"{name}_block{i}", current + skips.pop(), channels, "skip", attention))
            current = channels
    return blocks


def decoders(num_decoders):
    """`(name, number of the entry, suffix of the output)`"""
    return [("dec", "1", ""), ("dec2", "2", "2")][:num_decoders]


def unet_weights(config, num_decoders, seed=0):
    """Random weights, none of them zero, as the state dict of the release has them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def add(name, *shape, bias=True, norm=False):
        fan_in = math.prod(shape[1:])
        draw = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + 0.2 * draw if norm else draw / max(fan_in, 1) ** 0.5
        if bias:
            weights[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    width, size = config["model_channels"], config["img_resolution"]
    embedded = 4 * width
    if config.get("augment_dim"):
        add("map_augment", width, config["augment_dim"], bias=False)
    add("map_layer0", embedded, width)
    add("map_layer1", embedded, embedded)
    add(f"enc.{size}x{size}_conv", width * config["channel_mult"][0], config["img_channels"], 3, 3)

    def add_blocks(blocks):
        for name, c_in, c_out, kind, attention in blocks:
            add(f"{name}.norm0", c_in, norm=True)
            add(f"{name}.conv0", c_out, c_in, 3, 3)
            add(f"{name}.affine", 2 * c_out, embedded)
            add(f"{name}.norm1", c_out, norm=True)
            add(f"{name}.conv1", c_out, c_out, 3, 3)
            if kind in ("up", "down"):
                for layer in ("conv0", "skip"):
                    weights[f"{name}.{layer}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
            if c_in != c_out:
                add(f"{name}.skip", c_out, c_in, 1, 1)
            if attention:
                add(f"{name}.norm2", c_out, norm=True)
                add(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
                add(f"{name}.proj", c_out, c_out, 1, 1)

    add_blocks(encoder_blocks(config))
    bottom = config["model_channels"] * config["channel_mult"][-1]
    for decoder, number, suffix in decoders(num_decoders):
        add(f"decouple{number}.0", bottom, bottom, 3, 3)
        add(f"decouple{number}.1.map", 1, bottom, 1, 1)
        add(f"decouple{number}.1.q_conv", 1, 1, 1, 1)
        add(f"decouple{number}.1.k_conv", 1, 1, 1, 1)
        add_blocks(decoder_blocks(config, decoder))
        add(f"out_norm{suffix}", width * config["channel_mult"][0], norm=True)
        add(f"out_conv{suffix}", config["img_channels"], width * config["channel_mult"][0], 3, 3)
    return weights


def unet(weights, config, num_decoders, x, log_t, augment_labels=None):
    """The raw outputs, one for each decoder, at `x` and the logarithms of the times."""

    def layer(name):
        return weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def conv(name, x):
        weight, bias = layer(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(name, x):
        return F.group_norm(x, min(32, x.shape[1] // 4), *layer(name), eps=1e-5)

    def resample(x, kind):
        if kind == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if kind == "up" else x

    def block(name, x, kind, attention):
        hidden = conv(f"{name}.conv0", resample(F.silu(norm(f"{name}.norm0", x)), kind))
        scale, shift = F.linear(embedding, *layer(f"{name}.affine"))[:, :, None, None].chunk(2, dim=1)
        hidden = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", hidden) * (scale + 1) + shift))
        skip = resample(x, kind)
        x = hidden + (conv(f"{name}.skip", skip) if f"{name}.skip.weight" in weights else skip)
        if attention:
            heads = x.shape[1] // 64
            qkv = conv(f"{name}.qkv", norm(f"{name}.norm2", x)).unflatten(1, (heads, -1, 3)).flatten(4)
            q, k, v = qkv.unbind(3)  # (batch, heads, channels, positions)
            share = torch.einsum("nhcq,nhck->nhqk", q, k / q.shape[2] ** 0.5).softmax(dim=3)
            attended = torch.einsum("nhqk,nhck->nhcq", share, v).reshape(x.shape)
            x = x + conv(f"{name}.proj", attended)
        return x

    frequencies = 10_000.0 ** -(torch.arange(config["model_channels"] // 2) / (config["model_channels"] // 2))
    angles = log_t[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    if augment_labels is not None:
        embedding = embedding + F.linear(augment_labels, weights["map_augment.weight"])
    embedding = F.silu(F.linear(embedding, *layer("map_layer0")))
    embedding = F.silu(F.linear(embedding, *layer("map_layer1")))

    size = config["img_resolution"]
    x = conv(f"enc.{size}x{size}_conv", x)
    skips = [x]
    for name, _, _, kind, attention in encoder_blocks(config):
        x = block(name, x, kind, attention)
        skips.append(x)
    outputs = []
    for decoder, number, suffix in decoders(num_decoders):
        hidden = conv(f"decouple{number}.0", x)
        values = conv(f"decouple{number}.1.map", hidden).flatten(2)  # (batch, 1, positions)
        q, k = (
            values * weights[f"decouple{number}.1.{each}_conv.weight"].item()
            + weights[f"decouple{number}.1.{each}_conv.bias"].item()
            for each in ("q", "k")
        )
        averaged = (q.transpose(1, 2) * k).softmax(dim=2) @ values.transpose(1, 2)
        averaged = averaged.reshape(len(x), 1, *x.shape[2:])
        hidden = x + averaged / (1 + averaged.abs()) * hidden
        remaining = list(skips)
        for name, _, _, kind, attention in decoder_blocks(config, decoder):
            if kind == "skip":
                hidden = torch.cat([hidden, remaining.pop()], dim=1)
            hidden = block(name, hidden, kind, attention)
        outputs.append(conv(f"out_conv{suffix}", F.silu(norm(f"out_norm{suffix}", hidden))))
    return outputs


def predict(weights, config, network, release, x, t, augment_labels=None):
    """`(c, eps)` of the networks `uncond_unet`, `uncond_unet_sd` and `uncond_unet_sd_2` (`EDMPrecond` in the releases)."""
    s = t.reshape(-1, 1, 1, 1)
    if network == "uncond_unet_sd_2":
        v = s**2 + (s - 1) ** 2
        c_in, skip_1, out_1 = v**-0.5, (s - 1) / v, s / v**0.5
    elif release == "adm":
        v = s**2 - s + 1
        c_in, skip_1, out_1 = v**-0.5, (s - 1) / v, (s / v) ** 0.5
        skip_2, out_2 = s**0.5 / v, (1 - s) / v**0.5
    else:
        c_in, skip_1, out_1 = (1 + s) ** -0.5, s - 1, s / (1 + s) ** 0.5
        skip_2, out_2 = s**0.5, ((1 - s) / (1 + s)) ** 0.5
    num_decoders = 2 if network == "uncond_unet" else 1
    raw = unet(weights, config, num_decoders, c_in * x, t.log(), augment_labels)
    c = skip_1 * x + out_1 * raw[0]
    if num_decoders == 2:
        return c, skip_2 * x + out_2 * raw[1]
    return c, (x - (s - 1) * c) / (s if network == "uncond_unet_sd_2" else s**0.5)


def autoencoder_weights(config, seed=0):
    """Random weights of the first-stage autoencoder, which has the names of latent diffusion models."""
    generator = torch.Generator().manual_seed(seed)
    options, weights = config["ddconfig"], {}

    def add(name, *shape, norm=False):
        draw = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + 0.2 * draw if norm else draw / math.prod(shape[1:]) ** 0.5
        weights[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    def add_resnet(name, c_in, c_out):
        add(f"{name}.norm1", c_in, norm=True)
        add(f"{name}.conv1", c_out, c_in, 3, 3)
        add(f"{name}.norm2", c_out, norm=True)
        add(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            add(f"{name}.nin_shortcut", c_out, c_in, 1, 1)

    def add_middle(name, channels):
        add_resnet(f"{name}.block_1", channels, channels)
        add(f"{name}.attn_1.norm", channels, norm=True)
        for layer in ("q", "k", "v", "proj_out"):
            add(f"{name}.attn_1.{layer}", channels, channels, 1, 1)
        add_resnet(f"{name}.block_2", channels, channels)

    channels = [options["ch"] * factor for factor in options["ch_mult"]]
    z, last = options["z_channels"], len(channels) - 1
    add("encoder.conv_in", channels[0], options["in_channels"], 3, 3)
    current = channels[0]
    for level, c in enumerate(channels):
        for i in range(options["num_res_blocks"]):
            add_resnet(f"encoder.down.{level}.block.{i}", current, c)
            current = c
        if level < last:
            add(f"encoder.down.{level}.downsample.conv", c, c, 3, 3)
    add_middle("encoder.mid", current)
    add("encoder.norm_out", current, norm=True)
    add("encoder.conv_out", 2 * z, current, 3, 3)
    add("decoder.conv_in", current, z, 3, 3)
    add_middle("decoder.mid", current)
    for level in reversed(range(len(channels))):
        for i in range(options["num_res_blocks"] + 1):
            add_resnet(f"decoder.up.{level}.block.{i}", current, channels[level])
            current = channels[level]
        if level:
            add(f"decoder.up.{level}.upsample.conv", current, current, 3, 3)
    add("decoder.norm_out", current, norm=True)
    add("decoder.conv_out", options["out_ch"], current, 3, 3)
    add("quant_conv", 2 * config["embed_dim"], 2 * z, 1, 1)
    add("post_quant_conv", z, config["embed_dim"], 1, 1)
    return weights


def autoencode(weights, config, images):
    """The mean of the latents, and the images that they decode to."""
    options = config["ddconfig"]
    num_levels = len(options["ch_mult"])

    def conv(name, x, **kwargs):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], **{"padding": weight.shape[-1] // 2, **kwargs})

    def norm(name, x):
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def resnet(name, x):
        hidden = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)))
        hidden = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", hidden)))
        return hidden + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def middle(name, x):
        x = resnet(f"{name}.block_1", x)
        q, k, v = (conv(f"{name}.attn_1.{each}", norm(f"{name}.attn_1.norm", x)).flatten(2) for each in "qkv")
        share = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(dim=2)
        x = x + conv(f"{name}.attn_1.proj_out", (v @ share.transpose(1, 2)).reshape(x.shape))
        return resnet(f"{name}.block_2", x)

    x = conv("encoder.conv_in", images)
    for level in range(num_levels):
        for i in range(options["num_res_blocks"]):
            x = resnet(f"encoder.down.{level}.block.{i}", x)
        if level < num_levels - 1:
            x = conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
    x = conv("encoder.conv_out", F.silu(norm("encoder.norm_out", middle("encoder.mid", x))))
    latents = conv("quant_conv", x).chunk(2, dim=1)[0]
    x = middle("decoder.mid", conv("decoder.conv_in", conv("post_quant_conv", latents)))
    for level in reversed(range(num_levels)):
        for i in range(options["num_res_blocks"] + 1):
            x = resnet(f"decoder.up.{level}.block.{i}", x)
        if level:
            x = conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
    return latents, conv("decoder.conv_out", F.silu(norm("decoder.norm_out", x)))
