"""Label Studio's JSON (https://labelstud.io/guide/task_format): a list of tasks, one a picture.

Positions and sizes are percent of the picture, turned clockwise in degrees about the left upper corner. A task has
annotations of people and predictions of models; those of people count where there are some, else the predictions.
"""

import json
import math
import re
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from convzoo.data.datasets.boxed import picture_size, read_text
from convzoo.data.layouts.inventory import Inventory
from convzoo.data.layouts.labels import Collector, Labels, Reading, corner_box, turned_box
from convzoo.errors import DataError
from convzoo.plain import JsonObject, JsonValue

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files
KEYS = {"rectanglelabels", "polygonlabels", "ellipselabels"}  # each in `value` under its own name


def files(inventory: Inventory) -> list[str]:
    """Return the JSON files that are a list of tasks."""
    return [file for file in inventory.others[".json"] if _is_tasks(inventory, file)]


def _is_tasks(inventory: Inventory, file: str) -> bool:
    with open(inventory.path(file), "rb") as stream:
        head = stream.read(1 << 16)
    keys = (b'"annotations"', b'"predictions"', b'"completions"', b'"rectanglelabels"', b'"choices"')
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and any(key in head for key in keys)


def evidence(inventory: Inventory) -> str | None:
    there = files(inventory)
    return f"{there[0]}, a list of tasks" + f" and {len(there) - 1} more" * (len(there) > 1) if there else None


def read(inventory: Inventory, reading: Reading) -> Labels:
    """Read rectangles, polygons and ellipses as boxes, or choices as classes of whole pictures. Raises DataError."""
    collector, missing, total = Collector(inventory), [], 0
    for file in files(inventory):
        try:
            tasks = json.loads(read_text(inventory.path(file)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{inventory.root}/{file}: damaged JSON: {error}") from None
        for number, task in enumerate(tasks, 1):
            total += 1
            place = f"{inventory.root}/{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
            reference = _reference(task, place)
            picture = _picture(inventory, reference, file)
            if picture is None:
                missing.append((file, reference))
                continue
            results = _results(task, collector, place)
            size_hw = _stated_hw(results)
            index = collector.picture(picture, place, size_hw or (0, 0))
            for result in results:
                _add(collector, index, result, size_hw or picture_size(str(inventory.path(picture))), place)
    if missing:
        raise inventory.missing(missing, total)
    return collector.labels("label_studio", evidence(inventory) or "", reading)


def _reference(task: JsonValue, place: str) -> str:
    """Return the path that a task calls its picture by: of an address its path, of local storage its `d`."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise DataError(f"{place}: no 'data'; Label Studio's JSON is read, not its JSON-MIN")
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str) and value]
    if not texts:
        raise DataError(f"{place}: data names no picture")
    parts = urlsplit(texts[0])
    local = parse_qs(parts.query).get("d")
    return (local[0] if local else unquote(parts.path)).lstrip("/")


def _picture(inventory: Inventory, reference: str, file: str) -> str | None:
    picture = inventory.picture(reference, file)
    name = PurePosixPath(reference).name
    return picture or (inventory.picture(UPLOADED.sub("", name), file) if UPLOADED.match(name) else None)


def _results(task: JsonObject, collector: Collector, place: str) -> list[JsonObject]:
    """Return the results of a task's annotation, or of its prediction where nobody annotated."""
    annotations = [entry for entry in task.get("annotations") or [] if not entry.get("was_cancelled")]
    chosen = annotations or task.get("predictions") or []
    if not chosen:
        collector.counts["tasks that nobody labelled: pictures without objects"] += 1
        return []
    if len(chosen) > 1:
        collector.counts["tasks with several annotations, of which the ground truth or the latest is read"] += 1
        chosen = sorted(chosen, key=lambda entry: (bool(entry.get("ground_truth")), str(entry.get("updated_at") or "")))
    results = chosen[-1].get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DataError(f"{place}: 'result' must be a list of objects")
    return results


def _stated_hw(results: list[JsonObject]) -> tuple[int, int] | None:
    for result in results:
        sides = result.get("original_height"), result.get("original_width")
        if all(type(side) is int and side > 0 for side in sides):
            return sides  # type: ignore[return-value]
    return None


def _add(collector: Collector, picture: int, result: JsonObject, size_hw: tuple[int, int], place: str) -> None:
    kind, value = result.get("type"), result.get("value")
    here = f"{place}: {kind}"
    if not isinstance(value, dict):
        raise DataError(f"{here}: no 'value'")
    stated = result.get("score")
    score = float(stated) if isinstance(stated, int | float) else math.nan
    if kind == "choices":
        collector.label(picture, _name(value, "choices", here), score)
        return
    if kind not in KEYS:
        collector.counts[f"results of type {kind} left out: they are no boxes"] += 1
        return
    percent = _box(kind, value, here, size_hw, collector)
    scale = size_hw[1] / 100, size_hw[0] / 100
    collector.box(picture, _name(value, kind, here), [part * scale[i % 2] for i, part in enumerate(percent)], score)


def _name(value: JsonObject, key: str, place: str) -> str:
    names = value.get(key)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise DataError(f"{place}: {key} must be a list of one name, not {json.dumps(names)[:60]}")
    return names[0]


def _box(kind: str, value: JsonObject, place: str, size_hw: tuple[int, int], collector: Collector) -> list[float]:
    """Return the box (left, top, right, bottom) of a shape in percent of the picture's sides."""
    if kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise DataError(f"{place}: points must be a list of pairs")
        collector.counts["polygons read as their boxes"] += 1
        return corner_box([[_percent(part, place) for part in point] for point in points], place)
    if kind == "ellipselabels":
        x, y, rx, ry = (_percent(value.get(key), place) for key in ("x", "y", "radiusX", "radiusY"))
        collector.counts["ellipses read as their boxes"] += 1
        return [x - rx, y - ry, x + rx, y + ry]
    x, y, width, height = (_percent(value.get(key), place) for key in ("x", "y", "width", "height"))
    degrees = value.get("rotation") or 0
    if not degrees:
        return [x, y, x + width, y + height]
    collector.counts["turned boxes read as the upright ones around them"] += 1
    across, down = size_hw[1] / 100, size_hw[0] / 100  # turned in pixels: percents of the two sides differ
    box = turned_box(x * across, y * down, width * across, height * down, float(degrees), "corner")
    return [part / (across, down)[i % 2] for i, part in enumerate(box)]


def _percent(value: JsonValue, place: str) -> float:
    if type(value) not in (int, float) or not -1 <= value <= 101:  # it draws a little over the border
        raise DataError(f"{place}: {json.dumps(value)[:40]} is no percentage of the picture's side, 0 to 100")
    return float(value)
