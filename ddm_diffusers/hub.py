# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What makes pipelines and components of this package save to, and load from, the Hugging Face Hub.

A repository that was saved here holds, besides what diffusers writes, `ddm_pipeline.py` and a `ddm_diffusers.py` in the
folder of each component: a few lines that import this package. They serve those who load the repository with
`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` without having imported the package. Whoever has
imported it runs nothing that a repository brings: its components then come from the package, by name.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

from diffusers import DiffusionPipeline, ModelMixin, pipelines
from diffusers.pipelines import pipeline_loading_utils
from huggingface_hub import create_repo, hf_hub_download, upload_folder
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .model_card import (
    CARD_NAME,
    LIBRARY_NAME,
    SAMPLES_LINK,
    SAMPLES_NAME,
    is_generated_card,
    sample_grid,
    sign_card,
    write_model_card,
)


PIPELINE_MODULE = "ddm_pipeline"

# What the training script leaves beside a pipeline, and nobody wants to download
TRAINING_FILES = ("checkpoint-*", "logs/*", "samples/*")

LOADER = '''\
"""Loads {class_name} from the installed package."""

try:
    from {library} import {class_name}
except ImportError as error:
    raise ImportError(
        "{class_name} is part of the package ddm-diffusers: `pip install ddm-diffusers`, then load again."
    ) from error
'''


def register_with_diffusers(*component_classes: type) -> None:
    """
    Make components of this package known to diffusers' loader, as `["ddm_diffusers", class_name]`.

    This is the one place where the package enters diffusers. In `pipeline_loading_utils` it becomes a loadable library:
    otherwise `save_pretrained` would record the path of the module that holds a class, which ties every checkpoint to
    the inner layout of the package. And in `diffusers.pipelines` it becomes a name under which components are looked up
    before any Python file of a repository is.

    Args:
        component_classes (`type`): Models and schedulers of this package.

    Raises:
        ImportError: this release of diffusers resolves components in another way.
    """
    methods = {component.__name__: ["save_pretrained", "from_pretrained"] for component in component_classes}
    try:
        pipeline_loading_utils.LOADABLE_CLASSES.setdefault(LIBRARY_NAME, {}).update(methods)
        pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)
    except AttributeError as error:
        raise ImportError(
            f"{LIBRARY_NAME} cannot register with this release of diffusers, whose"
            " `diffusers.pipelines.pipeline_loading_utils` lacks `LOADABLE_CLASSES` or `ALL_IMPORTABLE_CLASSES`."
            " Install the newest release of ddm-diffusers, or diffusers 0.42."
        ) from error
    setattr(pipelines, LIBRARY_NAME, _Components(**{c.__name__: c for c in component_classes}))


class _Components(SimpleNamespace):
    """The components of this package and nothing else of it, for diffusers to look up what a repository names."""

    def __getattr__(self, name):
        raise AttributeError(
            f"{LIBRARY_NAME} has no component {name!r}, only {sorted(vars(self))}. A newer release may have it."
        )


