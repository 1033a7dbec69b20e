# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
from collections.abc import Callable, Sequence

import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import replace_example_docstring

from .pipeline_utils import DecoupledPipeline


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch

        >>> from ddm_diffusers import DDMPipeline

        >>> pipe = DDMPipeline.from_pretrained("user/ddm-fashion").to("cuda")
        >>> images = pipe(batch_size=4, num_inference_steps=10, generator=torch.manual_seed(0)).images
        >>> images[0].save("ddm.png")

        >>> # a class-conditional model, with classifier-free guidance
        >>> images = pipe(class_labels=[0, 1, 2, 3], guidance_scale=2.0).images
        >>> images = pipe(batch_size=4, class_labels="bag", guidance_scale=2.0).images  # one of the names in pipe.labels
        ```
"""


class DDMPipeline(DecoupledPipeline):
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
            Decodes the samples, if the model works in its latent space, that of its `scaling_factor`. The scheduler
            needs `clip_sample=False` then, as latents are not limited to [-1, 1].
    """

    def check_inputs(
        self, batch_size, class_labels, guidance_scale, generator, latents, output_type, callback_tensor_inputs
    ):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}, but has to be None or a whole number of 1 or more.")
        self.check_output_type(output_type, callback_tensor_inputs)
        self.check_generator(generator, batch_size)
        self.check_latents(latents, self._latents_shape(batch_size))
        self.check_scheduler()
        self.check_guidance_scale(guidance_scale)
        self.check_class_guidance(class_labels, guidance_scale)
        num_classes = self.unet.config.num_class_embeds
        if class_labels is None and num_classes is not None:
            raise ValueError(
                f"`class_labels` is None, but the model is class-conditional and needs labels from 0 to {num_classes - 1}"
                f"{' or names in `pipe.labels`' if self.labels else ''}."
            )

    def _latents_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("`unet.config.sample_size` is None, but the pipeline needs the size of the images there.")
        height, width = (size, size) if isinstance(size, int) else size
        return (batch_size, self.unet.config.in_channels, height, width)

    @staticmethod
    def default_batch_size(class_labels, latents: torch.Tensor | None) -> int:
        """As many images as there are labels or latents, otherwise 1."""
        for given in (class_labels, latents):
            if isinstance(given, (list, tuple)) or (torch.is_tensor(given) and given.ndim > 0):
                return len(given)
        return 1

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int = 10,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, *optional*):
                The number of images; by default that of the `class_labels` or the `latents`, or 1.
            num_inference_steps (`int`, defaults to 10):
                The number of denoising steps, each of which evaluates the model exactly once.
            class_labels (`int`, `str`, a list of them, or `torch.Tensor` of shape `(batch_size,)`, *optional*):
                The class of each image, or one for all: a label in `[0, num_class_embeds - 1]`, or a name in `pipe.labels`.
                Needed if, and only if, the model is class-conditional.
            guidance_scale (`float`, defaults to 1.0):
                Scale of classifier-free guidance (arXiv 2207.12598): `no_class + guidance_scale * (class - no_class)`.
                1.0 is the model as it is; any other value doubles the batch of each evaluation.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for all, or one for each image, to make generation deterministic.
            latents (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`, *optional*):
                Standard normal noise to start from, instead of drawing it with `generator`; of the size of the latents, with
                a `vae`.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` for a list of `PIL.Image.Image`, `"np"` for an array of shape `(batch_size, height, width,
                channels)` or `"pt"` for a tensor of shape `(batch_size, channels, height, width)`, both in [0, 1]; `"latent"`
                for the final sample as it is.
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step with `(pipeline, step_index, timestep, tensors)`; a dict that it returns
                replaces the tensors.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback is given, among `latents` and `pred_original_sample`, the step's estimate of the
                final sample.
            timesteps (`Sequence[float]`, *optional*):
                Custom timesteps in place of `num_inference_steps`, see [`DDMScheduler.set_timesteps`].

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `(images,)`.

        Raises:
            ValueError: an argument is not as above; the message names it, its value and what is accepted.
        """
        # 1. Check inputs
        if batch_size is None:
            batch_size = self.default_batch_size(class_labels, latents)
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

        # 2. Prepare timesteps
        timesteps = self.prepare_timesteps(num_inference_steps, timesteps, device)
        self._guidance_scale = guidance_scale
        self._interrupt = False

        # 3. Prepare latents and the classes of both halves of a guided batch
        latents = self.prepare_latents(self._latents_shape(batch_size), generator, latents, device)
        model_kwargs = self.prepare_class_kwargs(class_labels)

        # 4. Denoising loop
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                model_output = self.predict(latents, t, **model_kwargs)
                latents, pred_original_sample = self.scheduler.step(
                    model_output, t, latents, generator=generator, return_dict=False
                )
                if callback_on_step_end is not None:
                    available = {"latents": latents, "pred_original_sample": pred_original_sample}
                    tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)
                progress_bar.update()

        # 5. Post-process
        image = latents
        if output_type != "latent":
            image = self.image_processor.postprocess(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)
