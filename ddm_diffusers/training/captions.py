# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images with captions, for models that are conditioned on text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from datasets import Dataset, IterableDataset

from .data import ImageTransform


if TYPE_CHECKING:  # whoever has no captions needs no tokenizer
    from transformers import PreTrainedTokenizerBase


class CaptionTransform(ImageTransform):
    """
    From the rows of a data set to images and the tokens of their captions.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): As for [`ImageTransform`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): CLIP's, say. Longer captions are cut to its `model_max_length`.
        resolution (`int`): Height and width of the images.
        caption_column (`str`, defaults to `"text"`):
            Of strings, or of lists of them, from which one is drawn each time.
        caption_dropout_prob (`float`, defaults to 0.0):
            How often a caption is replaced with an empty one (classifier-free guidance, arXiv 2207.12598).
        center_crop, random_flip, image_mode, image_column: As for [`ImageTransform`].

    Raises:
        ValueError: the data set is not as [`ImageTransform`] needs it, or has no such column.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        tokenizer: "PreTrainedTokenizerBase",
        resolution: int,
        caption_column: str = "text",
        caption_dropout_prob: float = 0.0,
        center_crop: bool = False,
        random_flip: bool = False,
        image_mode: str | None = None,
        image_column: str | None = None,
    ):
        super().__init__(
            dataset, resolution, center_crop, random_flip, image_mode=image_mode, image_column=image_column
        )
        if caption_column not in self.dataset.features:
            raise ValueError(
                f"`caption_column` is {caption_column!r}, but has to be a column of the data set, one of"
                f" {list(self.dataset.features)}."
            )
        self.tokenizer = tokenizer
        self.caption_column = caption_column
        self.caption_dropout_prob = caption_dropout_prob

    def condition(self, rows: dict, generators: Sequence[torch.Generator | None]) -> dict:
        """`input_ids`, tensors of shape `(model_max_length,)`."""
        captions = [self._draw(*pair) for pair in zip(rows[self.caption_column], generators, strict=True)]
        return {"input_ids": list(self.tokenize(captions))}

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        """The tokens of captions, as diffusers' pipelines ask for them: `(num_captions, model_max_length)`."""
        return self.tokenizer(
            captions,
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def _draw(self, caption: str | list[str], generator: torch.Generator | None) -> str:
        if self.caption_dropout_prob > 0 and bool(torch.rand((), generator=generator) < self.caption_dropout_prob):
            return ""
        if isinstance(caption, list) and caption:
            caption = caption[int(torch.randint(len(caption), (), generator=generator))]
        if not isinstance(caption, str):
            raise ValueError(
                f"A caption in the column {self.caption_column!r} is {caption!r}, but has to be a string or a list of strings."
            )
        return caption
