"""The Open Inference Protocol: what tritonclient asks is answered, and what is no such request is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import Answer, Running, write_detector

from convzoo.deploy.exported import open_any
from convzoo.serve.limits import Limits
from convzoo.serve.protocol import JSON_LENGTH

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(digits_run, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    digits = folder / "digits.safetensors"
    shutil.copy(digits_run / "checkpoints/last.safetensors", digits)
    boxes = write_detector(folder)
    from convzoo import cli

    options = ["--format", "onnx", "--stage", "nms", "--preprocessing"]
    assert cli.main(["export", str(boxes), *options, "--out", str(folder / "boxes-nms.onnx")]) == 0
    return {path.stem: path for path in (digits, boxes, folder / "boxes-nms.onnx")}


@pytest.fixture(scope="module")
def server(paths):
    with Running(list(paths.values()), Limits(pictures=4, pixels=100_000)) as running:
        yield running


@pytest.fixture
def client(server):
    try:
        import tritonclient.http as triton
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"tritonclient[http]: {error}")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def outputs_of(path: Path, images: np.ndarray) -> list[np.ndarray]:
    return [torch.as_tensor(output).numpy() for output in open_any(path, CPU).runner()(images)]


def infer(server: Running, name: str, question: dict, blob: bytes = b"") -> Answer:
    head = json.dumps(question).encode()
    headers = {JSON_LENGTH: str(len(head))} if blob else {}
    return server.ask("POST", f"/v2/models/{name}/infer", head + blob, headers)


def question(images: np.ndarray, **more) -> dict:
    datatype = {"float32": "FP32", "uint8": "UINT8"}[images.dtype.name]
    tensor = {"name": "images", "datatype": datatype, "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [tensor], **more}


def test_tritonclient_reads_the_metadata(client, server):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    about = client.get_model_metadata("boxes", "1")
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]
    assert [(output["name"], output["shape"]) for output in about["outputs"]] == [
        ("head8", [-1, 45, 8, 8]),
        ("head16", [-1, 45, 4, 4]),
        ("head32", [-1, 45, 2, 2]),
    ]
    nms = client.get_model_metadata("boxes-nms")
    assert nms["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
    assert [output["datatype"] for output in nms["outputs"]] == ["FP32", "FP32", "INT64"]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_tritonclient_gets_the_models_outputs(client, paths, binary_in, binary_out):
    import tritonclient.http as triton

    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    tensor = triton.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary_in)
    names = ["head8", "head32"]
    asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = client.infer("boxes", [tensor], outputs=asked, request_id="7")
    expected = dict(zip(["head8", "head16", "head32"], outputs_of(paths["boxes"], images), strict=True))
    assert result.get_response()["id"] == "7" and result.as_numpy("head16") is None
    for name in names:
        output = result.as_numpy(name)
        assert (
            output.dtype == np.float32 and np.abs(output - expected[name]).max() < 1e-5 * np.abs(expected[name]).max()
        )


def test_tritonclient_gets_boxes_from_pixels(client, paths):
    import tritonclient.http as triton

    images = pixels(2, 64, 64, 3)
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    result = client.infer("boxes-nms", [tensor])
    boxes, scores, labels = outputs_of(paths["boxes-nms"], images.transpose(0, 3, 1, 2))
    assert np.array_equal(result.as_numpy("labels"), labels) and result.as_numpy("labels").dtype == np.int64
    assert np.allclose(result.as_numpy("boxes_xyxy"), boxes, atol=1e-3) and np.allclose(
        result.as_numpy("scores"), scores
    )


def test_pixels_are_normalised_where_a_model_takes_floats(server, paths):
    images = pixels(2, 3, 8, 8)
    answer = infer(server, "digits", question(images, id="a"))
    (logits,) = outputs_of(paths["digits"], images)
    assert answer.json["id"] == "a" and answer.json["outputs"][0]["shape"] == [2, 10]
    assert np.allclose(np.reshape(answer.json["outputs"][0]["data"], (2, 10)), logits, atol=1e-4)
    nested = {"inputs": [{**question(images)["inputs"][0], "data": images.tolist()}]}
    assert infer(server, "digits", nested).json["outputs"] == answer.json["outputs"]


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"name": "pictures"}, 400, "the model's is images"),
        ({"datatype": "FP64"}, 400, "FP32"),
        ({"datatype": "INT64"}, 400, "FP32"),
        ({"shape": [1, 3, 8, 9]}, 400, "data"),
        ({"shape": [1, 3, 4, 4], "data": [0] * 48}, 400, "takes FP32 or UINT8 [-1, 3, 8, 8]"),
        ({"shape": [5, 3, 8, 8], "data": [0] * 960}, 422, "4 pictures"),
        ({"shape": [0, 3, 8, 8], "data": []}, 400, "greater than or equal to 1"),
        ({"shape": [1, 3, 8]}, 400, "4 items"),
        ({"shape": [-1, 3, 8, 8]}, 400, "shape"),
        ({"data": [0] * 191}, 400, "numbers of shape"),
        ({"data": ["0"] * 192}, 400, "numbers of shape"),
        ({"data": [256] * 192}, 400, "numbers of shape"),
        ({"data": [[0] * 100, [0] * 92]}, 400, "numbers of shape"),
        ({"data": None}, 400, "neither data nor binary_data_size"),
        ({"parameters": {"binary_data_size": 192}}, 400, "0 came"),
        ({"colour": "red"}, 400, "Extra inputs"),
    ],
)
def test_a_tensor_that_does_not_fit(server, change, status, message):
    asked = question(pixels(1, 3, 8, 8))
    asked["inputs"][0] |= change
    answer = infer(server, "digits", asked)
    assert answer.status == status and message in answer.error
    assert len(answer.error) < 300


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"", {}, "JSON"),
        (b"[" * 100_000, {}, "JSON"),
        (b'{"inputs": []}', {}, "at least 1"),
        (b'{"inputs": 1}', {}, "array"),
        (b"\xff\xfe", {}, "JSON"),
        (b"{}", {JSON_LENGTH: "3"}, "does not fit"),
        (b"{}", {JSON_LENGTH: "-1"}, "does not fit"),
        (b"{}", {JSON_LENGTH: "x"}, "does not fit"),
        (json.dumps(question(pixels(1, 3, 8, 8))).encode() + b"rest", {}, "JSON"),
    ],
)
def test_what_is_no_request(server, body, headers, message):
    answer = server.ask("POST", "/v2/models/digits/infer", body, headers)
    assert answer.status == 400 and message in answer.error


def test_bytes_that_are_not_what_was_said(server):
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "parameters": {"binary_data_size": 768}}
    assert infer(server, "digits", {"inputs": [tensor]}, bytes(768)).status == 200
    for blob in (bytes(767), bytes(769)):
        assert "768 bytes" in infer(server, "digits", {"inputs": [tensor]}, blob).error
    tensor["parameters"] = {"binary_data_size": 800}
    assert infer(server, "digits", {"inputs": [tensor]}, bytes(800)).status == 400
    del tensor["parameters"]
    assert "neither" in infer(server, "digits", {"inputs": [tensor]}, bytes(768)).error


def test_outputs_that_are_not_there_or_not_numbers(server):
    asked = question(pixels(1, 3, 8, 8), outputs=[{"name": "boxes"}])
    assert "the model gives logits" in infer(server, "digits", asked).error
    asked = question(pixels(1, 3, 8, 8), outputs=[{"name": "logits", "parameters": {"classification": 3}}])
    assert "/predict" in infer(server, "digits", asked).error
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "parameters": {"binary_data_size": 768}}
    nan = np.full(192, np.nan, np.float32).tobytes()
    assert infer(server, "digits", {"inputs": [tensor]}, nan).status == 422
    binary = infer(server, "digits", {"inputs": [tensor], "parameters": {"binary_data_output": True}}, nan)
    length = int(binary.headers[JSON_LENGTH.lower()])
    assert np.isnan(np.frombuffer(binary.content[length:], np.float32)).all()
    assert json.loads(binary.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 40}
