"""Published numbers: the documents show what was recorded and nothing else, and some are measured again here."""

import json
import re
from pathlib import Path

import pytest
import yaml

from claims import __main__ as program
from claims import claim, run, tables
from helpers import SHARED

DOCUMENTS = [tables.ROOT / name for name in ("README.md", "docs/results.md", "docs/deploy.md", "docs/performance.md")]
NAMES = list(yaml.safe_load((tables.HERE / "tables.yaml").read_text(encoding="utf-8")))
MEASURED_HERE = ["fresh-exports", "tiny-darknet-converted", "original-outputs"]


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_a_document_shows_what_the_claims_say(path):
    assert path.read_text(encoding="utf-8") == tables.rendered(path), "run `make claims`"


def test_every_table_stands_in_a_document():
    shown = {
        match[2] for path in tables.documents() for match in tables.BLOCK.finditer(path.read_text(encoding="utf-8"))
    }
    assert shown == {*NAMES, "verification"}


def prose(path: Path) -> str:
    """Return a document without its tables, code and comments."""
    text = tables.BLOCK.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`|^ {4}.*$", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_prose_publishes_no_number_of_its_own(path):
    assert path in tables.documents()
    number = re.compile(r"(?<![\w.])\d[\d,.]*(?:\s?%| (?:ms|img/s|images/s|pictures/s|times (?:as|float|faster))\b)")
    assert number.findall(prose(path)) == []


def test_measurements_are_of_claims_that_exist():
    for one in claim.measurements():
        assert one.values.keys() <= claim.claims()[one.claim].values.keys()
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", one.commit) and re.fullmatch(r"\d{4}-\d\d-\d\d", one.date)


def test_every_claim_that_was_measured_has_all_its_values():
    for one in claim.measurements():
        assert one.values.keys() == claim.claims()[one.claim].values.keys(), one.claim


def test_a_speed_is_compared_with_others_of_the_same_kind_of_cpu(monkeypatch):
    two = [
        one.model_copy(update={"values": {"speed": 2.0 + i}, "cpu": f"kind {i}"})
        for i, one in enumerate(claim.measurements()[:2])
    ]
    monkeypatch.setattr(claim, "measured", lambda name: two)
    every, one = claim.expected("any", "speed"), claim.expected("any", "speed", "kind 1")
    assert every and one and (every.low, every.high, every.count) == (2.0, 3.0, 2)
    assert (one.low, one.high, one.count) == (3.0, 3.0, 1)
    assert claim.expected("any", "speed", "kind 2") is None
    rest = claim.expected("any", "speed", new=two[1])
    assert rest and rest.high == 2.0 and claim.expected("any", "speed", "kind 1", new=two[1]) is None


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Record measurements (commit, day, values) of a claim into a file of the test's own; return what is in it then."""
    monkeypatch.setattr(claim, "MEASUREMENTS", tmp_path / "measurements.json")
    (tmp_path / "measurements.json").write_text("[]")
    like = claim.measurements()[0]
    claim.measurements.cache_clear()

    def run(name: str, *new: tuple[str, int, dict], cpu: str = "kind") -> list[claim.Measurement]:
        for commit, day, values in new:
            date = f"2026-12-{day:02d}"
            changed = {"claim": name, "commit": commit, "date": date, "values": values, "cpu": cpu}
            claim.record([like.model_copy(update=changed)])
        return claim.measured(name)

    yield run
    claim.measurements.cache_clear()


def test_speeds_stay_beside_earlier_ones_and_accuracies_take_their_place(recorded):
    accuracies = recorded("export-onnx", ("aaaaaaa", 1, {"top1": 0.9}), ("bbbbbbb", 2, {"top1": 0.8}))
    assert [one.values["top1"] for one in accuracies] == [0.8]
    speeds = [(f"{i}" * 7, 1 + i // 2, {"times": 1.0 + i, "equal": 1.0}) for i in range(claim.KEPT_SPEEDS + 2)]
    assert [one.values["times"] for one in recorded("speed-coco", *speeds)] == [3.0, 4.0, 5.0, 6.0, 7.0]
    again = recorded("speed-coco", ("6666666", 4, {"times": 9.0, "equal": 1.0}))
    assert [one.values["times"] for one in again] == [3.0, 4.0, 5.0, 6.0, 9.0]
    recorded("speed-coco", ("6666666", 4, {"times": 2.0, "equal": 1.0}), cpu="other")
    assert tables.cell("speed-coco", "times") == "5.40 (3.00 to 9.00); 2.00"
    assert tables.cell("speed-coco", "cpu") == "kind; other" and tables.cell("speed-coco", "equal") == "1"


def test_a_comparison_takes_the_place_of_what_was_kept_unless_it_did_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "VERIFICATION", tmp_path / "verification.json")
    first, second, third = names = list(claim.claims())[:3]
    row = lambda name, got, verdict: (name, "top1", "90 %", got, verdict, "0123456, AVX2")
    absent = lambda name: (name, "", "", "", "not run: no GPU", "")
    (tmp_path / "verification.json").write_text('{"rows": []}')
    program.keep_rows([row(third, "91 %", "within"), row(third, "92 %", "within"), absent(second), ("gone", *"     ")])
    program.keep_rows([row(first, "90 %", "within"), row(second, "80 %", "NOT WITHIN"), absent(third)])
    kept = json.loads((tmp_path / "verification.json").read_text())
    assert kept["columns"] == list(program.COLUMNS)
    assert [(cells[0], cells[3]) for cells in kept["rows"]] == [
        *zip(names, ("90 %", "80 %", "91 %"), strict=True),
        (third, "92 %"),
    ]


def test_a_range_and_what_is_within_it():
    value = claim.Value(read="stdout x", margin=0.01, at_least=0.9)
    seen = claim.Range(mean=0.93, low=0.905, high=0.95, count=3)
    inside = [0.9, 0.93, 0.96]
    assert all(claim.is_within(value, seen, got) for got in inside)
    assert not any(claim.is_within(value, seen, got) for got in (0.899, 0.9601, float("nan")))
    assert claim.is_within(value, None, 0.91) and not claim.is_within(value, None, 0.5)  # never measured before


def test_values_are_read_from_json(tmp_path):
    (tmp_path / "bench.json").write_text('{"rows": [{"form": "a", "ms": 4.0}, {"form": "b", "ms": 2.0}]}')
    ratio = "bench.json rows[form=a].ms / bench.json rows[form=b].ms"
    assert run._read(ratio, tmp_path, "") == 2.0
    assert run._read("stdout top.1", tmp_path, 'a line\n{"top": {"1": 3}}\n') == 3.0
    for broken in ("none.json x", "bench.json rows[form=c].ms", "stdout top", "bench.json rows"):
        with pytest.raises(run.MeasurementError, match=re.escape(broken)):
            run._read(broken, tmp_path, "not JSON")


def test_a_few_claims_hold_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "RUNS", tmp_path)
    code = program.main(MEASURED_HERE)
    out, err = capsys.readouterr()
    assert code == 0, out + err
    within = {line.split(" | ")[0].lstrip("| ") for line in out.splitlines() if "| within |" in line}
    can_run = {name for name in MEASURED_HERE if run.missing(claim.claims()[name]) is None}
    assert within == can_run and "fresh-exports" in can_run
    assert sum("not run: " in line for line in out.splitlines()) == len(MEASURED_HERE) - len(can_run)
    assert SHARED.is_dir() <= ("original-outputs" in can_run)


def test_a_claim_that_does_not_hold_is_exit_code_4(tmp_path, monkeypatch, capsys):
    """The same commands, held to what they cannot reach."""
    name = "fresh-exports"
    honest = claim.claims()[name]
    values = {"onnx": honest.values["onnx"].model_copy(update={"at_most": 0.0})}
    commands = ['python -c "print(\'{{\\"largest_difference\\": 1e-7}}\')"']
    monkeypatch.setattr(run, "RUNS", tmp_path)
    monkeypatch.setitem(claim.claims(), name, honest.model_copy(update={"commands": commands, "values": values}))
    assert program.main([name]) == 4 and "NOT WITHIN" in capsys.readouterr().out
    monkeypatch.setitem(claim.claims(), name, honest.model_copy(update={"commands": ["convzoo eval none.onnx"]}))
    assert program.main([name]) == 4
    out, err = capsys.readouterr()
    assert "FAILED" in out and "exit 2: convzoo: none.onnx" in err
    assert program.main(["no-such-claim"]) == 2 and "no-such-claim" in capsys.readouterr().err


def test_speeds_are_measured_alone_and_a_shared_claim_once(tmp_path, monkeypatch, capsys):
    script = tmp_path / "span.py"
    script.write_text(
        "import json, sys, time\n"
        "begun = time.time()\n"
        "time.sleep(0.5)\n"
        "open(sys.argv[1], 'a').write('.')\n"
        "print(json.dumps({'begun': begun, 'ended': time.time()}))\n"
    )

    def add(name: str, unit: str, *, after: str = "") -> None:
        values = {
            key: claim.Value.model_validate({"read": f"stdout {key}", "unit": unit}) for key in ("begun", "ended")
        }
        command = f"python {script} {tmp_path / name}.count {after}"
        one = claim.Claim(title=name, commands=[command], values=values, minutes=1, threads=1)
        monkeypatch.setitem(claim.claims(), name, one)

    add("base", "count")
    add("left", "count", after="{base}")
    add("right", "count", after="{base}")
    add("speed", "times")
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    assert program.main(["speed", "left", "right"]) == 0
    rows = [line.split(" | ")[0].lstrip("| ") for line in capsys.readouterr().out.splitlines() if " | begun | " in line]
    assert sorted(rows[:2]) == ["left", "right"] and rows[2:] == ["speed"]
    spans = {name: run.measure(name).values for name in ("base", "left", "right", "speed")}
    assert spans["speed"]["begun"] > max(spans[name]["ended"] for name in ("base", "left", "right"))
    assert {path.name: path.read_text() for path in tmp_path.glob("*.count")} == {
        f"{name}.count": "." for name in spans
    }


def test_every_benchmark_of_the_speed_claims_is_smoke_tested():
    speed = yaml.safe_load((tables.HERE / "60-speed.yaml").read_text(encoding="utf-8"))
    named = {shown[1] for one in speed.values() for shown in re.finditer(r"benchmarks/(\w+)\.py", str(one["commands"]))}
    text = (tables.ROOT / "benchmarks/smoke.py").read_text(encoding="utf-8")
    run_there = set(re.findall(r'^    "(\w+)": ', text, re.MULTILINE))
    assert len(named) >= 10 and named <= run_there
