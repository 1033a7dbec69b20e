# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the models share that predict both parts of a decoupled process: all but the network itself."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput

from ..hub import HubModelMixin
from ..process import DecoupledProcess, at_least_float32, broadcast_time
from ..schedulers.parameterizations import VariancePreserving, check_range, from_scheduler, make_scheduler
from .preconditioning import precondition, precondition_ddm, precondition_velocity


# The options of DDPMScheduler that describe the process which weights were trained on before
BASE_OPTIONS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)

# The least share of the image by which a predicted noise is divided. With less of it the noise says little of the image.
SMALLEST_ALPHA = 0.1


@dataclass
class DDMUNet2DOutput(BaseOutput):
    """
    The output of [`DDMUNet2DModel`] and of the other models of this package.

    Args:
        sample (`torch.Tensor` of shape `(batch_size, (num_coefficients + 1) * channels, height, width)`):
            Attenuation coefficients and noise, concatenated on dim 1: what [`DDMScheduler.step`] takes.
        attenuation (`torch.Tensor` of shape `(batch_size, num_coefficients * channels, height, width)`):
            The attenuation coefficients, a view of `sample`.
        noise (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            The noise, a view of `sample`.
    """

    sample: torch.Tensor
    attenuation: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class DualOutputMixin(HubModelMixin):
    """
    Makes a model of diffusers one that predicts attenuation coefficients and noise (arXiv 2306.13720).

    It stands in front of that model among the bases. The config of the class has the options of the model and
    `attenuation`, `noise_schedule`, `num_heads`, `precondition`, `sigma_data`, `num_train_timesteps` and `base_scheduler`. A
    class with `num_class_embeds` may have `id2label` as well.
    Its `in_channels` and `out_channels` are those from outside; inside, the network predicts fewer fields where one of
    them makes both outputs.
    """

    def _init_trunk(self, trunk: type, **changes) -> None:
        """
        Initialise the network by the options in the config, with `changes` to them. The trunk registers its options as
        well; the config is put back as the user wrote it, with what `None` stands for where that depends on other options.
        """
        config = dict(self.config)
        process = DecoupledProcess(config["attenuation"], config["noise_schedule"])
        if config["precondition"] is None:
            straight = process.attenuation == "constant" and config["base_scheduler"] is None
            config["precondition"] = "velocity" if straight else True
        out_channels = config["out_channels"] or (process.num_coefficients + 1) * config["in_channels"]
        _check_options(config, process, out_channels)
        if config.get("id2label") is not None:
            config["id2label"] = _class_names(config)
        if "out_channels" not in changes:
            num_fields = 1 if config["num_heads"] == 1 else process.num_coefficients + 1
            changes["out_channels"] = num_fields * (out_channels // (process.num_coefficients + 1))
        options = {name: config.get(name) for name in inspect.signature(trunk).parameters}
        super().__init__(**{**options, **changes})
        self._internal_dict = FrozenDict({**config, "out_channels": out_channels})
        self.process = process
        self.base = None if config["base_scheduler"] is None else base_parameterization(config["base_scheduler"])

    @property
    def num_channels(self) -> int:
        """Channels of the noisy sample, and of each predicted quantity."""
        return self.config.out_channels // (self.process.num_coefficients + 1)

    def _predict(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        conditioning: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDMUNet2DOutput | tuple:
        """
        The outputs that `network(input, timesteps)` makes between the scales of the process.

        Args:
            network (`Callable`):
                Returns the raw fields, concatenated on dim 1, of an input in the dtype of the weights and timesteps of
                shape `(batch_size,)`, in float32 or better.
            sample (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): The noisy samples `x_t`.
            timestep (`float`, `int` or `torch.Tensor`, 0-d or of shape `(batch_size,)`): `t * num_train_timesteps`.
            conditioning (`torch.Tensor` of shape `(batch_size, channels, height, width)`, *optional*):
                What is concatenated to the input as it is.
            return_dict (`bool`, defaults to `True`): Whether to return a [`DDMUNet2DOutput`] instead of a tuple.
        """
        # 1. time, as float32 (float64 where the sample is) so that no part of it is lost
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if torch.is_tensor(timestep):
            timesteps = timestep.to(device=sample.device, dtype=dtype).expand(sample.shape[0])
        else:
            timesteps = torch.full((sample.shape[0],), timestep, device=sample.device, dtype=dtype)
        check_range("timestep", timesteps, 0, self.config.num_train_timesteps)
        t = timesteps / self.config.num_train_timesteps
        scales, scaled = None, sample
        if self.config.precondition:
            if self.config.precondition == "velocity":
                scales = precondition_velocity(self.process, t)
            elif self.config.precondition == "ddm":
                scales = precondition_ddm(self.process, t, self.config.num_heads)
            else:
                scales = precondition(self.process, t, self.config.sigma_data)
            scaled = scales.scale_input(sample)

        # 2. the network
        network_input = scaled
        if conditioning is not None:
            network_input = torch.cat([scaled, conditioning.to(scaled.dtype)], dim=1)
        network_input = network_input.to(self.dtype)
        if self.base is None:
            raw = network(network_input, timesteps)
        else:
            # The same state but for its scale, a x_0 + b eps with a^2 + b^2 = 1, which scaling the input by c_in made of it.
            # The raw target of both outputs is a eps - b x_0 then, the v of arXiv 2202.00512: (eps - b x) / a.
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            a, b = (each / (alpha**2 + sigma**2) ** 0.5 for each in (alpha, sigma))
            raw = network(network_input, self.base.timesteps_at(a, b))
            if self.base.prediction_type == "epsilon":
                a, b = broadcast_time(a, scaled), broadcast_time(b, scaled)
                x = torch.cat([scaled] * (raw.shape[1] // scaled.shape[1]), dim=1)
                raw = (at_least_float32(raw) - b * x) / a.clamp_min(SMALLEST_ALPHA)

        # 3. its outputs as attenuation and noise
        if scales is not None:
            num_outputs = self.process.num_coefficients + 1
            fields = (raw,) * num_outputs if self.config.num_heads == 1 else raw.chunk(num_outputs, dim=1)
            raw = scales.scale_output(sample, fields)
        output = raw.to(sample.dtype)

        if not return_dict:
            return (output,)
        channels = sample.shape[1]
        return DDMUNet2DOutput(sample=output, attenuation=output[:, :-channels], noise=output[:, -channels:])

    @classmethod
    def _from_trained(
        cls, unet: torch.nn.Module, trunk: type, scheduler, options: dict, adapt: Callable | None = None
    ) -> "DualOutputMixin":
        """
        The model with the weights of a trained one.

        Args:
            unet (`torch.nn.Module`): The trained model.
            trunk (`type`): The class whose options it has.
            scheduler (scheduler of diffusers, *optional*): That of the trained model.
            options (`dict`): Options that the trained model does not have, or that are to differ.
            adapt (`Callable`, *optional*):
                `adapt(model, weights)` brings the trained weights to other names and shapes, except for those of the last
                convolution.
        """
        config = {name: unet.config[name] for name in inspect.signature(trunk).parameters if name != "out_channels"}
        if config.get("num_train_timesteps", 0) is None:
            del config["num_train_timesteps"]
        if scheduler is not None:
            config["base_scheduler"] = base_options(scheduler)
        model = cls(**{**config, **options})

        trained, weights = unet.state_dict(), model.state_dict()
        if adapt is not None:
            trained = adapt(model, trained)
        for name, weight in trained.items():
            if name.removeprefix("noise_").startswith("conv_out."):
                # every output starts from the same one
                num_fields = len(weights[name]) // model.num_channels
                weight = weight[: model.num_channels].repeat(num_fields, *(1 for _ in weight.shape[1:]))
            if name not in weights or weights[name].shape != weight.shape:
                shape = tuple(weights[name].shape) if name in weights else None
                raise ValueError(
                    f"`options` is {options}, but with them the trained weight `{name}` of shape {tuple(weight.shape)}"
                    f" does not fit the model, which has {shape} there. Leave the options of the trunk as they are."
                )
            weights[name] = weight
        model.load_state_dict(weights)
        model = model.to(unet.device)
        return model if model.dtype == unet.dtype else model.to(unet.dtype)


def base_parameterization(options: dict) -> VariancePreserving:
    """
    The process that weights were trained on before, so that a model which starts from them starts from what they predict.

    Args:
        options (`dict`): Options of [`~diffusers.DDPMScheduler`], those in `BASE_OPTIONS`.

    Raises:
        ValueError: An option is unknown, or the `prediction_type` another than `"epsilon"` or `"v_prediction"`.
    """
    if unknown := options.keys() - set(BASE_OPTIONS):
        raise ValueError(f"`base_scheduler` has {sorted(unknown)}, but its options have to be among {BASE_OPTIONS}.")
    prediction_type = options.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"`base_scheduler` has the `prediction_type` {prediction_type!r}, but it has to be 'epsilon' or 'v_prediction'."
        )
    return VariancePreserving(make_scheduler("DDPMScheduler", options).alphas_cumprod, prediction_type)


def base_options(scheduler) -> dict:
    """
    The options of [`~diffusers.DDPMScheduler`] that describe the process of a scheduler's models.

    Raises:
        ValueError: The scheduler is none that samples models of a variance-preserving process.
    """
    parameterization = from_scheduler(scheduler)
    if not isinstance(parameterization, VariancePreserving):
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__} with {dict(scheduler.config)}, but has to be None or a scheduler of"
            " diffusers whose process is given by a `beta_schedule`."
        )
    options = {key: scheduler.config[key] for key in BASE_OPTIONS if key in scheduler.config}
    theirs = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float64)
    try:
        ours = make_scheduler("DDPMScheduler", options).alphas_cumprod
    except NotImplementedError:  # a `beta_schedule` that DDPMScheduler does not have
        ours = None
    if ours is None or not torch.allclose(ours.double(), theirs, rtol=1e-5, atol=0):
        previous = torch.cat([theirs.new_ones(1), theirs[:-1]])
        options |= {"trained_betas": (1 - theirs / previous).tolist(), "rescale_betas_zero_snr": False}
        options.pop("beta_schedule", None)
    return options


