"""Ascend: the vendor's tools are called with the right arguments where they are, and named where they are not.

None of them can be had here: `atc` and `amct_onnx` are stand-ins that record their arguments, `acl` is a module that
keeps the vendor's calls and lets ONNX Runtime compute.
"""

import json
import logging
import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy import export
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import open_any, open_exported
from convzoo.deploy.formats import ascend, mindir
from convzoo.deploy.metadata import ExportInfo
from convzoo.deploy.quantize import amct, comparison, quantize
from convzoo.errors import ConvzooError, MissingPackageError, ToleranceError, UsageError, exit_code_and_message, report
from convzoo.inference import evaluate, torch_model
from convzoo.inference.torch_model import TorchModel, open_model
from helpers import one_line
from networks import CPU, SMALL_YOLO, noise, off, write_model

ATC = """#!/bin/sh
printf '%s\\n' "$@" > "$LOG"
for word in "$@"; do
  case $word in
    --model=*) model=${word#*=};;
    --output=*) output=${word#*=};;
    --insert_op_conf=*) cp "${word#*=}" "$LOG.cfg";;
  esac
done
cp "$model" "$output.om"
"""
AMCT = f"""#!{sys.executable}
import os, sys, onnx
with open(os.environ["LOG"], "w") as log:
    print(*sys.argv[1:], sep="\\n", file=log)
said = dict(word.split("=", 1) for word in sys.argv[2:])
model = onnx.load(said["--model"])
model.producer_name = "amct"
onnx.save(model, said["--save_path"] + "_deploy_model.onnx")
"""
# Pointers are numbers of entries in `memory`; the .om of the stand-in `atc` is an ONNX file.
ACL = """
import time
import types
import numpy as np
import onnxruntime

NAMES = {"tensor(float)": 0, "tensor(float16)": 1, "tensor(int64)": 9}
memory, started, freed, spoil, fail, slow = {}, [], [], [1.0], [""], [None]

def new(value):
    memory[len(memory) + 1] = value
    return len(memory)

def sized(values):
    return [int(np.prod(v.shape)) * 4 for v in values]

def init():
    started.append(1)
    return 0 if len(started) == 1 else 100002

def load_from_file(path):
    return (new(onnxruntime.InferenceSession(path)), 507 if fail[0] == "load" else 0)

def execute(model, inputs, outputs):
    session = memory[model]
    time.sleep(0.02 * ((session.get_modelmeta().producer_name == "amct") is slow[0]))
    (given,) = session.get_inputs()
    x = np.frombuffer(memory[memory[inputs][0]], np.float32).reshape(given.shape)
    for place, array in zip(memory[outputs], session.run(None, {given.name: x})):
        memory[place] = (array * spoil[0]).astype(np.float32).tobytes()
    return 0

def memcpy(to, to_size, source, size, kind):
    assert to_size == size == len(memory[source]), (to_size, size, kind)
    memory[to] = memory[source]
    return 0

def add_dataset_buffer(data, buffer):
    memory[data].append(buffer)
    return data, 0

def get_desc(about, model):
    memory[about] = memory[model]
    return 0

def create_data_buffer(place, size):
    return place

rt = types.SimpleNamespace(
    set_device=lambda i: 0, malloc=lambda size, policy: (new(bytes(size)), 0), free=lambda p: freed.append(p),
    malloc_host=lambda size: (new(bytes(size)), 0), free_host=lambda p: 0, memcpy=memcpy)
mdl = types.SimpleNamespace(
    load_from_file=load_from_file, create_desc=lambda: new(None), get_desc=get_desc, create_dataset=lambda: new([]),
    add_dataset_buffer=add_dataset_buffer, execute=execute, unload=lambda m: freed.append("model"),
    get_num_outputs=lambda a: len(memory[a].get_outputs()),
    get_input_size_by_index=lambda a, i: sized(memory[a].get_inputs())[i],
    get_output_size_by_index=lambda a, i: sized(memory[a].get_outputs())[i],
    get_output_data_type=lambda a, i: NAMES[memory[a].get_outputs()[i].type],
    get_output_dims=lambda a, i: ({"name": "x", "dims": memory[a].get_outputs()[i].shape}, 0))
util = types.SimpleNamespace(bytes_to_ptr=lambda data: new(data), ptr_to_bytes=lambda p, size: memory[p][:size])
"""


