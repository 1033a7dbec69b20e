# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
import math
from collections.abc import Callable, Sequence

import torch
from diffusers import ImagePipelineOutput, ModelMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..process import at_least_float32
from ..schedulers import DDMScheduler
from .images import pad, read_images
from .pipeline_utils import DecoupledPipeline


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image

        >>> from ddm_diffusers import DDMInpaintPipeline

        >>> pipe = DDMInpaintPipeline.from_pretrained("user/ddm-fashion").to("cuda")
        >>> image, mask = Image.open("shoe.png"), Image.open("mask.png")  # white where it is to be filled
        >>> filled = pipe(image, mask, num_inference_steps=10).images[0]
        ```
"""


def reconstruction_guidance(
    x_0: torch.Tensor, x: torch.Tensor, known: torch.Tensor, is_known: torch.Tensor, a: float, b: float
) -> torch.Tensor:
    r"""
    What to add to an estimate of the image, so that it goes by what is known of the image: for `x = a x_0 + b eps`,

        b^2 / a * grad log p(known | x) = (a^2 + b^2) / a * grad -|known - x_0|^2 / 2

    with the gradient by `x` and the norm over the known pixels. The left side is Tweedie's formula, which turns a change of
    the score into a change of the estimate. The known pixels are taken for Gaussian around the estimate, of the variance
    `b^2 / (a^2 + b^2)` that an image of unit variance has, given `x`: Song et al., "Pseudoinverse-Guided Diffusion Models
    for Inverse Problems", ICLR 2023. In another scale this is the reconstruction guidance of arXiv 2204.03458.

    Args:
        x_0 (`torch.Tensor` of shape `(batch_size, channels, ...)`):
            The estimate, a differentiable function of `x`. The graph is freed.
        x (`torch.Tensor` of the shape of `x_0`): The noisy images, which require their gradient.
        known (`torch.Tensor` of the shape of `x_0`): The image, whose other pixels do not matter.
        is_known (`torch.Tensor`, which broadcasts against `x_0`): Booleans, where it is known.
        a, b (`float`): How much of image and noise `x` holds; `a` above 0.

    Returns:
        `torch.Tensor` of the shape of `x_0`.
    """
    distance = torch.where(is_known, known - x_0, 0).square().sum() / 2
    (gradient,) = torch.autograd.grad(distance, x)
    return -(a**2 + b**2) / a * gradient


class DDMInpaintPipeline(DecoupledPipeline):
    r"""
    Pipeline for inpainting with a decoupled diffusion model (arXiv 2306.13720) that was trained to generate images and
    nothing else.

    At every step the known pixels are those of the exact forward process of the given image, along one path of its noise:
    the path ends in the noise that sampling begins with, and a Wiener path that is known at two times is a Brownian bridge
    in between. The model fills in the rest. With `num_resampling_steps` each step is taken back by the forward process
    and taken again, as RePaint does (arXiv 2201.09865), so that both parts agree better. With
    `reconstruction_guidance_scale` the model's estimate of the image is led to what is known of it.

    This pipeline inherits from [`~diffusers.DiffusionPipeline`]. Check the superclass documentation for the generic
    methods implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        unet ([`DDMUNet2DModel`] or [`~diffusers.UNet2DModel`]):
            An unconditional or class-conditional model.
        scheduler ([`DDMScheduler`]):
            The process that the model was trained on, or one that takes over a model of another process.
        vae (`None`, *optional*):
            Latent spaces are not supported yet.

    Raises:
        ValueError: a `vae` is given.
    """

    pipeline_tag = "image-to-image"
    image_arguments = ("image", "mask_image")

    def __init__(self, unet: UNet2DModel, scheduler: DDMScheduler, vae: ModelMixin = None):
        super().__init__(unet, scheduler, vae)
        self.refuse_vae()
        self.mask_processor = VaeImageProcessor(do_resize=False, do_normalize=False, do_binarize=True)

    def check_inputs(
        self, class_labels, guidance_scale, reconstruction_guidance_scale, num_images_per_prompt, num_resampling_steps
    ):
        for name, value, least in (
            ("num_images_per_prompt", num_images_per_prompt, 1),
            ("num_resampling_steps", num_resampling_steps, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is {value!r}, but has to be a whole number of {least} or more.")
        self.check_scheduler()
        if self.unet.config.get("conditioning_channels"):
            raise ValueError(
                f"`unet` has {self.unet.config.conditioning_channels} `conditioning_channels`, but has to be a model"
                " without a condition; DDMImageToImagePipeline takes others."
            )
        self.check_guidance_scale(guidance_scale)
        scale = reconstruction_guidance_scale
        if not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            raise ValueError(
                f"`reconstruction_guidance_scale` is {scale!r}, but has to be a finite number of 0 or more."
            )
        if scale > 0 and torch.is_inference_mode_enabled():
            raise ValueError(
                f"`reconstruction_guidance_scale` is {scale}, but within `torch.inference_mode()` it has to be 0: there are no"
                " gradients. `torch.no_grad()` does not matter."
            )
        self.check_class_guidance(class_labels, guidance_scale)
        if class_labels is None and self.unet.config.num_class_embeds is not None:
            if getattr(self.unet, "no_class_label", None) is None:
                raise ValueError(
                    f"`class_labels` is None, but a {type(self.unet).__name__} with classes needs labels: only a"
                    " DDMUNet2DModel has an embedding of no class."
                )
            if guidance_scale != 1.0:
                raise ValueError(f"`guidance_scale` is {guidance_scale}, but without `class_labels` it has to be 1.0.")

    def prepare_images(
        self, image: PipelineImageInput, mask_image: PipelineImageInput
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images in [0, 1] and the masks, 1 where they are to be filled, one for each of them, on the CPU."""
        image = read_images("image", image, self.unet.config.in_channels)
        mask = self.mask_processor.binarize(read_images("mask_image", mask_image, 1))
        if mask.shape[2:] != image.shape[2:]:
            raise ValueError(
                f"`mask_image` has the height and width {tuple(mask.shape[2:])}, but has to be of the size of the image,"
                f" {tuple(image.shape[2:])}."
            )
        if len(mask) not in (1, len(image)):
            raise ValueError(
                f"`mask_image` has {len(mask)} masks, but has to have one, or one for each of the {len(image)} images."
            )
        if not mask.flatten(1).any(dim=1).all():
            raise ValueError(
                "`mask_image` has no pixel of 0.5 or more, but has to be white where the image is to be filled."
            )
        return image, mask.expand(len(image), -1, -1, -1)

    def path(self) -> tuple[list[tuple[float, float]], list[float], list[float]]:
        """
        Of all samples of a run, the final one included: how much of image and noise they hold, their times on the decoupled
        path, and the factors that bring them to its scale.
        """
        scheduler = self.scheduler
        a, b = scheduler.parameterization.scales(scheduler.timesteps.cpu().double())
        scales = [*zip(a.tolist(), b.tolist(), strict=True), (1.0, 0.0)]
        times, factors = ([make(*each) for each in scales] for make in (scheduler.process.time, scheduler.path_scale))
        return scales, times, factors

    def predict_by_known(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        known: torch.Tensor,
        is_known: torch.Tensor,
        scale: float,
        a: float,
        b: float,
        **model_kwargs,
    ) -> torch.Tensor:
        """
        What the model predicts, with the estimate of the image that it stands for moved to what is known of it, by a pass
        backwards through the model. See [`reconstruction_guidance`].
        """
        parameterization = self.scheduler.parameterization
        with torch.enable_grad():
            x = at_least_float32(latents).detach().requires_grad_()
            model_output = at_least_float32(self.predict(x.to(latents.dtype), timestep, **model_kwargs))
            x_0 = parameterization.estimate(model_output, x, a, b).x_0
            change = scale * reconstruction_guidance(x_0, x, known, is_known, a, b)
        # the same latents with another image have another noise; all outputs are linear in both
        change = parameterization.output(change, -a / b * change, a, b)
        return (model_output.detach() + change).to(latents.dtype)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        num_inference_steps: int = 10,
        num_resampling_steps: int = 0,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        reconstruction_guidance_scale: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDMInpaintPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Fill parts of images.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of one of these):
                The images, of any size, all of one call of the same. Arrays are `(height, width, channels)`, tensors
                `(channels, height, width)`, or batches of them, in [0, 1] and with the channels of the model; PIL images are
                converted to grey or colour.
            mask_image (as `image`, of 1 channel):
                One mask for all images or one for each, of their size: 0.5 or more (white) where they are to be filled. What
                is below comes back as it is.
            num_inference_steps (`int`, defaults to 10):
                The number of denoising steps.
            num_resampling_steps (`int`, defaults to 0):
                How often each step is taken back and taken again. The model is evaluated `num_inference_steps * (1 +
                num_resampling_steps)` times.
            class_labels (`int`, `str`, a list of them, or `torch.Tensor` of shape `(num_images,)`, *optional*):
                The class of each image, or one for all: a label in `[0, num_class_embeds - 1]`, or a name in `pipe.labels`,
                for a class-conditional model. `None` leaves it to the pixels, by the embedding of no class.
            guidance_scale (`float`, defaults to 1.0):
                Scale of classifier-free guidance (arXiv 2207.12598) on the class; values other than 1.0 double the batch
                of each evaluation.
            reconstruction_guidance_scale (`float`, defaults to 0.0):
                How far the model's estimate of the image is moved at each step but the first, so that it agrees with the known
                pixels (pseudo-inverse guidance, see [`reconstruction_guidance`]): 1.0 as derived
                there, 0.0 for not at all. Above 0 each evaluation is followed by a pass backwards through the model, which
                takes about as long again or longer, and the memory of a training step.
            num_images_per_prompt (`int`, defaults to 1):
                Results for each image.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for all, or one for each result, to make generation deterministic.
            latents (`torch.Tensor` of shape `(num_images, in_channels, height, width)`, *optional*):
                Standard normal noise to start from. Height and width are those of the image, rounded up to multiples of
                `pipe.size_multiple`.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` for a list of `PIL.Image.Image`, `"np"` for an array of shape `(num_images, height, width, channels)`
                or `"pt"` for a tensor of shape `(num_images, channels, height, width)`, both in [0, 1]; `"latent"` for the
                final sample as it is, padded to multiples of `pipe.size_multiple`.
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step, once it is not taken back any more, with `(pipeline, step_index, timestep,
                tensors)`; a dict that it returns replaces the tensors.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback is given, among `latents` and `pred_original_sample`, the step's estimate of the
                image.
            timesteps (`Sequence[float]`, *optional*):
                Custom timesteps in place of `num_inference_steps`, see [`DDMScheduler.set_timesteps`].

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `(images,)`.

        Raises:
            ValueError: an argument is not as above; the message names it, its value and what is accepted.
        """
        # 1. Check inputs
        self.check_output_type(output_type, callback_on_step_end_tensor_inputs)
        self.check_inputs(
            class_labels, guidance_scale, reconstruction_guidance_scale, num_images_per_prompt, num_resampling_steps
        )
        given, mask = self.prepare_images(image, mask_image)
        given, mask = (each.repeat_interleave(num_images_per_prompt, dim=0) for each in (given, mask))
        height, width = given.shape[2:]
        self.check_generator(generator, len(given), "the {} images")
        device = self._execution_device
        if class_labels is None:
            no_class = self.unet.config.num_class_embeds is not None
            labels = torch.full((len(given),), self.unet.no_class_label, device=device) if no_class else None
        else:
            labels = self.prepare_class_labels(class_labels, len(given), device)
        # what is padded is filled as well
        known = pad(2 * given - 1, self.size_multiple).to(device)
        fill = torch.ones_like(known[:, :1], dtype=torch.bool)
        fill[..., :height, :width] = mask.to(device) > 0
        self.check_latents(latents, tuple(known.shape))

        # 2. Prepare timesteps
        run = self.prepare_timesteps(num_inference_steps, timesteps, device)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        scales, times, factors = self.path()

        # 3. Prepare latents and the forward process of the image, whose noise at t is `noise`
        process = self.scheduler.process
        latents = self.prepare_latents(tuple(known.shape), generator, latents, device)
        model_kwargs = self.prepare_class_kwargs(labels)
        attenuation = self.scheduler.get_attenuation(known, generator)
        noise = at_least_float32(latents) / self.scheduler.init_noise_sigma

        def keep_known(latents, noise, index):
            """The latents at a time of the path, with the known pixels as the forward process has them there."""
            x_t = process.marginal(known, attenuation, noise, times[index]) / factors[index]
            return torch.where(fill, latents, x_t.to(latents.dtype))

        def draw():
            return randn_tensor(known.shape, generator=generator, device=device, dtype=torch.float32)

        latents = keep_known(latents, noise, 0)

        # 4. Denoising loop
        with self.progress_bar(total=self.num_timesteps * (1 + num_resampling_steps)) as progress_bar:
            for i, timestep in enumerate(run):
                if self.interrupt:
                    continue
                t, s = times[i : i + 2]
                # the same path whenever the step is taken again: a bridge between what is known at 0 and t
                noise_t = noise
                if s > 0:
                    kept, std = process.bridge_scales(s, t)
                    noise = (kept * noise_t + std * draw()) / process.sigma(s)
                for again in range(num_resampling_steps, -1, -1):
                    # at first there is only noise, which tells nothing of the image
                    if reconstruction_guidance_scale > 0 and i > 0:
                        model_output = self.predict_by_known(
                            latents, timestep, known, ~fill, reconstruction_guidance_scale, *scales[i], **model_kwargs
                        )
                    else:
                        model_output = self.predict(latents, timestep, **model_kwargs)
                    progress_bar.update()
                    latents, pred_original_sample = self.scheduler.step(
                        model_output, timestep, latents, generator=generator, return_dict=False
                    )
                    latents = keep_known(latents, noise, i + 1)
                    if again:
                        # constant attenuation is told by the image, linear by the model alone
                        coefficients = model_output[:, : -latents.shape[1]]
                        if process.attenuation == "constant":
                            coefficients = process.coefficients(pred_original_sample)
                        mean, std = process.transition(latents * factors[i + 1], coefficients, s, t)
                        latents = ((mean + std * draw()) / factors[i]).to(latents.dtype)
                        latents = keep_known(latents, noise_t, i)
                if callback_on_step_end is not None:
                    available = {"latents": latents, "pred_original_sample": pred_original_sample}
                    tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, timestep, tensors) or {}).get("latents", latents)

        # 5. Post-process; the known pixels as they were given
        image = latents
        if output_type != "latent":
            result = at_least_float32(latents)[..., :height, :width].cpu()
            result = torch.where(mask > 0, (result / 2 + 0.5).clamp(0, 1), given)
            image = self.image_processor.postprocess(result, output_type, do_denormalize=[False] * len(result))
        self.maybe_free_model_hooks()
        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)
