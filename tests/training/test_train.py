"""Training: interrupted equals uninterrupted bit for bit, and every switch does what it says."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from convzoo import cli, errors
from convzoo.config import recipe as recipes
from convzoo.model_file import load_model
from convzoo.training import loop as train_module
from convzoo.training.checkpoints import load_state
from convzoo.training.stop import StopRequest
from helpers import QUICK, STILL, difference, momenta, one_line, rows, same, weights


class stop_after:
    """Send this process a real signal after some steps, as a scheduler would."""

    def __init__(self, monkeypatch, steps: int, number: int = signal.SIGTERM):
        inner, number_of = train_module.forward_backward, itertools.count(1)

        def step(*args):
            if next(number_of) == steps:
                os.kill(os.getpid(), number)
            return inner(*args)

        monkeypatch.setattr(train_module, "forward_backward", step)


@pytest.mark.parametrize(
    ("extra", "steps"),
    [
        (["train.precision=fp32"], 3),
        (["train.precision=bf16", "--workers", "1"], 6),  # after an evaluation whose processes stay
        (["train.ema_decay=0.9", "train.clip_grad_norm=1.0"], 4),  # the end of an epoch
        (
            [
                "model={name: vgg16, num_classes: 10, head: small, batch_norm: true, dropout: 0.5}",
                "transform.train=[{resize: {size_px: 32, mode: stretch}}, {pad_crop: {padding_px: 2}}]",
                "transform.eval=[{resize: {size_px: 32, mode: stretch}}]",
                "data.max_train_images=80",
                "train.batch_size=16",
                "train.epochs=1",  # of five steps; its files are large
            ],
            2,
        ),
    ],
)
def test_interrupted_equals_uninterrupted_bit_for_bit(run, tmp_path, monkeypatch, extra, steps):
    command = ["train", "tinydarknet-digits", *QUICK, *extra]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        code, out, err = run(*command, "--out", tmp_path / "parts")
    assert code == 75 and out == "" and f"stopped at step {steps} of " in one_line(err)
    assert (tmp_path / "parts/interrupted").exists()
    assert load_state(tmp_path / "parts/checkpoints/last.state.pt")["step"] == steps
    code, out, err = run(*command, "--out", tmp_path / "parts")  # the same command
    assert code == 0 and f"continued at step {steps}" in err and not (tmp_path / "parts/interrupted").exists()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (load_state(tmp_path / name / "checkpoints/last.state.pt") for name in ("whole", "parts"))
    assert all(
        torch.equal(a["momentum_buffer"], b["momentum_buffer"])
        for a, b in zip(whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values(), strict=True)
    )
    for kind in ("step", "epoch"):
        strip = lambda row: {key: value for key, value in row.items() if key != "images_per_s"}
        assert [strip(row) for row in rows(tmp_path / "whole", kind)] == [
            strip(row) for row in rows(tmp_path / "parts", kind)
        ]


def test_every_step_of_a_long_run_has_its_row_at_once(run, tmp_path, monkeypatch):
    """8000 steps; what lies on disk is looked at while the run goes, as a kill would find it."""
    inner, on_disk = train_module.forward_backward, []

    def step(*args):
        path = tmp_path / "run/metrics.jsonl"
        on_disk.append(len(rows(tmp_path / "run", "step")) if path.exists() else 0)
        return inner(*args)

    monkeypatch.setattr(train_module, "forward_backward", step)
    stop_after(monkeypatch, 6)
    long = ["train.epochs=1000", "train.eval_every_epochs=1000"]
    assert run("train", "tinydarknet-digits", *QUICK, *long, "--out", tmp_path / "run")[0] == 75
    assert [row["step"] for row in rows(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6]
    assert on_disk == [0, 1, 2, 3, 4, 5]


def test_log_lines_every_so_many_steps_and_the_epochs_seconds(run, tmp_path):
    command = ["train", "tinydarknet-digits", *QUICK, "train.eval_every_epochs=2", "--log-every-steps", 3]
    code, _, err = run(*command, "--out", tmp_path / "run")
    assert code == 0
    lines = re.findall(r"^step (\d+)/8  loss (\S+)  lr (\S+)  (\d+) img/s  (\S+) ms a step$", err, re.MULTILINE)
    by_step = {row["step"]: row for row in rows(tmp_path / "run", "step")}
    assert [int(line[0]) for line in lines] == [3, 6]
    for step, loss, lr, images_per_s, step_ms in lines:
        assert loss == f"{by_step[int(step)]['loss']:.4f}" and lr == f"{by_step[int(step)]['lr']:.6f}"
        assert int(images_per_s) == pytest.approx(64_000 / float(step_ms), rel=0.05)
    first, second = re.findall(r"^epoch \d/2 .*  trained (\d+\.\d s.*)$", err, re.MULTILINE)
    assert "evaluated" not in first and re.fullmatch(r"\d+\.\d s, evaluated \d+\.\d s", second)
    log = (tmp_path / "run/train.log").read_text()
    assert all(f"step {step}/8  loss " in log for step in (3, 6)) and log.count("  trained ") == 2


def test_epochs_are_saved_as_often_as_asked_the_last_and_the_best_always(run, tmp_path, monkeypatch):
    command = [
        "train",
        "tinydarknet-digits",
        *QUICK,
        "train.epochs=8",
        "train.eval_every_epochs=1",
        "train.save_every_epochs=3",
    ]

    def steps(name):
        return {int(path.stem[5:]) for path in (tmp_path / name / "checkpoints").glob("step-*.safetensors")}

    assert run(*command, "--out", tmp_path / "run")[0] == 0
    best, bests = -1.0, set()
    for row in rows(tmp_path / "run", "epoch"):
        if row["top1"] > best:
            best, bests = row["top1"], bests | {row["step"]}
    assert steps("run") == {12, 24, 32} | bests and len(bests) < 8
    assert load_model(tmp_path / "run/checkpoints/best.safetensors")[1].metrics["top1"] == best
    command = [*command, "train.eval_every_epochs=8"]
    assert run(*command, "--out", tmp_path / "seldom")[0] == 0
    assert steps("seldom") == {12, 24, 32}
    with monkeypatch.context() as patch:
        stop_after(patch, 18)
        assert run(*command, "--out", tmp_path / "parts")[0] == 75
    assert steps("parts") == {12, 18}
    # How often is no part of the numbers: it may change between two parts of a run.
    assert run(*command, "train.save_every_epochs=1", "--out", tmp_path / "parts")[0] == 0
    assert steps("parts") == {12, 18, 20, 24, 28, 32}
    assert same(weights(tmp_path / "seldom"), weights(tmp_path / "parts"))


def test_a_run_reports_while_it_goes_and_when_it_is_stopped(run, tmp_path, monkeypatch):
    """What lies in the folder in the middle of the second epoch, after a stop there, and at the end."""
    command = ["train", "tinydarknet-digits", *QUICK, "train.epochs=3", "train.eval_every_epochs=1"]
    folder, inner, between = tmp_path / "run", train_module.forward_backward, {}

    def step(state, batches):
        if state.progress.step == 5:
            between.update({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
            between["plots"] = {path.name for path in (folder / "plots").iterdir()}
        return inner(state, batches)

    curves = {"loss.png", "accuracy.png", "learning_rate.png"}
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "forward_backward", step)
        stop_after(patch, 6)
        assert run(*command, "--out", folder)[0] == 75
    (row,) = rows(folder, "epoch")
    assert b"**Unfinished: step 4 of 12.**" in between["README.md"] and between["plots"] == curves
    assert len(between["results.csv"].splitlines()) == 2 and "finished" not in between
    for text in (between["README.md"].decode(), (folder / "README.md").read_text()):
        assert f"{100 * row['top1']:.2f} %" in text and "The last weights" not in text
        assert all(f"(plots/{name})" in text for name in curves)
    assert "**Unfinished: step 6 of 12.**" in (folder / "README.md").read_text() and not (folder / "finished").exists()
    drawn = {name: (folder / "plots" / name).read_bytes() for name in curves}
    assert run(*command, "--out", folder)[0] == 0
    readme = (folder / "README.md").read_text()
    assert "nfinished" not in readme and "The last weights on the validation images" in readme
    assert len((folder / "results.csv").read_text().splitlines()) == 4 and (folder / "finished").exists()
    assert {path.name for path in (folder / "plots").iterdir()} == curves
    assert all((folder / "plots" / name).read_bytes() != content for name, content in drawn.items())


def test_a_run_that_is_stopped_in_its_first_epoch_has_curves_and_a_readme(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("train", "tinydarknet-digits", *QUICK, "--out", tmp_path / "run")[0] == 75
    assert "**Unfinished: step 2 of 8.**" in (tmp_path / "run/README.md").read_text()
    assert (tmp_path / "run/plots/loss.png").stat().st_size > 1000


def test_a_second_signal_and_ctrl_c(run, tmp_path, monkeypatch):
    stop_after(monkeypatch, 3, signal.SIGINT)
    code, _, _ = run("train", "tinydarknet-digits", *QUICK, "--out", tmp_path / "run")
    assert code == 75
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_during_the_evaluation_is_made_up_for(run, tmp_path, monkeypatch):
    command = ["train", "tinydarknet-digits", *QUICK, "train.eval_every_epochs=1"]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    inner = train_module._evaluate
    with monkeypatch.context() as patch:

        def evaluate(state, stop):
            os.kill(os.getpid(), signal.SIGTERM)
            return inner(state, stop)

        patch.setattr(train_module, "_evaluate", evaluate)
        assert run(*command, "--out", tmp_path / "parts")[0] == 75
    assert rows(tmp_path / "parts", "epoch") == []
    assert run(*command, "--out", tmp_path / "parts")[0] == 0
    assert [row["top1"] for row in rows(tmp_path / "parts", "epoch")] == [
        row["top1"] for row in rows(tmp_path / "whole", "epoch")
    ]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_damaged_newest_checkpoint_falls_back(run, tmp_path, monkeypatch):
    command = ["train", "tinydarknet-digits", *QUICK, "--save-every-steps", 1]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(*command, "--out", tmp_path / "run")[0] == 75
    newest = tmp_path / "run/checkpoints/step-00000003.safetensors"
    data = bytearray(newest.read_bytes())
    data[-50] ^= 1
    newest.write_bytes(data)
    code, _, err = run(*command, "--out", tmp_path / "run")
    assert code == 0 and "damaged" in err and "continued at step 2" in err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_how_often_is_saved_does_not_make_it_another_run(run, tmp_path, monkeypatch):
    """Without --out too; and a run that was begun before there was such a key is continued."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("train", "tinydarknet-digits", *QUICK)[0] == 75
    path = tmp_path / "runs/tinydarknet-digits/recipe.yaml"
    earlier = path.read_text()
    path.write_text("".join(line for line in earlier.splitlines(True) if "save_every_epochs" not in line))
    assert path.read_text() != earlier
    code, out, err = run("train", "tinydarknet-digits", *QUICK, "train.keep_checkpoint_max=3")
    assert code == 0 and out == "runs/tinydarknet-digits\n" and "continued at step 2 of 8" in err


