# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput
from diffusers.utils import BaseOutput, replace_example_docstring

from ..latents import encode_images, scale_latents
from ..process import at_least_float32
from ..schedulers import DDMScheduler
from .images import Tile, make_tiles, pad, read_images, resize
from .pipeline_utils import DecoupledPipeline


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image

        >>> from ddm_diffusers import DDMImageToImagePipeline

        >>> pipe = DDMImageToImagePipeline.from_pretrained("user/ddm-super-resolution").to("cuda")
        >>> large = pipe(Image.open("small.png"), num_inference_steps=10).images[0]

        >>> # a large image in tiles, and how sure the model is of each pixel
        >>> output = pipe(Image.open("photo.jpg"), tile_size=256, tile_overlap=64, ensemble_size=8)
        >>> output.images[0].save("large.png")
        >>> output.uncertainty.shape
        (1, 2048, 2048, 1)
        ```
"""


@dataclass
class DDMImageToImagePipelineOutput(BaseOutput):
    """
    The output of [`DDMImageToImagePipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images; of an ensemble, its means.
        uncertainty (`np.ndarray` of shape `(num_images, height, width, 1)` or, with `output_type="pt"`, `torch.Tensor` of
            shape `(num_images, 1, height, width)`):
            The standard deviation of each pixel over the draws of an ensemble, the root of its mean square over the
            channels, where images are in [0, 1]. `None` without an ensemble.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    uncertainty: np.ndarray | torch.Tensor | None = None


