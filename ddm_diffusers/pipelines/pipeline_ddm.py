# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import math
from collections.abc import Callable, Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..hub import HubPipelineMixin
from ..schedulers import DDMScheduler


OUTPUT_TYPES = ("pil", "np", "pt")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch

        >>> from ddm_diffusers import DDMPipeline

        >>> pipe = DDMPipeline.from_pretrained("user/ddm-fashion").to("cuda")
        >>> images = pipe(batch_size=4, num_inference_steps=10, generator=torch.manual_seed(0)).images
        >>> images[0].save("ddm.png")

        >>> # a class-conditional model, with classifier-free guidance
        >>> images = pipe(batch_size=4, class_labels=[0, 1, 2, 3], guidance_scale=2.0).images
        ```
"""


class DDMPipeline(HubPipelineMixin, DiffusionPipeline):
    r"""
    Pipeline for unconditional or class-conditional image generation with a decoupled diffusion model (arXiv
    2306.13720).

    This pipeline inherits from [`~diffusers.DiffusionPipeline`]. Check the superclass documentation for the generic
    methods implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        unet ([`DDMUNet2DModel`] or [`~diffusers.UNet2DModel`]):
            Predicts attenuation coefficients and noise. A plain `UNet2DModel` needs as many output channels.
        scheduler ([`DDMScheduler`]):
            The process that the model was trained on.
        vae ([`~diffusers.AutoencoderKL`] or another autoencoder of diffusers, *optional*):
            Decodes the samples, if the model works in a latent space.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    # diffusers reads the types of the components from here; not all of its releases understand unions
    def __init__(self, unet: UNet2DModel, scheduler: DDMScheduler, vae: ModelMixin = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.image_processor = VaeImageProcessor()
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def guidance_scale(self) -> float:
        """The `guidance_scale` of the running call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running call is guided."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `pipe._interrupt = True`, which skips the remaining steps."""
        return self._interrupt

    def check_inputs(
        self, batch_size, class_labels, guidance_scale, generator, latents, output_type, callback_tensor_inputs
    ):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}, but has to be a whole number of 1 or more.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}, but has to be one of {OUTPUT_TYPES}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of length {len(generator)}, but has to have one generator for each of the"
                f" {batch_size} images of `batch_size`."
            )
        shape = self._latents_shape(batch_size)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has the shape {tuple(latents.shape)}, but has to be of shape {shape}.")
        unknown = [name for name in callback_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` is {callback_tensor_inputs}, but its entries have to be among"
                f" {self._callback_tensor_inputs}."
            )

        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}, but has to be a finite number.")
        generators = generator if isinstance(generator, list) else [generator]
        if not all(isinstance(each, torch.Generator | None) for each in generators):
            raise ValueError(
                f"`generator` is {generator!r}, but has to be a torch.Generator, a list of them, or None."
            )
        for name in ("attenuation", "noise_schedule"):
            ours, theirs = self.unet.config.get(name), self.scheduler.config.get(name)
            if ours is not None and ours != theirs:
                raise ValueError(
                    f"`scheduler` is a {type(self.scheduler).__name__} with {name}={theirs!r}, but the model has"
                    f" {name}={ours!r} and needs a DDMScheduler of the same."
                )

        num_classes = self.unet.config.num_class_embeds
        if num_classes is None:
            if class_labels is not None:
                raise ValueError(
                    f"`class_labels` is {class_labels}, but the model has no classes and accepts only None."
                )
            if guidance_scale != 1.0:
                raise ValueError(
                    f"`guidance_scale` is {guidance_scale}, but a model without classes accepts only 1.0."
                )
            return
        if class_labels is None:
            raise ValueError(
                f"`class_labels` is None, but the model is class-conditional and needs labels in [0, {num_classes - 1}]."
            )
        if guidance_scale != 1.0 and getattr(self.unet, "no_class_label", None) is None:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but a {type(self.unet).__name__} accepts only 1.0: guidance"
                " needs the embedding of no class that a DDMUNet2DModel has."
            )

    def prepare_class_labels(
        self, class_labels: int | list[int] | torch.Tensor | None, batch_size: int, device: torch.device
    ) -> torch.Tensor | None:
        """Bring the labels to shape `(batch_size,)` on `device`, checked before they leave the CPU."""
        if class_labels is None:
            return None
        try:
            labels = torch.as_tensor(class_labels)
            whole = not labels.is_floating_point() and labels.dtype != torch.bool
        except (TypeError, ValueError, RuntimeError):
            whole = False
        if whole and labels.ndim == 0:
            labels = labels.expand(batch_size)
        if not whole or labels.shape != (batch_size,):
            raise ValueError(
                f"`class_labels` is {class_labels}, but has to be a whole number, or one for each of the {batch_size}"
                " images of `batch_size`."
            )
        num_classes = self.unet.config.num_class_embeds
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"`class_labels` is {class_labels}, but labels have to be in [0, {num_classes - 1}].")
        return labels.to(device=device, dtype=torch.long)

    def prepare_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Draw the noise that sampling starts from, or take the `latents` that were passed."""
        if latents is None:
            latents = randn_tensor(
                self._latents_shape(batch_size), generator=generator, device=device, dtype=self.unet.dtype
            )
        return latents.to(device=device, dtype=self.unet.dtype) * self.scheduler.init_noise_sigma

    def _latents_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("`unet.config.sample_size` is None, but the pipeline needs the size of the images there.")
        height, width = (size, size) if isinstance(size, int) else size
        return (batch_size, self.unet.config.in_channels, height, width)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] from the final sample: itself, or what the `vae` decodes from it."""
        if self.vae is None:
            return latents
        latents = latents / self.vae.config.scaling_factor
        if getattr(self.vae.config, "shift_factor", None) is not None:
            latents = latents + self.vae.config.shift_factor
        return self.vae.decode(latents.to(self.vae.dtype)).sample

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 10,
        class_labels: int | list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, defaults to 1):
                The number of images.
            num_inference_steps (`int`, defaults to 10):
                The number of denoising steps, each of which evaluates the model exactly once.
            class_labels (`int`, `list[int]` or `torch.Tensor` of shape `(batch_size,)`, *optional*):
                The class of each image, or one for all, in `[0, num_class_embeds - 1]`. Needed if, and only if, the
                model is class-conditional.
            guidance_scale (`float`, defaults to 1.0):
                Scale of classifier-free guidance (arXiv 2207.12598): `no_class + guidance_scale * (class - no_class)`.
                1.0 is the model as it is; any other value doubles the batch of each evaluation.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for all, or one for each image, to make generation deterministic.
            latents (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`, *optional*):
                Standard normal noise to start from, instead of drawing it with `generator`.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` for a list of `PIL.Image.Image`, `"np"` for an array of shape `(batch_size, height, width,
                channels)` or `"pt"` for a tensor of shape `(batch_size, channels, height, width)`, both in [0, 1].
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step with `(pipeline, step_index, timestep, tensors)`; a dict that it returns
                replaces the tensors.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback is given, among `latents`.

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `(images,)`.

        Raises:
            ValueError: an argument is not as above; the message names it, its value and what is accepted.
        """
        # 1. Check inputs
        self.check_inputs(
            batch_size,
            class_labels,
            guidance_scale,
            generator,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device
        class_labels = self.prepare_class_labels(class_labels, batch_size, device)

        # 2. Prepare timesteps; without a look-up of the first one, the loop never waits for the device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        self._guidance_scale = guidance_scale
        self._interrupt = False

        # 3. Prepare latents and the classes of both halves of a guided batch
        latents = self.prepare_latents(batch_size, generator, latents, device)
        model_kwargs = {}
        if class_labels is not None:
            if self.do_classifier_free_guidance:
                no_class = torch.full_like(class_labels, self.unet.no_class_label)
                class_labels = torch.cat([no_class, class_labels])
            model_kwargs["class_labels"] = class_labels

        # 4. Denoising loop
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                model_input = torch.cat([latents] * 2) if self.do_classifier_free_guidance else latents
                model_input = self.scheduler.scale_model_input(model_input, t)
                model_output = self.unet(model_input, t, **model_kwargs, return_dict=False)[0]
                if self.do_classifier_free_guidance:
                    output_no_class, output_class = model_output.chunk(2)
                    model_output = output_no_class + guidance_scale * (output_class - output_no_class)

                latents = self.scheduler.step(model_output, t, latents, generator=generator, return_dict=False)[0]

                if callback_on_step_end is not None:
                    available = {"latents": latents}
                    tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)
                progress_bar.update()

        # 5. Post-process
        image = self.decode_latents(latents)
        image = self.image_processor.postprocess(image, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)