def test_what_a_run_leaves(digits_run):
    names = {path.name for path in digits_run.iterdir()}
    assert {
        "README.md",
        "report.html",
        "recipe.yaml",
        "command.txt",
        "env.json",
        "data.json",
        "train.log",
        "metrics.jsonl",
        "results.csv",
        "checkpoints",
        "plots",
        "eval",
    } <= names
    assert {path.name for path in (digits_run / "plots").iterdir()} == {"loss.png", "accuracy.png", "learning_rate.png"}
    assert {path.name for path in (digits_run / "eval").iterdir()} >= {
        "metrics.json",
        "per_class.csv",
        "confusion.png",
        "confusion.csv",
    }
    assert recipes.load(digits_run / "recipe.yaml").train.epochs == 3
    assert (digits_run / "command.txt").read_text().startswith("convzoo train tinydarknet-digits 'transform.train=[]' ")
    env = json.loads((digits_run / "env.json").read_text())
    assert env["torch"] == torch.__version__.partition("+")[0] and env["device"] == "cpu"
    measured = json.loads((digits_run / "eval/metrics.json").read_text())
    assert measured["images"] == measured["images_expected"] == 360
    assert f"{100 * measured['top1']:.2f} %" in (digits_run / "README.md").read_text()
    info = load_model(digits_run / "checkpoints/last.safetensors")[1]
    assert info.metrics["top1"] == measured["top1"] and info.class_names == [str(i) for i in range(10)]
    assert len((digits_run / "results.csv").read_text().splitlines()) == 4


