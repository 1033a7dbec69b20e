# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines share: their components, the checks of what they are given, and the steps."""

import difflib
import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from ..hub import HubPipelineMixin
from ..latents import decode_latents, latent_scale_factor
from ..schedulers import DDMScheduler


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class DecoupledPipeline(HubPipelineMixin, DiffusionPipeline):
    """
    The base of the pipelines of this package.

    Args:
        unet ([`DDMUNet2DModel`] or [`~diffusers.UNet2DModel`]): The model.
        scheduler ([`DDMScheduler`]): The process that the model was trained on.
        vae ([`~diffusers.AutoencoderKL`] or another autoencoder of diffusers, *optional*):
            Of the model's latent space. The scheduler must not clip to the range of images then.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    # diffusers reads the types of the components from here; not all of its releases understand unions
    def __init__(self, unet: UNet2DModel, scheduler: DDMScheduler, vae: ModelMixin = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.image_processor = VaeImageProcessor()
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "DecoupledPipeline":
        """
        A pipeline with the components of another one, see [`~diffusers.DiffusionPipeline.from_pipe`].

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): A pipeline with a `unet` and a `scheduler`.
            kwargs: Components and options that replace those of `pipeline`.
        """
        # diffusers leaves out models that are not of the very class of the type hint
        for name in ("unet", "vae"):
            if pipeline.components.get(name) is not None:
                kwargs.setdefault(name, pipeline.components[name])
        return super().from_pipe(pipeline, **kwargs)

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

    @property
    def vae_scale_factor(self) -> int:
        """How many times smaller than the images the model's input is, in height and width: 1 without a `vae`."""
        return 1 if self.vae is None else latent_scale_factor(self.vae)

    @property
    def size_multiple(self) -> int:
        """What height and width of the images are multiples of, by what the model and the `vae` halve them."""
        if hasattr(self.unet, "size_multiple"):
            return self.vae_scale_factor * self.unet.size_multiple
        return self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def enable_vae_slicing(self) -> None:
        """Decode one image at a time, in less memory."""
        self._require_vae().enable_slicing()

    def disable_vae_slicing(self) -> None:
        self._require_vae().disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large images in tiles, in the memory of one."""
        self._require_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        self._require_vae().disable_tiling()

    def _require_vae(self) -> ModelMixin:
        if self.vae is None:
            raise ValueError(
                "`vae` is None, but slices and tiles are of an autoencoder: a model of pixels has nothing to decode."
            )
        return self.vae

    # ------------------------------------------------------------------------------------------------------------- checks
    def refuse_vae(self) -> None:
        if self.vae is not None:
            raise ValueError(
                f"`vae` is a {type(self.vae).__name__}, but a {type(self).__name__} works on pixels and accepts only None."
            )

    def check_output_type(self, output_type: str, callback_tensor_inputs: Sequence[str]) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}, but has to be one of {OUTPUT_TYPES}.")
        unknown = [name for name in callback_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` is {callback_tensor_inputs}, but its entries have to be among"
                f" {self._callback_tensor_inputs}."
            )

    def check_generator(self, generator, batch_size: int, whose: str = "the {} images of `batch_size`") -> None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of length {len(generator)}, but has to have one generator for each of"
                f" {whose.format(batch_size)}."
            )
        generators = generator if isinstance(generator, list) else [generator]
        if not all(isinstance(each, torch.Generator | None) for each in generators):
            raise ValueError(
                f"`generator` is {generator!r}, but has to be a torch.Generator, a list of them, or None."
            )

    def check_latents(self, latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has the shape {tuple(latents.shape)}, but has to be of shape {shape}.")

    def check_guidance_scale(self, guidance_scale: float) -> None:
        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}, but has to be a finite number.")

    def check_scheduler(self) -> None:
        """That scheduler and model belong together."""
        if not isinstance(self.scheduler, DDMScheduler):
            raise ValueError(
                f"`scheduler` is a {type(self.scheduler).__name__}, but has to be a DDMScheduler: set `pipe.scheduler ="
                " DDMScheduler.from_config(pipe.scheduler.config)`."
            )
        ours, theirs = self.unet.config, self.scheduler.config
        if "attenuation" in ours:
            wanted = {key: ours[key] for key in ("attenuation", "noise_schedule", "num_train_timesteps")}
            for name, value in {"prediction_type": "decoupled", **wanted}.items():
                if theirs[name] != value:
                    options = ", ".join(f"{key}={each!r}" for key, each in wanted.items())
                    raise ValueError(
                        f"`scheduler` is a DDMScheduler with {name}={theirs[name]!r}, but the model needs {name}={value!r}:"
                        f" set `pipe.scheduler = DDMScheduler({options})`."
                    )
        elif "out_channels" in ours:
            channels = ours.in_channels
            accepted = [channels * quantity for quantity in self.scheduler.parameterization.quantities]
            if ours.out_channels not in accepted:
                raise ValueError(
                    f"`unet` has {channels} input and {ours.out_channels} output channels, but with"
                    f" `prediction_type={theirs.prediction_type!r}` the scheduler needs {' or '.join(map(str, accepted))} output"
                    " channels. For a model of another process make the scheduler by `DDMScheduler.from_config(config)`, with"
                    " the config of the scheduler that the model was trained with."
                )
        config = self.scheduler.config
        if self.vae is not None and config.get("clip_sample") and config.get("clip_sample_range", 1.0) <= 1:
            raise ValueError(
                "`scheduler` has clip_sample=True and a clip_sample_range of"
                f" {config.get('clip_sample_range', 1.0)}, which is for images, but latents go beyond: it has to be"
                f" {type(self.scheduler).__name__}.from_config(pipe.scheduler.config, clip_sample=False), or of a larger range."
            )

    def check_class_guidance(self, class_labels, guidance_scale: float) -> None:
        """That labels and guidance suit the model's classes, if it has any."""
        if self.unet.config.num_class_embeds is None:
            if class_labels is not None:
                raise ValueError(
                    f"`class_labels` is {class_labels}, but the model has no classes and accepts only None."
                )
            if guidance_scale != 1.0:
                raise ValueError(
                    f"`guidance_scale` is {guidance_scale}, but a model without classes accepts only 1.0."
                )
        elif guidance_scale != 1.0 and getattr(self.unet, "no_class_label", None) is None:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but a {type(self.unet).__name__} accepts only 1.0: guidance"
                " needs the embedding of no class that a DDMUNet2DModel has."
            )

    # -------------------------------------------------------------------------------------------------------- preparation
    @property
    def labels(self) -> dict[str, int]:
        """From the name of each class to its label, as the `id2label` of the model has them; empty without names."""
        return {name: int(label) for label, name in (self.unet.config.get("id2label") or {}).items()}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """
        The labels of classes by their names, as [`~diffusers.DiTPipeline.get_label_ids`].

        Args:
            label (`str` or `Sequence[str]`): One name, or several.

        Raises:
            ValueError: a name is none of `labels`.
        """
        return [self._label_id(name) for name in ([label] if isinstance(label, str) else label)]

    def _label_id(self, name: str) -> int:
        labels = self.labels
        if name in labels:
            return labels[name]
        if not labels:
            raise ValueError(
                f"`class_labels` has the name {name!r}, but the model has no class names (`id2label` in its config): use"
                f" numbers from 0 to {self.unet.config.num_class_embeds - 1}."
            )
        # similar names first, whatever their case
        folded = {each.casefold(): each for each in reversed(labels)}
        close = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded)]
        names = list(map(repr, dict.fromkeys([*close, *labels])))
        more = f" and {len(names) - 50} more, see `pipe.labels`" if len(names) > 50 else ""
        raise ValueError(f"`class_labels` has the name {name!r}, but the classes are {', '.join(names[:50])}{more}.")

    def prepare_class_labels(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None,
        batch_size: int,
        device: torch.device,
    ) -> torch.Tensor | None:
        """Bring the labels to shape `(batch_size,)` on `device`, checked before they leave the CPU."""
        if class_labels is None:
            return None
        ids = class_labels
        if isinstance(class_labels, str):
            ids = self._label_id(class_labels)
        elif isinstance(class_labels, (list, tuple)):
            ids = [self._label_id(each) if isinstance(each, str) else each for each in class_labels]
        try:
            labels = torch.as_tensor(ids)
            whole = not labels.is_floating_point() and labels.dtype != torch.bool
        except (TypeError, ValueError, RuntimeError):
            whole = False
        if whole and labels.ndim == 0:
            labels = labels.expand(batch_size)
        if not whole or labels.shape != (batch_size,):
            raise ValueError(
                f"`class_labels` is {class_labels}, but has to be one whole number or class name for all images, or a list of"
                f" {batch_size}, one for each image."
            )
        num_classes = self.unet.config.num_class_embeds
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"`class_labels` is {class_labels}, but labels go from 0 to {num_classes - 1}.")
        return labels.to(device=device, dtype=torch.long)

    def prepare_class_kwargs(self, class_labels: torch.Tensor | None) -> dict:
        """What the model is told about the classes, of both halves of a guided batch."""
        if class_labels is None:
            return {}
        if self.do_classifier_free_guidance:
            class_labels = torch.cat([torch.full_like(class_labels, self.unet.no_class_label), class_labels])
        return {"class_labels": class_labels}

    def prepare_latents(
        self,
        shape: tuple[int, int, int, int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Draw the noise that sampling starts from, or take the `latents` that were passed."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        return latents.to(device=device, dtype=self.unet.dtype) * self.scheduler.init_noise_sigma

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] from the final sample: itself, or what the `vae` decodes from it."""
        return latents if self.vae is None else decode_latents(self.vae, latents)

    def prepare_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[float] | None, device: torch.device
    ) -> torch.Tensor:
        """The timesteps of a run: the given ones, or `num_inference_steps` of the scheduler's grid."""
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps, device=device)
        self.scheduler.set_begin_index(0)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    # ----------------------------------------------------------------------------------------------------------- denoising
    def predict(self, latents: torch.Tensor, t: torch.Tensor, **model_kwargs) -> torch.Tensor:
        """
        One evaluation of the model. With guidance its batch is twice that of the latents, and so are the `model_kwargs`:
        first without the condition, then with it.
        """
        guided = self.do_classifier_free_guidance
        model_input = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        model_output = self.unet(model_input, t, **model_kwargs, return_dict=False)[0]
        if guided:
            without, with_condition = model_output.chunk(2)
            model_output = without + self.guidance_scale * (with_condition - without)
        return model_output
