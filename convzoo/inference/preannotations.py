"""Answers as pre-annotations that annotation tools open: Label Studio's tasks, COCO's instances.

Paths in them are below the folder that all pictures share, which is what a tool must be told. Both are read again by
the data set `own`, scores and all.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from convzoo.files import written_whole
from convzoo.inference.answers import Answer, boxes_of
from convzoo.plain import JsonObject


def save_coco(answers: Iterable[Answer], path: Path, class_names: list[str]) -> Iterator[Answer]:
    """Pass a detector's answers on, then write a JSON of instances (https://cocodataset.org/#format-data).

    Each annotation has its score as a key of its own, as result files have. Raises UsageError for a classifier.
    """
    pictures, annotations = [], []
    for answer in answers:
        height, width = answer.image.shape[:2]
        pictures.append((answer.path, width, height))
        for label, score, (x1, y1, x2, y2) in zip(answer.labels, answer.scores, boxes_of(answer).tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(pictures),
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [],
                    "score": score,
                }
            )
        yield answer
    names = _below([path for path, *_ in pictures])
    document = {
        "info": {"description": "predictions of a convzoo model"},
        "licenses": [],
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, (_, width, height)) in enumerate(zip(names, pictures, strict=True), 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(class_names, 1)],
    }
    _write(path, json.dumps(document, ensure_ascii=False))


def save_label_studio(
    answers: Iterable[Answer], path: Path, class_names: list[str], model_version: str
) -> Iterator[Answer]:
    """Pass answers on, then write tasks with predictions (https://labelstud.io/guide/predictions).

    A classifier's are choices, of which the best counts. Beside the file, with the ending .xml, lies the labelling
    configuration that its names belong to. Pictures are called as local storage calls them, `?d=` and a path.
    """
    tasks, boxed = [], True
    paths = []
    for answer in answers:
        paths.append(answer.path)
        boxed = answer.boxes_xyxy is not None
        results = _rectangles(answer) if boxed else _choice(answer)
        prediction: JsonObject = {"model_version": model_version, "result": results}
        if results:
            prediction["score"] = sum(result["score"] for result in results) / len(results)
        tasks.append({"predictions": [prediction]})
        yield answer
    for name, task in zip(_below(paths), tasks, strict=True):
        task["data"] = {"image": f"/data/local-files/?d={quote(name)}"}
    _write(path, json.dumps(tasks, ensure_ascii=False))
    _write(path.with_suffix(".xml"), _configuration(class_names, boxed))


def _rectangles(answer: Answer) -> list[JsonObject]:
    height, width = answer.image.shape[:2]
    rows = []
    for number, (name, score, box) in enumerate(zip(answer.names, answer.scores, boxes_of(answer), strict=True), 1):
        x1, y1, x2, y2 = (100 * box / [width, height, width, height]).tolist()
        value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": [name]}
        sides = {"original_width": width, "original_height": height, "image_rotation": 0}
        names = {"id": str(number), "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        rows.append({**names, **sides, "value": value, "score": score})
    return rows


def _choice(answer: Answer) -> list[JsonObject]:
    names = {"id": "1", "from_name": "choice", "to_name": "image", "type": "choices"}
    return [{**names, "value": {"choices": [answer.names[0]]}, "score": answer.scores[0]}]


def _configuration(class_names: list[str], boxed: bool) -> str:
    tag, item, name = ("RectangleLabels", "Label", "label") if boxed else ("Choices", "Choice", "choice")
    items = "".join(f"    <{item} value={quoteattr(class_name)}/>\n" for class_name in class_names)
    image = '  <Image name="image" value="$image"/>\n'
    return f'<View>\n{image}  <{tag} name="{name}" toName="image">\n{items}  </{tag}>\n</View>\n'


def _below(paths: list[str]) -> list[str]:
    """Return paths below the folder that all of them share."""
    full = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath([os.path.dirname(path) for path in full]) if full else ""
    return [os.path.relpath(path, base).replace(os.sep, "/") for path in full]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
