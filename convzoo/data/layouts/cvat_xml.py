"""CVAT's XML for images, version 1.1 (https://docs.cvat.ai/docs/manual/advanced/xml_format/).

<annotations> holds an <image name width height> for each picture with <box>, <polygon>, <tag> and more in it; a box's
corners are continuous pixels, a turned one has its rotation in degrees about its middle. A project's images name their
subset. Classes have names and no numbers.
"""

from xml.etree.ElementTree import Element

from convzoo.data.datasets.voc import read_xml
from convzoo.data.layouts.inventory import SPLIT_OF, Inventory
from convzoo.data.layouts.labels import LARGEST, Collector, Labels, Reading, corner_box, turned_box
from convzoo.data.layouts.voc_xml import first_element
from convzoo.errors import DataError

SHAPES = ("polyline", "points", "cuboid", "mask", "skeleton", "ellipse")  # drawn in CVAT, and no boxes


def files(inventory: Inventory) -> list[str]:
    """Return the XML files whose first element is <annotations>."""
    return [file for file in inventory.others[".xml"] if first_element(inventory, file) == "annotations"]


def evidence(inventory: Inventory) -> str | None:
    there = files(inventory)
    return f"{there[0]} with <annotations>" + f" and {len(there) - 1} more" * (len(there) > 1) if there else None


def read(inventory: Inventory, reading: Reading) -> Labels:
    """Read boxes, polygons as their boxes, or the tags of whole pictures. Raises DataError."""
    collector, missing, total = Collector(inventory), [], 0
    for file in files(inventory):
        root = read_xml(inventory.path(file))
        if root.find("track") is not None:
            raise DataError(f"{inventory.root}/{file}: CVAT's XML for videos; export the task as CVAT for images")
        for image in root.findall("image"):
            total += 1
            name = image.get("name") or ""
            place = f"{inventory.root}/{file}: image {name or total}"
            picture = inventory.picture(name, file) if name else None
            if picture is None:
                missing.append((file, name))
                continue
            split = SPLIT_OF.get((image.get("subset") or "").casefold())
            size_hw = int(_number(image, "height", place)), int(_number(image, "width", place))
            _add(collector, collector.picture(picture, place, size_hw, split), image, place)
    if missing:
        raise inventory.missing(missing, total)
    return collector.labels("cvat", evidence(inventory) or "", reading)


def _add(collector: Collector, picture: int, image: Element, place: str) -> None:
    tags = []
    for element in image:
        label = element.get("label")
        here = f"{place}: {element.tag} {label or 'without a label'}"
        if not label:
            raise DataError(here)
        if element.tag == "box":
            x1, y1, x2, y2 = (_number(element, key, here) for key in ("xtl", "ytl", "xbr", "ybr"))
            if x2 < x1 or y2 < y1:
                raise DataError(f"{here}: {x1:g} {y1:g} {x2:g} {y2:g} is inverted")
            turned = _number(element, "rotation", here) if element.get("rotation") else 0.0
            collector.counts["turned boxes read as the upright ones around them"] += turned != 0
            collector.box(picture, label, turned_box(x1, y1, x2 - x1, y2 - y1, turned, "middle"))
        elif element.tag == "polygon":
            collector.counts["polygons read as their boxes"] += 1
            collector.box(picture, label, corner_box(_points(element, here), here))
        elif element.tag == "tag":
            tags.append(label)
        else:
            kind = f"{element.tag} shapes" if element.tag in SHAPES else f"<{element.tag}> elements"
            collector.counts[f"{kind} left out: they are no boxes"] += 1
    if len(tags) > 1:
        raise DataError(f"{place}: {len(tags)} tags, {' and '.join(tags[:2])}; a classifier has one class a picture")
    if tags:
        collector.label(picture, tags[0])


def _number(element: Element, key: str, place: str) -> float:
    text = element.get(key) or ""
    try:
        value = float(text)
    except ValueError:
        value = LARGEST
    if not abs(value) < LARGEST:
        raise DataError(f"{place}: {key} must be a number, not '{text[:40]}'")
    return value


def _points(element: Element, place: str) -> list[tuple[float, float]]:
    text = element.get("points") or ""
    try:
        points = [[float(part) for part in pair.split(",")] for pair in text.split(";") if pair.strip()]
    except ValueError:
        points = [[]]
    if not all(len(point) == 2 and all(abs(value) < LARGEST for value in point) for point in points):
        raise DataError(f"{place}: points must be x,y;x,y;..., not '{text[:40]}'")
    return [(point[0], point[1]) for point in points]
