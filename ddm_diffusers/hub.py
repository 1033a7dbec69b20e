# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the package known to diffusers' loader."""

from diffusers.pipelines import pipeline_loading_utils


LIBRARY_NAME = __name__.split(".")[0]


def register_with_diffusers(*class_names: str) -> None:
    """
    Let a diffusers pipeline save and load components of this package as `["ddm_diffusers", class_name]`.

    For a library that `pipeline_loading_utils.LOADABLE_CLASSES` does not name, diffusers records the path of the module
    that holds the class, which would tie every checkpoint to the inner layout of this package.

    Args:
        class_names (`str`): Names of components, attributes of this package.

    Raises:
        ImportError: this release of diffusers keeps its loadable libraries elsewhere.
    """
    try:
        libraries = pipeline_loading_utils.LOADABLE_CLASSES
        importable = pipeline_loading_utils.ALL_IMPORTABLE_CLASSES
    except AttributeError as error:
        raise ImportError(
            f"{LIBRARY_NAME} cannot register with this release of diffusers, whose"
            " `diffusers.pipelines.pipeline_loading_utils` lacks `LOADABLE_CLASSES` or `ALL_IMPORTABLE_CLASSES`."
            " Install the newest release of the package, or diffusers 0.42."
        ) from error
    methods = {name: ["save_pretrained", "from_pretrained"] for name in class_names}
    libraries.setdefault(LIBRARY_NAME, {}).update(methods)
    importable.update(methods)