@pytest.fixture(scope="module", autouse=True)
def _exported_once():
    """Make each ONNX file once: that takes the time, and all models here have the same weights."""
    real, made = export.export, {}

    def cached(model: TorchModel, wanted: ExportOptions) -> export.ExportResult:
        key = (model.path.name, wanted.format, wanted.batch, wanted.stage, wanted.preprocessing, wanted.size)
        if key not in made:
            done = real(model, wanted)
            made[key] = done, done.path.read_bytes()
        path = wanted.out or model.path.with_suffix(".onnx")
        path.write_bytes(made[key][1])
        return replace(made[key][0], path=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export", cached)
        yield


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "models").mkdir()
    return write_model(tmp_path / "models", "tinydarknet-digits")


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a stand-in program on PATH, which is empty otherwise; return a function that reads its arguments."""
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()

    def put(name: str, text: str):
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        monkeypatch.setenv("LOG", str(log))
        return lambda: log.read_text().splitlines()

    return put


@pytest.fixture
def acl(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/acl.py").write_text(ACL)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield __import__("acl")
    sys.modules.pop("acl", None)


def om(model: Path, **options) -> export.ExportResult:
    return ascend.export(open_model(model), ExportOptions("om", **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atc_gets_the_right_arguments(model, tool, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("convzoo"), "propagate", True)
    called, stem = tool("atc", ATC), model.with_suffix("")
    done = om(model)
    arguments = called()
    assert [re.sub(r"=/.*/", "=", word) for word in arguments] == [
        "--framework=5",
        f"--model={stem.name}.onnx",
        f"--output={stem.name}",
        "--input_format=NCHW",
        "--input_shape=images:1,3,32,32",
        "--soc_version=Ascend310",
        "--log=error",
    ]
    assert arguments[1] == f"--model={stem}.onnx"
    assert names(model.parent) == [f"{stem.name}{end}" for end in (".om", ".om.json", ".onnx", ".safetensors")]
    assert done.path == stem.with_suffix(".om") and done.parity.largest < 1e-4 and done.parity.batches == [1]
    assert "tinydarknet-digits.om was not run: `acl` is not here" in caplog.text
    file = open_exported(done.path)
    assert (file.info.input, file.info.batch, file.sha256) == ("float_nchw", 1, done.plain["sha256"])
    with pytest.raises(MissingPackageError, match="vendor's acl, a part of CANN") as caught:
        file.runner()
    assert exit_code_and_message(caught.value)[0] == 5
    four = file.info.model_copy(update={"batch": 4})
    ascend.compile_om(stem.with_suffix(".onnx"), four, model.with_name("b.om"), None, "Ascend310P3")
    assert {"--soc_version=Ascend310P3", "--input_shape=images:4,3,32,32"} <= set(called())
    for suffix, number in ((".air", 1), (".mindir", 1)):
        source = model.with_suffix(suffix)
        source.write_bytes(b"x")
        ascend.compile_om(source, file.info, model.with_name("b.om"), None, "Ascend310")
        assert called()[:2] == [f"--framework={number}", f"--model={source}"]


def test_aipp_normalises_as_we_do(model, tool, tmp_path):
    called = tool("atc", ATC)
    done = om(model, preprocessing=True)
    settings = model.with_suffix(".aipp.cfg")
    assert f"--insert_op_conf={settings}" in called() and done.info.input == "uint8_nhwc"
    text = (tmp_path / "log.cfg").read_text()
    assert text == settings.read_text() and text.startswith("aipp_op {") and text.endswith("}\n")
    said = dict(line.strip().split(": ") for line in text.splitlines()[1:-1])
    assert said["aipp_mode"] == "static" and said["input_format"] == "RGB888_U8" and said["crop"] == "false"
    assert (said["src_image_size_w"], said["src_image_size_h"]) == ("32", "32")
    images = noise(2, 5, 4)
    least, factor = ([float(said[f"{key}_chn_{i}"]) for i in range(3)] for key in ("min", "var_reci"))
    found = (images.double() - torch.tensor(least).view(3, 1, 1)) * torch.tensor(factor).view(3, 1, 1)
    transform = torch_model.open_model(model, CPU).recipe.transform
    assert len(set(transform.mean)) > 1 or min(transform.mean) > 0
    assert off(found, normalize(images, transform.mean, transform.std).double()) < 1e-6


def test_aipp_writes_height_and_width_in_their_places():
    info = ExportInfo.model_construct(size=(64, 96), preprocessing={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.2]})
    text = ascend.aipp(info)
    assert "src_image_size_w: 96\n" in text and "src_image_size_h: 64\n" in text
    assert "min_chn_2: 76.5\n" in text and f"var_reci_chn_1: {1 / 102:.9g}\n" in text


def test_without_atc_it_says_what_to_take_along(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError) as caught:
        om(model, preprocessing=True)
    assert report(caught.value) == 5
    line = one_line(capsys.readouterr().err)
    stem = model.with_suffix("")
    assert f"vendor's atc, a part of CANN (hiascend.com); take {stem}.onnx and {stem}.aipp.cfg along" in line
    assert f"atc --framework=5 --model={stem.name}.onnx --output={stem.name} " in line
    assert f"--insert_op_conf={stem.name}.aipp.cfg" in line
    assert names(model.parent) == [f"{stem.name}{end}" for end in (".aipp.cfg", ".onnx", ".safetensors")]
    assert open_exported(stem.with_suffix(".onnx")).info.batch == 1


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\necho E10001: no such soc >&2\nexit 1\n", "#!/bin/sh\necho E10001: no such soc\n"]
)
def test_an_atc_that_fails(model, tool, script):
    tool("atc", script)
    with pytest.raises(ConvzooError, match=r"atc failed \([01]\) and said: E10001: no such soc"):
        om(model)
    assert not list(model.parent.glob("*.om*"))


def test_on_the_device_it_is_compared_and_evaluated(model, tool, acl):
    tool("atc", ATC)
    done = om(model)
    assert done.parity.largest < 1e-4 and done.info.tolerance == ascend.HALF_TOLERANCE and done.parity.agreed == 11
    opened, reference = open_exported(done.path), torch_model.open_model(model, CPU).runner()
    runner, images = opened.runner(), noise(3, 32, 32)
    assert off(runner(images)[0], reference(images)[0]) < 1e-4
    with pytest.raises(ConvzooError, match="takes 12288 bytes of pictures, not 24576"):
        runner.session(torch.zeros(2, 3, 32, 32))
    before = acl.freed.count("model")
    del runner
    assert acl.freed.count("model") == before + 1
    acl.fail[0] = "load"
    with pytest.raises(ConvzooError, match=r"acl\.mdl\.load_from_file failed: error 507"):
        opened.runner()


def test_what_differs_on_the_device_is_not_kept(model, tool, acl):
    tool("atc", ATC)
    done = om(model)
    before = done.path.read_bytes(), names(model.parent)
    acl.spoil[0] = 1.1
    with pytest.raises(ToleranceError, match=r"logits +largest relative difference 1\.0e-01") as caught:
        om(model)
    assert exit_code_and_message(caught.value)[0] == 4 and (done.path.read_bytes(), names(model.parent)) == before


@pytest.mark.slow
def test_a_detector_on_the_device(tmp_path, tool, acl):
    tool("atc", ATC)
    model = write_model(tmp_path, "yolov3-digits", SMALL_YOLO)
    done = om(model)
    assert done.parity.largest < 1e-4 and list(done.parity.outputs) == ["head8", "head16", "head32"]
    found, wanted = (evaluate.evaluate_open(open_any(path, CPU), None).result for path in (done.path, model))
    assert found == pytest.approx(wanted, abs=1e-3) and found["images"] == 120


# --- AIR


STAND_IN = """#!{python}
import json, struct, sys
action, plan, weights, out, kind = sys.argv[2:]
said = {said}
if "error" not in said:
    open(out, "wb").write(json.dumps([kind, len(json.load(open(plan))["steps"])]).encode())
