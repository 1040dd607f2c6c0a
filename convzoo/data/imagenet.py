"""ImageNet's 1000 classes: their WordNet ids, which name them in models and data sets, and their readable titles.

Ids stay the names because they are unique everywhere: two classes are a crane, and two a maillot.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

WNIDS, TITLES = (Path(__file__).with_name(f"imagenet_{what}.txt") for what in ("wnids", "titles"))


@functools.cache
def darknet_wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids in the order of the outputs of Darknet's classifiers."""
    return _lines(WNIDS)


def wnids() -> list[str]:
    """Return the 1000 WordNet ids, sorted: the order of everybody's outputs but Darknet's."""
    return sorted(darknet_wnids())


def titles(class_names: Sequence[str]) -> list[str] | None:
    """Return a readable title for each class, or None where the classes are not ImageNet's."""
    if not class_names or not set(class_names) <= set(darknet_wnids()):
        return None
    title_of = _title_of()
    return [title_of[name] for name in class_names]


@functools.cache
def _title_of() -> dict[str, str]:
    return dict(zip(wnids(), _lines(TITLES), strict=True))


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
