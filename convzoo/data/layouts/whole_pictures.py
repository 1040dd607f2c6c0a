"""Labels of whole pictures: a folder for each class, or a CSV file with the columns path and label."""

import csv
import io
from pathlib import PurePosixPath

from convzoo.data.datasets.boxed import read_text
from convzoo.data.layouts.inventory import SPLIT_OF, Inventory, split_in
from convzoo.data.layouts.labels import Collector, Labels, Reading
from convzoo.errors import DataError

COLUMNS = ("path", "label")  # and, where somebody has split already, `split`


def folders_evidence(inventory: Inventory) -> str | None:
    """Return what speaks for class folders: pictures in two or more of them."""
    classes = sorted({name for name in map(_class_of, inventory.pictures) if name})
    return f"pictures in {len(classes)} folders, such as {classes[0]}" if len(classes) > 1 else None


def _class_of(picture: str) -> str | None:
    """Return the first folder that is not a split's."""
    folders = PurePosixPath(picture).parts[:-1]
    below = folders[1:] if folders and folders[0].casefold() in SPLIT_OF else folders
    return below[0] if below else None


def read_folders(inventory: Inventory, reading: Reading) -> Labels:
    """Read class folders, in split folders or not. Raises DataError for pictures that are in no class."""
    collector = Collector(inventory)
    for picture in inventory.pictures:
        name = _class_of(picture)
        if name is None and split_in(picture):
            raise DataError(f"{inventory.root}: {picture} lies in a split's folder and in no class folder below it")
        if name is None:
            collector.counts["pictures left out that are in no class folder"] += 1
            continue
        first = PurePosixPath(picture).parts[0]
        split = split_in(f"{first}/x")
        collector.label(collector.picture(picture, str(inventory.root), split=split), name)
    return collector.labels("class_folders", folders_evidence(inventory) or "", reading)


def csv_files(inventory: Inventory) -> list[str]:
    """Return the CSV files whose header has one of the columns."""
    return [file for file in inventory.others[".csv"] if set(_header(inventory, file)) & set(COLUMNS)]


def _header(inventory: Inventory, file: str) -> list[str]:
    text = read_text(inventory.path(file)).partition("\n")[0]
    return [name.strip() for name in next(csv.reader([text]), [])]


def has_labels(inventory: Inventory) -> bool:
    """Tell whether a CSV file has both columns."""
    return any(set(_header(inventory, file)) >= set(COLUMNS) for file in csv_files(inventory))


def csv_evidence(inventory: Inventory) -> str | None:
    there = csv_files(inventory)
    return f"{there[0]} with the columns {', '.join(_header(inventory, there[0]))}" if there else None


def read_csv(inventory: Inventory, reading: Reading) -> Labels:
    """Read a CSV file; paths are below it or below the folder. Raises DataError with file and line."""
    collector, missing, total = Collector(inventory), [], 0
    for file in csv_files(inventory):
        path, header = inventory.path(file), _header(inventory, file)
        absent = [column for column in COLUMNS if column not in header]
        if absent:
            raise DataError(f"{path}:1: no column '{absent[0]}'; its header must have path and label")
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""), fieldnames=header)
        next(rows)
        for row in rows:
            total += 1
            reference, name, split = ((row.get(column) or "").strip() for column in (*COLUMNS, "split"))
            place = f"{path}:{rows.line_num}"
            if not reference or not name:
                raise DataError(f"{place}: no {'label' if reference else 'path'} in this line")
            if split and split.casefold() not in SPLIT_OF:
                raise DataError(f"{place}: split '{split[:40]}'; it is train, val or test")
            picture = inventory.picture(reference, file)
            if picture is None:
                missing.append((file, reference))
                continue
            collector.label(collector.picture(picture, place, split=SPLIT_OF.get(split.casefold())), name)
        others = [column for column in header if column not in (*COLUMNS, "split")]
        collector.counts[f"columns of {file} left out: {', '.join(others)[:60]}"] = len(others)
    if missing:
        raise inventory.missing(missing, total)
    return collector.labels("csv", csv_evidence(inventory) or "", reading)
