"""Export: every format and stage does what PyTorch does, in its own runtime, and nothing else gets a name."""

import dataclasses
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import convzoo
from convzoo import build, cli, model_file
from convzoo.boxes import Placement
from convzoo.config import recipe as recipes
from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy import export
from convzoo.deploy import graph as graph_module
from convzoo.deploy.detection_parity import matched
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import RuntimeOptions, open_any, open_exported
from convzoo.deploy.formats import onnx as onnx_format
from convzoo.deploy.formats import pt2
from convzoo.deploy.graph import Deployed
from convzoo.errors import ConvzooError, MissingPackageError, ToleranceError, UsageError, exit_code_and_message
from convzoo.inference import evaluate, torch_model
from convzoo.inference.torch_model import open_model
from convzoo.model_file import save_model
from convzoo.models import darknet, densenet
from convzoo.tasks.detect import Detect
from convzoo.tasks.postprocess import postprocess
from convzoo.types import Key, Prediction
from helpers import REPO, confusion, one_line, skip_without_openvino
from networks import CPU, SMALL_YOLO, noise, off, write_model

FORMATS = ("onnx", "pt2", "openvino")  # what runs here without anything else

TINY, YOLO = "tinydarknet-digits", "yolov3-digits"
OVERRIDES = {
    YOLO: SMALL_YOLO,
    "densenet121-imagenet": ["model.num_classes=7"],
    "darknet53-imagenet": ["model.num_classes=7"],
}
FULL_SIZE = [
    "vgg16-imagenet",
    "densenet100-cifar10",
    "densenet121-imagenet",
    "tinydarknet-imagenet",
    "darknet53-imagenet",
    "yolov3-coco",
]


