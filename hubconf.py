"""torch.hub: `model = torch.hub.load(REPO, "densenet121", weights="timm:densenet121.ra_in1k", download=True)`.

Every entry point returns a `convzoo.Model`: `model.predict("pictures/")`, `model.evaluate(data)`, `model.network` (the
module) and `model(images)` for normalised tensors. `weights` is a model file of convzoo, a Darknet, MindSpore or
PyTorch weight file, or a name from `convzoo list --weights`, which uses the network only with `download=True`.
"""

from pathlib import Path

import convzoo

dependencies = [
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "safetensors",
    "pydantic",
    "yaml",
    "sklearn",
    "matplotlib",
    "tqdm",
]


def vgg16(weights: str | Path = "torchvision:VGG16_Weights.IMAGENET1K_V1", **options) -> "convzoo.Model":
    """VGG-16, with or without batch norm as the weights have it; options as of `convzoo.load`."""
    return convzoo.load("vgg16", weights, **options)


def densenet100(weights: str | Path, **options) -> "convzoo.Model":
    """DenseNet-BC with 100 layers for 32x32 pictures; nobody publishes weights, name your own."""
    return convzoo.load("densenet100", weights, **options)


def densenet121(weights: str | Path = "torchvision:DenseNet121_Weights.IMAGENET1K_V1", **options) -> "convzoo.Model":
    """DenseNet-121."""
    return convzoo.load("densenet121", weights, **options)


def tinydarknet(weights: str | Path = "darknet:tiny.weights", **options) -> "convzoo.Model":
    """Tiny-DarkNet."""
    return convzoo.load("tinydarknet", weights, **options)


def darknet53(weights: str | Path = "timm:darknet53.c2ns_in1k", **options) -> "convzoo.Model":
    """DarkNet-53 as a classifier."""
    return convzoo.load("darknet53", weights, **options)


def yolov3(weights: str | Path = "darknet:yolov3.weights", **options) -> "convzoo.Model":
    """YOLOv3 on DarkNet-53: `model(images)` gives the raw head maps."""
    return convzoo.load("yolov3", weights, **options)
