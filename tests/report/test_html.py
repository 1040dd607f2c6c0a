"""A run's page: what stands in it is what was measured, names are only text, and it asks for nothing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convzoo import logs
from convzoo.inference.bootstrap import wilson
from convzoo.report.charts import Chart, Series
from convzoo.report.html import RunView, page, recipe_differences
from convzoo.report.pictures import Room, data_url
from convzoo.training.run_deployment import deployment
from convzoo.training.run_folder import MetricRows
from convzoo.training.run_pictures import EvaluatedPictures
from convzoo.training.run_report import RunReport
from helpers import rows

HTML = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def written(digits_run, tmp_path_factory):
    from convzoo.training.run_report import write_report

    out = tmp_path_factory.mktemp("page") / "page.html"
    write_report([digits_run], out)
    return out.read_text(encoding="utf-8")


def view(name: str, **changes) -> RunView:
    facts = {"folder": name, "state": "finished", "progress": "", "summary": "", "command": "", "again": ""}
    return RunView(name, **{**facts, "recipe": {}, "recipe_text": "", **changes})


def values(text: str) -> dict[str, dict]:
    """Return the values that each chart of a page can be read for, by its title."""
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", text)
    charts = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return dict(zip(titles, map(json.loads, charts), strict=True))


def test_the_curves_are_the_rows_of_the_run(written, digits_run):
    charts = values(written)
    loss, steps = charts["Training loss"]["series"], rows(digits_run, "step")
    assert loss[0]["points"] == [[row["step"], pytest.approx(row["loss"], rel=1e-5)] for row in steps]
    accuracy = {line["name"]: line["points"] for line in charts["Top-1 accuracy"]["series"]}
    epochs = rows(digits_run, "epoch")
    measured = [row for row in epochs if "top1" in row]
    assert accuracy["validation images"] == [[r["step"], pytest.approx(100 * r["top1"], rel=1e-5)] for r in measured]
    assert len(charts["Learning rate"]["series"][0]["points"]) == len(steps)


def test_numbers_have_their_interval_and_count(written, digits_run):
    measured = json.loads((digits_run / "eval/metrics.json").read_text())
    low, high = wilson(measured["top1"], 360)
    assert measured["intervals"]["top1"] == [low, high]
    assert f"{100 * low:.2f} to {100 * high:.2f} %" in written and "n = 360 of 360 images" in written
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's own formula, by hand
    assert wilson(0, 0) == (0, 1) and wilson(1.0, 5)[1] == 1.0


def test_cells_hold_their_pictures_and_heat_explains_some(written, digits_run):
    truth, predicted = np.array(
        [
            [record["truth"], record["predicted"]]
            for record in map(json.loads, (digits_run / "eval/pictures.jsonl").read_text().splitlines())
        ]
    ).T
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    table = (digits_run / "eval/confusion.csv").read_text().splitlines()[1:]
    assert counts.tolist() == [[int(value) for value in line.split(",")[1:]] for line in table]
    for row, column in zip(*counts.nonzero(), strict=True):
        template = re.search(rf'<template id="cell-0-{row}-{column}">(.*?)</template>', written, re.S)
        assert template and template[1].count("<img ") == min(6, counts[row, column])
    assert written.count('alt="What speaks for ') >= 6
    assert len(written.encode()) < 5e6


def test_the_page_asks_for_nothing(written):
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?!data:|#)[a-z]+:", written)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', written)
    assert policy and "default-src 'none'" in policy[1] and "connect-src 'none'" in policy[1]


def test_names_are_only_text():
    chart = Chart(HTML, HTML, [Series(f"</script>{HTML}", [(0, 1), (1, 2)])])
    text = page([view(HTML, summary=HTML, command=HTML, recipe={HTML: HTML}, charts=[chart], missing={"curve": HTML})])
    assert "<img src=x" not in text and text.count("</script>") == 2
    assert values(text)["&lt;img src=x onerror=document.title=&#39;run&#39;&gt;"]["series"][0]["name"].endswith(HTML)


def test_ticks_are_round_and_hold_the_line():
    drawn = Chart("a", "step", [Series("s", [(0, 0.013), (37, 0.97)])]).drawn()
    assert [text for _, text in drawn["y_ticks"]] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [text for _, text in drawn["x_ticks"]] == ["0", "10", "20", "30"]
    assert all(0 <= place <= 1 for place, _ in drawn["y_ticks"] + drawn["x_ticks"])
    log = Chart("a", "step", [Series("s", [(1, 0.02), (2, 300), (3, 0.0)])], log=True).drawn()
    assert [text for _, text in log["y_ticks"]] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    assert len(json.loads(log["values"])["series"][0]["points"]) == 2  # no logarithm of 0
    flat = Chart("a", "step", [Series("s", [(1, 0.5), (2, 0.5)])]).drawn()
    assert len(flat["y_ticks"]) > 1
    assert Chart("a", "step", [Series("s", [])]).drawn()["lines"] == []


def test_where_recipes_differ():
    first, second = {"optim": {"lr": 0.1, "name": "sgd"}, "seed": 0}, {"optim": {"lr": 0.2, "name": "sgd"}, "x": None}
    assert recipe_differences([view("a", recipe=first), view("b", recipe=second)]) == [
        ("optim.lr", ["0.1", "0.2"]),
        ("seed", ["0", "-"]),
        ("x", ["-", "none"]),
    ]


def test_a_page_has_so_many_bytes_of_pictures():
    source = data_url(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8), 100)
    room = Room(len(source) + 10)
    assert source.startswith("data:image/jpeg;base64,") and room.taken(source) == source and room.taken(source) == ""


def test_several_runs_and_one_whose_pictures_are_others(run, digits_run, tmp_path):
    other = shutil.copytree(digits_run, tmp_path / "other", ignore=shutil.ignore_patterns("*.pt"))
    account = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps(account | {"val_list_sha256": "0" * 64}))
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 5"))
    code, out, _ = run("report", digits_run, other, "--html", "--out", tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert code == 0 and out == f"{tmp_path}/both.html\n"
    assert "<td><code>0</code></td><td><code>5</code></td>" in text
    assert "not the pictures that were evaluated" in text and "--html --data DIR" in text
    assert [line["name"] for line in values(text)["Training loss"]["series"]] == ["digits", "other"]


def evaluated(run: Path, names: list[str], counts: np.ndarray, records: list[dict]) -> RunView:
    """Return what a page shows of an evaluation whose pictures are gone."""
    (run / "eval").mkdir()
    (run / "eval/pictures.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [",".join([name, *map(str, row)]) for name, row in zip(names, counts.tolist(), strict=True)]
    (run / "eval/confusion.csv").write_text("\n".join([",".join(["truth", *names]), *lines]) + "\n")
    shown = view("a")
    classes = [name for name in names if name != "background"]
    EvaluatedPictures(run, classes, None, Room(0)).show(shown)
    return shown


def test_of_many_classes_the_most_frequent_confusions_are_shown(tmp_path):
    names, counts, records = [f"c{i}" for i in range(40)], 2 * np.eye(40, dtype=int), []
    for truth, predicted, count in ((3, 7, 5), (8, 1, 2)):
        counts[truth, predicted] = count
        for i in range(count):
            scores = {"true_score": 0.1 * i, "score": 0.5 + 0.1 * i}
            picture = {"id": len(records), "path": f"a/{len(records)}.png", "truth": truth, "predicted": predicted}
            records.append(picture | scores)
    confusion = evaluated(tmp_path, names, counts, records).confusion
    assert confusion is not None and confusion.cells == []
    assert [(cell.title, cell.count) for cell in confusion.frequent] == [("c3 taken for c7", 5), ("c8 taken for c1", 2)]
    assert [picture.note for picture in confusion.frequent[0].pictures] == ["4.png", "3.png", "2.png"]  # the surest


def test_a_detectors_boxes_are_right_false_or_missed(tmp_path):
    box = [10.0, 20.0, 60.0, 70.0]
    detection = {"box": box, "class": 0, "score": 0.9, "right": True, "on": 0}
    truth = {"box": box, "class": 0, "found": True, "missed": False}
    first = {"truth": [truth], "detections": [detection]}
    second = {
        "truth": [truth | {"found": False, "missed": True}],
        "detections": [detection | {"right": False, "on": None, "score": 0.4}],
    }
    records = [{"id": i, "path": f"{i}.png", "size": [100, 200], **part} for i, part in enumerate((first, second))]
    shown = evaluated(tmp_path, ["ant", "background"], np.array([[1, 1], [1, 0]]), records)
    assert shown.has_boxes and [picture.note for picture in shown.worst] == ["1.png"]
    assert shown.worst[0].title == "1 missed, 1 false, 0 right"
    assert [(b.kind, b.left, b.top, b.width, b.height) for b in shown.worst[0].boxes] == [
        ("false", 10, 10, 50, 25),
        ("missed", 10, 10, 50, 25),
    ]
    assert shown.confusion is not None
    titles = [[(cell.title, len(cell.pictures)) for cell in row] for row in shown.confusion.cells]
    assert titles[0] == [("ant, right", 1), ("ant missed", 1)] and titles[1][0] == ("ant where there is none", 1)


def test_what_was_deployed_is_shown_with_its_conditions_and_what_is_damaged_says_so(tmp_path):
    facts = {"measure": "top1", "batch": 1, "size": "32x32", "cpu": "a CPU", "cores": 4, "threads": 2, "data": None}
    numbers = {"bytes": 1_500_000, "latency_ms": 0.5, "latency_p95_ms": 0.75, "pictures_per_s": 2000.0}
    lost = {"top1": {"points": 0.5, "low": 0.0, "high": 1.25}}
    rows = [
        {"form": "pytorch", **numbers, "result": {"top1": 0.99}},
        {"form": "onnx-int8", **numbers, "drops": lost, "largest_difference": 0.002},
        {"form": "ncnn", "note": "not measured: no library"},
    ]
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/bench.json").write_text(json.dumps({**facts, "time": "2026-01-01T00:00:00Z", "rows": rows}))
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    files, measured = deployment(tmp_path)
    assert files.rows[0][:2] == ["broken.onnx", "onnx"] and "broken.onnx" not in files.rows[0][-1] != ""
    assert measured.rows[0] == ["pytorch", "1.50", "0.50", "0.75", "2000.0", "99.00 %", "", ""]
    assert measured.rows[1][-2:] == ["0.50 (0.00 to 1.25)", "2.0e-03"]
    assert measured.rows[2][0] == "ncnn" and measured.rows[2][-1] == "not measured: no library"
    assert "a CPU, 2 of 4 cores" in measured.note and len({len(row) for row in measured.rows}) == 1


def test_what_is_no_run_is_said(run, tmp_path):
    assert run("report", tmp_path, "--html")[0] == 2 and run("report", tmp_path)[0] == 2


def test_a_page_that_cannot_be_written_is_one_warning(digits_run, tmp_path, capsys):
    """The run goes on. A folder has the page's name."""
    for name in ("recipe.yaml", "data.json", "metrics.jsonl"):
        shutil.copy(digits_run / name, tmp_path / name)
    (tmp_path / "report.html").mkdir()
    logs.setup()
    report = RunReport(tmp_path)
    report.update()
    report.update()
    report.update(finished=True)
    assert capsys.readouterr().err.count("the run goes on without it") == 1


def test_metrics_are_read_on_where_they_grew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricRows(path)
    assert metrics.read() == []
    path.write_text('{"step": 1}\n{"st')
    assert metrics.read() == [{"step": 1}]
    with open(path, "a") as file:
        file.write('ep": 2}\n')
    assert metrics.read() == [{"step": 1}, {"step": 2}]
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 2}\n{"step": 9}\n')
    (tmp_path / "new").replace(path)  # as a continued run does
    assert metrics.read() == [{"step": 1}, {"step": 2}, {"step": 9}]
