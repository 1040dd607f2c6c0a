"""MINDIR: what MindSpore runs is what PyTorch computes, for every network; its process ends, its errors are one line.

Tests that need MindSpore take the one that CONVZOO_MINDSPORE_PYTHON names, and skip where there is none.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convzoo.deploy import export
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import open_exported
from convzoo.deploy.formats import mindir, mindir_worker
from convzoo.deploy.formats.mindir_plan import Plan
from convzoo.errors import ConvzooError, MissingPackageError, ToleranceError, UsageError, exit_code_and_message
from convzoo.inference import torch_model
from convzoo.inference.torch_model import open_model
from helpers import one_line
from networks import CPU, SMALL_YOLO, noise, off, write_model

# Recipe, overrides, options: every network as wide as it is, and the variants that need other operators.
NETWORKS = [
    ("vgg16-imagenet", [], {"size": (64, 64)}),
    ("vgg16-cifar10", [], {"size": (32, 32)}),
    ("densenet100-cifar10", [], {"size": (32, 32)}),
    ("densenet121-imagenet", [], {"size": (64, 64)}),
    ("densenet121-imagenet", ["model.stem_pool=bottom_right", "model.transition_pool=max"], {"size": (64, 64)}),
    ("tinydarknet-imagenet", [], {"size": (72, 72), "preprocessing": True, "batch": 3}),
    ("darknet53-imagenet", [], {"size": (64, 64)}),
    ("yolov3-coco", [], {"size": (64, 64)}),
    (
        "yolov3-coco",
        ["model.width=0.125", "model.backbone_act=relu", "model.down_padding=bottom_right"],
        {"size": (96, 64)},
    ),
    ("yolov3-digits", SMALL_YOLO, {"stage": "decoded", "preprocessing": True}),
]


@pytest.fixture(scope="session")
def mindspore() -> str:
    try:
        return mindir.interpreter()
    except MissingPackageError as error:
        pytest.skip(str(error))


def traced(module: nn.Module, *size: int) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval().requires_grad_(False), (torch.zeros(size),))


# --- with MindSpore


@pytest.fixture(scope="session")
def exported(mindspore, tmp_path_factory):
    """A classifier's model file and its MINDIR file, with the report."""
    folder = tmp_path_factory.mktemp("mindir")
    model = write_model(folder, "tinydarknet-digits")
    return model, export.export(open_model(model), mindir.prepare(ExportOptions("mindir")))


def test_a_classifier(exported):
    model, report = exported
    assert report.parity.largest < 1e-4 and report.parity.batches == [1]
    assert report.parity.agreed == report.parity.predictions > 10
    file = open_exported(report.path)
    assert (file.format, file.info.batch, file.info.size) == ("mindir", 1, (32, 32))
    assert "mindspore" in file.info.versions and report.path.stat().st_mode & 0o200
    runner, reference = file.runner(), torch_model.open_model(model, CPU).runner()
    for count in (1, 3):
        images = noise(count, 32, 32)
        (found,), (wanted,) = runner(images), reference(images)
        assert off(found, wanted) < 1e-4 and found.argmax(1).equal(wanted.argmax(1))
    assert isinstance(runner.session, mindir.Worker)
    process = runner.session.process
    # An error of MindSpore's is one line, and the process goes on.
    with pytest.raises(ConvzooError, match="MindSpore: "):
        runner.session(torch.zeros(1, 3, 31, 32, 1))
    assert off(runner(images)[0], wanted) < 1e-4 and process.poll() is None
    del runner
    assert process.returncode == 0
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "tinydarknet-digits.mindir",
        "tinydarknet-digits.mindir.json",
        "tinydarknet-digits.safetensors",
    ]


def test_a_damaged_file_is_not_opened(exported, tmp_path, run):
    path, beside = tmp_path / "a.mindir", tmp_path / "a.mindir.json"
    path.write_bytes(exported[1].path.read_bytes())
    with pytest.raises(ConvzooError, match="a.mindir.json, its metadata, is not beside it"):
        open_exported(path)
    text = Path(f"{exported[1].path}.json").read_text()
    beside.write_text(text.replace('"batch": 1', '"batch": 2'))
    with pytest.raises(ConvzooError, match="damaged or changed"):
        open_exported(path)
    beside.write_text(text)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, _, err = run("predict", path, tmp_path)
    assert code == 1 and "a.mindir: damaged or changed" in one_line(err)