data = json.dumps(said).encode()
sys.stdout.buffer.write(struct.pack("<Q", len(data)) + data)
sys.exit({status})
"""


@pytest.fixture
def air(model, tool, monkeypatch):
    """Export AIR with a stand-in for MindSpore, ONNX taking the place of MINDIR as what is compared."""
    real = export.export
    monkeypatch.setattr(export, "export", lambda model, wanted: real(model, replace(wanted, format="onnx", out=None)))

    def run(said: dict, status: int) -> export.ExportResult:
        tool("mindspore-python", STAND_IN.format(python=sys.executable, said=said, status=status))
        monkeypatch.setenv(mindir.PYTHON, os.environ["PATH"].split(":")[0] + "/mindspore-python")
        return ascend.export(open_model(model), ExportOptions("air"))

    return run


def test_air_on_an_ascend_host(model, air):
    done = air({"arrays": 0, "mindspore": "2.10.0"}, 0)
    kind, steps = json.loads(done.path.read_bytes())
    assert done.path == model.with_suffix(".air") and kind == "AIR" and steps > 30
    info = json.loads(Path(f"{done.path}.json").read_text())
    assert info["batch"] == 1 and info["versions"]["mindspore"] == "2.10.0"
    assert done.plain["sha256"] == info["seal"].removeprefix("sha256:") != 64 * "0"


def test_air_elsewhere(model, air, monkeypatch):
    with pytest.raises(MissingPackageError, match=r"on an Ascend host.* take \S+\.safetensors or \S+\.mindir along"):
        air({"error": "Unsupported device target Ascend"}, 6)
    assert not list(model.parent.glob("*.air*"))
    monkeypatch.delenv(mindir.PYTHON)
    monkeypatch.setattr(mindir, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"take \S+\.safetensors along .*pip install mindspore") as caught:
        ascend.export(open_model(model), ExportOptions("air"))
    assert exit_code_and_message(caught.value)[0] == 5


def test_one_size_only(model):
    with pytest.raises(UsageError, match="one size"):
        om(model, dynamic_size=True)


# --- AMCT


def int8(model: Path, **options) -> comparison.QuantizeResult:
    return quantize.quantize(
        open_model(model), comparison.QuantizeOptions("om", calibration_images=5, eval_images=50, **options)
    )


def test_int8_by_the_vendors_quantiser(model, tool, acl, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "SECONDS", 0.05)
    tool("atc", ATC.replace('> "$LOG"', '>> "$LOG.atc"'))
    called, compiled, acl.slow[0] = tool("amct_onnx", AMCT), tmp_path / "log.atc", False
    done = int8(model, soc_version="Ascend310P3", max_drop=0)
    stem = model.with_suffix("")
    assert called() == [
        "calibration",
        f"--model={stem}.onnx",
        f"--save_path={stem}-amct",
        "--input_shape=images:1,3,32,32",
        f"--data_dir={stem}-calibration",
        "--data_types=float32",
        "--batch_num=5",
    ]
    assert f"--model={stem}-amct_deploy_model.onnx" in compiled.read_text()
    assert compiled.read_text().count("--soc_version=Ascend310P3") == 2
    inputs = [np.fromfile(path, np.float32) for path in sorted(Path(f"{stem}-calibration").iterdir())]
    assert len(inputs) == 5 and all(x.size == 3 * 32 * 32 and x.min() < -0.1 for x in inputs)
    assert done.path == Path(f"{stem}-int8.om") and done.plain["runtime"] == "acl" and done.plain["drop_points"] == 0
    file = open_exported(done.path)
    assert file.info.provenance["quantization"]["by"] == "amct" and file.info.metrics["images"] == 50
    assert "INT8 by amct" in done.text()


def test_int8_that_is_not_faster_on_the_device_is_not_kept(model, tool, acl, monkeypatch):
    monkeypatch.setattr(comparison, "SECONDS", 0.05)
    tool("atc", ATC)
    tool("amct_onnx", AMCT)
    acl.slow[0] = True
    with pytest.raises(ToleranceError, match=r"none is kept: amct: slower than float"):
        int8(model)
    assert not list(model.parent.glob("*.om*"))


def test_int8_without_the_vendors_quantiser(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    stem = model.with_suffix("")
    with pytest.raises(MissingPackageError) as caught:
        int8(model)
    assert f"AMCT, a part of CANN (hiascend.com); take {stem}.onnx and {stem}-calibration along" in str(caught.value)
    assert f"amct_onnx calibration --model={stem.name}.onnx" in str(caught.value)
    with pytest.raises(UsageError, match="calibration: exists already"):
        int8(model)
    with pytest.raises(UsageError, match=r"no \.bin inputs"):
        amct.quantize_file(stem.with_suffix(".onnx"), tmp_path, tmp_path / "q")
