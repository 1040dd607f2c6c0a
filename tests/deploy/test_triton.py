"""Triton: a repository's folder as the server reads it, by the server's own schema where that is installed."""

import json
import re

import onnx
import pytest
from onnx import TensorProto, helper

from convzoo.deploy import export
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import open_any
from convzoo.deploy.formats import triton
from convzoo.deploy.metadata import ExportInfo
from convzoo.errors import ToleranceError, UsageError, report
from convzoo.inference.torch_model import open_model
from helpers import one_line
from networks import CPU, noise, off, write_model


def parsed(text: str):
    """Return the configuration as Triton reads it."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def graph_of(**values) -> onnx.GraphProto:
    """Return a graph with these inputs and outputs: name=(element type, dimensions), the first the input."""
    infos = [helper.make_tensor_value_info(name, *about) for name, about in values.items()]
    return helper.make_graph([], "g", infos[:1], infos[1:])


def info(**fields) -> ExportInfo:
    return ExportInfo.model_construct(**{"preprocessing": {}, "batch": None, "class_names": ["a", "b"], **fields})


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    model = write_model(folder, "tinydarknet-digits").rename(folder / "tiny v1.2.safetensors")
    return model, triton.export(open_model(model), ExportOptions("triton"))


def test_the_folder(repository):
    model, done = repository
    files = [str(path.relative_to(done.path)) for path in sorted(done.path.rglob("*")) if path.is_file()]
    assert done.path == model.parent / "tiny_v1_2" and files == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert done.format == "triton" and done.parity.largest < 1e-4 and done.parity.batches == [1, 4, 5]
    assert done.bytes == sum((done.path / file).stat().st_size for file in files)
    assert (done.path / "labels.txt").read_text().split() == [str(i) for i in range(10)]
    assert done.path.stat().st_mode & 0o777 == 0o755
    images = noise(3, 32, 32)
    (found,), (wanted,) = (open_any(path, CPU).runner()(images) for path in (done.path / "1/model.onnx", model))
    assert off(found, wanted) < 1e-4
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name, "tiny_v1_2"]


def test_the_configuration_is_the_files(repository):
    text = (repository[1].path / "config.pbtxt").read_text()
    assert re.findall(r"dims: (\[.*?\])", text) == ["[3, 32, 32]", "[10]"]
    config = parsed(text)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny_v1_2", "onnxruntime", triton.MAX_BATCH)
    (given,), (made,) = config.input, config.output
    types = given.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert (given.name, list(given.dims)) == ("images", [3, 32, 32])
    assert given.data_type == types["TYPE_FP32"].number
    assert (made.name, list(made.dims), made.label_filename) == ("logits", [10], "labels.txt")
    assert config.dynamic_batching.max_queue_delay_microseconds == triton.MAX_DELAY_US


def test_a_fixed_batch_and_uint8():
    graph = graph_of(images=(TensorProto.UINT8, [4, 64, 96, 3]), logits=(TensorProto.FLOAT, [4, 2]))
    text = triton.configuration("n", graph, info(batch=4))
    assert "max_batch_size: 0" in text and "dynamic_batching" not in text
    assert 'name: "images" data_type: TYPE_UINT8 dims: [4, 64, 96, 3]' in text
    assert list(parsed(text).output[0].dims) == [4, 2]


def test_a_detector_of_any_size():
    graph = graph_of(
        images=(TensorProto.FLOAT, ["b", 3, "h", "w"]),
        boxes_xyxy=(TensorProto.FLOAT, ["b", 100, 4]),
        labels=(TensorProto.INT64, ["b", 100]),
    )
    text = triton.configuration("n", graph, info())
    assert 'input { name: "images" data_type: TYPE_FP32 dims: [3, -1, -1] }' in text
    assert 'output { name: "labels" data_type: TYPE_INT64 dims: [100] }' in text and "label_filename" not in text
    assert [list(output.dims) for output in parsed(text).output] == [[100, 4], [100]]


def test_nothing_half_written(repository, tmp_path, capsys, monkeypatch):
    model, done = repository
    with pytest.raises(UsageError, match="tiny_v1_2: exists already") as caught:
        triton.export(open_model(model), ExportOptions("triton"))
    assert report(caught.value) == 2 and "model repository's folder" in one_line(capsys.readouterr().err)
    with pytest.raises(UsageError, match="no folder"):
        triton.export(open_model(model), ExportOptions("triton", out=tmp_path / "none"))
    json.dumps(done.plain)

    def differs(model, wanted):
        assert wanted.format == "onnx" and wanted.out.parent.is_dir()
        wanted.out.write_bytes(b"half")
        raise ToleranceError("not what the model does")

    monkeypatch.setattr(export, "export", differs)
    with pytest.raises(ToleranceError):
        triton.export(open_model(model), ExportOptions("triton", out=tmp_path))
    assert not list(tmp_path.iterdir())
