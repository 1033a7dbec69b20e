# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Stand-ins for the tiny checkpoints that diffusers' tests load from the Hub: tokenizers, processors and text encoders of the
same sizes. With them the tests' pipelines are built offline.
"""

from types import SimpleNamespace

import diffusers
import torch
import transformers
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


T5 = {
    "vocab_size": 1103,
    "d_model": 32,
    "d_ff": 37,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 5,
    "num_decoder_layers": 5,
}

# Sizes of models whose weights the tests load. The tests give all other models a config.
LANGUAGE_MODEL = {
    "vocab_size": 1000,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
VISION_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 2,
}
QWEN_TEXT_MODEL = {
    **LANGUAGE_MODEL,
    "vocab_size": 152064,
    "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
}

# The first of Qwen's special tokens, which the tests' configs name by their number
QWEN_SPECIAL = 151643
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class TokenizerWithPositions(PreTrainedTokenizerFast):
    """ChatGLM's tokenizer numbers its tokens too."""

    def __call__(self, *arguments, **options):
        tokens = super().__call__(*arguments, **options)
        tokens["position_ids"] = tokens.attention_mask.cumsum(dim=-1) - 1
        return tokens


def tokenizer(cls=None, qwen=False, **options):
    """A tokenizer that spells: each byte is a token."""
    vocabulary = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if qwen:
        while len(vocabulary) < QWEN_SPECIAL:
            vocabulary[f"<unused{len(vocabulary)}>"] = len(vocabulary)
        vocabulary |= {token: QWEN_SPECIAL + number for number, token in enumerate(QWEN_TOKENS)}
        special += QWEN_TOKENS
    spelling = Tokenizer(models.BPE(vocabulary, []))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    spelling.add_special_tokens([AddedToken(token, special=True) for token in special])
    if not qwen:
        spelling.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if qwen:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
        names["extra_special_tokens"] = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    options = {name: value for name, value in options.items() if name in ("model_max_length", "padding_side")}
    options = {"model_max_length": 131072 if qwen else 77, **options}
    made = PreTrainedTokenizerFast(tokenizer_object=spelling, chat_template=CHAT_TEMPLATE, **names, **options)
    if cls in (transformers.RobertaTokenizer, transformers.T5Tokenizer):  # AudioLDM2 tells them apart
        made.__class__ = cls
    if cls is not None and cls.__name__ == "ChatGLMTokenizer":
        made.__class__ = TokenizerWithPositions
    return made


def config(name):
    if "t5" in name.lower():
        return transformers.T5Config(**T5)
    raise KeyError(f"There is no stand-in for the config of {name}.")


def model(cls, name):
    """A model of the class with random weights."""
    torch.manual_seed(0)
    kind = cls.__name__
    if kind == "T5EncoderModel":
        return cls(transformers.T5Config(**T5))
    if kind == "UMT5EncoderModel":
        return cls(transformers.UMT5Config(**T5))
    if kind == "BertModel":
        return cls(cls.config_class(**VISION_MODEL, vocab_size=1124))
    if kind == "LlamaForCausalLM":
        return cls(cls.config_class(**LANGUAGE_MODEL))
    if kind == "SiglipVisionModel":
        return cls(cls.config_class(**VISION_MODEL))
    if kind == "ChatGLMModel":
        sizes = {"num_layers": 2, "padded_vocab_size": 1000, "hidden_size": 8, "ffn_hidden_size": 8, "kv_channels": 4}
        return cls(cls.config_class(**sizes, num_attention_heads=2, seq_length=256, original_rope=True))
    if kind == "Gemma3ForConditionalGeneration":
        text = {**LANGUAGE_MODEL, "hidden_size": 32}
        return cls(cls.config_class(text_config=text, vision_config=VISION_MODEL, mm_tokens_per_image=9))
    if kind.startswith("Qwen"):
        vision = {
            "depth": 2,
            "hidden_size": 16,
            "embed_dim": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 14,
        }
        vision["out_hidden_size"] = 16
        special = {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
        special |= {"image_token_id": 151655, "video_token_id": 151656}
        # Qwen2-VL calls the width of its output `hidden_size`
        return cls(cls.config_class(text_config=QWEN_TEXT_MODEL, vision_config=vision, **special))
    raise KeyError(f"There is no stand-in for {kind} of {name}.")


def processor(cls, name):
    """Qwen's processor, without video, which would need torchvision; of Mistral's the tokenizer is enough."""
    if "Mistral" in name:
        return tokenizer(model_max_length=512)
    if "Qwen" not in name:
        raise KeyError(f"There is no stand-in for the processor of {name}.")
    if cls is transformers.AutoProcessor:
        cls = transformers.Qwen2VLProcessor
    images = transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    made = cls.__new__(cls)
    made.check_argument_for_proper_class = lambda *arguments: None
    cls.__init__(made, images, tokenizer(qwen=True), None, chat_template=CHAT_TEMPLATE)
    return made


def tiny_unet():
    """That of the consistency models."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, **blocks
    )


def resize(image, size, interpolation):
    return torch.nn.functional.interpolate(image, size, mode=interpolation)


def stand_in(cls, name, **options):
    bases = {base.__name__ for base in cls.__mro__}
    if "Tokenizer" in cls.__name__:
        return tokenizer(cls, qwen="qwen" in name.lower() or "cosmos3" in name, **options)
    if "PreTrainedModel" in bases:
        return model(cls, name)
    if cls is transformers.AutoConfig:
        return config(name)
    if "ProcessorMixin" in bases or cls is transformers.AutoProcessor:
        return processor(cls, name)
    # image processors and feature extractors
    if cls.__name__.startswith("DPT"):
        options["size"] = {"height": 32, "width": 32}
    return cls(**options)


def install():
    """Put the stand-ins in the place of what transformers would load."""
    transformers_classes = [
        transformers.AutoConfig,
        transformers.AutoProcessor,
        transformers.AutoTokenizer,
        transformers.FeatureExtractionMixin,
        transformers.ImageProcessingMixin,
        transformers.PreTrainedModel,
        transformers.PreTrainedTokenizerBase,
        transformers.ProcessorMixin,
    ]
    for base in transformers_classes:
        base.from_pretrained = classmethod(lambda cls, name, *args, **options: stand_in(cls, name, **options))
    diffusers.UNet2DModel.from_pretrained = classmethod(lambda cls, name, **options: tiny_unet())
    for module in (controlnet_cosmos, transformer_cosmos):
        # from torchvision, which not every build of torch has
        if not hasattr(module, "transforms"):
            functional = SimpleNamespace(resize=resize)
            module.transforms = SimpleNamespace(
                functional=functional, InterpolationMode=SimpleNamespace(NEAREST="nearest")
            )