def test_accumulation_gives_the_same_weights_where_batch_norm_stands_still(run, tmp_path, in_float64):
    for name, accumulate in (("one", 1), ("four", 4)):
        code, _, _ = run("train", "densenet100-digits", *STILL, "--accumulate", accumulate, "--out", tmp_path / name)
        assert code == 0
    assert difference(momenta(tmp_path / "one"), momenta(tmp_path / "four")) < 1e-9


def test_it_overfits_one_batch(run, tmp_path):
    code, _, _ = run(
        "train",
        "tinydarknet-digits",
        "transform.train=[]",
        "transform.eval=[]",
        "data.max_train_images=32",
        "train.epochs=60",
        "train.eval_every_epochs=60",
        "schedule.warmup_epochs=5",
        "train.precision=fp32",
        "--out",
        tmp_path / "run",
    )
    assert code == 0
    last = rows(tmp_path / "run", "epoch")[-1]
    assert last["train_top1"] == 1.0 and last["loss"] < 0.05


def test_a_loss_that_is_not_finite_stops_before_the_update(run, tmp_path):
    code, _, err = run(
        "train",
        "tinydarknet-digits",
        *QUICK,
        "optim.lr=1.0e+18",
        "schedule={name: constant}",
        "--save-every-steps",
        1,
        "--out",
        tmp_path / "run",
    )
    assert code == 1 and re.search(
        r"step \d+: (the loss is (nan|inf)|a gradient is not finite); nothing was updated", one_line(err)
    )
    for path in (tmp_path / "run/checkpoints").glob("step-*.safetensors"):
        assert all(
            torch.isfinite(tensor.float()).all()
            for name, tensor in load_model(path)[0].items()
            if "running" not in name
        )


