# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Fashion-MNIST (Xiao et al., arXiv 1708.07747) for the benchmarks: 70,000 grey images of 28x28 pixels in 10 classes.

    apt install dataset-fashion-mnist                                            # Debian, Ubuntu; or see --help
    python examples/benchmarks/fashion_mnist.py --output_dir fashion-mnist       # a folder for --train_data_dir
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance


DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
CLASS_NAMES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load_fashion_mnist(split="train", folder=DEBIAN_FOLDER):
    """
    Read the images and labels of one split from the files of the release.

    Args:
        split (`"train"` or `"test"`, defaults to `"train"`): 60,000 or 10,000 images.
        folder (`str`, defaults to that of Debian's package): Where the four `*-ubyte.gz` files are.

    Returns:
        `tuple` of `np.ndarray`: images `(N, 28, 28)` and labels `(N,)`, both `uint8`.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = Path(folder, f"{prefix}-{kind}-ubyte.gz")
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. Install Debian's package dataset-fashion-mnist, or download the four files from"
                " https://github.com/zalandoresearch/fashion-mnist and name their folder."
            )
        with gzip.open(path) as file:
            arrays.append(np.frombuffer(file.read(), np.uint8, offset=header))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def to_tensor(images):
    """`(N, 28, 28)` bytes as `(N, 1, 28, 28)` float32 in [-1, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]


class Classifier(nn.Module):
    """A small convolutional classifier; `features` are the 128 activations before its last layer."""

    num_features = 128

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 128, 3, padding=1, stride=2), nn.BatchNorm2d(128), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 7 * 7, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, 10)

    def features(self, images):
        """`(N, 1, 28, 28)` in [-1, 1] to `(N, 128)`."""
        return self.body(images)

    def forward(self, images):
        return self.head(self.features(images))


@torch.no_grad()
def predict(classifier, images, batch_size=500):
    """The classes of images `(N, 1, 28, 28)` in [-1, 1]."""
    return torch.cat([classifier(batch).argmax(1) for batch in images.split(batch_size)])


def train_classifier(path, folder=DEBIAN_FOLDER, epochs=4):
    """
    The classifier saved at `path`, or a new one, trained on the training split with seed 0 and saved there.

    Returns:
        `tuple`: the classifier in eval mode, and the share of the test images that it gets right.
    """
    classifier = Classifier()
    if Path(path).is_file():
        classifier.load_state_dict(load_file(path))
    else:
        images, labels = load_fashion_mnist("train", folder)
        images, labels = to_tensor(images), torch.from_numpy(labels.astype(np.int64))
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            classifier = Classifier()
            optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
            total = epochs * (len(images) // 128)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=total)
            for _ in range(epochs):
                order = torch.randperm(len(images), generator=generator)
                for index in order[: len(order) // 128 * 128].split(128):
                    batch = images[index]
                    if torch.rand((), generator=generator) < 0.5:
                        batch = batch.flip(3)
                    loss = F.cross_entropy(classifier(batch), labels[index], label_smoothing=0.05)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(classifier.state_dict(), path)
    classifier.eval().requires_grad_(False)
    images, labels = load_fashion_mnist("test", folder)
    accuracy = (predict(classifier, to_tensor(images)).numpy() == labels).mean()
    return classifier, float(accuracy)


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' Frechet distance in the features of a [`Classifier`], for images `(N, 1, 28, 28)` in [-1, 1]."""

    def __init__(self, classifier):
        features = _Features(classifier)
        super().__init__(feature=features, reset_real_features=False, normalize=True, input_img_size=(1, 28, 28))

    def distance(self, images, batch_size=500):
        """The distance of images to those that `update(..., real=True)` has seen."""
        self.reset()
        for batch in images.split(batch_size):
            self.update(batch, real=False)
        return float(self.compute())


class _Features(nn.Module):
    num_features = Classifier.num_features

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return self.classifier.features(images.float())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of the four *-ubyte.gz files.")
    parser.add_argument("--split", default="train", choices=["train", "test"])
    parser.add_argument("--output_dir", required=True, help="Where to write the images as parquet.")
    args = parser.parse_args()
    images, labels = load_fashion_mnist(args.split, args.data_dir)
    dataset = Dataset.from_dict(
        {"image": [PILImage.fromarray(image) for image in images], "label": labels.tolist()},
        features=Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)}),
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(Path(args.output_dir, f"{args.split}.parquet"))


if __name__ == "__main__":
    main()
