"""Exported files that are damaged, foreign, wrong or hostile: one line that says so, and nothing of them is run."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from test_export import TINY

from convzoo.deploy import export
from convzoo.deploy.exported import RuntimeOptions, open_any, open_exported
from convzoo.deploy.formats import onnx as onnx_format
from convzoo.deploy.formats.pt2_safety import DOCUMENT, EXAMPLES, GRAPH, archive, archive_digest, members
from convzoo.deploy.metadata import MAX_DOCUMENT, UNSEALED, sealed
from convzoo.errors import ConvzooError, UsageError, exit_code_and_message
from convzoo.inference.torch_model import open_model
from helpers import one_line
from networks import CPU, noise, write_model

FORMATS = ("onnx", "pt2", "openvino")  # what runs here without anything else

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A folder with one classifier in every format."""
    folder = tmp_path_factory.mktemp("originals")
    model = write_model(folder, TINY)
    for format in FORMATS:
        export.export(open_model(model), export.ExportOptions(format))
    return folder


@pytest.fixture
def files(originals, tmp_path) -> Path:
    """Copies of them, to be damaged."""
    for path in originals.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def path_of(folder: Path, format: str) -> Path:
    return folder / f"{TINY}{SUFFIXES[format]}"


def refused(path: Path, *parts: str, run: bool = True) -> str:
    """Open a file and run it; return the one line that refuses it, which must name the file and hold these parts."""
    with pytest.raises(ConvzooError) as caught:
        runner = open_any(path, CPU).runner()
        if run:
            runner(noise(1, 32, 32))
    code, message = exit_code_and_message(caught.value)
    assert code == (2 if isinstance(caught.value, UsageError) else 1)
    assert path.name in message and "\n" not in message and len(message) < 600
    assert all(part in message for part in parts), message
    return message


# --- rewriting a file so that its digest is right again: what somebody who means harm would do


def document_of(path: Path) -> dict:
    return json.loads(open_exported(path).info.to_json()) | {"seal": UNSEALED}


def rewrite_onnx(path: Path, document: str | None = None, change=lambda proto: None) -> None:
    proto = onnx.load(path, load_external_data=False)
    (entry,) = [entry for entry in proto.metadata_props if entry.key == onnx_format.KEY]
    entry.value = document if document is not None else json.dumps(document_of(path))
    change(proto)
    data = proto.SerializeToString()
    path.write_bytes(sealed(data) if UNSEALED.encode() in data else data)


def rewrite_pt2(path: Path, document: str | None = None, changes: dict[str, bytes] | None = None) -> None:
    files = members(path.read_bytes()) | (changes or {})
    plain = document if document is not None else json.dumps(document_of(path))
    files[DOCUMENT] = plain.replace(UNSEALED, archive_digest(files)).encode()
    path.write_bytes(archive(files))


def rewrite_openvino(path: Path, document: str | None = None) -> None:
    text = path.read_text()
    start = text.index('<convzoo value="') + len('<convzoo value="')
    plain = document if document is not None else json.dumps(document_of(path))
    escaped = plain.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    data = (text[:start] + escaped + text[text.index('"', start) :]).encode()
    path.write_bytes(sealed(data, path.with_suffix(".bin").read_bytes()) if UNSEALED.encode() in data else data)


REWRITE = {"onnx": rewrite_onnx, "pt2": rewrite_pt2, "openvino": rewrite_openvino}


# --- damaged and foreign files


