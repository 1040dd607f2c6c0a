"""Five small data sets in five layouts, each from `data inspect` to an evaluated model by the commands it prints."""

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from helpers import one_line

PICTURES = 40


def voc(shared: Path, root: Path) -> None:
    """Blood cells as XML files without lists, under other folder names."""
    for picture in bccd(shared):
        copy(picture, root / "images")
        copy(annotation(picture), root / "annots")


def yolo(shared: Path, root: Path) -> None:
    """Blood cells as text files, with the paths of data.yaml and a polygon of the first box."""
    names = ["WBC", "RBC", "Platelets"]
    for i, picture in enumerate(bccd(shared)):
        folder = root / ("one" if i % 4 else "other")
        copy(picture, folder / "images")
        lines = []
        for name, (x1, y1, x2, y2) in boxes_of(picture):
            shares = [x1 / 640, y1 / 480, x2 / 640, y2 / 480]
            label = names.index(name)
            if not lines:
                left, top, right, bottom = shares
                shares = [left, top, right, top, right, bottom, left, bottom]
            else:
                left, top, right, bottom = shares
                shares = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            lines.append(" ".join(map(str, [label, *shares])))
        path = folder / f"labels/{picture.stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"path: /elsewhere\ntrain: one/images\nval: other/images\nnames: {names}\n")


def label_studio(shared: Path, root: Path) -> None:
    """Blood cells as Label Studio exports them, its prefix before the names of uploaded pictures."""
    tasks = []
    for i, picture in enumerate(bccd(shared)):
        copy(picture, root / "media")
        result = []
        for name, (x1, y1, x2, y2) in boxes_of(picture):
            value = {"x": x1 / 6.4, "y": y1 / 4.8, "width": (x2 - x1) / 6.4, "height": (y2 - y1) / 4.8, "rotation": 0}
            entry = {"type": "rectanglelabels", "original_width": 640, "original_height": 480}
            result.append({**entry, "value": {**value, "rectanglelabels": [name]}})
        image = f"/data/upload/1/{i:08x}-{picture.name}"
        tasks.append({"id": i, "data": {"image": image}, "annotations": [{"result": result}]})
    (root / "project-1-at-2026.json").write_text(json.dumps(tasks))


def coco(shared: Path, root: Path) -> None:
    """People of COCO's validation pictures: one JSON of any name, the pictures in any folder."""
    document = json.loads((shared / "data/coco-mini/annotations/instances_val2017.json").read_text())
    people = [entry for entry in document["annotations"] if entry["category_id"] == 1]
    chosen = sorted({entry["image_id"] for entry in people})[:PICTURES]
    images = [image for image in document["images"] if image["id"] in chosen]
    for image in images:
        copy(shared / "data/coco-mini/val2017" / image["file_name"], root / "photos/mine")
    people = [entry for entry in people if entry["image_id"] in chosen]
    categories = [category for category in document["categories"] if category["id"] == 1]
    plain = {"images": images, "annotations": people, "categories": categories}
    (root / "export.json").write_text(json.dumps(plain))


def class_folders(shared: Path, root: Path) -> None:
    """CIFAR-10's frogs and ships, four times as many of the one, in folders without a split."""
    with zipfile.ZipFile(shared / "data/cifar10-jpeg.zip") as archive:
        for name, count in {"frog": 80, "ship": 20}.items():
            files = sorted(file for file in archive.namelist() if f"train/{name}/" in file and not file.endswith("/"))
            for file in files[:count]:
                path = root / name / Path(file).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(file))


def bccd(shared: Path) -> list[Path]:
    return sorted((shared / "data/bccd/JPEGImages").glob("*.jpg"))[:PICTURES]


def annotation(picture: Path) -> Path:
    return picture.parents[1] / f"Annotations/{picture.stem}.xml"


def boxes_of(picture: Path) -> list[tuple[str, list[float]]]:
    boxes = []
    for element in fromstring(annotation(picture).read_text()).findall("object"):
        corners = [float(element.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append((element.findtext("name") or "", [corners[0] - 1, corners[1] - 1, *corners[2:]]))
    return boxes


def copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder)


@pytest.mark.slow
@pytest.mark.parametrize("make", [voc, coco, yolo, label_studio, class_folders], ids=lambda make: make.__name__)
def test_from_inspect_to_an_evaluated_model_by_what_it_prints(run, shared, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(shared, tmp_path / "mine")
    code, out, err = run("data", "inspect", "mine", "--minutes", "0.3")
    assert code == 0, err
    commands = re.findall(r"^  (convzoo .*)$", out.partition("or with the recipe")[0], re.M)
    assert len(commands) == 3
    for command in commands:
        code, out, err = run(*shlex.split(command)[1:])
        assert code == 0, one_line(err)
    measured = re.search(r"(AP|top-1) ([\d.]+) %.* (\d+) of (\d+) images", out)
    assert measured and measured[3] == measured[4] and float(measured[2]) >= (50 if make is class_folders else 0)
    assert json.loads((tmp_path / "runs/mine/data.json").read_text())["val_images"] == int(measured[4])
