"""scikit-learn's handwritten digits: 1797 real 8x8 scans, embedded, so that everything runs with no download.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI (CC BY 4.0). 360 of them, by a fixed
permutation, are held out as val.
"""

from pathlib import Path
from typing import Any

import numpy as np

from convzoo.config.registry import register
from convzoo.data.datasets.in_memory import ArrayImages, first_of_shuffled

HELD_OUT = 360


@register("dataset")
def digits(root: Path | None, split: str, *, max_train_images: int | None = None) -> ArrayImages:
    """Build the digits; root is not used."""
    from sklearn.datasets import load_digits  # takes two seconds, and every data set is registered for every verb

    bunch: Any = load_digits()  # Any: scikit-learn has no types
    # RandomState's streams are frozen by NumPy's policy, so the split never changes.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    chosen = order[:HELD_OUT] if split == "val" else order[HELD_OUT:]
    if split == "train":
        chosen = chosen[first_of_shuffled(len(chosen), max_train_images)]
    grey = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[:, None], 3, axis=1)
    return ArrayImages(
        images, bunch.target[chosen].astype(np.int64), [str(digit) for digit in range(10)], f"digits/{split}", chosen
    )