@pytest.fixture(autouse=True)
def _shallow(request, monkeypatch):
    """Build deep networks with one or two units of each kind in a row: all of their code in a fraction of the time.

    The slow tests export them whole.
    """
    if "full_size" not in request.node.name:
        whole = densenet.DenseNet
        monkeypatch.setattr(darknet, "STAGES_53", [(channels, 1) for channels, _ in darknet.STAGES_53])
        monkeypatch.setattr(
            densenet, "DenseNet", lambda stem, first, k, blocks, *rest: whole(stem, first, k, [2] * len(blocks), *rest)
        )


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    """Trace and translate a network once for all formats and tests where it would be the same: that takes the time.

    In this file alone: others export one network in several precisions, which have a program each.
    """
    programs, protos = {}, {}
    trace, translate = graph_module.trace, onnx_format.translate

    def traced(deployed: Deployed):
        info = deployed.info
        key = (info.source_sha256, info.input, info.stage, info.size, info.dynamic_size, info.batch)
        key += (deployed.suppress,) if info.stage == "nms" else ()
        if key not in programs:
            programs[key] = trace(deployed)
        return programs[key]

    def translated(program, info):
        if id(program) not in protos:
            protos[id(program)] = translate(program, info).SerializeToString()
        return onnx.load_model_from_string(protos[id(program)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", traced)
        patch.setattr(onnx_format, "translate", translated)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Export a recipe's network, once for each set of options; return the model file, the exported file, the report."""
    folder, models, reports = tmp_path_factory.mktemp("models"), {}, {}

    def run(recipe_name: str, format: str, **options):
        if recipe_name not in models:
            models[recipe_name] = write_model(folder, recipe_name, OVERRIDES.get(recipe_name))
        key = (recipe_name, format, *sorted(options.items()))
        skip_without_openvino(format)
        if key not in reports:
            out = tmp_path_factory.mktemp("exports")
            reports[key] = export.export(open_model(models[recipe_name]), ExportOptions(format, out=out, **options))
        return models[recipe_name], reports[key].path, reports[key]

    return run


def check_report(report: export.ExportResult, outputs: int, sizes: int = 1) -> None:
    assert report.parity.largest < 1e-4 and len(report.parity.outputs) == outputs
    assert all(set(kinds) == {"real", "random"} for kinds in report.parity.outputs.values())
    assert report.parity.agreed == report.parity.predictions > 10
    assert {1, 5} <= set(report.parity.batches) and len(report.parity.sizes) == sizes


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("preprocessing", [False, True])
def test_a_classifier_in_every_format(exported, format, preprocessing):
    model, file, report = exported(TINY, format, dynamic_size=True, preprocessing=preprocessing)
    check_report(report, outputs=1, sizes=2)
    runner, network = open_any(file, CPU).runner(), torch_model.open_model(model, CPU)
    assert runner.input == ("uint8_nhwc" if preprocessing else "float_nchw")
    for count, height, width in [(1, 32, 32), (5, 32, 32), (3, 96, 64)]:
        images = noise(count, height, width)
        x = normalize(images, network.recipe.transform.mean, network.recipe.transform.std)
        with torch.inference_mode():
            wanted = network.model(x)
        given = [images.numpy()] if preprocessing else [images, x.numpy()]
        for pictures in given:
            (found,) = runner(pictures)
            assert off(found, wanted) < 1e-4 and found.argmax(1).equal(wanted.argmax(1))


@pytest.mark.parametrize("format", FORMATS)
def test_head_maps_in_every_format(exported, format):
    model, file, report = exported(YOLO, format, dynamic_size=True)
    check_report(report, outputs=3, sizes=2)
    if format == "pt2":
        return  # slow to open; a test of its own does that
    runner, reference = open_any(file, CPU).runner(), torch_model.open_model(model, CPU).runner()
    for count, height, width in [(1, 64, 64), (5, 64, 64), (2, 64, 160), (1, 32, 32)]:
        images = noise(count, height, width)
        for found, wanted in zip(runner(images), reference(images), strict=True):
            assert off(found, wanted) < 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_decoded_boxes_in_every_format(exported, format):
    model, file, report = exported(YOLO, format, stage="decoded")
    check_report(report, outputs=2)
    if format == "pt2":
        return
    opened = torch_model.open_model(model, CPU)
    images = noise(3, 64, 64)
    task = opened.task()
    assert isinstance(task, Detect)
    wanted = task.decode(opened.runner()(images))
    for a, b in zip(open_any(file, CPU).runner()(images), wanted, strict=True):
        assert off(a, b) < 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_detections_in_every_format(exported, format):
    model, file, report = exported(YOLO, format, stage="nms")
    check_report(report, outputs=2)
    opened, found = torch_model.open_model(model, CPU), open_any(file, CPU)
    scenes = build.build_dataset(opened.recipe, None, "val")
    batch = opened.task().collate([opened.pipeline()(scenes.load(i), Key(0, i)) for i in range(4)])
    outputs = found.runner()(batch.images)
    assert [tuple(output.shape) for output in outputs] == [(4, 100, 4), (4, 100), (4, 100)]
    for a, b in zip(
        found.task().postprocess(outputs, batch),
        opened.task().postprocess(opened.runner()(batch.images), batch),
        strict=True,
    ):
        assert len(a.labels) == len(b.labels) > 20
        # Neighbours whose scores differ in the last place may have changed places.
        assert a.boxes_xyxy is not None and b.boxes_xyxy is not None
        order_a = np.lexsort((*a.boxes_xyxy.round(2).T, a.labels))
        order_b = np.lexsort((*b.boxes_xyxy.round(2).T, b.labels))
        assert (a.labels[order_a] == b.labels[order_b]).all()
        np.testing.assert_allclose(a.scores[order_a], b.scores[order_b], atol=1e-4)
        np.testing.assert_allclose(a.boxes_xyxy[order_a], b.boxes_xyxy[order_b], atol=1e-2)


@pytest.mark.parametrize(
    ("recipe_name", "size"),
    [
        ("vgg16-cifar10", (32, 32)),
        ("densenet100-cifar10", (32, 32)),
        ("densenet121-imagenet", (64, 64)),
        ("darknet53-imagenet", (64, 64)),
    ],
)
def test_the_other_networks_in_onnx(exported, recipe_name, size):
    _, file, report = exported(recipe_name, "onnx", size=size)
    check_report(report, outputs=1)
    assert open_exported(file).info.size == size


def test_a_fixed_batch_is_filled_up(exported):
    model, file, report = exported(TINY, "pt2", batch=4, preprocessing=True)
    assert report.parity.batches == [4] and report.info.batch == 4 and report.parity.agreed == 14
    opened, reference = open_exported(file), torch_model.open_model(model, CPU).runner()
    for count in (1, 4, 7):
        images = noise(count, 32, 32)
        (found,), (wanted,) = opened.runner()(images), reference(images)
        assert found.shape == wanted.shape and off(found, wanted) < 1e-4
    session = pt2.start(opened.content, opened.info, RuntimeOptions())
    with pytest.raises(Exception, match="4"):
        session(torch.zeros(5, 32, 32, 3, dtype=torch.uint8))  # the graph itself holds the number


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("suppress", [onnx_format.suppress, pt2.suppress])
def test_suppression_in_the_graph_is_the_one_outside(multi_label, suppress):
    options = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 20, "multi_label": multi_label}
    graph = Deployed.__new__(Deployed)
    nn.Module.__init__(graph)
    graph.options, graph.suppress = options, suppress
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(3, 200, 2, generator=generator) * 80 + 10
    side = torch.rand(3, 200, 2, generator=generator) * 20 + 4
    boxes = torch.cat([centre - side / 2, centre + side / 2], 2)
    scores = torch.rand(3, 200, 4, generator=generator)
    scores[1, 4:] = 0  # hardly any
    scores[2] *= 0.2  # none
    found = graph._detections(boxes, scores)
    placement = torch.tensor([Placement(1, 1, 0, 0)] * 3)
    wanted = postprocess(boxes, scores, placement, torch.full((3, 2), 1000), **options, box_rule="darknet")
    assert len(wanted[0].scores) == 20 > len(wanted[1].scores) > len(wanted[2].scores) == 0
    for i, one in enumerate(wanted):
        count = len(one.scores)
        assert found[2][i, :count].equal(one.labels) and (found[2][i, count:] == -1).all()
        assert found[0][i, :count].equal(one.boxes_xyxy) and found[1][i, :count].equal(one.scores)


def test_same_detections_are_told_from_others():
    options = {
        "score_threshold": 0.3,
        "iou_threshold": 0.45,
        "max_detections": 100,
        "multi_label": False,
        "box_rule": "clip",
        "nms_kind": "default",
        "nms_beta": 0.6,
    }
    generator = torch.Generator().manual_seed(5)
    centre, side = torch.rand(60, 2, generator=generator) * 80 + 10, torch.rand(60, 2, generator=generator) * 40 + 6
    boxes, scores = torch.cat([centre - side / 2, centre + side / 2], 1), torch.rand(60, 3, generator=generator) ** 2
    placement, size = torch.tensor([Placement(1, 1, 0, 0)]), (100, 100)
    (found,) = postprocess(boxes[None], scores[None], placement, torch.tensor([size]), **options)

    def same(xyxy=found.boxes_xyxy, score=found.scores, label=found.labels, **changed) -> bool:
        one = Prediction(0, label.numpy(), score.numpy(), xyxy.numpy())
        return matched(one, boxes, scores, size, options | changed, 1e-4) is not None

    count = len(found.labels)
    assert 10 < count < 60 and same() and same(found.boxes_xyxy + 1e-3, found.scores - 1e-5)
    for i in range(count):
        rest = torch.arange(count) != i
        assert not same(found.boxes_xyxy[rest], found.scores[rest], found.labels[rest])  # one is missing
        twice = torch.cat([torch.arange(count), torch.tensor([i])])
        assert not same(found.boxes_xyxy[twice], found.scores[twice], found.labels[twice])
        at = (~rest).float()
        assert not same(found.boxes_xyxy + 0.1 * at[:, None]) and not same(score=found.scores - 0.001 * at)
        assert not same(label=(found.labels + at.long()) % 3)
    everything = {"iou_threshold": 0.99, "max_detections": None}
    (all_of_them,) = postprocess(boxes[None], scores[None], placement, torch.tensor([size]), **options | everything)
    assert len(all_of_them.labels) > count and not same(*all_of_them)  # some should have been suppressed
    assert same(*all_of_them, **everything) and not same(**everything)
    # Two boxes of one class and, but for rounding, one score, that overlap: either may stay.
    pair, score = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]]), torch.tensor([[0.9], [0.90001]])
    for i in (0, 1):
        one = Prediction(0, np.zeros(1, dtype=np.int64), score[i].numpy(), pair[i : i + 1].numpy())
        assert matched(one, pair, score, size, options, 1e-4) is not None
    assert matched(one, pair, torch.tensor([[0.95], [0.90001]]), size, options, 1e-4) is None


