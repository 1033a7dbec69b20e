# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What tests of the example scripts share."""

import gzip

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def fashion_mnist_dir(tmp_path_factory):
    """scikit-learn's digits in the files and the size of Fashion-MNIST, 128 for training and 128 for tests."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    digits = load_digits()
    images = [Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)) for image in digits.images[:256]]
    images, labels = np.stack([np.asarray(image) for image in images]), digits.target[:256].astype(np.uint8)
    for prefix, part in (("train", slice(128)), ("t10k", slice(128, 256))):
        for kind, header, array in (("images-idx3", 16, images[part]), ("labels-idx1", 8, labels[part])):
            with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(bytes(header) + array.tobytes())
    return str(folder)