class HubMixin:
    """For components and pipelines: saves the few lines that load a class of this package where it is not imported."""

    _loader_module = LIBRARY_NAME

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save the config, as [`~diffusers.ConfigMixin.save_config`] does, and the module that loads the class."""
        if self._is_ours() and not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            loader = LOADER.format(library=LIBRARY_NAME, class_name=type(self).__name__)
            Path(save_directory, f"{self._loader_module}.py").write_text(loader, encoding="utf-8")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON, without the path that it was loaded from, which is nobody else's business."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _is_ours(cls) -> bool:
        # a subclass in somebody's own module cannot be imported from this package
        return cls.__module__.split(".")[0] == LIBRARY_NAME


class HubModelMixin(HubMixin):
    """For models: also refuses weights that are not safetensors."""

    @wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, save_directory, *args, **kwargs):
        _refuse_pickles("safe_serialization", args[2] if len(args) > 2 else kwargs.get("safe_serialization"))
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    @wraps(ModelMixin.from_pretrained.__func__)
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        _refuse_pickles("use_safetensors", kwargs.get("use_safetensors"))
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})


class HubPipelineMixin(HubMixin):
    """For pipelines: also loads without running code of the repository, and writes a model card."""

    _loader_module = PIPELINE_MODULE
    pipeline_tag = "unconditional-image-generation"
    # the images that a call needs, without which there is nothing to draw for a model card
    image_arguments = ()

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs) -> dict:
        config = super()._dict_from_json_file(json_file, **kwargs)
        # [module, class] is for DiffusionPipeline, which has to find the class; this one knows itself and runs no module
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        return config

    def to_json_string(self) -> str:
        """The config as JSON; the class is named `[module, class]`, as diffusers finds pipelines of other packages."""
        config = json.loads(super().to_json_string())
        if self._is_ours():
            config["_class_name"] = [self._loader_module, type(self).__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    @wraps(DiffusionPipeline.from_pretrained.__func__)
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        _refuse_pickles("use_safetensors", kwargs.get("use_safetensors"))
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})

    @wraps(DiffusionPipeline.save_pretrained)
    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        _refuse_pickles("safe_serialization", safe_serialization)
        hub_options = {
            name: kwargs.pop(name)
            for name in ("repo_id", "commit_message", "private", "create_pr", "token")
            if name in kwargs
        }
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
        repo_id = hub_options.pop("repo_id", Path(save_directory).name)
        self._bring_card(Path(save_directory), repo_id)
        if push_to_hub:
            upload_pipeline(save_directory, repo_id, ignore_patterns=TRAINING_FILES, **hub_options)

    def _bring_card(self, folder: Path, repo_id: str) -> None:
        """Leave the model card of a folder, or bring that of the folder the pipeline comes from, or write a new one."""
        if (folder / CARD_NAME).exists():
            return
        source = Path(self.config.get("_name_or_path") or folder)
        for name in (CARD_NAME, SAMPLES_NAME):
            if (source / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source / name, folder / name)
        if not (folder / CARD_NAME).exists():
            write_model_card(folder, self, repo_id=repo_id)
            return
        text = (folder / CARD_NAME).read_text(encoding="utf-8")
        if is_generated_card(text):
            body = text[: text.rindex("<!--")]
            body = re.sub(r'\.from_pretrained\("[^"]*"\)', lambda _: f'.from_pretrained("{repo_id}")', body)
            body = re.sub(r"^# .*", lambda _: f"# {repo_id.split('/')[-1]}", body, count=1, flags=re.MULTILINE)
            if (folder / SAMPLES_NAME).exists() and SAMPLES_LINK not in body:
                body = body.replace("\n## Use\n", f"\n{SAMPLES_LINK}\n\n## Use\n", 1)
            (folder / CARD_NAME).write_text(sign_card(body), encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """
        Upload the pipeline, with a model card and, if it needs no images, a grid of samples, to the Hub.

        A repository that has a model card keeps it. Otherwise the card and the samples of the folder that the pipeline
        was loaded from go along, or new ones.

        Args:
            repo_id (`str`): The repository, `user/name`; it is created if it does not exist.
            commit_message (`str`, *optional*): Defaults to `"Upload DDMPipeline"`, with the name of the class.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str`, *optional*): Defaults to the token that you are logged in with.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
            safe_serialization (`bool`, defaults to `True`): Only `True` is accepted.
            variant (`str`, *optional*): Weights are saved as `diffusion_pytorch_model.<variant>.safetensors`.
            subfolder (`str`, *optional*): The folder of the repository to upload to, without a model card.

        Returns:
            `str`: the address of the commit.

        Raises:
            ValueError: `safe_serialization` is `False`.
            huggingface_hub.errors.HfHubHTTPError: the Hub refused a request, for want of a token that may write, say.
        """
        _refuse_pickles("safe_serialization", safe_serialization)
        commit_message = commit_message or f"Upload {type(self).__name__}"
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            super().save_pretrained(folder, variant=variant)
            if subfolder is None:
                source = Path(self.config.get("_name_or_path") or folder)
                if not (source / SAMPLES_NAME).is_file() and not self.image_arguments:
                    sample_grid(self).save(Path(folder, SAMPLES_NAME))
                self._bring_card(Path(folder), repo_id)
            return upload_pipeline(
                folder,
                repo_id,
                commit_message=commit_message,
                token=token,
                create_pr=create_pr,
                path_in_repo=subfolder,
                replace_card=False,
            )


def _refuse_pickles(name: str, value: bool | None) -> None:
    if value is False:
        raise ValueError(f"`{name}` is False, but only safetensors are read and written: it has to be True.")


def upload_pipeline(
    folder: str | os.PathLike,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    path_in_repo: str | None = None,
    ignore_patterns: Sequence[str] = (),
    replace_card: bool = True,
) -> str:
    """
    Upload a saved pipeline. A model card in the repository that somebody wrote or edited is left as it is, and so are
    the samples that it shows.

    Args:
        folder (`str` or `os.PathLike`): What `save_pretrained` wrote.
        repo_id (`str`): The repository, `user/name`; it is created if it does not exist.
        commit_message, private, token, create_pr: As for [`~HubPipelineMixin.push_to_hub`].
        path_in_repo (`str`, *optional*): The folder of the repository to upload to.
        ignore_patterns (`Sequence[str]`, defaults to `()`): Files of `folder` that are not uploaded.
        replace_card (`bool`, defaults to `True`): Whether to replace a card that this package wrote.

    Returns:
        `str`: the address of the commit.
    """
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    ignore_patterns = list(ignore_patterns)
    try:
        card = Path(hf_hub_download(repo_id, CARD_NAME, token=token, force_download=True)).read_text(encoding="utf-8")
        if not is_generated_card(card):
            ignore_patterns += [CARD_NAME, SAMPLES_NAME]
        elif not replace_card:
            ignore_patterns.append(CARD_NAME)
    except EntryNotFoundError as error:
        if isinstance(
            error, LocalEntryNotFoundError
        ):  # the Hub did not answer, which does not mean that there is none
            raise
    return upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=path_in_repo,
        commit_message=commit_message,
        token=token,
        create_pr=create_pr,
        ignore_patterns=ignore_patterns,
    )