def check_trained(unet: torch.nn.Module, trunk: type) -> None:
    """That a trained model is one of diffusers' own class."""
    if not isinstance(unet, trunk) or isinstance(unet, DualOutputMixin):
        raise ValueError(
            f"`unet` is a {type(unet).__name__}, but has to be a {trunk.__name__}, neither compiled nor one that"
            " predicts attenuation and noise already."
        )


def check_sample(sample: torch.Tensor, in_channels: int) -> None:
    """That a sample is `(batch_size, in_channels, height, width)`."""
    if sample.ndim != 4 or sample.shape[1] != in_channels:
        raise ValueError(
            f"`sample` has the shape {tuple(sample.shape)}, but has to be of shape"
            f" (batch_size, {in_channels}, height, width)."
        )


def check_class_labels(class_labels: torch.Tensor | None, needed: bool, num_images: int) -> None:
    """That there are labels if, and only if, the model has classes, and one for each image."""
    if (class_labels is None) == needed:
        raise ValueError(
            "`class_labels` is None, but the model has a class embedding and needs a label for each image."
            if class_labels is None
            else "`class_labels` is given, but the model has no class embedding and accepts only None."
        )
    if class_labels is not None and class_labels.shape[0] != num_images:
        raise ValueError(
            f"`class_labels` has the shape {tuple(class_labels.shape)}, but needs a label for each of the"
            f" {num_images} images."
        )


