"""Pascal VOC: one XML file a picture, lists of pictures for each set.

Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge"; the development kit describes the format.
Layout: Annotations/*.xml, ImageSets/Main/train.txt ..., JPEGImages/, in the folder or below VOCdevkit/VOC20xx.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages, box_areas, check_names, check_root, read_text
from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError, UsageError
from convzoo.types import Boxes

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGEST = 1e9  # beyond any picture


@register("dataset")
def voc(
    root: Path | None,
    split: str,
    *,
    max_train_images: int | None = None,
    class_names: list[str] | None = None,
    one_based: bool = True,
    train_set: str | list[str] = "train",
    val_set: str | list[str] = "val",
) -> BoxedImages:
    """Build a data set in VOC's format. Objects marked difficult are treated as crowds.

    Args:
        class_names: None for all that the annotations hold, sorted.
        one_based: pixels count from 1 and the last one belongs to the box, as VOC has it; else corners count from 0
            and are taken as they are.
        train_set: the list in ImageSets/Main for the split train, 2007/trainval for one below VOC2007, or several such;
            val_set likewise.
    Raises:
        UsageError: no such folder, or class names that are none.
        DataError: no such layout, a listed file that is missing, or anything wrong in an XML, with the object's number.
    """
    root = check_root(root, "Annotations/, ImageSets/Main/ and JPEGImages/")
    set_names = train_set if split == "train" else val_set
    sets = [_place(root, name) for name in ([set_names] if isinstance(set_names, str) else set_names)]
    parsed = [_parsed(base) for base, _ in sets]
    own_names = sorted({name for annotations in parsed for name in annotations.names})
    names = own_names if class_names is None else check_names(class_names, "data.class_names", UsageError)
    if not names:
        raise DataError(f"{root}: not one object in the listed annotations")
    parts = [
        _part(base, name, annotations, names, one_based) for (base, name), annotations in zip(sets, parsed, strict=True)
    ]
    starts = np.cumsum([0, *(len(part.files) for part in parts)])
    above = Path(os.path.commonpath([base for base, _ in sets]))
    folders = [os.path.relpath(base / "JPEGImages", above) for base, _ in sets]
    return BoxedImages(
        above,
        [os.path.join(folder, file) for folder, part in zip(folders, parts, strict=True) for file in part.files],
        names,
        Boxes.joined([part.objects for part in parts]),
        np.concatenate([part.image_index + start for part, start in zip(parts, starts, strict=False)]),
        stated_hw=np.concatenate([part.stated_hw for part in parts]),
        limit=max_train_images if split == "train" else None,
    )


class _Part(NamedTuple):
    """One list's pictures and their objects."""

    files: list[str]
    objects: Boxes
    image_index: np.ndarray
    stated_hw: np.ndarray


def _part(base: Path, name: str, parsed: "_Parsed", names: list[str], one_based: bool) -> _Part:
    stems = _listed(base, name)
    chosen = np.array([parsed.position[stem] for stem in stems], np.int64)
    new_index = np.full(len(parsed.position), -1)
    new_index[chosen] = np.arange(len(chosen))
    mask = new_index[parsed.image_index] >= 0
    image_index = new_index[parsed.image_index[mask]]
    label_of = np.array([names.index(name) if name in names else -1 for name in parsed.names], np.int64)
    labels = label_of[parsed.labels[mask]]
    if (labels < 0).any():
        at = int(np.flatnonzero(labels < 0)[0])
        unknown = parsed.names[parsed.labels[mask][at]]
        number = at - int(np.searchsorted(parsed.image_index[mask], parsed.image_index[mask][at])) + 1
        raise DataError(
            f"{_xml(base, stems[image_index[at]])}: object {number}: '{unknown}' is not in data.class_names"
        )
    xyxy = parsed.corners[mask] - (np.array([1, 1, 0, 0]) if one_based else 0)
    # VOC's own evaluation counts a difficult object neither as missed nor as found, and none of its baselines learnt
    # them; that is what a crowd is here.
    objects = Boxes(xyxy, labels, parsed.difficult[mask], box_areas(xyxy))
    return _Part(_pictures(base, stems, parsed), objects, image_index, parsed.stated_hw[chosen])


