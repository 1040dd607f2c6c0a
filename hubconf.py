"""torch.hub: a network by its name, with weights and a recipe.

    model = torch.hub.load(REPO, "densenet121", weights="timm:densenet121.ra_in1k", download=True, source="local")

Every entry point returns a `convzoo.Model`: `model.predict("pictures/")`, `model.evaluate(data)`, `model.network` (the
module) and `model(images)` for normalised tensors. `weights` is a model file of convzoo, a Darknet, MindSpore or
PyTorch weight file, or a name from `convzoo list --weights`, which uses the network only with `download=True`.
`pretrained=False, num_classes=10` gives the network with initial weights, to be trained by a loop of your own.
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
PUBLISHED = {
    "vgg16": "torchvision:VGG16_Weights.IMAGENET1K_V1",
    "densenet121": "torchvision:DenseNet121_Weights.IMAGENET1K_V1",
    "tinydarknet": "darknet:tiny.weights",
    "darknet53": "timm:darknet53.c2ns_in1k",
    "yolov3": "darknet:yolov3.weights",
}


def _load(name: str, weights: str | Path | None, pretrained: bool, options: dict) -> "convzoo.Model":
    if pretrained and weights is None:
        weights = PUBLISHED.get(name)
    return convzoo.load(name, weights, pretrained=pretrained, **options)


def vgg16(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """VGG-16, with or without batch norm as the weights have it; options as of `convzoo.load`."""
    return _load("vgg16", weights, pretrained, options)


def densenet100(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """DenseNet-BC with 100 layers for 32x32 pictures; nobody publishes weights, name your own."""
    return _load("densenet100", weights, pretrained, options)


def densenet121(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """DenseNet-121."""
    return _load("densenet121", weights, pretrained, options)


def tinydarknet(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """Tiny-DarkNet."""
    return _load("tinydarknet", weights, pretrained, options)


def darknet53(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """DarkNet-53 as a classifier."""
    return _load("darknet53", weights, pretrained, options)


def yolov3(weights: str | Path | None = None, *, pretrained: bool = True, **options) -> "convzoo.Model":
    """YOLOv3 on DarkNet-53: `model(images)` gives the raw head maps."""
    return _load("yolov3", weights, pretrained, options)