def test_weights_to_start_from_and_a_new_head(run, tmp_path, digits_run):
    last = digits_run / "checkpoints/last.safetensors"
    code, _, err = run(
        "train",
        "tinydarknet-digits",
        *QUICK,
        "train.freeze=[features.*]",
        "train.epochs=1",
        "--weights",
        last,
        "--out",
        tmp_path / "same",
    )
    assert code == 0 and "new head" not in err
    before, after = weights(digits_run), weights(tmp_path / "same")
    assert all(torch.equal(before[name], after[name]) == (not name.startswith("head.")) for name in before)
    recorded = recipes.load(tmp_path / "same/recipe.yaml").train.weights_sha256
    assert recorded == hashlib.sha256(last.read_bytes()).hexdigest()
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        assert run("data", "save", "digits", "--out", tmp_path / split, "--count", 40, "--split", split)[0] == 0
        for file in (tmp_path / split).iterdir():
            folder = tree / split / ("even" if int(file.name[0]) % 2 == 0 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            file.rename(folder / file.name)
    two = ["data={name: image_folder}", "model.num_classes=2", "train.batch_size=8", "--data", tree]
    code, _, err = run(
        "train",
        "tinydarknet-digits",
        "transform.train=[]",
        "transform.eval=[]",
        "train.epochs=1",
        *two,
        "--weights",
        last,
        "--out",
        tmp_path / "two",
    )
    assert code == 0 and "new head head.weight, head.bias for 2 classes" in err
    first, second = (tmp_path / "two/train.log").read_text().splitlines()[:2]
    assert re.match(r"[\d-]+ [\d:,]+ weights from .*; new head head.weight, head.bias for 2 classes$", first)
    assert "batch 8 = 1 ranks x 1 micro-batches x 8" in second
    code, _, err = run("train", "vgg16-digits", *QUICK, "--weights", last, "--out", tmp_path / "other")
    assert code == 1 and "it holds a tinydarknet" in one_line(err)


def test_fp16_with_a_dynamic_loss_scale(run, tmp_path):
    code, _, err = run(
        "train",
        "tinydarknet-digits",
        *QUICK,
        "train.precision=fp16",
        "train.loss_scale=dynamic",
        "train.epochs=1",
        "--out",
        tmp_path / "run",
    )
    assert code == 0 and " in fp16" in err
    assert load_state(tmp_path / "run/checkpoints/last.state.pt")["loss_scale"]["value"] <= 65536


@pytest.fixture
def trees(run, tmp_path):
    """Digits as class folders, even and odd: flat/TRAINING and flat/VALIDATION, each with the classes right inside."""
    for split, name in (("train", "TRAINING"), ("val", "VALIDATION")):
        assert run("data", "save", "digits", "--out", tmp_path / split, "--count", 40, "--split", split)[0] == 0
        for file in (tmp_path / split).iterdir():
            folder = tmp_path / "flat" / name / ("even" if int(file.name[0]) % 2 == 0 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            file.rename(folder / file.name)
    return tmp_path / "flat"


TWO = [
    "train",
    "tinydarknet-digits",
    "transform.train=[]",
    "transform.eval=[]",
    "train.precision=fp32",
    "train.epochs=2",
    "data={name: image_folder}",
    "model.num_classes=2",
    "train.batch_size=8",
    "train.eval_every_epochs=1",
]


def test_training_and_validation_data_in_two_places(run, tmp_path, trees):
    train, val = trees / "TRAINING", trees / "VALIDATION"
    code, _, err = run(*TWO, "--data", train, "--val-data", val, "--out", tmp_path / "run")
    assert code == 0 and "40 of 40 images" in err
    account = json.loads((tmp_path / "run/data.json").read_text())
    assert (account["root"], account["val_root"]) == (str(train), str(val))
    assert (account["train_images"], account["val_images"]) == (40, 40)
    again = f"`convzoo eval {tmp_path}/run/checkpoints/last.safetensors --data {val}`"
    assert again in (tmp_path / "run/README.md").read_text()
    measured = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    code, out, _ = run("eval", tmp_path / "run/checkpoints/last.safetensors", "--data", val, "--json")
    assert code == 0 and json.loads(out)["top1"] == measured["top1"]
    # The same numbers as from one folder with both, and from two that have train/ and val/ in them.
    for place, split, source in (("one", "train", train), ("one", "val", val), ("two", "val", val)):
        shutil.copytree(source, tmp_path / place / split)
    one, two = tmp_path / "one", tmp_path / "two"
    for name, places in (("a", ["--data", one]), ("b", ["--data", one, "--val-data", two])):
        assert run(*TWO, *places, "--out", tmp_path / name)[0] == 0
        assert same(weights(tmp_path / name), weights(tmp_path / "run"))
        assert json.loads((tmp_path / name / "eval/metrics.json").read_text())["top1"] == measured["top1"]


def test_class_folders_alone_are_not_both_training_and_validation_data(run, tmp_path, trees):
    for argv in ([*TWO, "--out", tmp_path / "run"], ["data", "check", "image_folder"]):
        code, _, err = run(*argv, "--data", trees / "TRAINING")
        assert code == 3 and "no folder train or ilsvrc in it, nor shards" in one_line(err)
    (trees / "VALIDATION/even").rename(trees / "VALIDATION/straight")
    two = ["--data", trees / "TRAINING", "--val-data", trees / "VALIDATION"]
    code, _, err = run(*TWO, *two, "--out", tmp_path / "run")
    assert code == 3 and "missing in val: even; only in val: straight" in one_line(err)
    code, _, err = run(*TWO, *two, "train.eval_every_epochs=0", "--out", tmp_path / "run")
    assert code == 2 and "train.eval_every_epochs: 0, nothing is evaluated" in one_line(err)
    code, _, err = run(*TWO, "--data", trees / "TRAINING", "--val-data", tmp_path / "none", "--out", tmp_path / "run")
    assert code == 2 and str(tmp_path / "none") in one_line(err)


def test_training_without_validation_data(run, tmp_path, trees, monkeypatch):
    shutil.rmtree(trees / "VALIDATION")
    command = [*TWO, "train.eval_every_epochs=0", "--data", trees / "TRAINING"]
    code, _, err = run(*command, "--out", tmp_path / "run")
    assert code == 0 and "no validation (train.eval_every_epochs=0)" in err and "nothing was evaluated" in err
    checkpoints = {path.name for path in (tmp_path / "run/checkpoints").glob("*.safetensors")}
    assert checkpoints == {"last.safetensors", "step-00000005.safetensors", "step-00000010.safetensors"}
    readme = (tmp_path / "run/README.md").read_text()
    assert "40 training and no validation images" in readme and "Not measured: there was no validation" in readme
    assert not (tmp_path / "run/eval").exists() and (tmp_path / "run/finished").exists()
    assert all("top1" not in row and row["train_top1"] > 0 for row in rows(tmp_path / "run", "epoch"))
    info = load_model(tmp_path / "run/checkpoints/last.safetensors")[1]
    assert info.metrics == {} and info.input_hw == (8, 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert run(*command, "--out", tmp_path / "parts")[0] == 75
    assert run(*command, "--out", tmp_path / "parts")[0] == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "parts"))


def test_profile_writes_a_trace_and_a_table(run, tmp_path):
    assert run("train", "tinydarknet-digits", *QUICK, "--profile", "--out", tmp_path / "run")[0] == 0
    assert "convolution" in (tmp_path / "run/profile/operators.txt").read_text()
    assert json.loads((tmp_path / "run/profile/trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(("steps", "profiled", "before"), [(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 2, 2), (8, 3, 2)])
def test_a_short_run_profiles_what_there_is_and_says_what(run, tmp_path, steps, profiled, before):
    short = [f"data.max_train_images={32 * steps}", "train.batch_size=32", "train.epochs=1"]
    code, _, err = run("train", "tinydarknet-digits", *QUICK, *short, "--profile", "--out", tmp_path / "run")
    few = f", all that the run of {steps} has" if steps < 5 else ""
    assert code == 0 and f"steps profiled: {profiled}, after {before}{few}: " in err
    table = (tmp_path / "run/profile/operators.txt").read_text()
    (backward,) = [line.split() for line in table.splitlines() if "aten::convolution_backward " in line]
    assert int(backward[-1]) == 16 * profiled  # tinydarknet has sixteen convolutions
    assert json.loads((tmp_path / "run/profile/trace.json").read_text())["traceEvents"]


def test_a_run_that_is_stopped_before_its_profile_says_so(run, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    code, _, err = run("train", "tinydarknet-digits", *QUICK, "--profile", "--out", tmp_path / "run")
    assert code == 75 and "no profile: steps made: 1, of which the first 2 do not count" in err
    assert not (tmp_path / "run/profile").exists()


def test_the_python_api_does_the_same(tmp_path, digits_run):
    import convzoo

    out = convzoo.train("tinydarknet-digits", *QUICK, "train.epochs=1", out=tmp_path / "run")
    model = convzoo.load(out / "checkpoints/last.safetensors")
    assert model.evaluate()["images"] == 360 and model.class_names[3] == "3"
    with pytest.raises(errors.UsageError):
        convzoo.load(tmp_path / "none.safetensors")
    assert cli.main(["data", "save", "digits", "--out", str(tmp_path / "pictures"), "--count", "10"]) == 0
    answers = list(
        convzoo.load(digits_run / "checkpoints/last.safetensors").predict(
            tmp_path / "pictures", save=tmp_path / "annotated"
        )
    )
    assert len(answers) == 10 and sum(Path(a.path).name[0] == a.names[0] for a in answers) >= 8
