"""Transforms: equal to the reference programs, functions of seed, epoch and sample alone, right at the edges."""

import numpy as np
import pytest
import torch

from convzoo.build import build_pipeline
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.transforms.pipeline import Pipeline, keyed_rng, normalize, stack_images, to_input
from convzoo.errors import DataError
from convzoo.types import Boxes, Key, Sample
from helpers import on_its_grid

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def sample(image) -> Sample:
    image = torch.as_tensor(image)
    return Sample(image, 0, 0, "x", (image.shape[1], image.shape[2]))


def operation(name: str, **keys):
    return registry.bind("transform", {"name": name, **keys})


def levels(ours: torch.Tensor, theirs: np.ndarray, std) -> float:
    """Return the largest difference of normalised pictures [B, 3, H, W], in levels of 0..255."""
    expected = torch.from_numpy(theirs)
    return float(((on_its_grid(ours, expected) - expected).abs() * torch.tensor(std).view(3, 1, 1)).max()) * 255


def noise(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, height, width)).astype(np.uint8))


@pytest.mark.parametrize(
    ("file", "mode"),
    [("imagenet_256x256_c224_vgg_densenet", "stretch"), ("imagenet_short256_c224_tinydarknet", "short_side")],
)
def test_imagenet_evaluation_of_the_reference_programs(mindspore_outputs, file, mode):
    folder = mindspore_outputs / "preprocess"
    expected = np.load(folder / f"{file}.npz")
    dataset = image_folder(folder / "folder", "val")
    pipeline = Pipeline(
        [operation("resize", size_px=256, mode=mode, antialias=False), operation("center_crop", size_px=224)], 0
    )
    images = stack_images([pipeline(dataset.load(i), Key(0, i)) for i in range(len(dataset))])
    assert levels(normalize(images, *IMAGENET), expected["images"], IMAGENET[1]) <= 1.001
    assert dataset.labels.tolist() == expected["labels"].tolist()


@pytest.mark.parametrize(
    ("file", "recipe", "bgr"),
    [
        ("cifar_vgg224", "vgg16-cifar10-224", True),
        ("cifar_tiny227", "tinydarknet-cifar10-227", False),
        ("cifar_densenet32", "densenet100-cifar10", False),
    ],
)
def test_cifar_evaluation_of_the_reference_programs(mindspore_outputs, file, recipe, bgr):
    folder = mindspore_outputs / "preprocess"
    loaded = recipes.load(recipe)
    mean, std = loaded.transform.mean, loaded.transform.std
    if bgr:  # the program's constants stand in the wrong order for its RGB pictures; the recipe has them right
        mean, std = mean[::-1], std[::-1]
    raw = np.load(folder / "cifar_raw.npz")["images"].transpose(0, 3, 1, 2)
    pipeline = build_pipeline(loaded, "eval")
    images = stack_images([pipeline(sample(image), Key(0, 0)) for image in raw])
    assert levels(normalize(images, mean, std), np.load(folder / f"{file}.npz")["images"], std) <= 1.001


@pytest.mark.parametrize("recipe", recipes.shipped())
def test_augmentation_is_a_function_of_seed_epoch_and_sample(recipe):
    loaded = recipes.load(recipe)
    pipeline = build_pipeline(loaded, "train")
    image = noise(300, 400) if "imagenet" in recipe else noise(32, 32)

    def labelled():
        one = sample(image)
        if loaded.task == "detect":
            one.target = Boxes(
                np.array([[4.0, 4.0, 20.0, 20.0]]), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), np.ones(1)
            )
        return one

    def augmented(epoch: int, index: int, seed: int = 0) -> torch.Tensor:
        pipeline.seed = seed
        return pipeline(labelled(), Key(epoch, index), lambda rng: labelled()).image

    first = augmented(1, 2)
    assert first.dtype == torch.uint8
    assert torch.equal(first, augmented(1, 2))
    others = [augmented(e, i, s) for e, i, s in [(2, 2, 0), (1, 3, 0), (1, 2, 1), (5, 6, 0), (7, 8, 9)]]
    varies = any(other.shape != first.shape or not torch.equal(first, other) for other in others)
    assert varies == (loaded.transform.train != loaded.transform.eval)


