# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Tiny components of diffusers' own pipelines, as they are or of our classes, and how these pipelines are called, saved and
loaded in the tests.
"""

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


NUM_STEPS = 10

# Two resolutions, attention, two residual blocks each way: every kind of part that a UNet has, in a few thousand weights.
TINY_UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def perturb(model, seed=0):
    """Move every weight, so that nothing that starts at zero hides what it is multiplied with."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def tiny_vae(**options):
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        **{"latent_channels": 4, **options},
    )
    return vae.eval()


def tiny_conditional_unet(model_class=diffusers.UNet2DConditionModel, **options):
    torch.manual_seed(0)
    default = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return model_class(**{**default, **options}).eval()


def tiny_dit(model_class=diffusers.DiTTransformer2DModel, **options):
    torch.manual_seed(0)
    default = {
        "sample_size": 8,
        "in_channels": 4,
        "num_layers": 1,
        "patch_size": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
    }
    return model_class(**{**default, **options}).eval()


def tiny_text_parts():
    """A tokenizer that spells, and an encoder of what it spells."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(2)
    return {
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16),
        "text_encoder": CLIPTextModel(config).eval(),
    }


def draw_images(pipe, arguments, generator=None, **more):
    pipe.set_progress_bar_config(disable=True)
    # the global generator, as in diffusers' documentation, serves the pipelines too that pass none on to the scheduler
    generator = torch.manual_seed(0) if generator is None else generator
    options = {"num_inference_steps": NUM_STEPS, "output_type": "np", "generator": generator}
    return pipe(**{**options, **arguments, **more}).images


def reload(pipe, folder, own_memory):
    """The pipeline from a folder, by the same class."""
    pipe.save_pretrained(folder)
    # components that are not there and not optional either have to be named
    absent = {name: None for name, component in pipe.components.items() if component is None}
    loaded = type(pipe).from_pretrained(folder, **absent)
    for component in loaded.components.values():
        if isinstance(component, torch.nn.Module):
            own_memory(component)
    return loaded