def test_boxes_that_are_cut_to_the_same_one_are_told_apart_by_what_suppression_leaves():
    """Two that end infinitely far out and one that ends outside all fill the picture, with scores as good as equal."""
    size = (96, 96)
    boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6], [-1e6, -1e6, 1e6, 1e6], [-300.0, -300, 400, 400]])
    scores = torch.tensor([[0.99990], [0.99985], [0.99980]])
    options = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 100, "multi_label": False}
    options |= {"nms_kind": "default", "nms_beta": 0.6}
    whole = np.array([[0, 0, 96, 96]] * 2, dtype=np.float32)
    both = Prediction(0, np.zeros(2, dtype=np.int64), scores[:2, 0].numpy(), whole)  # nearer to the second than to it
    pair = matched(both, boxes, scores, size, options, 1e-3)
    assert pair is not None and pair.reference_scores.tolist() == scores[[0, 2], 0].tolist()
    assert matched(both, boxes[:2], scores[:2], size, options, 1e-3) is None  # one of two that are the same
    assert matched(both, boxes, scores, size, options, 1e-5) is None  # the second's score, which is the third's no more


def test_settings_that_a_graph_cannot_have(exported, tmp_path):
    model = exported(YOLO, "onnx", dynamic_size=True)[0]
    opened = torch_model.open_model(model, CPU)
    for override, message in [
        ("max_detections=null", "must be a number"),
        ("box_rule=darknet", "original picture"),
        ("nms_kind=diounms", "by nms_kind diounms; use --stage decoded"),
    ]:
        changed = opened.changed((f"postprocess.{override}",))
        with pytest.raises(UsageError, match=message):
            export.check_stage(changed, "nms")


