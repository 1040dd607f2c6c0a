"""What a server answers: pictures as `predict --json` does, several files, several models, replaced ones."""

import concurrent.futures
import io
import json
import logging
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import Running, form, until, write_detector
from starlette.routing import Route

from convzoo import cli
from convzoo.serve import openapi
from convzoo.serve.limits import Limits
from convzoo.serve.metrics import Metrics
from convzoo.serve.models import names_of
from convzoo.serve.server import listen
from helpers import one_line

HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    assert cli.main(["data", "save", "digits", "--out", str(folder), "--count", "8"]) == 0
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def models(digits_run, tmp_path_factory) -> list[Path]:
    """A classifier and a detector, whose classes are called what no page should run."""
    folder = tmp_path_factory.mktemp("models")
    digits = folder / "digits.safetensors"
    shutil.copy(digits_run / "checkpoints/last.safetensors", digits)
    names = [HTML, "&amp;", *map(str, range(2, 10))]
    return [digits, write_detector(folder, names)]


@pytest.fixture(scope="module")
def server(models):
    with Running(models) as running:
        yield running


def without_path(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "path"}


def test_a_classifier_answers_as_predict_does(run, server, models, pictures):
    rows = [
        json.loads(line)
        for line in run("predict", models[0], *pictures, "--json", "--batch-size", 1)[1].split("\n")[:-1]
    ]
    answers = [server.predict("digits", path.read_bytes()) for path in pictures]
    assert [without_path(row) for row in answers] == [without_path(row) for row in rows] and len(rows) == 8
    assert {row["path"] for row in answers} == {"body"}


def test_a_detector_answers_as_predict_does(run, server, models, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (90, 60)), ("b.png", (40, 200))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    arguments = "predict", models[1], tmp_path, "--json", "--batch-size", 1, "--min-score", 0.001
    rows = [json.loads(line) for line in run(*arguments)[1].splitlines()]
    assert all(row["detections"] for row in rows) and HTML in {box["class"] for box in rows[0]["detections"]}
    for row in rows:
        content = Path(row["path"]).read_bytes()
        assert without_path(server.predict("boxes", content, "?min_score=0.001")) == without_path(row)
        least = sorted(box["score"] for box in row["detections"])[-3] - 1e-5
        better = [box for box in row["detections"] if box["score"] >= least]
        assert len(better) < len(row["detections"])
        assert server.predict("boxes", content, f"?min_score={least}")["detections"] == better


def test_a_form_is_answered_in_order_and_a_bad_picture_fails_alone(server, pictures):
    files = [(path.name, path.read_bytes()) for path in pictures]
    broken = [*files[:3], ("broken.png", files[3][1][:60]), *files[3:]]
    answer = server.ask("POST", "/predict/digits", *form(broken))
    rows = answer.json
    assert answer.status == 200 and [row["path"] for row in rows] == [name for name, _ in broken]
    assert "broken.png" in rows[3]["error"] and [("error" in row) for row in rows].count(True) == 1
    singles = [server.predict("digits", content) for _, content in files]
    for row, single in zip(rows[:3] + rows[4:], singles, strict=True):
        assert row["class"] == single["class"] and row["score"] == pytest.approx(single["score"], abs=2e-6)
    one = server.ask("POST", "/predict/digits", *form(files[:1]))
    assert len(one.json) == 1 and re.match(r"queue;dur=[\d.]+, run;dur=[\d.]+$", one.headers["server-timing"])


def test_float_and_exported_files_of_one_stem_have_their_whole_names(models, pictures, tmp_path, run):
    float_, onnx, ncnn = (tmp_path / f"digits.{suffix}" for suffix in ("safetensors", "onnx", "ncnn.param"))
    shutil.copy(models[0], float_)
    assert run("export", float_, "--format", "onnx", "--out", onnx)[0] == 0
    assert run("export", float_, "--format", "ncnn", "--out", ncnn)[0] == 0
    with Running([float_, onnx, ncnn]) as server:
        cards = {card["name"]: card for card in server.ask("GET", "/models").json}
        assert [*cards] == ["digits.safetensors", "digits.onnx", "digits.ncnn"]
        assert cards["digits.onnx"]["runtime"] == "onnx" and not cards["digits.onnx"]["explains"]
        rows = [server.predict(name, pictures[0].read_bytes()) for name in cards]
    weights = ncnn.with_suffix(".bin").stat().st_size  # what a model takes is with its weights
    assert cards["digits.ncnn"]["size_bytes"] == ncnn.stat().st_size + weights > weights > 100_000
    for row in rows[1:]:
        assert rows[0]["class"] == row["class"] and abs(rows[0]["score"] - row["score"]) < 1e-4


