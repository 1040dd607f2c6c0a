"""Which layout a folder of labels has: by what its files hold, never by a guess between two."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from convzoo.config.registry import nearest
from convzoo.data.datasets.boxed import check_root
from convzoo.data.layouts import coco_json, cvat_xml, label_studio, voc_xml, whole_pictures, yolo_text
from convzoo.data.layouts.inventory import Inventory, Stamp, stamp
from convzoo.data.layouts.labels import Labels, Reading
from convzoo.errors import DataError, UsageError


class Layout(NamedTuple):
    """How a layout is called, what speaks for it in a folder (None: nothing), and what reads it."""

    title: str
    evidence: Callable[[Inventory], str | None]
    read: Callable[[Inventory, Reading], Labels]


LAYOUTS = {
    "voc": Layout("Pascal VOC XML", voc_xml.evidence, voc_xml.read),
    "coco": Layout("COCO JSON", coco_json.evidence, coco_json.read),
    "yolo": Layout("YOLO text", yolo_text.evidence, yolo_text.read),
    "cvat": Layout("CVAT XML for images", cvat_xml.evidence, cvat_xml.read),
    "label_studio": Layout("Label Studio JSON", label_studio.evidence, label_studio.read),
    "csv": Layout("CSV of path,label", whole_pictures.csv_evidence, whole_pictures.read_csv),
    "class_folders": Layout("class folders", whole_pictures.folders_evidence, whole_pictures.read_folders),
}


def recognise(inventory: Inventory) -> str:
    """Return the name of a folder's layout.

    Raises:
        DataError: no pictures, none of the layouts, or two of them.
    """
    if not inventory.pictures:
        raise DataError(f"{inventory.root}: no pictures in it")
    boxed = {name: LAYOUTS[name].evidence(inventory) for name in LAYOUTS if name not in ("csv", "class_folders")}
    there = {name: text for name, text in boxed.items() if text}
    # Folders of pictures are not classes where label files speak of them, and a table without both columns no labels.
    whole = ["csv"] * whole_pictures.has_labels(inventory) if there else ["csv", "class_folders"]
    there |= {name: text for name in whole if (text := LAYOUTS[name].evidence(inventory))}
    if not there:
        titles = ", ".join(layout.title for layout in LAYOUTS.values())
        line = yolo_text.first_line(inventory)
        unknown = f"; {line[0]} begins with '{line[1][:40]}', no class and box" if line else ""
        count = len(inventory.pictures)
        raise DataError(f"{inventory.root}: {count:,} pictures and no labels in any of: {titles}{unknown}")
    if len(there) > 1:
        (first, one), (second, other) = list(there.items())[:2]
        raise DataError(
            f"{inventory.root}: two layouts, {LAYOUTS[first].title} ({one}) and {LAYOUTS[second].title} ({other}); "
            f"data.layout={first} or data.layout={second} says which"
        )
    return next(iter(there))


def read_labels(root: Path | None, layout: str | None = None, reading: Reading | None = None) -> Labels:
    """Read a folder's labels, once for as long as none of its files changes.

    Raises:
        UsageError: no such folder or layout.
        DataError: the layout is not clear, or anything wrong in a label file.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"data.layout: no layout '{layout}'{nearest(layout, LAYOUTS)}")
    root = check_root(root, "pictures and their labels")
    files = stamp(root)
    reading = reading or Reading()
    names = None if reading.class_names is None else tuple(reading.class_names)
    return _read(str(root), files, layout, names, tuple(sorted(reading.rename.items())), reading.one_based)


@functools.lru_cache(maxsize=2)  # train and val are built one after the other from the same files
def _read(
    root: str,
    files: Stamp,
    layout: str | None,
    class_names: tuple[str, ...] | None,
    rename: tuple[tuple[str, str], ...],
    one_based: bool,
) -> Labels:
    inventory = Inventory(Path(root), files)
    name = layout or recognise(inventory)
    if LAYOUTS[name].evidence(inventory) is None:
        raise DataError(f"{root}: no {LAYOUTS[name].title} in it")
    return LAYOUTS[name].read(inventory, Reading(class_names, dict(rename), one_based))