def test_what_float32_alone_costs_is_allowed_four_times(exported, tmp_path):
    model, _, report = exported(TINY, "onnx", dynamic_size=True)
    assert report.info.tolerance == report.plain["tolerance"] == 1e-4 and 0 < (report.info.rounding or 0) < 2.5e-5
    assert "1.0e-04 allowed; float32 alone differs by" in report.text()
    opened = open_model(model)
    convs = [module for module in opened.model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in opened.model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():  # 1x1 convolutions get a thousand and a little, and their batch norms take the thousand away
        for norm, conv in zip(norms[:-1], convs[1:-1], strict=True):
            norm.bias.add_(1000.0 * (conv.kernel_size == (1, 1)))
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        opened.model.train()(torch.randn(8, 3, 64, 64))
    save_model(tmp_path / "steep.safetensors", opened.model.state_dict(), opened.info)
    opened = open_model(tmp_path / "steep.safetensors")
    report = export.export(opened, ExportOptions("onnx"))
    info = open_exported(report.path).info
    assert info.rounding and info.tolerance and info.tolerance == 4 * info.rounding > 1e-4
    assert info.rounding / 4 < report.parity.largest <= info.tolerance
    assert export.export(opened, ExportOptions("onnx", tolerance=0.5)).info.tolerance == 0.5


# --- what is in the files


def test_what_a_file_says_of_itself(exported):
    for format in FORMATS:
        model, file, report = exported(TINY, format, dynamic_size=True)
        _, info, sha256 = model_file.load_model(model)
        found = open_exported(file)
        assert found.recipe.plain() == info.recipe and found.class_names == info.class_names
        assert found.info.preprocessing == info.preprocessing and found.info.task == "classify"
        assert found.info.source_sha256 == sha256 and found.sha256 == report.plain["sha256"] != sha256
        assert torch.__version__.startswith(found.info.versions["torch"]) and found.info.size == (32, 32)
        content = b"".join(path.read_bytes() for path in file.parent.iterdir())
        assert str(REPO).encode() not in content  # nothing of the machine that wrote it
    files = sorted(exported(TINY, "openvino", dynamic_size=True)[1].parent.iterdir())
    assert [path.suffix for path in files] == [".bin", ".xml"]


def test_an_onnx_file_is_one_file_of_a_stated_opset(exported):
    _, file, report = exported(YOLO, "onnx", dynamic_size=True)
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", report.info.opset)]
    assert [output.name for output in proto.graph.output] == ["head8", "head16", "head32"]
    assert {node.op_type for node in proto.graph.node} == {"Conv", "LeakyRelu", "Add", "Concat", "Resize"}


def test_a_pt2_file_needs_nothing_of_this_package(exported, tmp_path):
    code = "import sys, torch\nfor file, inputs, outputs in torch.load(sys.argv[1]):\n"
    code += "    if 'nms' in file: import torchvision\n"
    code += "    for a, b in zip(torch.export.load(file).module()(inputs), outputs, strict=True):\n"
    code += "        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), file\n"
    code += "assert 'convzoo' not in sys.modules\n"
    jobs = []
    for recipe_name, options in [(TINY, {"dynamic_size": True, "preprocessing": True}), (YOLO, {"stage": "nms"})]:
        model, file, _ = exported(recipe_name, "pt2", **options)
        link = tmp_path / f"{options.get('stage', 'raw')}.pt2"
        link.symlink_to(file)
        opened = open_exported(file)
        side = opened.info.size[0]
        images = noise(3, side, side)
        recipe = opened.recipe.transform
        given = (
            images.permute(0, 2, 3, 1)
            if opened.info.input == "uint8_nhwc"
            else normalize(images, recipe.mean, recipe.std)
        )
        graph = Deployed(torch_model.open_model(model, CPU), opened.info, pt2.suppress)
        jobs.append((str(link), given.contiguous(), graph(given)))
    torch.save(jobs, tmp_path / "jobs.pt")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "jobs.pt"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_nothing_asks_for_a_name_on_the_network(exported, tmp_path):
    through, file = (exported(TINY, format, dynamic_size=True)[1] for format in ("onnx", "openvino"))
    code = "import socket, sys, time\nasked = []\n"
    code += "def refuse(*a, **k):\n    asked.append(a)\n    raise OSError('no network')\n"
    code += "socket.getaddrinfo = socket.gethostbyname = socket.create_connection = socket.socket.connect = refuse\n"
    code += "import numpy as np\nfrom convzoo.deploy import library\n"
    code += "nncf, openvino = library('nncf', 'this test'), library('openvino', 'this test')\n"
    code += "through, file, out = sys.argv[1:]\n"
    code += "openvino.save_model(openvino.convert_model(through), out)\n"
    code += "openvino.compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(np.zeros((1, 3, 32, 32), 'f'))\n"
    code += "time.sleep(0.5)\n"  # a report would come from a thread
    code += "assert sys.modules['openvino_telemetry'] is None and not asked, asked\n"
    argv = [sys.executable, "-c", code, through, file, tmp_path / "again.xml"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source = "\n".join(path.read_text() for path in Path(export.__file__).parents[1].rglob("*.py"))
    assert not re.search(r"^\s*(import|from) (openvino|nncf)\b", source, re.M)  # only through `library`


# --- exported files instead of model files


FILES = [
    ("onnx", {"preprocessing": True, "dynamic_size": True}),
    ("pt2", {"preprocessing": True, "batch": 4}),
    ("openvino", {"preprocessing": False, "dynamic_size": True}),
]


def test_they_evaluate_to_the_same(exported):
    wanted = evaluate.evaluate_open(
        torch_model.open_model(exported(TINY, "onnx", dynamic_size=True)[0], CPU), None, batch_size=90
    )
    assert wanted.result["images"] == wanted.result["images_expected"] == 360
    assert np.count_nonzero(confusion(wanted).sum(0)) > 2  # it says different things
    for format, options in FILES:
        found = evaluate.evaluate_open(open_any(exported(TINY, format, **options)[1], CPU), None, batch_size=50)
        assert found.result == wanted.result and (confusion(found) == confusion(wanted)).all()


def test_they_predict_the_same(run, exported, tmp_path):
    assert run("data", "save", "digits", "--out", tmp_path, "--count", 9)[0] == 0
    model = exported(TINY, "onnx", dynamic_size=True)[0]
    wanted = [json.loads(line) for line in run("predict", model, tmp_path, "--json")[1].splitlines()]
    for format, options in FILES:
        code, out, err = run("predict", exported(TINY, format, **options)[1], tmp_path, "--json")
        assert code == 0, err
        for found, row in zip(map(json.loads, out.splitlines()), wanted, strict=True):
            assert (found["path"], found["class"]) == (row["path"], row["class"])
            assert found["score"] == pytest.approx(row["score"], abs=1e-4)


def test_the_python_api_opens_them_too(exported, tmp_path):
    model, file, _ = exported(TINY, "onnx", dynamic_size=True)
    theirs, ours = convzoo.load(file), convzoo.load(model, device="cpu")
    images = normalize(noise(2, 32, 32), [0.306] * 3, [0.377] * 3)
    assert off(theirs(images), ours(images)) < 1e-4 and theirs.class_names == ours.class_names
    assert theirs.evaluate()["top1"] == ours.evaluate()["top1"] and theirs.evaluate()["images"] == 360
    assert cli.main(["data", "save", "digits", "--out", str(tmp_path), "--count", "4"]) == 0
    assert [a.names for a in theirs.predict(tmp_path)] == [a.names for a in ours.predict(tmp_path)]
    for use in (lambda: theirs.network, lambda: theirs.export("pt2")):
        with pytest.raises(UsageError, match="is exported"):
            use()


def test_openvino_computes_in_float32_unless_asked(exported):
    model, file, _ = exported(TINY, "openvino", dynamic_size=True)
    (wanted,), images = torch_model.open_model(model, CPU).runner()(noise(2, 32, 32)), noise(2, 32, 32)
    opened = open_any(file, CPU)
    assert off(opened.runner()(images)[0], wanted) < 1e-4
    with pytest.raises(UsageError, match="precision int3"):
        opened.runner("int3")
    for format in ("onnx", "pt2"):
        with pytest.raises(UsageError, match="has the precision it was exported with"):
            open_any(exported(TINY, format, dynamic_size=True)[1], CPU).runner("bf16")


# --- what goes wrong


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_size_that_openvino_does_not_convert(run, exported, tmp_path):
    model = exported(TINY, "onnx", dynamic_size=True)[0]
    code, _, err = run("export", model, "--format", "openvino", "--size", "8,8", "--out", tmp_path)
    assert code == 1 and "does not convert" in one_line(err) and "MaxPool" in err and "at 8x8 pixels" in err
    assert not contents(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_what_differs_gets_no_name(exported, format, tmp_path, monkeypatch):
    model, file, _ = exported(TINY, format, dynamic_size=True)

    def disturbed(deployed: Deployed):
        next(deployed.network.parameters())[0] *= 1.01
        return graph_module.trace(deployed)

    monkeypatch.setattr(export, "trace", disturbed)
    for path in file.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = contents(tmp_path)
    with pytest.raises(ToleranceError, match="largest relative difference") as caught:
        export.export(open_model(model), ExportOptions(format, out=tmp_path))
    assert exit_code_and_message(caught.value)[0] == 4 and contents(tmp_path) == before


def test_a_broken_network_is_not_exported(exported, tmp_path, monkeypatch):
    model = exported(TINY, "pt2", dynamic_size=True)[0]
    tensors, info, _ = model_file.load_model(model)
    name = next(name for name in tensors if name.endswith("conv.weight"))
    tensors[name][0] = torch.nan
    save_model(tmp_path / "nan.safetensors", tensors, info)
    with pytest.raises(ToleranceError, match="not finite"):
        export.export(open_model(tmp_path / "nan.safetensors"), ExportOptions("pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills_up(exported, format, tmp_path):
    model = exported(TINY, format, dynamic_size=True)[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ConvzooError, match="no space left") as caught:
            export.export(open_model(model), ExportOptions(format, out=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert exit_code_and_message(caught.value)[0] == 1 and not list(tmp_path.iterdir())


def test_a_missing_library(exported, monkeypatch, tmp_path):
    model = exported(TINY, "onnx", dynamic_size=True)[0]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript: pip install 'convzoo\[deploy\]'") as caught:
        export.export(open_model(model), ExportOptions("onnx", out=tmp_path))
    assert exit_code_and_message(caught.value)[0] == 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([TINY, "--format", "onxn"], "did you mean 'onnx'"),
        ([TINY, "--format", "onnx", "--stage", "nms"], "tinydarknet is a classifier"),
        ([TINY, "--format", "onnx", "--size", "many"], "such as 416,416"),
        ([TINY, "--format", "onnx", "--size", "33", "--dynamic-size"], "multiple of 32"),
        ([TINY, "--format", "onnx", "--batch", "0"], "--batch"),
        ([TINY, "--format", "onnx", "--out", "/none/x.onnx"], "/none is no folder"),
        ([TINY, "--format", "onnx", "--out", "x.pt2"], "ends in .onnx"),
        ([YOLO, "--format", "pt2", "--size", "100"], "multiple of 32"),
        ([TINY, "--format", "pt2", "--data", "/none", "--size", "32"], None),
        (["/none.safetensors", "--format", "onnx"], "/none.safetensors"),
    ],
)
def test_a_mistake_is_one_line(run, exported, tmp_path, options, message):
    name, *rest = options
    model = name if name.startswith("/") else exported(name, "onnx", dynamic_size=True)[0]
    if message is None:  # the digits are embedded: --data says nothing about them
        rest += ["--out", str(tmp_path)]
    code, _, err = run("export", model, *rest)
    assert code == (0 if message is None else 2)
    if message:
        assert message in one_line(err)


def test_the_verb(run, exported, tmp_path):
    model = exported(TINY, "onnx", dynamic_size=True)[0]
    code, out, _ = run("export", model, "--format", "pt2", "--out", tmp_path / "a.pt2")
    assert code == 0 and "largest relative difference" in out and "agree on 16 of 16" in out
    code, out, _ = run("export", model, "--format", "pt2", "--out", tmp_path, "--json")
    found = json.loads(out)
    assert (
        code == 0
        and Path(found["file"]).is_file()
        and found["largest_difference"] < 1e-4
        and found["batches"] == [1, 4, 5]
    )
    assert found["bytes"] == Path(found["file"]).stat().st_size


def test_the_size_is_the_recipes_unless_it_has_none(exported):
    opened = torch_model.open_model(exported(YOLO, "onnx", dynamic_size=True)[0], CPU)
    assert export.input_size(opened, None) == (64, 64)
    wide = export.resized(opened, (96, 160))
    assert export.input_size(wide, None) == (96, 160) and wide.recipe.transform.train == opened.recipe.transform.train
    large = recipes.load("tinydarknet-imagenet", ["model.num_classes=10"])
    smaller = export.resized(dataclasses.replace(opened, recipe=large), (112, 112))
    assert smaller.recipe.transform.eval == [
        {"resize": {"size_px": 128, "mode": "short_side"}},
        {"center_crop": {"size_px": 112}},
    ]
    with pytest.raises(UsageError, match="center_crop, the recipe's last step, makes squares"):
        export.resized(dataclasses.replace(opened, recipe=large), (112, 96))
    stretched = dataclasses.replace(opened, recipe=recipes.load(TINY))  # whose last step stretches to any size
    assert export.input_size(export.resized(stretched, (32, 64)), None) == (32, 64)
    cifar = dataclasses.replace(opened, recipe=recipes.load("densenet100-cifar10"))
    with pytest.raises(UsageError, match="give --size"):
        export.input_size(cifar, None)
    assert export.resized(cifar, (32, 32)) is cifar


# --- full size


@pytest.mark.slow
@pytest.mark.parametrize("recipe_name", FULL_SIZE)
def test_full_size_in_every_format(recipe_name, tmp_path):
    model = write_model(tmp_path, recipe_name)
    size = (32, 32) if "cifar" in recipe_name else None
    for format in FORMATS:
        for stage in ("raw", "decoded", "nms") if "yolo" in recipe_name else ("raw",):
            report = export.export(open_model(model), ExportOptions(format, stage=stage, size=size))
            check_report(report, outputs={"raw": 3, "decoded": 2, "nms": 2}[stage] if "yolo" in recipe_name else 1)
            print(report.text())


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stage", ["decoded", "nms"])
def test_boxes_at_any_size(exported, format, stage):
    check_report(exported(YOLO, format, stage=stage, dynamic_size=True)[2], outputs=2, sizes=2)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_eighth_of_yolov3_in_full_size(tmp_path, format):
    model = write_model(tmp_path, YOLO, SMALL_YOLO)
    for stage in ("raw", "decoded", "nms"):
        check_report(
            export.export(open_model(model), ExportOptions(format, stage=stage)), outputs=3 if stage == "raw" else 2
        )


@pytest.mark.slow
def test_the_real_tiny_darknet_scores_the_same_hits(run, shared, tmp_path):
    model, data = tmp_path / "tiny.safetensors", shared / "data/imagenet-sample"
    assert (
        run("convert", shared / "data/weights/tiny.weights", "--classes", data / "darknet_wnids.txt", "--out", model)[0]
        == 0
    )
    opened = torch_model.open_model(model, CPU)
    wanted = evaluate.evaluate_open(opened, data)
    assert round(wanted.result["top1"] * 200) == 137 and wanted.result["images"] == 200
    for format in FORMATS:
        report = export.export(open_model(model), ExportOptions(format, data=data))
        assert report.parity.largest < 1e-4
        found = evaluate.evaluate_open(open_any(report.path, CPU), data)
        assert found.result == wanted.result
        assert (confusion(found) == confusion(wanted)).all()
