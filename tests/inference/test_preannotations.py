"""Pre-annotations: they have the form that the tools document, and are read again with the same boxes and scores."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import pytest
from defusedxml.ElementTree import fromstring
from PIL import Image
from pydantic import Field

from convzoo.data.layouts.recognise import read_labels
from convzoo.inference.answers import Answer, save_yolo_txt
from convzoo.inference.preannotations import save_coco, save_label_studio
from helpers import one_line

CLASSES = ["cat", "dog & co", "emu"]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")


Percent = Annotated[float, Field(ge=0, le=100)]
Id = Annotated[int, Field(ge=0)]


class CocoImage(Strict):
    """https://cocodataset.org/#format-data, "image"; licence, addresses and date are optional there."""

    id: Id
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    file_name: str


class CocoAnnotation(Strict):
    """The same page, object detection; score is that of its results format."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: list[list[float]]
    area: Annotated[float, Field(ge=0)]
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    iscrowd: Literal[0, 1]
    score: Annotated[float, Field(ge=0, le=1)]


class CocoCategory(Strict):
    id: Annotated[int, Field(gt=0)]
    name: str
    supercategory: str


class Coco(Strict):
    info: dict[str, str]
    licenses: list[dict]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class Rectangle(Strict):
    x: Percent
    y: Percent
    width: Percent
    height: Percent
    rotation: float
    rectanglelabels: Annotated[list[str], Field(min_length=1)]


class Choice(Strict):
    choices: Annotated[list[str], Field(min_length=1)]


class RectangleResult(Strict):
    """https://labelstud.io/guide/predictions, "Import bbox and choice pre-annotations for images"."""

    id: str
    type: Literal["rectanglelabels"]
    from_name: str
    to_name: str
    original_width: Annotated[int, Field(gt=0)]
    original_height: Annotated[int, Field(gt=0)]
    image_rotation: Literal[0, 90, 180, 270]
    value: Rectangle
    score: Annotated[float, Field(ge=0, le=1)]


class ChoiceResult(Strict):
    id: str
    type: Literal["choices"]
    from_name: str
    to_name: str
    value: Choice
    score: Annotated[float, Field(ge=0, le=1)]


class LabelStudioPrediction(Strict):
    model_version: str
    result: list[RectangleResult | ChoiceResult]
    score: Annotated[float, Field(ge=0, le=1)] | None = None


class Task(Strict):
    data: dict[str, str]
    predictions: list[LabelStudioPrediction]


def answers(folder: Path) -> list[Answer]:
    """Three pictures in two folders with 2, 0 and 1 detections; the files are written."""
    boxes = {
        "a.png": [(0, 0.875, (1.5, 2.25, 20.125, 28)), (2, 0.31, (0, 0, 40, 30))],
        "deep/b 50%.png": [],
        "deep/c.png": [(1, 0.5, (3.3, 4.4, 5.5, 6.6))],
    }
    made = []
    for name, rows in boxes.items():
        image = np.random.RandomState(len(name)).randint(0, 256, (30, 40, 3)).astype(np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        labels = [label for label, *_ in rows]
        corners = np.array([box for *_, box in rows], np.float32).reshape(-1, 4)
        scores = [float(np.float32(score)) for _, score, _ in rows]
        made.append(Answer(str(folder / name), [CLASSES[i] for i in labels], scores, image, labels, corners))
    return made


def check_same(root: Path, made: list[Answer], tolerance: float) -> None:
    """Compare what is read from a folder with the answers that were written."""
    labels = read_labels(root)
    assert labels.objects is not None and labels.image_index is not None
    read = {Path(file).name: i for i, file in enumerate(labels.files)}
    assert len(read) == 3
    for answer in made:
        mask = labels.image_index == read[Path(answer.path).name]
        scale = [40, 30, 40, 30] if labels.normalised else [1, 1, 1, 1]
        assert [labels.class_names[label] for label in labels.labels[mask]] == answer.names
        assert labels.scores[mask] == pytest.approx(answer.scores, abs=tolerance)
        assert labels.objects.xyxy[mask] * scale == pytest.approx(answer.boxes_xyxy, abs=max(1e-9, 100 * tolerance))


def test_coco_has_the_documented_form_and_is_read_again(run, tmp_path):
    made = answers(tmp_path / "data")
    assert list(save_coco(made, tmp_path / "data/found.json", CLASSES)) == made
    document = Coco.model_validate_json((tmp_path / "data/found.json").read_text())
    assert [image.file_name for image in document.images] == ["a.png", "deep/b 50%.png", "deep/c.png"]
    assert [category.name for category in document.categories] == CLASSES
    check_same(tmp_path / "data", made, 0)
    assert read_labels(tmp_path / "data").class_names == CLASSES
    code, _, _ = run("data", "import", tmp_path / "data", "--out", tmp_path / "out", "--val", "0")
    assert code == 0
    check_same(tmp_path / "out", made, 0)


def test_label_studio_has_the_documented_form_and_is_read_again(run, tmp_path):
    made = answers(tmp_path / "data")
    assert list(save_label_studio(made, tmp_path / "data/tasks.json", CLASSES, "m 1")) == made
    text = (tmp_path / "data/tasks.json").read_text()
    tasks = pydantic.TypeAdapter(list[Task]).validate_json(text)
    assert [task.data["image"] for task in tasks][1] == "/data/local-files/?d=deep/b%2050%25.png"
    view = fromstring((tmp_path / "data/tasks.xml").read_text())
    named = {element.get("name"): element for element in view.iter() if element.get("name")}
    assert [element.get("value") for element in named["label"]] == CLASSES
    results = [result for task in tasks for result in task.predictions[0].result]
    assert {(result.from_name, result.to_name) for result in results} == {("label", "image")} <= {tuple(named)[::-1]}
    assert named["image"].get("value") == "$image" and named["label"].get("toName") == "image"
    check_same(tmp_path / "data", made, 0)
    assert run("data", "import", tmp_path / "data", "--out", tmp_path / "out", "--val", "0")[0] == 0
    check_same(tmp_path / "out", made, 0)


def test_yolo_text_is_read_again(tmp_path):
    made = answers(tmp_path / "data/images")
    list(save_yolo_txt(made, tmp_path / "data/labels", CLASSES))
    check_same(tmp_path / "data", made, 1e-6)
    assert "3 labels have a score, so a program made them" in read_labels(tmp_path / "data").notes


def test_predict_writes_what_import_reads(run, digits_run, tmp_path):
    """A classifier's choices; COCO has no classes of whole pictures, and says so."""
    model = digits_run / "checkpoints/last.safetensors"
    assert run("data", "save", "digits", "--out", tmp_path / "data", "--count", "6")[0] == 0
    code, out, _ = run("predict", model, tmp_path / "data", "--label-studio", tmp_path / "data/tasks.json", "--json")
    said = {Path(row["path"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 0 and len(said) == 6
    pydantic.TypeAdapter(list[Task]).validate_json((tmp_path / "data/tasks.json").read_text())
    labels = read_labels(tmp_path / "data")
    assert labels.objects is None
    for file, label, score in zip(labels.files, labels.labels, labels.scores, strict=True):
        assert labels.class_names[label] == said[file]["class"]
        assert score == pytest.approx(said[file]["score"], abs=1e-6)
    code, _, err = run("predict", model, tmp_path / "data", "--coco", tmp_path / "x.json")
    assert code == 2 and "boxes take a detector (" in one_line(err) and not (tmp_path / "x.json").exists()