def test_models_of_runs_are_named_by_their_runs(models, pictures, tmp_path):
    runs = [tmp_path / f"{name}/checkpoints/last.safetensors" for name in ("digits", "other")]
    for path in runs:
        path.parent.mkdir(parents=True)
        shutil.copy(models[0], path)
    with Running([*runs, models[0]]) as server:
        cards = [card["name"] for card in server.ask("GET", "/models").json]
        assert cards == ["digits-last", "other-last", models[0].stem]
        assert server.predict("other-last", pictures[0].read_bytes())["class"]
    (shallow, deep), onnx = (Path(f"a/{name}/c/last.st") for name in ("x", "y")), Path("a/x/c/last.onnx")
    assert names_of([shallow, deep]) == ["x-c-last", "y-c-last"]
    assert names_of([shallow, deep, onnx]) == ["x-c-last.st", "y-c-last", "last.onnx"]


def test_requests_that_come_together_run_together(server, pictures):
    def batches() -> dict[str, float]:
        lines = re.findall(
            r'^convzoo_batch_pictures_(sum|count)\{model="digits"\} (\S+)$', server.service.metrics.text(), re.M
        )
        return {name: float(value) for name, value in lines}

    server.predict("digits", pictures[0].read_bytes())
    before = batches()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        with server.held("digits"):
            futures = [pool.submit(server.predict, "digits", path.read_bytes()) for path in pictures]
            until(lambda: len(server.service.models.get("digits").batcher) == 8)
        rows = [future.result() for future in futures]
    after = batches()
    assert after["sum"] - before["sum"] == 8 and after["count"] - before["count"] == 1
    for row, path in zip(rows, pictures, strict=True):
        assert row["score"] == pytest.approx(server.predict("digits", path.read_bytes())["score"], abs=2e-6)


def test_an_idle_server_waits_for_nobody(models, pictures):
    """However long a batch may wait for others: not alone, and not once the others are answered and gone."""
    content = pictures[0].read_bytes()
    with Running(models[:1], Limits(delay_s=0.5)) as server:

        def seconds() -> float:
            started = time.perf_counter()
            server.predict("digits", content)
            return time.perf_counter() - started

        assert sorted(seconds() for _ in range(5))[2] < 0.4
        with concurrent.futures.ThreadPoolExecutor(4) as pool, server.held("digits"):
            futures = [pool.submit(server.predict, "digits", content) for _ in range(4)]
            until(lambda: len(server.service.models.get("digits").batcher) == 4)
        assert all(future.result() for future in futures)
        time.sleep(0.6)
        assert seconds() < 0.4


def test_a_model_is_replaced_without_dropping_a_request(digits_run, pictures, tmp_path):
    path = tmp_path / "m.safetensors"
    shutil.copy(digits_run / "checkpoints/last.safetensors", path)
    content, stop = pictures[0].read_bytes(), threading.Event()
    with Running([path], replaceable=True) as server, concurrent.futures.ThreadPoolExecutor(3) as pool:

        def ask() -> list[int]:
            statuses = []
            while not stop.is_set():
                statuses.append(server.ask("POST", "/predict/m", content).status)
            return statuses

        clients = [pool.submit(ask) for _ in range(2)]
        with server.held("m"):  # the old model is busy: requests that it has must still be answered
            late = pool.submit(server.predict, "m", content)
            until(lambda: server.waiting("m") >= 1)
            old = server.service.models.get("m")
            shutil.copy(digits_run / "checkpoints/best.safetensors", path)
            answer = server.ask("POST", "/models/m")
            assert answer.status == 200 and answer.json["version"] == "2"
            assert server.predict("m", content)["class"] and old.waiting >= 1
        assert late.result()["class"]
        good = server.predict("m", content)
        path.write_bytes(path.read_bytes()[:-100])
        answer = server.ask("POST", "/models/m")
        assert answer.status == 422 and "goes on" in answer.error
        assert server.predict("m", content) == good
        assert server.ask("GET", "/v2/models/m").json["versions"] == ["2"]
        stop.set()
        statuses = [status for client in clients for status in client.result()]
    assert len(statuses) > 2 and set(statuses) == {200}


def test_models_are_not_replaced_unless_that_is_allowed(server):
    assert server.ask("POST", "/models/digits").status == 404
    assert "/models/{name}" not in server.ask("GET", "/openapi.json").json["paths"]