class DDMImageToImagePipeline(DecoupledPipeline):
    r"""
    Pipeline for images from images with a decoupled diffusion model (arXiv 2306.13720): super-resolution, edges,
    saliency, depth, colour, trained inpainting.

    This pipeline inherits from [`~diffusers.DiffusionPipeline`]. Check the superclass documentation for the generic
    methods implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        unet ([`DDMUNet2DModel`]):
            A model with `conditioning_channels`, without classes. Condition and target may differ in their channels.
        scheduler ([`DDMScheduler`]):
            The process that the model was trained on.
        vae ([`~diffusers.AutoencoderKL`] or another autoencoder of diffusers, *optional*):
            If the model works in its latent space: it encodes the condition, whose channels are then those of the images
            of the `vae`, and decodes the samples. The scheduler needs `clip_sample=False`.
        upscale (`int`, defaults to 1):
            How much larger the target is than the condition; the condition is enlarged bicubically first.

    Raises:
        ValueError: `upscale` is no whole number of 1 or more.
    """

    pipeline_tag = "image-to-image"
    image_arguments = ("image",)

    def __init__(self, unet: UNet2DModel, scheduler: DDMScheduler, vae: ModelMixin = None, upscale: int = 1):
        super().__init__(unet, scheduler, vae)
        if not isinstance(upscale, int) or upscale < 1:
            raise ValueError(f"`upscale` is {upscale!r}, but has to be a whole number of 1 or more.")
        self.register_to_config(upscale=upscale)

    def check_inputs(
        self,
        height,
        width,
        guidance_scale,
        num_images_per_prompt,
        ensemble_size,
        latents,
        tile_size,
        tile_overlap,
        output_type,
    ):
        for name, value in (("num_images_per_prompt", num_images_per_prompt), ("ensemble_size", ensemble_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}, but has to be a whole number of 1 or more.")
        for name, value in (("height", height), ("width", width)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is {value!r}, but has to be a whole number of 1 or more.")
        if latents is not None and ensemble_size > 1:
            raise ValueError(
                f"`latents` is given, but the {ensemble_size} draws of `ensemble_size` begin with others."
            )
        if output_type == "latent" and ensemble_size > 1:
            raise ValueError(
                f"`output_type` is 'latent', but the {ensemble_size} draws of `ensemble_size` are averaged as images."
            )
        self.check_scheduler()
        self.check_guidance_scale(guidance_scale)
        if not self.unet.config.get("conditioning_channels"):
            raise ValueError(
                f"`unet` is a {type(self.unet).__name__} without a condition, but has to be a DDMUNet2DModel with"
                " `conditioning_channels` of 1 or more."
            )
        if self.unet.config.num_class_embeds is not None:
            raise ValueError(
                f"`unet` has {self.unet.config.num_class_embeds} classes, but has to be conditioned on images alone."
            )
        if self.vae is not None and self.unet.config.conditioning_channels != self.unet.config.in_channels:
            raise ValueError(
                f"`unet` has {self.unet.config.conditioning_channels} `conditioning_channels`, but with a `vae` its condition"
                f" is an encoded image of {self.unet.config.in_channels} channels, as the target is."
            )
        multiple = self.tile_multiple
        if tile_size is None:
            if tile_overlap is not None:
                raise ValueError(f"`tile_overlap` is {tile_overlap!r}, but needs a `tile_size`.")
            return
        if not isinstance(tile_size, int) or tile_size < multiple or tile_size % multiple:
            raise ValueError(f"`tile_size` is {tile_size!r}, but has to be a positive multiple of {multiple}.")
        if tile_overlap is not None and not (
            isinstance(tile_overlap, int) and 0 <= tile_overlap <= tile_size - multiple
        ):
            raise ValueError(
                f"`tile_overlap` is {tile_overlap!r}, but has to be a whole number in [0, {tile_size - multiple}] for"
                f" tiles of {tile_size}."
            )

    @property
    def tile_multiple(self) -> int:
        """The pixels that tiles begin at multiples of: the model's grid, and that of a smaller condition."""
        return math.lcm(self.size_multiple, self.config.upscale)

    def prepare_condition(self, image: PipelineImageInput, height: int | None, width: int | None) -> torch.Tensor:
        """The condition in [-1, 1] at the size of the target, float32 on the CPU."""
        channels = self.unet.config.conditioning_channels if self.vae is None else self.vae.config.in_channels
        condition = 2 * read_images("image", image, channels) - 1
        upscale = self.config.upscale
        size = (height or upscale * condition.shape[2], width or upscale * condition.shape[3])
        for name, own, wanted in zip(("height", "width"), condition.shape[2:], size, strict=True):
            if own > wanted:
                raise ValueError(f"`{name}` is {wanted}, but has to be {own} or more, as that of the condition is.")
        return resize(condition, size)

    def encode_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """The condition as the model sees it: itself, or the mean of what the `vae` encodes it to."""
        return condition if self.vae is None else scale_latents(self.vae, encode_images(self.vae, condition).mean)

    def predict_tiles(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: torch.Tensor, tiles: list[Tile], progress_bar
    ) -> torch.Tensor:
        """What the model predicts for the whole image, blended from its tiles, of which one at a time is evaluated."""
        blended = None
        for tile in tiles:
            part = self.predict(tile.crop(latents), t, conditioning=tile.crop(conditioning))
            progress_bar.update()
            if blended is None:
                blended = at_least_float32(part).new_zeros(*part.shape[:2], *latents.shape[2:])
            tile.add(blended, part)
        return blended.to(latents.dtype)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: PipelineImageInput,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        ensemble_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDMImageToImagePipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | None = None,
    ) -> DDMImageToImagePipelineOutput | tuple:
        r"""
        Generate images from images.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of one of these):
                The conditions, of any size, all of one call of the same. Arrays are `(height, width, channels)`, tensors
                `(channels, height, width)`, or batches of them, in [0, 1] and with the model's `conditioning_channels`;
                PIL images are converted to grey or colour where these are 1 or 3.
            num_inference_steps (`int`, defaults to 10):
                The number of denoising steps, each of which evaluates the model exactly once (for each tile).
            guidance_scale (`float`, defaults to 1.0):
                Scale of classifier-free guidance (arXiv 2207.12598) on the condition: `without + guidance_scale * (with -
                without)`, where a condition of zeros (mid-grey) stands for none, as for a model that was trained with
                `--conditioning_dropout_prob`. 1.0 is the model as it is; others double the batch of each evaluation.
            num_images_per_prompt (`int`, defaults to 1):
                Images for each condition.
            height, width (`int`, *optional*, defaults to those of the condition times `upscale`):
                Of the result. A smaller condition is enlarged bicubically.
            tile_size (`int`, *optional*):
                Height and width of overlapping tiles in which the model sees a large image: at each step their
                predictions are blended to that of the whole. A multiple of `pipe.tile_multiple`; one tile at a time is
                evaluated, so that the memory of the model is that of a tile.
            tile_overlap (`int`, *optional*, defaults to a quarter of `tile_size`):
                By how many pixels neighbours overlap at least.
            ensemble_size (`int`, defaults to 1):
                For dense prediction: so many draws, one after the other, are averaged to an image, and their standard
                deviation is the `uncertainty` of the output.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for all, or one for each image, to make generation deterministic.
            latents (`torch.Tensor` of shape `(num_images, in_channels, height, width)`, *optional*):
                Standard normal noise to start from. Height and width are those of the result, rounded up to multiples of
                `pipe.size_multiple`, over `pipe.vae_scale_factor`.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` for a list of `PIL.Image.Image`, `"np"` for an array of shape `(num_images, height, width, channels)`
                or `"pt"` for a tensor of shape `(num_images, channels, height, width)`, both in [0, 1]; `"latent"` for the
                final sample as it is, padded to multiples of `pipe.size_multiple`, without an ensemble.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`DDMImageToImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step, of each draw of an ensemble, with `(pipeline, step_index, timestep, tensors)`; a
                dict that it returns replaces the tensors.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback is given, among `latents` and `pred_original_sample`, the step's estimate of the
                final sample.
            timesteps (`Sequence[float]`, *optional*):
                Custom timesteps in place of `num_inference_steps`, see [`DDMScheduler.set_timesteps`].

        Examples:

        Returns:
            [`DDMImageToImagePipelineOutput`] or `(images, uncertainty)`.

        Raises:
            ValueError: an argument is not as above; the message names it, its value and what is accepted.
        """
        # 1. Check inputs
        self.check_output_type(output_type, callback_on_step_end_tensor_inputs)
        self.check_inputs(
            height,
            width,
            guidance_scale,
            num_images_per_prompt,
            ensemble_size,
            latents,
            tile_size,
            tile_overlap,
            output_type,
        )
        conditioning = self.prepare_condition(image, height, width)
        height, width = conditioning.shape[2:]
        num_images = len(conditioning) * num_images_per_prompt
        self.check_generator(generator, num_images, "the {} images")
        conditioning = pad(conditioning, self.size_multiple)
        factor = self.vae_scale_factor
        shape = (num_images, self.unet.config.in_channels, *(side // factor for side in conditioning.shape[2:]))
        self.check_latents(latents, shape)
        device = self._execution_device

        # 2. Prepare timesteps
        run = self.prepare_timesteps(num_inference_steps, timesteps, device)
        self._guidance_scale = guidance_scale
        self._interrupt = False

        # 3. Prepare the tiles and the conditions of both halves of a guided batch
        if tile_size is not None and tile_overlap is None:
            tile_overlap = min(tile_size // 4, tile_size - self.tile_multiple)
        in_latents = (None if each is None else math.ceil(each / factor) for each in (tile_size, tile_overlap))
        tiles = make_tiles(*shape[2:], *in_latents, self.tile_multiple // factor)
        conditioning = conditioning.to(device)
        conditions = [torch.zeros_like(conditioning), conditioning]
        if not self.do_classifier_free_guidance:
            del conditions[0]
        conditioning = torch.cat(
            [self.encode_condition(each).repeat_interleave(num_images_per_prompt, dim=0) for each in conditions]
        ).to(self.unet.dtype)

        # 4. Denoising loop, for each draw
        mean, squares = 0.0, 0.0
        with self.progress_bar(total=ensemble_size * self.num_timesteps * len(tiles)) as progress_bar:
            for draw in range(ensemble_size):
                if self.interrupt:
                    break
                sample = self.prepare_latents(shape, generator, latents, device)
                for i, t in enumerate(run):
                    if self.interrupt:
                        continue
                    model_output = self.predict_tiles(sample, t, conditioning, tiles, progress_bar)
                    sample, pred_original_sample = self.scheduler.step(
                        model_output, t, sample, generator=generator, return_dict=False
                    )
                    if callback_on_step_end is not None:
                        available = {"latents": sample, "pred_original_sample": pred_original_sample}
                        tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                        sample = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", sample)
                if output_type == "latent":
                    break
                # the mean and the sum of squares around it, as they grow (Welford's algorithm)
                image = at_least_float32(self.decode_latents(sample)[..., :height, :width]).clamp(-1, 1)
                change = image - mean
                mean = mean + change / (draw + 1)
                squares = squares + change * (image - mean)

        # 5. Post-process
        if output_type == "latent":
            images = sample
        else:
            images = self.image_processor.postprocess(mean, output_type=output_type)
        uncertainty = None
        if ensemble_size > 1:
            # images in [0, 1] deviate half as much as those in [-1, 1]
            uncertainty = (squares / (ensemble_size - 1)).mean(dim=1, keepdim=True).sqrt() / 2
            if output_type != "pt":
                uncertainty = self.image_processor.pt_to_numpy(uncertainty)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, uncertainty)
        return DDMImageToImagePipelineOutput(images=images, uncertainty=uncertainty)
