"""The same two pictures with the same three boxes, and the same six pictures with a class each, in every layout.

Boxes in pixels of 40x30: a: cat (4, 6, 20, 24) and dog (20, 3, 36, 12); b: cat (0, 0, 10, 15).
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

BOXES = {"a": [("cat", (4, 6, 20, 24)), ("dog", (20, 3, 36, 12))], "b": [("cat", (0, 0, 10, 15))]}
WIDTH, HEIGHT = 40, 30
CLASSES = {"cat": ["a", "b", "c"], "dog": ["d", "e", "f"]}


def save_picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(sum(path.name.encode())).randint(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def two_splits(root: Path, size_hw: Callable[[int], tuple[int, int]]) -> Path:
    """Write JPEGs of dark cats and bright dogs, eight for training and four for validation, and return the root."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(["cat", "dog"]):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 60, (*size_hw(i), 3)) + 100 * number
                Image.fromarray(picture.astype(np.uint8)).save(root / split / name / f"{i}.jpg")
    return root


def voc(root: Path) -> None:
    for name, boxes in BOXES.items():
        save_picture(root / f"images/{name}.png")
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for kind, (x1, y1, x2, y2) in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        save_text(
            root / f"annots/{name}.xml", f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
        )


def coco(root: Path) -> None:
    images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(BOXES, 7)]
    annotations = [
        {"image_id": i, "category_id": {"cat": 3, "dog": 18}[kind], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, boxes in enumerate(BOXES.values(), 7)
        for kind, (x1, y1, x2, y2) in boxes
    ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    save_text(root / "labels_my-project.json", json.dumps(document))
    for name in BOXES:
        save_picture(root / f"pics/deep/{name}.png")


def yolo(root: Path) -> None:
    for name, boxes in BOXES.items():
        save_picture(root / f"images/{name}.png")
        lines = [
            f"{('cat', 'dog').index(kind)} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} "
            f"{(y2 - y1) / HEIGHT}\n"
            for kind, (x1, y1, x2, y2) in boxes
        ]
        save_text(root / f"labels/{name}.txt", "".join(lines))
    save_text(root / "classes.txt", "cat\ndog\n")


def cvat(root: Path) -> None:
    images = ""
    for i, (name, boxes) in enumerate(BOXES.items()):
        save_picture(root / f"images/{name}.png")
        shapes = "".join(
            f'<box label="{kind}" source="manual" occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
            for kind, (x1, y1, x2, y2) in boxes
        )
        images += f'<image id="{i}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    declaration = '<?xml version="1.0" encoding="utf-8"?>\n<!-- a task -->\n'
    save_text(
        root / "annotations.xml", f"{declaration}<annotations><version>1.1</version><meta/>{images}</annotations>"
    )


def label_studio(root: Path) -> None:
    tasks = []
    for i, (name, boxes) in enumerate(BOXES.items(), 1):
        save_picture(root / f"media/{name}.png")
        result = [rectangle(kind, *box) for kind, box in boxes]
        image = f"/data/upload/3/1a2b3c4d-{name}.png" if name == "a" else f"/data/local-files/?d=media/{name}.png"
        tasks.append({"id": i, "data": {"image": image}, "annotations": [{"id": i, "result": result}]})
    save_text(root / "project-3.json", json.dumps(tasks, indent=1))


def rectangle(kind: str, x1: float, y1: float, x2: float, y2: float, **more: object) -> dict:
    value = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT}
    value |= {"width": 100 * (x2 - x1) / WIDTH, "height": 100 * (y2 - y1) / HEIGHT, "rotation": 0}
    sides = {"original_width": WIDTH, "original_height": HEIGHT}
    names = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**names, **sides, "value": {**value, "rectanglelabels": [kind]}, **more}


def class_folders(root: Path) -> None:
    for kind, names in CLASSES.items():
        for name in names:
            save_picture(root / kind / f"{name}.png")


def csv_file(root: Path, header: tuple[str, ...] = ("path", "label")) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for kind, names in CLASSES.items():
            for name in names:
                save_picture(root / f"images/{name}.png")
                writer.writerow((f"images/{name}.png", kind))


BOXED = {"voc": voc, "coco": coco, "yolo": yolo, "cvat": cvat, "label_studio": label_studio}
WHOLE = {"class_folders": class_folders, "csv": csv_file}
LAYOUTS = {**BOXED, **WHOLE}
