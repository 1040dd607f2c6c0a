"""Which pictures look alike: a perceptual hash that copies share, scaled or compressed again."""

import numpy as np
from PIL import Image

from convzoo.data.datasets.boxed import read_bytes
from convzoo.data.decode import FORMATS, decode_rgb
from convzoo.errors import DataError

HASH_PX = 16  # a hash has 16 x 16 bits
HASH_BYTES = HASH_PX * HASH_PX // 8
ALIKE_BITS = 12  # of the 256 that may differ: copies that were scaled or compressed again stay below


def pixel_hash(picture: Image.Image) -> np.ndarray:
    """Return 256 bits as [32] uint8: whether each of 17 x 16 grey cells is brighter than its left neighbour.

    The difference hash of N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), with four times its bits.
    """
    grey = picture.convert("L").resize((HASH_PX + 1, HASH_PX), Image.Resampling.BOX)
    cells = np.asarray(grey).astype(np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1])


def perceptual_hash(path: str) -> np.ndarray:
    """Return the hash of a picture's file, as `pixel_hash`. Raises DataError where it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.draft("L", (8 * HASH_PX, 8 * HASH_PX))  # a JPEG is decoded at an eighth where that is enough
            return pixel_hash(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        decode_rgb(read_bytes(path), path)  # says best what is wrong with it
        raise DataError(f"{path}: damaged picture") from None


def alike_pairs(hashes: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
    """Return the positions of hashes [N, 32] and others [M, 32] that differ in at most ALIKE_BITS."""
    words, other_words = hashes.view(np.uint64), others.view(np.uint64)
    pairs = []
    for i in range(len(words)):
        bits = np.bitwise_count(other_words ^ words[i]).sum(1, dtype=np.int64)
        pairs += [(i, int(j)) for j in np.flatnonzero(bits <= ALIKE_BITS)]
    return pairs


def alike_groups(hashes: np.ndarray) -> np.ndarray:
    """Return the group [N] of each picture: the first one that it is alike, over any number of steps.

    Args:
        hashes: [N, 32] uint8.
    """
    group = np.arange(len(hashes))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = int(group[i])
        return i

    for i in range(len(hashes) - 1):
        for _, j in alike_pairs(hashes[i : i + 1], hashes[i + 1 :]):
            low, high = sorted((root(i), root(i + 1 + j)))
            group[high] = low
    return np.array([root(i) for i in range(len(hashes))], np.int64)