class Odd(nn.Module):
    """Every operator of a plan, with settings that its neighbours do not share."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, (3, 2), (2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.linear = nn.Linear(6, 5, bias=False)
        self.norm.running_mean = torch.rand(4)
        self.norm.running_var = torch.rand(4) * 1.5 + 0.5
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x):
        x = F.pad(x, (0, 2, 1, 0))
        x = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        a = F.max_pool2d(x, 3, 2, padding=1)
        b = F.max_pool2d(x, 2, ceil_mode=True)
        x = torch.cat([a, F.relu(b), torch.sigmoid(a - 0.5)], 1)
        c = F.adaptive_avg_pool2d(x, (2, 3)) + F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, 1), (2, 3))
        d = F.interpolate(c, scale_factor=2.0, mode="nearest")[:, 1:, :-1, 2:]
        e = torch.stack([d, d / (1 + torch.exp(d))], -1).permute(0, 4, 2, 1, 3).flatten(2)
        one, two = x.mean((2, 3)).unflatten(1, (2, 6)).unbind(1)
        return e, self.linear(one * two), x.mean(3, keepdim=True).transpose(1, -2)[:, 0]


def test_every_operator(mindspore, tmp_path):
    torch.manual_seed(1)
    module, x = Odd(), torch.randn(2, 6, 14, 11)
    files = Plan(traced(module, *x.shape)).write(tmp_path)
    mindir.Worker("write", *files, str(tmp_path / "odd.mindir"), "MINDIR").end()
    worker = mindir.Worker("run", str(tmp_path / "odd.mindir"), "1")
    found, wanted = worker(x), module(x)
    assert len(found) == len(wanted) == 3
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and off(torch.from_numpy(a), b) < 1e-5
    worker.process.kill()
    with pytest.raises(ConvzooError, match=r"its process ended \(-9\)"):
        worker(x)


# --- without it


def test_an_unknown_operator_is_named():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(UsageError, match=r"operator aten\.sin\.default has no counterpart"):
        Plan(traced(Sine(), 1, 3))
    pool = nn.AvgPool2d(3, padding=1)
    with pytest.raises(UsageError, match="avg_pool2d's padding"):
        Plan(traced(pool, 1, 3, 9, 9))


def test_only_what_depends_on_the_input_is_planned():
    class Grid(nn.Module):
        def forward(self, x):
            return x + torch.arange(4.0).exp().reshape(2, 2)

    plan = Plan(traced(Grid(), 1, 2, 2))
    assert [step["op"] for step in plan.steps] == ["constant", "add"]
    np.testing.assert_allclose(plan.weights["w0"], np.exp(np.arange(4.0)).reshape(2, 2), rtol=1e-6)
    assert plan.input == {"shape": [1, 2, 2], "dtype": "float32"} and plan.outputs == [2]


def test_a_pool_that_changes_nothing_is_left_out():
    ops = {
        size: [step["op"] for step in Plan(traced(nn.AdaptiveAvgPool2d(7), 1, 3, size, size)).steps]
        for size in (7, 14, 9)
    }
    assert ops == {7: [], 14: ["avg_pool"], 9: ["adaptive_avg_pool"]}


def test_values_are_passed_on_while_they_are_needed():
    """0 -> 1 -> 2; 3 of 1 and 2; 4 of 3; the network returns 2 and 4."""
    inputs = [[0], [1], [1, 2], [3]]
    sources, keeps, chosen = mindir_worker.schedule([{"inputs": i} for i in inputs], [2, 4])
    live = [0]
    for n, (source, keep) in enumerate(zip(sources, keeps, strict=True)):
        assert [live[i] for i in source] == inputs[n]
        live = [live[i] for i in keep] + [n + 1]
    assert live == [2, 4] == [live[i] for i in chosen]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stage": "nms"}, "use --stage decoded"), ({"dynamic_size": True}, "one size")],
)
def test_what_the_format_has_not(options, message):
    with pytest.raises(UsageError, match=message):
        mindir.prepare(ExportOptions("mindir", **options))


def test_where_mindspore_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv(mindir.PYTHON, raising=False)
    monkeypatch.setattr(mindir, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install mindspore==") as caught:
        mindir.prepare(ExportOptions("mindir"))
    assert exit_code_and_message(caught.value)[0] == 5
    monkeypatch.setenv(mindir.PYTHON, str(tmp_path / "none"))
    with pytest.raises(MissingPackageError, match="no such file or directory; .*pip install"):
        mindir.Worker("run", "x", "1")
    if importlib.util.find_spec("mindspore") is None:
        monkeypatch.setenv(mindir.PYTHON, sys.executable)
        with pytest.raises(MissingPackageError, match="No module named 'mindspore'"):
            mindir.Worker("run", "x", "1")


# --- every network


@pytest.mark.slow
@pytest.mark.parametrize(("recipe_name", "overrides", "options"), NETWORKS, ids=lambda value: str(value)[:60])
def test_every_network(mindspore, tmp_path, recipe_name, overrides, options):
    model = write_model(tmp_path, recipe_name, overrides)
    report = export.export(open_model(model), mindir.prepare(ExportOptions("mindir", **options)))
    print(json.dumps(report.plain))
    assert report.parity.largest < 1e-4 and report.info.size == tuple(options.get("size", (64, 64)))
    names = {"classify": 1, "detect": 2 if options.get("stage") else 3}[report.info.task]
    assert len(report.parity.outputs) == names and report.parity.batches == [options.get("batch", 1)]
    runner, reference = open_exported(report.path).runner(), torch_model.open_model(model, CPU).runner()
    if report.info.stage == "raw":
        images = noise(2, *report.info.size)
        for found, wanted in zip(runner(images), reference(images), strict=True):
            assert off(found, wanted) < 1e-4


@pytest.mark.slow
def test_what_differs_gets_no_name(mindspore, tmp_path):
    model = write_model(tmp_path, "tinydarknet-digits")
    with pytest.raises(ToleranceError, match="largest relative difference"):
        export.export(open_model(model), mindir.prepare(ExportOptions("mindir", tolerance=1e-9)))
    assert os.listdir(tmp_path) == [model.name]


@pytest.mark.slow
def test_no_air_without_an_ascend_host(mindspore, tmp_path):
    files = Plan(traced(nn.ReLU(), 1, 3)).write(tmp_path)
    with pytest.raises(MissingPackageError, match="AIR files need an Ascend host") as caught:
        mindir.Worker("write", *files, str(tmp_path / "a.air"), "AIR")
    assert exit_code_and_message(caught.value)[0] == 5 and not (tmp_path / "a.air").exists()