def test_each_operation_does_what_it_says():
    image, rng = noise(), keyed_rng(0, 1, 0, 0)
    assert operation("resize", size_px=20)(sample(image), rng).image.shape == (3, 20, 28)
    assert operation("resize", size_px=20, mode="stretch", interpolation="bicubic")(sample(image), rng).image.shape == (
        3,
        20,
        20,
    )
    assert torch.equal(operation("center_crop", size_px=20)(sample(image), rng).image, image[:, 10:30, 18:38])
    assert torch.equal(operation("flip_lr", prob=1.0)(sample(image), rng).image, image.flip(-1))
    assert torch.equal(operation("flip_lr", prob=0.0)(sample(image), rng).image, image)
    moved = operation("pad_crop", padding_px=4)(sample(image), keyed_rng(0, 1, 0, 3)).image
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    windows = [padded[:, top : top + 40, left : left + 56] for top in range(9) for left in range(9)]
    assert sum(torch.equal(moved, window) for window in windows) == 1
    cut = operation("cutout", size_px=10, fill=(1.0, 0.5, 0.0))(sample(image), rng).image
    changed = (cut != image).any(0).nonzero()
    assert 0 < len(changed) <= 100 and (torch.tensor([255, 128, 0]) == cut[:, changed[:, 0], changed[:, 1]].T).all()
    assert torch.equal(operation("color_jitter")(sample(image), rng).image, image)
    for keys in ({"brightness": 0.5}, {"hue": 0.3}, {"contrast": 0.4, "saturation": 0.4}):
        assert not torch.equal(operation("color_jitter", **keys)(sample(image), rng).image, image)


def test_random_resized_crop_covers_the_range_it_states():
    # A picture that codes its coordinates tells where a crop came from.
    image = torch.stack(
        [torch.arange(200).repeat(200, 1), torch.arange(200).repeat(200, 1).T, torch.zeros(200, 200)]
    ).byte()
    crop = operation("random_resized_crop", size_px=50, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    lefts = set()
    for i in range(30):
        got = crop(sample(image), keyed_rng(0, 1, 0, i)).image
        assert got.shape == (3, 50, 50)
        width = int(got[0].max()) - int(got[0].min())
        assert 96 <= width <= 100  # a quarter of the area is half the side
        lefts.add(int(got[0].min()))
    assert min(lefts) < 20 and max(lefts) > 80


def test_rotate_scale_crop_without_freedom_is_a_resize():
    image = (
        torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=64, mode="bicubic")[0].clamp(0, 1).mul(255).byte()
    )
    crop = operation("rotate_scale_crop", size_px=64, short_side_px=(64, 64))
    assert (crop(sample(image), keyed_rng(0, 1, 0, 0)).image.int() - image.int()).abs().max() <= 1
    turned = operation("rotate_scale_crop", size_px=64, short_side_px=(64, 64), degrees=45.0)(
        sample(image), keyed_rng(0, 1, 0, 1)
    ).image
    assert not torch.equal(turned, image)


def test_pictures_of_different_sizes_do_not_make_a_batch():
    with pytest.raises(DataError, match="40x56 and 41x56"):
        stack_images([sample(noise()), sample(noise(41))])


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (5, 3, 7, 30), (70, 3, 32, 32), (3, 3, 400, 301)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_into_channels_last_memory_in_one_pass_is_equal(shape, dtype):
    torch.set_default_dtype(dtype)
    try:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        for stored in (images, images.contiguous(memory_format=torch.channels_last)):
            got, plain = to_input(stored, mean, std), normalize(stored, mean, std)
            assert torch.equal(got, plain) and got.dtype == dtype
            assert got.is_contiguous(memory_format=torch.channels_last)
    finally:
        torch.set_default_dtype(torch.float32)