def _place(root: Path, name: str) -> tuple[Path, str]:
    """Return the data set's folder and the list's name of `trainval`, or of `2007/trainval`. Raises DataError."""
    year, _, name = name.rpartition("/")
    if not year:
        return _base(root), name
    year = year.removeprefix("VOC")
    for base in (root / f"VOC{year}", root / f"VOCdevkit/VOC{year}", root):
        if base.name == f"VOC{year}" and (base / "ImageSets/Main").is_dir():
            return _base(base), name
    raise DataError(f"{root}: no VOC{year}/ImageSets/Main in it, or below VOCdevkit ({year}/{name} is asked for)")


def _base(root: Path) -> Path:
    below = (
        path for pattern in ("VOC[0-9]*", "VOCdevkit", "VOCdevkit/VOC[0-9]*") for path in sorted(root.glob(pattern))
    )
    folders = [path for path in (root, *below) if (path / "ImageSets/Main").is_dir()]
    if not folders:
        raise DataError(f"{root}: no ImageSets/Main in it, or below VOCdevkit/VOC20xx")
    if len(folders) > 1:
        raise DataError(
            f"{root}: more than one data set; name {' or '.join(map(str, folders))}, "
            "or set data.train_set=[2007/trainval, ...]",
            ("data",),
        )
    for name in ("Annotations", "JPEGImages"):
        if not (folders[0] / name).is_dir():
            raise DataError(f"{folders[0]}: no folder {name}")
    return folders[0]


def _xml(base: Path, stem: str) -> Path:
    return base / "Annotations" / f"{stem}.xml"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _without_mark(line: str) -> str:
    """Return a picture's name from a line of a class's own list, `2007_000032  -1`."""
    name, _, mark = line.replace("\t", " ").rpartition(" ")
    return name.rstrip() if mark in ("-1", "0", "1") else line


def _listed(base: Path, name: str) -> list[str]:
    """Return the pictures of a set. Raises DataError for no such list, none in it, one twice or without an XML."""
    path = base / "ImageSets/Main" / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))[:8]) or "no list"
        raise DataError(f"{path}: no such list; there is {there} (data.train_set and data.val_set choose)")
    stamps, stems = _stamps(base), {}
    for number, line in _lines(path):
        stem = line if line in stamps else _without_mark(line)
        if stem not in stamps:
            raise DataError(f"{path}:{number}: no {_xml(base, stem)}")
        if stem in stems:
            raise DataError(f"{path}:{number}: {stem} is listed twice")
        stems[stem] = None
    if not stems:
        raise DataError(f"{path}: no pictures in this list")
    return list(stems)


def _stamps(base: Path) -> dict[str, tuple[int, int]]:
    """Return when each XML was written and how long it is, by its name: by this a change is noticed."""
    with os.scandir(base / "Annotations") as entries:
        stats = ((entry.name.removesuffix(".xml"), entry.stat()) for entry in entries if entry.name.endswith(".xml"))
        return {stem: (stat.st_mtime_ns, stat.st_size) for stem, stat in stats}


class _Parsed(NamedTuple):
    """What the XML files of all sets hold: position of each picture, and arrays over the M objects."""

    position: dict[str, int]
    extensions: list[str]
    stated_hw: np.ndarray
    names: list[str]
    image_index: np.ndarray
    corners: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def _parsed(base: Path) -> _Parsed:
    stamps, stems = _stamps(base), set()
    for path in sorted((base / "ImageSets/Main").glob("*.txt")):
        candidates = (line if line in stamps else _without_mark(line) for _, line in _lines(path))
        stems |= {stem for stem in candidates if stem in stamps}
    return _parse_all(base, tuple((stem, *stamps[stem]) for stem in sorted(stems)))


