"""Pre-annotations as labelling tools themselves read them, and what such a tool writes as `data inspect` reads it.

CONVZOO_LABEL_TOOLS is a Python that has label-studio-sdk, Label Studio's own checks, and datumaro, CVAT's formats:
`python -m venv tools && tools/bin/pip install label-studio-sdk datumaro`.
"""

import json
import os
import shutil
import subprocess

import pytest

PYTHON = os.environ.get("CONVZOO_LABEL_TOOLS")
READ = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
import datumaro
interface, tasks = LabelInterface(open("tasks.xml").read()), json.load(open("tasks.json"))
interface.validate()
for task in tasks:
    predictions = task.pop("predictions")
    assert interface.validate_task(task) is True, task
    for prediction in predictions:
        assert interface.validate_prediction(prediction, return_errors=True) in (True, []), prediction
dataset = datumaro.Dataset.import_from("coco", "coco_instances")
for name in ("cvat", "voc_detection", "yolo"):
    dataset.export(name, name, save_media=True)
boxes = [annotation for item in dataset for annotation in item.annotations]
print(json.dumps([len(dataset), sorted(round(box.attributes["score"], 5) for box in boxes)]))
"""


@pytest.mark.skipif(not PYTHON, reason="CONVZOO_LABEL_TOOLS names no Python with label-studio-sdk and datumaro")
def test_label_studio_and_cvat_read_what_predict_writes(run, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PYTHON
    pictures, labels = tmp_path / "coco/images/val", tmp_path / "coco/annotations/instances_val.json"
    for folder in (pictures, labels.parent):
        folder.mkdir(parents=True)
    for picture in sorted((shared / "data/coco-mini/val2017").iterdir())[:10]:
        shutil.copy(picture, pictures)
    assert run("convert", shared / "data/weights/yolov3-tiny.weights", "--out", "tiny.safetensors")[0] == 0
    code, _, err = run("predict", "tiny.safetensors", pictures, "--label-studio", "tasks.json", "--coco", labels)
    assert code == 0, err
    done = subprocess.run([PYTHON, "-c", READ], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count, scores = json.loads(done.stdout.splitlines()[-1])
    ours = json.loads(labels.read_text())
    assert count == len(ours["images"]) and len(scores) > 20
    assert scores == sorted(round(one["score"], 5) for one in ours["annotations"])
    for layout, folder in (("coco", "coco"), ("cvat", "cvat"), ("voc", "voc_detection"), ("yolo", "yolo")):
        code, out, err = run("data", "inspect", folder, "--json")
        assert code == 0, err
        account = json.loads(out)
        assert (account["layout"], account["objects"]) == (layout, len(scores))