def reject(config: dict, name: str, accepted: str) -> None:
    """Raise a ValueError that names the option, its value and what is accepted."""
    raise ValueError(f"`{name}` is {config[name]!r}, but {accepted}.")


def _class_names(config: dict) -> dict[int, str]:
    """The `id2label` of a config, in the order of its labels. JSON has made strings of them."""
    num_classes = config["num_class_embeds"] or 0
    try:
        names = {
            label: config["id2label"][key] for label, key in sorted((int(key), key) for key in config["id2label"])
        }
    except (TypeError, ValueError):
        names = {}
    if (
        list(names) != list(range(num_classes))
        or not num_classes
        or not all(isinstance(n, str) for n in names.values())
    ):
        accepted = f"has to have a name for each label from 0 to {num_classes - 1}, or be None"
        reject(config, "id2label", accepted if num_classes else "has to be None without `num_class_embeds`")
    if twice := {name for name in names.values() if list(names.values()).count(name) > 1}:
        reject(config, "id2label", f"needs different names, and has {sorted(twice)} more than once")
    return names


def _check_options(config: dict, process: DecoupledProcess, out_channels: int) -> None:
    """The options that all of these models have."""
    if config["num_heads"] not in (1, 2):
        reject(config, "num_heads", "has to be 1 or 2")
    if config["precondition"] not in (True, False, "velocity", "ddm"):
        reject(config, "precondition", "has to be None, True, False, 'velocity' or 'ddm'")
    if config["precondition"] == "ddm" and process != DecoupledProcess():
        reject(config, "precondition", "needs `attenuation='constant'` and `noise_schedule='sqrt'`")
    if config["precondition"] == "velocity" and process.attenuation == "linear":
        reject(
            config, "precondition", "has to be True or False with `attenuation='linear'`, whose path is not straight"
        )
    if config["num_heads"] == 1 and not config["precondition"]:
        accepted = "has to be 2 with `precondition=False`, since its affine maps make two outputs of one head"
        reject(config, "num_heads", accepted)
    if config["num_heads"] == 1 and process.attenuation == "linear":
        accepted = "has to be 2 with `attenuation='linear'`, which leaves more than one field unknown"
        reject(config, "num_heads", accepted)
    if not config["sigma_data"] > 0:
        reject(config, "sigma_data", "has to be above 0")
    if not config["num_train_timesteps"] or config["num_train_timesteps"] < 1:
        accepted = "has to be 1 or more, since timesteps are t * num_train_timesteps"
        reject(config, "num_train_timesteps", accepted)
    if config.get("time_embedding_type", "positional") not in ("positional", "fourier"):
        accepted = "has to be 'positional' or 'fourier', since timesteps are continuous"
        reject(config, "time_embedding_type", accepted)
    if config.get("center_input_sample"):
        reject(config, "center_input_sample", "has to be False: images are in [-1, 1]")
    num_outputs = process.num_coefficients + 1
    if out_channels % num_outputs or not 0 < out_channels <= num_outputs * config["in_channels"]:
        accepted = f"has to be None or a multiple of {num_outputs} up to {num_outputs * config['in_channels']}"
        reject(config, "out_channels", f"{accepted}: (num_coefficients + 1) times the channels of the noisy sample")
    if config["base_scheduler"] is not None:
        for name, accepted in (("attenuation", "constant"), ("precondition", True), ("sigma_data", 1.0)):
            if config[name] != accepted:
                reason = "whose process is told from this one by a time and an affine map only then"
                reject(config, name, f"has to be {accepted!r} with `base_scheduler`, {reason}")
