"""The command line: its options are frozen, help is quick, and every mistake is one line with the right exit code."""

import json
import pickle
import resource
import subprocess
import sys

import pytest
import typer
from typer.core import TyperGroup

import convzoo
from convzoo import cli
from convzoo.errors import DataError
from helpers import one_line

OPTIONS = {
    "train": "--accumulate --cache --compile --data --device --download --fresh --help --log-every-steps --log-to "
    "--on-bad-sample --out --profile --resume --save-every-steps --val-data --weights --workers",
    "eval": "--batch-size --cfg --coco-eval --data --device --download --explain --help --json --on-bad-sample --out "
    "--precision --provider --raw-outputs --workers",
    "export": "--batch --calibration --data --dynamic-size --format --help --json --max-drop --out --precision "
    "--preprocessing --size --soc-version --stage --tolerance",
    "predict": "--batch-size --cfg --coco --crops --data --device --dump-inputs --explain --help --json "
    "--label-studio --min-score --npy --on-bad-sample --precision --provider --save --yolo-txt",
    "quantize": "--calibration --calibration-images --data --eval-images --format --help --json --max-drop --out "
    "--soc-version",
    "bench": "--batch --calibration --data --formats --help --json --max-drop --out --rounds --seconds",
    "convert": "--cfg --check --classes --data --data-name --download --help --json --model --num-classes --out "
    "--resize --to --verbose",
    "serve": "--batch --delay-ms --device --help --host --max-body-mb --max-megapixels --port --precision "
    "--provider --queue --replaceable --timeout --token-file",
    "report": "--data --help --html --out --port --watch",
    "log": "--help --to",
    "list": "--help --json --weights",
    "doctor": "--data --device --help --json --test",
    "data check": "--data --device --help --json --model --out",
    "data stats": "--anchors --data --help --json --sheet --size",
    "data inspect": "--help --json --minutes",
    "data recipe": "--device --help --json --minutes --out --workers",
    "data split": "--help --json --test --val",
    "data pack": "--data --help --out --size --split",
    "data import": "--help --json --out --val",
    "data save": "--count --data --help --out --split",
    "data shards": "--data --help --images --json --out",
}


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_options_of_a_verb_are_these(verb):
    command = typer.main.get_command(cli.app)
    for name in verb.split():
        assert isinstance(command, TyperGroup)
        command = command.commands[name]
    context = command.make_context(verb, [], resilient_parsing=True)
    options = {
        option for parameter in command.get_params(context) for option in parameter.opts if option.startswith("--")
    }
    assert options == set(OPTIONS[verb].split())


def test_help_is_quick_and_does_not_import_torch():
    code = "import sys; from convzoo.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: on a machine that others use too, the clock on the wall would measure them.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and "train" in done.stdout
    assert min(seconds) < 0.3


def test_version_and_list(run):
    assert run("--version")[:2] == (0, f"convzoo {convzoo.__version__}\n")
    code, out, _ = run("list")
    assert code == 0 and "vgg16-cifar10-224" in out and "densenet121" in out and "image_folder" in out
    listed = json.loads(run("list", "--json")[1])
    assert "vgg16" in listed["models"] and listed["recipe_schema"]["properties"]["seed"]["type"] == "integer"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train"], 2, "recipe"),
        (["train", "tinydarknet-digits", "--bath", "3"], 2, "--bath"),
        (["train", "tinydarknet-digits", "--workers", "many"], 2, "integer"),
        (["train", "tinydarknet-digits", "--device", "cuda"], 2, "only cpu"),
        (["train", "tinydarknet-digits", "--device", "abacus"], 2, "abacus"),
        (["train", "tinydarknet-digits", "--device", "npu"], 5, "torch_npu"),
        (["train", "vgg16-cifar10"], 2, "--data"),
        (["train", "vgg16-cifar10", "--data", "/none"], 2, "/none"),
        (["train", "tinydarknet-digits", "--weights", "/none.safetensors"], 2, "/none.safetensors"),
        (["train", "tinydarknet-digits", "model.num_classes=7"], 3, "model.num_classes=10"),
        (["train", "tinydarknet-digits", "--resume", "--out", "/none/run"], 2, "no run"),
        (["train", "tinydarknet-digits", "--accumulate", "7"], 2, "does not divide"),
        (["train", "tinydarknet-digits", "train.freeze=[nothing.*]"], 2, "matches no parameter"),
        (["train", "tinydarknet-digits", "train.sync_batch_norm=true"], 2, "accelerators"),
        (["train", "tinydarknet-digits", "--download"], 2, "CIFAR-10"),
        (["eval", "/none.safetensors"], 2, "/none.safetensors"),
        (["predict", "/none.safetensors", "x.png"], 2, "/none.safetensors"),
        (["data", "stats", "digit"], 2, "did you mean 'digits'"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(run, argv, code, message):
    if "cuda" in argv:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
    got, out, err = run(*argv)
    assert got == code and out == ""
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["train", "vgg16-cifar10"], " (--data; --download fetches CIFAR-10 there)"),
        (["data", "check", "cifar10"], " (--data)"),
        (["train", "vgg16-imagenet", "--data", "/none"], "/none: no such file or folder (--data)"),
        (["train", "tinydarknet-digits", "--out", "/dev/null"], "/dev/null: a file, not a folder (--out)"),
        (["train", "tinydarknet-digits", "--val-data", "/x", "train.eval_every_epochs=0"], " (--val-data)"),
        (["data", "stats", "digit"], "did you mean 'digits'?"),
    ],
)
def test_a_message_of_the_library_gets_the_flags_that_the_verb_has(run, argv, hint):
    assert one_line(run(*argv)[2]).endswith(hint)


def test_an_error_keeps_its_options_on_the_way_between_processes():
    """Ranks tell each other theirs, and the loader's workers the main process."""
    error = pickle.loads(pickle.dumps(DataError("a.png: not a picture", ("on_bad_sample",))))
    assert str(error) == "a.png: not a picture" and error.options == ("on_bad_sample",)


def test_the_digits_can_be_looked_at(run, tmp_path):
    code, out, _ = run("data", "stats", "digits", "--sheet", tmp_path / "sheet.png")
    assert code == 0 and "1,437" in out and "360" in out and (tmp_path / "sheet.png").stat().st_size > 5000
    code, out, _ = run("data", "save", "digits", "--out", tmp_path / "pictures", "--count", "10")
    assert code == 0 and len(out.splitlines()) == 10 == len(list((tmp_path / "pictures").iterdir()))
    code, out, _ = run("data", "check", "digits")
    assert code == 0 and "0 unreadable" in out