@functools.lru_cache(maxsize=2)  # train and val are built one after the other from the same files
def _parse_all(base: Path, stamps: tuple[tuple[str, int, int], ...]) -> _Parsed:
    stems = [stem for stem, *_ in stamps]
    pictures = [read_annotation(_xml(base, stem)) for stem in stems]
    objects = [(i, *row) for i, picture in enumerate(pictures) for row in picture.objects]
    names = sorted({name for _, name, _, _ in objects})
    number = {name: i for i, name in enumerate(names)}
    return _Parsed(
        {stem: i for i, stem in enumerate(stems)},
        [os.path.splitext(picture.filename)[1].lower() for picture in pictures],
        np.array([picture.size_hw for picture in pictures], np.int64).reshape(-1, 2),
        names,
        np.array([i for i, *_ in objects], np.int64),
        np.array([corners for *_, corners, _ in objects], float).reshape(-1, 4),
        np.array([number[name] for _, name, _, _ in objects], np.int64),
        np.array([difficult for *_, difficult in objects], bool),
    )


class Annotation(NamedTuple):
    """What an XML says: the picture's file, its height and width (0 where not stated), and of each object its name,
    corners (as they are written) and whether it is difficult."""

    filename: str
    size_hw: tuple[int, int]
    objects: list[tuple[str, list[float], bool]]


def read_annotation(path: Path) -> Annotation:
    """Read one XML. Raises DataError with file and object."""
    tree = read_xml(path)
    objects = [_object(element, f"{path}: object {i}") for i, element in enumerate(tree.findall("object"), 1)]
    return Annotation((tree.findtext("filename") or "").strip(), _size(tree, path), objects)


def read_xml(path: Path) -> Element:
    """Return the root element of an XML file. Raises DataError for one that is none or declares entities or a DTD."""
    try:
        # Bytes: the file itself says how it is encoded.
        return fromstring(path.read_bytes(), forbid_dtd=True)
    except DefusedXmlException:
        raise DataError(f"{path}: it declares entities or a DTD, which are not read") from None
    except ParseError as error:
        raise DataError(f"{path}: not XML: {error}") from None
    except (LookupError, ValueError) as error:
        raise DataError(f"{path}: not XML in a known encoding: {error}") from None


def _size(tree: Element, path: Path) -> tuple[int, int]:
    texts = [(tree.findtext(f"size/{side}") or "0").strip() for side in ("height", "width")]
    if not all(text.isdecimal() and len(text) < 9 for text in texts) or (texts.count("0") == 1):
        raise DataError(f"{path}: size: height and width must be whole numbers above 0, not {', '.join(texts)}")
    return int(texts[0]), int(texts[1])


def _object(element: Element, place: str) -> tuple[str, list[float], bool]:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{place}: no name")
    texts = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
    if not all(texts):
        raise DataError(f"{place} ({name}): no bndbox with {', '.join(CORNERS)}")
    shown = f"{place} ({name}): bndbox {' '.join(texts)}"
    try:
        x1, y1, x2, y2 = corners = [float(text) for text in texts]
    except ValueError:
        raise DataError(f"{shown}: not 4 numbers") from None
    if not all(abs(value) < LARGEST for value in corners):  # NaN too
        raise DataError(f"{shown}: not 4 finite numbers")
    if x2 < x1 or y2 < y1:
        raise DataError(f"{shown}: inverted, its right or lower end comes first")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"{place} ({name}): difficult must be 0 or 1, not {difficult}")
    return name, corners, difficult == "1"


def _pictures(base: Path, stems: list[str], parsed: _Parsed) -> list[str]:
    """Return the picture's file of each name: with the extension that its XML states, else any that is read."""
    there: dict[str, dict[str, str]] = {}
    for file in sorted(os.listdir(base / "JPEGImages")):
        stem, extension = os.path.splitext(file)
        there.setdefault(stem, {})[extension.lower()] = file
    files = []
    for stem in stems:
        stated = parsed.extensions[parsed.position[stem]]
        kinds = [kind for kind in (stated, *EXTENSIONS) if kind in EXTENSIONS and kind in there.get(stem, {})]
        if not kinds:
            raise DataError(f"{_xml(base, stem)}: no picture {base / 'JPEGImages' / stem} ({', '.join(EXTENSIONS)})")
        files.append(there[stem][kinds[0]])
    return files
