"""Preprocessing and class names that belong to well-known weights, attached on conversion."""

from convzoo.plain import JsonObject

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transform(
    operations: list[JsonObject], mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3
) -> JsonObject:
    """Return a recipe's `transform` section for evaluation; training augmentation is the recipe's own affair."""
    return {"train": [], "eval": operations, "mean": list(mean), "std": list(std)}


def crop_transform(
    resize: JsonObject, crop_px: int, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> JsonObject:
    """Return resize and centre crop, then ImageNet's mean and standard deviation unless told otherwise."""
    return transform([{"resize": resize}, {"center_crop": {"size_px": crop_px}}], mean, std)


def coco_names() -> list[str]:
    """Return the 80 names of COCO in the order of their category ids, which is Darknet's and the zoo's order."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in categories if name not in ("__background__", "N/A")]