@pytest.mark.parametrize("replaceable", [False, True])
def test_the_description_has_every_route_and_no_other(server, replaceable):
    from convzoo.serve.app import Service

    service = Service(server.service.models, server.limits, server.service.metrics, replaceable)
    routes = {
        (route.path, method.lower())
        for route in service.routes()
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    document = openapi.document(["digits"], replaceable)
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert described == routes - {("/", "get")}


def test_answers_are_as_described(server, pictures):
    jsonschema = pytest.importorskip("jsonschema")
    document = server.ask("GET", "/openapi.json").json
    content = pictures[0].read_bytes()
    infer = json.dumps({"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192}]})
    asked = [
        ("GET", "/v2", None, "/v2"),
        ("GET", "/models", None, "/models"),
        ("GET", "/v2/health/ready", None, "/v2/health/ready"),
        ("GET", "/v2/models/digits", None, "/v2/models/{name}"),
        ("GET", "/v2/models/boxes/versions/1/ready", None, "/v2/models/{name}/versions/{version}/ready"),
        ("POST", "/predict/digits", content, "/predict/{name}"),
        ("POST", "/predict/boxes?min_score=0", content, "/predict/{name}"),
        ("POST", "/v2/models/digits/infer", infer, "/v2/models/{name}/infer"),
        ("POST", "/predict/digits", b"none", "/predict/{name}"),
        ("GET", "/v2/models/none", None, "/v2/models/{name}"),
    ]
    for method, path, body, template in asked:
        answer = server.ask(method, path, body)
        responses = document["paths"][template][method.lower()]["responses"]
        schema = responses[str(answer.status)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json, {**schema, "components": document["components"]})


@pytest.mark.slow
def test_whatever_the_description_allows_is_answered_as_described(models):
    """Schemathesis draws requests from /openapi.json, good and bad, and judges the answers."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    with Running(models, replaceable=True) as server:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        count = 0
        for operation in (result.ok() for result in schema.get_all_operations()):

            @given(case=operation.as_strategy())
            @settings(
                max_examples=40,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
                derandomize=True,
            )
            def holds(case):
                case.call_and_validate(excluded_checks=[positive_data_acceptance])  # no schema knows what a picture is

            holds()
            count += 1
        assert count == len(openapi.document([], True)["paths"]) - 1  # the description itself is not asked for


def test_what_is_counted_adds_up(server, pictures):
    def count(status: str) -> float:
        name = f'convzoo_requests_total{{endpoint="predict",model="digits",status="{status}"}}'
        lines = dict(line.rsplit(" ", 1) for line in server.ask("GET", "/metrics").content.decode().splitlines())
        return float(lines.get(name, 0))

    before = count("200"), count("422")
    server.predict("digits", pictures[0].read_bytes())
    assert server.ask("POST", "/predict/digits", b"none").status == 422
    assert (count("200"), count("422")) == (before[0] + 1, before[1] + 1)
    text = server.ask("GET", "/metrics").content.decode()
    assert re.search(r"^convzoo_held_bytes 0$", text, re.M)
    assert re.search(r'^convzoo_waiting\{model="digits"\} 0$', text, re.M)


def test_a_histogram_counts_into_the_bucket_of_its_bound():
    metrics = Metrics()
    for value in (1, 1.5, 16, 1000):
        metrics.observe("convzoo_batch_pictures", value, model='a"\\\n')
    lines = dict(line.rsplit(" ", 1) for line in metrics.text().splitlines() if not line.startswith("#"))
    label = r'model="a\"\\\n"'
    counts = {
        bound: lines[f'convzoo_batch_pictures_bucket{{{label},le="{bound}"}}'] for bound in ("1", "2", "16", "+Inf")
    }
    assert counts == {"1": "1", "2": "2", "16": "3", "+Inf": "4"}
    assert lines[f"convzoo_batch_pictures_sum{{{label}}}"] == "1018.5"


def test_nothing_of_a_request_is_logged(models, pictures, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("convzoo").propagate = True
    with Running(models[:1]) as server:
        server.ask(
            "POST", "/predict/digits", *form([("secret.png", pictures[0].read_bytes()), ("secret2.png", b"secret")])
        )
        server.ask("POST", "/predict/secret", b"secret")
        server.ask("GET", "/secret?secret=1")
        server.ask("POST", "/v2/models/digits/infer", b'{"secret": 1}')
        picture = io.BytesIO()
        Image.new("RGB", (30, 20)).save(picture, "PNG")  # a size that a transform says something about
        server.ask("POST", "/predict/digits", *form([("secret.png", picture.getvalue())]))
    assert "secret" not in caplog.text


def test_an_answer_waits_for_no_acknowledgement():
    """Its head and body are two writes: without this option a connection's second answer took 40 ms longer."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_mistakes_of_the_command_line(run, models, tmp_path):
    code, _, err = run("serve", models[0], models[0], "--port", 0)
    assert code == 2 and "two models of one name" in one_line(err)
    code, _, err = run("serve", tmp_path / "none.safetensors", "--port", 0)
    assert code == 2 and "none.safetensors" in one_line(err)
    with Running(models[:1]) as server:
        code, _, err = run("serve", models[0], "--port", server.port)
    assert code == 2 and "cannot listen there" in one_line(err) and "--port" in err
    (tmp_path / "token").write_text("\n")
    code, _, err = run("serve", models[0], "--token-file", tmp_path / "token")
    assert code == 2 and "no token" in one_line(err)
