# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`examples/benchmarks/high_resolution.py` counts memory as a real backward pass would keep it, and makes of captions what
CLIP's classes read. Its trainings are those of the example scripts, which have tests of their own.
"""

import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer


CAPTIONS = [
    "grinning face",
    "flag: Côte d\u2019Ivoire",
    "keycap: #",
    "woman\u2019s sandal",
    "Japanese \u201cacceptable\u201d button",
]


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("high_resolution")


def test_captions_become_words(script, tmp_path):
    script.text_parts(tmp_path, CAPTIONS * 3)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    for caption in [*CAPTIONS, "grinning woman"]:  # of known words
        ids = tokenizer(caption).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.eos_token_id) == 1  # nothing is unknown
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == caption.lower().replace(" ", "")
    assert len(tokenizer("grinning face").input_ids) == 4  # a word is one token
    inputs = tokenizer(CAPTIONS, padding="max_length", return_tensors="pt")
    embeddings = encoder(inputs.input_ids)[0]
    assert embeddings.shape == (5, 24, 128) and embeddings[0].sub(embeddings[1]).abs().max() > 0.1


def test_one_of_each(script):
    from emoji import Emoji

    names = [
        "waving hand",
        "waving hand: light skin tone",
        "woman: red hair",
        "woman: bald",
        "flag: Peru",
        "flag: Togo",
    ]
    emoji = [Emoji(Image.new("RGBA", (2, 2)), "0", name, "group", "subgroup") for name in names]
    assert [each.name for each in script.one_of_each(emoji)] == [names[i] for i in (0, 2, 4, 5)]


def test_mean_and_error(script):
    assert script.mean_and_error(torch.tensor([1.0, 0, 0, 1])) == pytest.approx([0.5, (1 / 3) ** 0.5 / 2])


def test_memory_is_counted_as_it_would_be_kept(script, tiny_unet):
    """Of a model of real numbers, of one without numbers, of a larger image, and with gradient checkpointing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def count(size, checkpointing=False):
        model = tiny_unet(sample_size=size).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        return script.kept_for_backward(model, (3, size, size))

    real = count(16)
    with FakeTensorMode():
        fake, large, less = count(16), count(32), count(16, checkpointing=True)
    assert fake == pytest.approx(real, rel=0.02)  # where attention is another kernel
    assert 3.5 * real < large and less < 0.5 * real
