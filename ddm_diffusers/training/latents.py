# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training in the latent space of an autoencoder: its latents encoded with each batch, or once and kept on the disk."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from diffusers import AutoModel, ModelMixin
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..latents import Posterior, encode_images, latent_scale_factor, sample_latents
from .data import ImageTransform


logger = get_logger(__name__, log_level="INFO")

MANIFEST = "latents.json"
SHARD_SIZE = 1024
# Of as many images the deviation of the latents is measured.
MEASURED_IMAGES = 512


def load_vae(name_or_path: str, subfolder: str | None = None) -> ModelMixin:
    """An autoencoder of diffusers of whatever class its config names, frozen, in float32."""
    vae = AutoModel.from_pretrained(name_or_path, subfolder=subfolder, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


class LatentSpace:
    """
    Where a latent diffusion model is trained: `measure` gives the `in_channels` and the `sigma_data` of the model, and `clean`
    the latents of each batch.

    Args:
        vae ([`~diffusers.AutoencoderKL`] or another autoencoder of diffusers): In float32.
        device (`str` or `torch.device`): Where it encodes.

    Attributes:
        image_mode (`str`): What it encodes, `"L"` or `"RGB"`.

    Raises:
        ValueError: the autoencoder encodes neither grey nor colour images.
    """

    def __init__(self, vae: ModelMixin, device: str | torch.device):
        channels = vae.config.in_channels
        if channels not in (1, 3):
            raise ValueError(
                f"`vae` encodes images of {channels} channels, but has to be for grey images, with 1, or for colour, with 3."
            )
        self.vae, self.image_mode = vae.to(device), {1: "L", 3: "RGB"}[channels]

    def latent_size(self, resolution: int) -> int:
        """Height and width of the latents; a `ValueError` unless `resolution` is a multiple of the autoencoder's factor."""
        factor = latent_scale_factor(self.vae)
        if resolution % factor:
            raise ValueError(
                f"`resolution` is {resolution}, but has to be a multiple of {factor}, how many times smaller the latents are."
            )
        return resolution // factor

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> Posterior:
        """The posterior of images in [-1, 1], on any device."""
        return encode_images(self.vae, pixel_values.to(self.vae.device))

    def clean(self, batch: dict) -> torch.Tensor:
        """
        The clean latents of a batch of [`TrainingRun`], scaled, drawn from the posterior with the generators of its
        examples: of its `pixel_values`, or of what [`CachedLatents`] has in their place.
        """
        if "pixel_values" in batch:
            posterior = self.encode(batch["pixel_values"])
        else:
            posterior = Posterior(batch["latent_mean"], batch.get("latent_std"))
        return sample_latents(self.vae, posterior, batch["generators"])

    def measure(self, transform: ImageTransform) -> tuple[int, float]:
        """
        The channels of the latents, and the root of their mean square over `MEASURED_IMAGES` of a data set, to three
        digits: the `in_channels` and the `sigma_data` of a model.

        Raises:
            ValueError: none of these images decodes.
        """
        dataset, squares, latents, failure = transform.dataset, [], None, None
        if isinstance(dataset, IterableDataset):
            rows = itertools.islice(dataset, MEASURED_IMAGES)
        else:
            every = -(-len(dataset) // MEASURED_IMAGES)
            rows = dataset.with_format(None).select(range(0, len(dataset), every))
        for number, row in enumerate(rows):
            generator = torch.Generator().manual_seed(number)
            try:
                (image,) = transform.pixels({key: [value] for key, value in row.items()}, [generator])
            except ValueError as error:  # the training tells of it
                failure = error
                continue
            latents = sample_latents(self.vae, self.encode(image[None]), generator)
            squares.append(latents.float().square().mean())
        if latents is None:
            raise failure
        return latents.shape[1], float(f"{torch.stack(squares).mean().sqrt():.3g}")


class CachedLatents:
    """
    Takes the place of an [`ImageTransform`] whose images are encoded once, and kept in a folder.

    The folder holds `latents.json`, which tells what the latents are of, and shards of `SHARD_SIZE` images: of each image
    the mean and, of a variational autoencoder, the deviation, in float32, and both of its mirror image as well if the
    transform mirrors images. So drawing from the posterior, mirroring and all that follows is as without the cache.
    Shards appear when they are complete, and those that are there are not encoded again: what was interrupted goes on,
    and processes share the work.

    Args:
        transform ([`ImageTransform`]): Crops at the center; its data set is no stream.
        space ([`LatentSpace`]): Encodes.
        folder (`str` or `os.PathLike`): Where the latents are or will be.
        accelerator ([`~accelerate.Accelerator`]): Of the run. Every process makes this object.
        batch_size (`int`, defaults to 16): Images that are encoded at once.
        num_workers (`int`, defaults to 0): Processes that decode images.
        skip_bad_images (`bool`, defaults to `False`):
            Whether an image that does not decode is noted rather than an error. A row of it is one here as well.

    Raises:
        ValueError: the transform crops at random or streams, an image does not decode, or the folder has the latents of
            another data set, autoencoder or transform.
    """

    def __init__(
        self,
        transform: ImageTransform,
        space: LatentSpace,
        folder: str | os.PathLike,
        accelerator: Accelerator,
        batch_size: int = 16,
        num_workers: int = 0,
        skip_bad_images: bool = False,
    ):
        if isinstance(transform.dataset, IterableDataset):
            raise ValueError("`transform` has a stream, but latents are kept of a data set whose rows have numbers.")
        if not transform.center_crop:
            raise ValueError("`transform` crops at random, but latents are kept of one crop: it has to be the center.")
        self.images, self.image_column = transform, transform.image_column
        self.class_names, self.channels = transform.class_names, transform.channels
        self.folder = Path(folder)
        dataset = transform.dataset.with_format(None)
        # added first: without its last column a data set has no rows either
        self.dataset = dataset.add_column("latent_row", list(range(len(dataset)))).remove_columns(self.image_column)
        self._shards = {}
        manifest = {
            "data set": fingerprint_of_dataset(dataset, self.image_column),
            "images": len(dataset),
            "resolution": transform.resolution,
            "image mode": transform.image_mode,
            "mirrored": transform.random_flip,
            "autoencoder": fingerprint_of_model(space.vae),
            "shard size": SHARD_SIZE,
        }
        if accelerator.is_main_process:
            self._check_manifest(manifest)
        accelerator.wait_for_everyone()
        self._encode(space, accelerator, batch_size, num_workers, skip_bad_images)
        accelerator.wait_for_everyone()

    @property
    def colour_lost(self) -> bool:
        return self.images.colour_lost

    def __call__(self, rows: dict, generators: list[torch.Generator] | None = None) -> dict:
        """As the transform, errors included, with `latent_mean` and `latent_std` in the place of `pixel_values`."""
        numbers = rows["latent_row"]
        generators = generators or [None] * len(numbers)
        latents = [self._read(i, self.images.draw_flip(each)) for i, each in zip(numbers, generators, strict=True)]
        batch = {key: [each[key] for each in latents] for key in latents[0]}
        return batch | self.images.condition(rows | {self.image_column: [None] * len(numbers)}, generators)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}  # each process maps the files by itself

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _read(self, number: int, mirrored: bool) -> dict[str, torch.Tensor]:
        shard, row = divmod(number, SHARD_SIZE)
        if shard not in self._shards:
            file = safe_open(self._path(shard), framework="pt")
            bad = json.loads((file.metadata() or {}).get("bad", "{}"))
            self._shards[shard] = {key: file.get_slice(key) for key in file.keys()}, bad
        slices, bad = self._shards[shard]
        if str(row) in bad:
            raise ValueError(bad[str(row)])
        return {key: values[row : row + 1][0, int(mirrored)] for key, values in slices.items()}

    def _check_manifest(self, manifest: dict) -> None:
        path = self.folder / MANIFEST
        for leftover in self.folder.glob("*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{key}: {there.get(key)} there, {now} now" for key, now in manifest.items() if there.get(key) != now
            ]
            if changed:
                raise ValueError(
                    f"`folder` is {str(self.folder)!r}, which has the latents of something else ({'; '.join(changed)})."
                    " Name another folder, or delete this one."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda new: new.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8"))

    def _encode(self, space, accelerator, batch_size, num_workers, skip_bad_images) -> None:
        """Write the shards that are missing, each process its own."""
        rows = range(len(self.dataset))
        own = range(accelerator.process_index, -(-len(rows) // SHARD_SIZE), accelerator.num_processes)
        missing = [shard for shard in own if not self._path(shard).is_file()]
        if not missing:
            return
        shards = {shard: rows[shard * SHARD_SIZE :][:SHARD_SIZE] for shard in missing}
        loader = torch.utils.data.DataLoader(
            self.images.dataset.with_transform(partial(_load_pixels, self.images)),
            batch_sampler=[
                part[i : i + batch_size] for part in shards.values() for i in range(0, len(part), batch_size)
            ],
            num_workers=num_workers,
            collate_fn=list,
            generator=torch.Generator(),  # else it draws from the one that the weights of the model come from
        )
        loaded, total, local = iter(loader), sum(map(len, shards.values())), accelerator.is_local_main_process
        with tqdm(total=total, desc="Encoding images", disable=not local) as progress_bar:
            for shard, part in shards.items():
                encoded, bad = [], {}
                for begin in range(0, len(part), batch_size):
                    examples = next(loaded)
                    for row, error in enumerate((each["error"] for each in examples), begin):
                        if error is not None and not skip_bad_images:
                            raise ValueError(f"{error} It is row {part[row]}. With --skip_bad_images it is left out.")
                        if error is not None:
                            logger.warning(f"Skipped: {error}", main_process_only=False)
                            bad[row] = error
                    encoded.append(self._variants(space, torch.stack([each["pixels"] for each in examples])))
                    progress_bar.update(len(examples))
                tensors = {key: torch.cat([each[key] for each in encoded]) for key in encoded[0]}
                metadata = {"bad": json.dumps(bad)}
                _replace(self._path(shard), lambda new, t=tensors, m=metadata: save_file(t, new, metadata=m))

    def _variants(self, space: LatentSpace, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(batch_size, 1 or 2, latent_channels, height, width)`: of the images, and of their mirror images if these are drawn."""
        variants = [pixels, pixels.flip(-1)] if self.images.random_flip else [pixels]
        means, stds = zip(*map(space.encode, variants), strict=True)
        tensors = {"latent_mean": torch.stack(means, dim=1)}
        if stds[0] is not None:
            tensors["latent_std"] = torch.stack(stds, dim=1)
        return {key: value.float().cpu().contiguous() for key, value in tensors.items()}


def _load_pixels(transform: ImageTransform, rows: dict) -> dict:
    """The images of rows, not mirrored, and what is wrong with each that does not decode, which is black."""
    size = (transform.channels, transform.resolution, transform.resolution)
    pixels, errors = [], []
    for value in rows[transform.image_column]:
        try:
            pixels += transform.pixels({transform.image_column: [value]}, [None], mirror=False)
            errors.append(None)
        except ValueError as error:
            pixels.append(torch.zeros(size))
            errors.append(str(error))
    return {"pixels": pixels, "error": errors}


def fingerprint_of_dataset(dataset: Dataset, image_column: str) -> str:
    """
    A digest of undecoded images in their order: of their bytes or, of files, of their names, sizes and times of change. The
    fingerprint of `datasets` does not follow files that change.
    """
    digest = hashlib.sha256()
    for batch in dataset.select_columns([image_column]).iter(batch_size=1000):
        for value in batch[image_column]:
            data, path = (value or {}).get("bytes"), (value or {}).get("path")
            if data is None and path is not None and os.path.isfile(path):
                stat = os.stat(path)
                data = f"{os.path.basename(path)} {stat.st_size} {stat.st_mtime_ns}".encode()
            data = data if data is not None else str(path).encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def fingerprint_of_model(model: ModelMixin) -> str:
    """A digest of the config and the weights of a model."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first, so that it is whole whenever it is there."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)