@pytest.mark.parametrize("format", FORMATS)
def test_files_that_are_not_whole(files, format):
    path = path_of(files, format)
    data = path.read_bytes()
    for part in (b"", data[:1], data[:1000], data[: len(data) // 2], data[:-1], b"<html><body>404</body></html>"):
        path.write_bytes(part)
        refused(path)
    message = ""
    for place in [*range(3, 400, 97), *range(1000, len(data), len(data) // 12), len(data) - 3]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        if format == "pt2" and place < 400:  # within the zip's own headers, of which nothing is used but the names
            continue
        message = refused(path)
    assert "SHA-256" in message or "whole" in message


def test_weights_of_another_openvino_file(files):
    path = path_of(files, "openvino")
    weights = path.with_suffix(".bin")
    data = weights.read_bytes()
    for part in (data[:-1], data[:1000] + b"x" + data[1001:], b""):
        weights.write_bytes(part)
        refused(path, "damaged or changed")
    weights.unlink()
    refused(path, "is not beside it")


def test_files_that_are_not_ours(files, run):
    refused(files / "none.onnx", "no such file")
    (files / "model.tflite").write_bytes(b"TFL3")
    refused(files / "model.tflite", "model.tflite")
    proto = onnx.load(path_of(files, "onnx"))
    del proto.metadata_props[:]
    onnx.save(proto, files / "theirs.onnx")
    refused(files / "theirs.onnx", "no ONNX file that convzoo exported")
    (files / "theirs.xml").write_text("<net><layers/></net>")
    (files / "theirs.bin").write_bytes(b"")
    refused(files / "theirs.xml", "no OpenVINO file that convzoo exported")
    for text in ('<!DOCTYPE a [<!ENTITY b "c">]><net>&b;</net>', "<net>" * 100_000, "\0"):
        (files / "theirs.xml").write_text(text)
        refused(files / "theirs.xml", "not a whole OpenVINO .xml")
    torch.save({"a": torch.zeros(3)}, files / "theirs.pt2")
    refused(files / "theirs.pt2", "no .pt2 archive that convzoo exported")
    with zipfile.ZipFile(files / "theirs.pt2", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/b", bytes(10_000))
    refused(files / "theirs.pt2", "compressed")
    code, out, err = run("predict", files / "theirs.onnx", "x.png")
    assert code == 1 and out == "" and "no ONNX file that convzoo exported" in one_line(err)


# --- metadata


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_that_is_wrong(files, format, tmp_path):
    path = path_of(files, format)
    plain, data = document_of(path), path.read_bytes()
    marker = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    recipe, transform = plain["recipe"], plain["recipe"]["transform"]

    def transformed(key: str, value: Any) -> dict[str, Any]:
        changed = {**transform, key: value}
        preprocessing = {key: changed[key] for key in ("eval", "mean", "std")}
        return {"recipe": {**recipe, "transform": changed}, "preprocessing": preprocessing}

    wrong = [
        *((text, "not a JSON object") for text in ("not JSON", "[]", "{" * 100_000, " " * MAX_DOCUMENT + "{}")),
        *(({"format": number}, f"of format {number}") for number in (2, None)),
        *(({"size": size}, "size") for size in (code, [32, -1], ["32", "32"])),
        *(
            ({key: value}, key)
            for key, value in [("batch", 0), ("stage", "cooked"), ("class_names", code), ("extra", code)]
        ),
        *((change, "do not go together") for change in ({"stage": "nms"}, {"task": "detect"}, {"class_names": []})),
        ({"class_names": plain["class_names"][:-1]}, "9 classes"),
        ({"source_sha256": "x"}, "source_sha256"),
        ({"recipe": {}}, "recipe"),
        ({"recipe": {**recipe, "model": {"name": code}}}, "unknown model"),
        ({"recipe": {**recipe, "data": {"name": "digits", "root": code}}}, "unknown key"),
        (transformed("eval", [{code: {}}]), "unknown transform"),
        (transformed("mean", [code] * 3), "mean"),
        ({"preprocessing": {"mean": [9, 9, 9]}}, "preprocessing: must be the recipe's transform"),
    ]
    for change, message in wrong:
        path.write_bytes(data)
        document = change if isinstance(change, str) else json.dumps(plain | change)
        if isinstance(change, str) and format == "openvino":
            document = change.replace("{" * 100_000, "{" * 1000)
        REWRITE[format](path, document)
        refused(path, message)
    path.write_bytes(data)
    missing = {key: value for key, value in plain.items() if key != "recipe"}
    REWRITE[format](path, json.dumps(missing))
    refused(path, "recipe")
    path.write_bytes(data)
    REWRITE[format](path)  # the rewriting itself is not what is refused
    assert open_any(path, CPU).runner()(noise(1, 32, 32))[0].shape == (1, 10)
    assert not marker.exists()


# --- ONNX


def test_onnx_data_in_other_files_is_not_read(files, tmp_path):
    path = path_of(files, "onnx")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(os.urandom(1 << 16))
    (files / "link.bin").symlink_to(secret)
    data = path.read_bytes()
    for location in ("../secret.bin", str(secret), "link.bin", "weights.bin", "../../../../etc/passwd"):

        def outside(tensor, location=location):
            del tensor.external_data[:]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)

        path.write_bytes(data)
        rewrite_onnx(path, change=lambda proto: outside(proto.graph.initializer[0]))
        refused(path, "keeps data in another file", location[:20])

        def hidden(proto):
            node = onnx.helper.make_node(
                "Constant", [], ["unused"], value=onnx.numpy_helper.from_array(noise(1, 2, 2).numpy())
            )
            outside(node.attribute[0].t)
            inner = onnx.helper.make_graph([node], "inner", [], [])
            proto.graph.node.add(op_type="If", input=["x"], output=["y"]).attribute.add(
                name="then_branch", type=onnx.AttributeProto.GRAPH, g=inner
            )

        path.write_bytes(data)
        rewrite_onnx(path, change=hidden)
        refused(path, "keeps data in another file")


def test_onnx_graphs_that_the_runtime_does_not_take(files):
    path = path_of(files, "onnx")
    data = path.read_bytes()

    def unknown_operator(proto):
        proto.graph.node[3].op_type = "Frobnicate"

    def unknown_domain(proto):
        proto.graph.node[3].domain = "com.example"
        proto.opset_import.add(domain="com.example", version=1)

    def other_opset(proto):
        proto.opset_import[0].version = 999

    def other_input(proto):
        proto.graph.input[0].name = "pixels"
        for node in proto.graph.node:
            node.input[:] = ["pixels" if name == "images" else name for name in node.input]

    def other_outputs(proto):
        proto.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(proto.graph.node[0].output[0], 1, None))

    def cycle(proto):
        proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]

    for change, message in [
        (unknown_operator, "Frobnicate"),
        (unknown_domain, "com.example"),
        (other_opset, "pset"),
        (other_input, "not those"),
        (other_outputs, "not those"),
        (cycle, "runtime does not take it"),
    ]:
        path.write_bytes(data)
        rewrite_onnx(path, change=change)
        refused(path, message)


def test_execution_providers_by_name(files, run):
    onnx_file = path_of(files, "onnx")
    opened = open_exported(onnx_file, RuntimeOptions(provider="CPUExecutionProvider"))
    assert opened.runner().session is not None
    with pytest.raises(UsageError, match="this ONNX Runtime has .*CPUExecutionProvider"):
        open_any(onnx_file, CPU, "CANNExecutionProvider").runner()
    for other in (path_of(files, "pt2"), files / f"{TINY}.safetensors"):
        with pytest.raises(UsageError, match="only ONNX Runtime"):
            open_any(other, CPU, "CPUExecutionProvider")


# --- pt2: what PyTorch would unpickle, evaluate or call


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_pt2_archives_run_no_code(files, tmp_path):
    path, marker = path_of(files, "pt2"), tmp_path / "executed"
    data = path.read_bytes()
    original = members(data)
    graph, weights = json.loads(original[GRAPH]), json.loads(original["data/weights/model_weights_config.json"])
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    pickled = io.BytesIO()
    torch.save(Payload(marker), pickled)
    first = next(iter(weights["config"]))

    def changed_graph(change) -> dict[str, bytes]:
        plain = json.loads(json.dumps(graph))
        change(plain, plain["graph_module"]["graph"]["nodes"][0])
        return {GRAPH: json.dumps(plain).encode()}

    def changed_node(**keys) -> dict[str, bytes]:
        return changed_graph(lambda plain, node: node.update(keys))

    def argument(name, **value):
        return {"name": name, "arg": value, "kind": 1}

    def expression(plain, node):
        name = next(
            name
            for name, value in plain["graph_module"]["graph"]["tensor_values"].items()
            if "as_expr" in value["sizes"][0]
        )
        plain["graph_module"]["graph"]["tensor_values"][name]["sizes"][0]["as_expr"]["expr_str"] = code

    def structure(plain, node):
        entry = next(entry for entry in plain["graph_module"]["module_call_graph"] if entry["signature"])
        spec = json.loads(entry["signature"]["in_spec"])
        spec[1]["type"] = "os.system"
        entry["signature"]["in_spec"] = json.dumps(spec)

    pickled_weight = json.loads(json.dumps(weights))
    pickled_weight["config"][first] |= {"use_pickle": True}
    constants = {
        "config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    }
    refusals = [
        *(changed_graph(change) for change in (expression, structure)),
        changed_node(target="torch.os.system"),
        changed_node(target="torch.ops.aten.from_file.default", inputs=[argument("f", as_string="/etc/passwd")]),
        changed_node(name=f"x = {code}"),
        changed_graph(lambda plain, node: node["inputs"].append(argument("o", as_operator="torch.os.system"))),
        changed_graph(lambda plain, node: node["inputs"].append(argument("o", as_string=code))),
        {
            "data/weights/model_weights_config.json": json.dumps(pickled_weight).encode(),
            f"data/weights/{weights['config'][first]['path_name']}": pickled.getvalue(),
        },
        {
            "data/constants/model_constants_config.json": json.dumps(constants).encode(),
            "data/constants/opaque_obj_0": pickle.dumps(Payload(marker)),
        },
        *(
            {"data/weights/model.pt": pickled.getvalue()},
            {"data/aotinductor/model/x.so": b"ELF"},
            {"../../outside": b"x"},
        ),
        *({GRAPH: text} for text in (b"{}", b"not JSON", b"[" * 100_000)),
        changed_node(target="torch.ops.aten.nothing.default"),
    ]
    for changes in refusals:
        path.write_bytes(data)
        rewrite_with(path, changes)
        refused(path)
    dropped = [{EXAMPLES: pickled.getvalue()}, changed_graph(lambda plain, node: plain.update(guards_code=[code]))]
    dropped.append(changed_graph(lambda plain, node: node["metadata"].update(source_fn_stack="a,torch.os.system")))
    for changes in dropped:  # never used, and so not in the way
        path.write_bytes(data)
        rewrite_with(path, changes)
        assert open_any(path, CPU).runner()(noise(1, 32, 32))[0].shape == (1, 10)
    assert not marker.exists() and not (tmp_path.parent / "outside").exists()
    torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)
    assert marker.exists()  # the payload does work where somebody unpickles it


def rewrite_with(path: Path, changes: dict[str, bytes]) -> None:
    """Put files into an archive with a right digest, whatever they are."""
    document = json.dumps(document_of(path))
    files = members(path.read_bytes()) | changes
    files[DOCUMENT] = document.replace(UNSEALED, archive_digest(files)).encode()
    path.write_bytes(archive(files))


# --- input and overrides


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_of_another_size_or_type(files, format):
    runner = open_any(path_of(files, format), CPU).runner()
    images = noise(2, 32, 32)
    for wrong, message in [
        (images[0], "takes pictures [B, 3, H, W]"),
        (images[:, :1], "takes pictures [B, 3, H, W]"),
        (images[:0], "[B, 3, H, W]"),
        (images.permute(0, 2, 3, 1), "[B, 3, H, W]"),
        (images.double(), "uint8 or float32, not float64"),
        (images.long(), "not int64"),
        (noise(1, 64, 64), "32x32 pixels, not 64x64"),
        (noise(1, 32, 33), "not 32x33"),
    ]:
        with pytest.raises(UsageError) as caught:
            runner(wrong)
        assert message in str(caught.value)
    assert runner(images)[0].shape == (2, 10)


def test_what_is_in_the_file_is_not_overridden(files):
    path = path_of(files, "onnx")
    assert (
        open_any(
            path, CPU, overrides=("data.max_train_images=3", "transform.mean=[0.1,0.1,0.1]")
        ).recipe.transform.mean[0]
        == 0.1
    )
    with pytest.raises(UsageError, match="model is fixed in an exported file"):
        open_any(path, CPU, overrides=("model.leaky_slope=0.2",))
    with pytest.raises(UsageError, match="did you mean 'mean'"):
        open_any(path, CPU, overrides=("transform.meen=[0,0,0]",))
    inside = export.export(
        open_model(files / f"{TINY}.safetensors"), export.ExportOptions("pt2", preprocessing=True)
    ).path
    with pytest.raises(UsageError, match="mean and std is fixed"):
        open_any(inside, CPU, overrides=("transform.mean=[0.1,0.1,0.1]",))
    with pytest.raises(UsageError, match="takes pictures of uint8"):
        open_any(inside, CPU).runner()(noise(1, 32, 32).float())


def test_a_model_file_that_is_exported_again(files, run):
    code, _, err = run("export", path_of(files, "onnx"), "--format", "pt2")
    assert code == 1 and "not a whole safetensors file" in one_line(err)
