"""The cloud's boot file: its arguments and variables become the command that the documents mean, and it runs."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convzoo import modelarts
from convzoo.build import check_recipe
from convzoo.config import recipe as recipes
from convzoo.errors import UsageError
from helpers import QUICK, REPO, STILL, same, weights


def command(*argv: str, **environ: str) -> list[str]:
    return modelarts.command(modelarts.read_job(list(argv), environ))


@pytest.fixture
def data(tmp_path) -> Path:
    """What a job gets: a folder with nothing but the zipped data set."""
    for place in [f"{split}/{name}/{i}" for split in ("train", "val") for name in "ab" for i in range(4)]:
        path = tmp_path / f"tree/flowers/{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(place) + ord(place[-1])).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "input").mkdir()
    shutil.make_archive(str(tmp_path / "input/flowers"), "zip", tmp_path / "tree")
    return tmp_path / "input"


@pytest.mark.parametrize("spelling", ["apart", "joined", "environment", "upper"])
def test_keys_come_as_arguments_or_variables(tmp_path, data, spelling):
    keys = {"data_url": str(data), "train_url": "/out", "enable_modelarts": "True", "recipe": "tinydarknet-digits"}
    keys["modelarts_dataset_unzip_name"] = "flowers"
    argv, environ = ["data.name=image_folder"], {}
    for key, value in keys.items():
        if spelling in ("environment", "upper"):
            environ[key.upper() if spelling == "upper" else key] = value
        else:
            argv += [f"--{key}={value}"] if spelling == "joined" else [f"--{key}", value]
    assert command(*argv, **environ) == [
        *("train", "tinydarknet-digits", "data.name=image_folder"),
        *("--data", f"{data}/flowers.zip", "--out", "/out/tinydarknet-digits"),
    ]


def test_the_documents_paths_and_keys(tmp_path):
    """VGG16 on eight cards, DenseNet-121 with its checkpoints, YOLOv3's backbone; each key as it stands there."""
    for split in ("train", "validation_preprocess"):
        (tmp_path / f"ImageNet/{split}").mkdir(parents=True)
    common = ["--enable_modelarts=True", f"--data_url={tmp_path}", "--train_url=obs://bucket/out"]
    vgg = command(*common, "--recipe=vgg16-imagenet", "--data_dir=/cache/data/ImageNet/train", "--is_distributed=1",
                  "--batch_size=32", "--max_epoch=150", "--device_target=Ascend", MA_NUM_GPUS="8")  # fmt: skip
    assert vgg == [
        *("train", "vgg16-imagenet", "train.batch_size=256", "train.epochs=150"),
        *("--data", f"{tmp_path}/ImageNet", "--out", "s3://bucket/out/vgg16-imagenet", "--device", "npu"),
    ]
    yolo = command(*common, "--recipe", "yolov3-coco", "--checkpoint_url=s3://pre", "--warmup_epochs=4",
                   "--pretrained_backbone='/cache/checkpoint_path/0-148_92000.ckpt'", "--lr_scheduler=cosine_annealing",
                   "--weight_decay=0.016")  # fmt: skip
    assert yolo[2:5] == ["schedule.warmup_epochs=4", "schedule.name=cosine_annealing", "optim.weight_decay=0.016"]
    assert yolo[yolo.index("--weights") + 1] == "s3://pre/0-148_92000.ckpt"
    dense = command(*common, "--verb=eval", "--eval_data_dir=/cache/data/eval/eval_dataset/",
                    "--ckpt_files=/cache/data/eval/checkpoint/")  # fmt: skip
    assert dense[:4] == ["eval", f"{tmp_path}/eval/checkpoint", "--data", f"{tmp_path}/eval/eval_dataset"]
    export = command(*common, "--verb=export", "--file_name=vgg16", "--file_format=AIR", "--checkpoint_url=s3://trained",
                     "--ckpt_file=/cache/checkpoint_path/model.ckpt")  # fmt: skip
    assert export == ["export", "s3://trained/model.ckpt", "--format", "air", "--out", "s3://bucket/out/vgg16.air"]


def rows() -> dict[str, list[str]]:
    """Return the hyper-parameters of each paragraph, as docs/from-mindspore.md has them."""
    text = (REPO / "docs/from-mindspore.md").read_text(encoding="utf-8")
    table = text.partition("| document, paragraph | hyper-parameters |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        _, name, cell, _ = re.split(r"(?:^| )\|(?: |$)", line)
        first = re.split(r"; | \(or | in place of", cell)[0]  # what follows is another way
        found[name] = [f"--{word}" for word in re.findall(r"`(\w+=[^`]*)`", first)]
    return found


ROWS = {  # of each paragraph: what the command begins with, and what it has besides; DATA and OUT as a job gets them
    "VGG16, train on CIFAR-10, one card": ("train vgg16-cifar10-224", "data.name=cifar10 --data DATA/cifar10"),
    "VGG16, train on CIFAR-10, eight cards": ("train vgg16-cifar10-224", "--out OUT/vgg16-cifar10-224"),
    "VGG16, train on ImageNet, eight cards": ("train vgg16-imagenet", "data.name=image_folder --data DATA/ImageNet"),
    "VGG16, evaluate on CIFAR-10": (
        "eval s3://dir_to_your_trained_model/model.ckpt",
        "--data DATA/cifar10 --out OUT/eval",
    ),
    "VGG16, evaluate on ImageNet": ("eval s3://dir_to_your_trained_model/model.ckpt", "--data DATA/ImageNet"),
    "VGG16, export": ("export s3://dir_to_your_trained_model/model.ckpt", "--format air --out OUT/vgg16.air"),
    "DenseNet-121, train, several cards": (
        "train densenet121-imagenet",
        "--data DATA/train/train_dataset --val-data DATA/eval/eval_dataset --weights DATA/train/train_predtrained/FILE",
    ),
    "DenseNet-121, evaluate every checkpoint of a folder": (
        "eval DATA/eval/checkpoint",
        "--data DATA/eval/eval_dataset",
    ),
    "DenseNet-121, export MINDIR": ("export DATA/FILE.ckpt", "--format mindir --out OUT/densenet121.mindir"),
    "Tiny-DarkNet, train, eight cards": ("train tinydarknet-imagenet", "train.batch_size=512 --data DATA/FILENAME.zip"),
    "Tiny-DarkNet, evaluate": ("eval FILE.ckpt", "--data DATA/FILENAME.zip"),
    "Tiny-DarkNet, export": ("export ./FILE.ckpt", "--format mindir --out OUT/tinydarknet.mindir"),
    "YOLOv3, train, eight cards": (
        "train yolov3-coco",
        "optim.weight_decay=0.016 schedule.warmup_epochs=4 schedule.name=cosine_annealing --data DATA/coco2014 "
        "--weights s3://dir_to_your_pretrain/0-148_92000.ckpt",
    ),
    "YOLOv3, evaluate": ("eval s3://dir_to_your_trained_ckpt/0-320_102400.ckpt", "--data DATA/coco2014"),
}


def test_every_paragraph_of_the_documents_has_its_row():
    assert rows().keys() == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_command_that_its_paragraph_means(tmp_path, name):
    for folder in ("ImageNet/train", "ImageNet/validation_preprocess", "cifar10", "coco2014", "train/train_dataset"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "FILENAME.zip").touch()
    cards = "8" if "eight" in name or "several" in name else "1"
    keys = [*rows()[name], f"--data_url={tmp_path}", "--train_url=s3://out"]
    argv = command(*keys, MA_NUM_GPUS=cards)
    got = " ".join(argv).replace(str(tmp_path), "DATA").replace("s3://out", "OUT")
    beginning, parts = ROWS[name]
    assert got.startswith(f"{beginning} ")
    for part in parts.replace(" --", "\n--").splitlines():
        assert f"{part} " in f"{got} ", got
    if argv[0] == "train":
        check_recipe(recipes.load(argv[1], [word for word in argv if "=" in word]))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--verb", "eval", "--ckpt_file", "a.ckpt", "--testing_shape", "320"], "--testing_shape 320: the model's own"),
        (["--data_urll", "x", "--recipe", "a"], "--data_urll: unknown"),
        (["flowers", "--recipe", "a"], "neither --key VALUE nor"),
        ([], "which recipe"),
        (["--verb", "evaluate"], "--verb evaluate: one of train"),
        (["--verb", "export"], "which model"),
        (["--recipe", "a", "--batch_size", "many"], "must be a whole number"),
        (["--recipe", "a", "--data_url", ".", "--modelarts_dataset_unzip_name", "none"], "no none.zip"),
    ],
)
def test_what_is_wrong_is_a_line(argv, words, capsys, monkeypatch):
    assert modelarts.main(argv) == 2
    assert words in capsys.readouterr().err


def test_a_wrong_number_of_hosts_is_refused():
    job = modelarts.read_job([], {"MA_NUM_HOSTS": "3", "VC_WORKER_HOSTS": "a,b", "MA_NUM_GPUS": "1"})
    with pytest.raises(UsageError, match="2 of 3 hosts"):
        modelarts.start(job, ["train"], {})
    with pytest.raises(UsageError, match="MA_NUM_GPUS=two"):
        modelarts.read_job([], {"MA_NUM_GPUS": "two"})


def test_a_process_of_a_rank_table_is_its_rank(tmp_path):
    table = tmp_path / "rank.json"
    table.write_text(json.dumps({"server_list": [{"server_id": "10.0.0.7", "device": []}]}))
    environ = {"RANK_TABLE_FILE": str(table), "RANK_ID": "5", "RANK_SIZE": "16", "DEVICE_ID": "1", "MASTER_PORT": "99"}
    assert modelarts.rank_variables(modelarts.read_job([], environ), environ) == {
        "RANK": "5",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "99",
    }
    hosts = {**environ, "VC_WORKER_HOSTS": "first.job,second.job"}
    assert modelarts.rank_variables(modelarts.read_job([], hosts), hosts)["MASTER_ADDR"] == "first.job"
    with pytest.raises(UsageError, match="RANK_ID"):
        modelarts.rank_variables(modelarts.read_job([], {}), {"RANK_TABLE_FILE": str(table)})


@pytest.mark.parametrize("cards", [None, "0"])
def test_without_cards_it_is_one_process_on_the_cpu(data, tmp_path, monkeypatch, cards):
    if cards is not None:
        monkeypatch.setenv("MA_NUM_GPUS", cards)
    keys = ["--recipe=tinydarknet-digits", f"--data_url={data}", f"--train_url={tmp_path}/out", "--dataset=imagenet"]
    assert modelarts.main([*keys, *QUICK[:2], "train.precision=fp32", "train.epochs=1", "train.batch_size=8",
                           "--num_classes=2"]) == 0  # fmt: skip
    out = tmp_path / "out/tinydarknet-digits"
    assert json.loads((out / "env.json").read_text())["world_size"] == 1
    keys = [f"--checkpoint_url={out}/checkpoints", f"--data_url={data}", f"--train_url={tmp_path}/out"]
    assert modelarts.main(["--verb=eval", "--ckpt_file=/cache/checkpoint_path/last.safetensors", *keys]) == 0
    assert (tmp_path / "out/eval").is_dir()


def test_weights_of_another_program_are_exported(tmp_path, run, digits_run):
    model = digits_run / "checkpoints/last.safetensors"
    assert run("convert", model, "--to", "darknet", "--out", tmp_path / "model.weights")[0] == 0
    argv = ["--verb=export", f"--checkpoint_url={tmp_path}", "--ckpt_file=/cache/checkpoint_path/model.weights"]
    assert (
        modelarts.main([*argv, "--num_classes=10", "--file_format=ONNX", "--file_name=net", f"--train_url={tmp_path}"])
        == 0
    )
    assert (tmp_path / "net.onnx").is_file()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def hosts(tmp_path: Path, argv: list[str], *each: dict[str, str]) -> None:
    """Start the boot file once for each set of variables, all at once, and see them end well."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
    start = [sys.executable, "-m", "convzoo.modelarts", *argv]
    processes = [subprocess.Popen(start, env={**common, **variables}, stderr=subprocess.PIPE, text=True)
                 for variables in each]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(each), errors


ARGV = ["--recipe", "tinydarknet-digits", *STILL, "train.epochs=1", "--enable_modelarts", "True"]


def two_hosts(tmp_path: Path) -> Path:
    cloud = {"VC_WORKER_HOSTS": "127.0.0.1,127.0.0.1", "MA_NUM_HOSTS": "2"}
    nodes = [{**cloud, "VC_TASK_INDEX": str(node)} for node in range(2)]
    hosts(tmp_path, [*ARGV, f"--train_url={tmp_path}/torchrun"], *nodes)
    return tmp_path / "torchrun/tinydarknet-digits"


def world_size(run: Path) -> int:
    return json.loads((run / "env.json").read_text())["world_size"]


def test_two_hosts_train_one_run(tmp_path):
    run = two_hosts(tmp_path)
    assert world_size(run) == 2 and (run / "finished").is_file()


@pytest.mark.slow
def test_processes_of_a_rank_table_train_what_torchruns_do(tmp_path):
    table = tmp_path / "rank.json"
    table.write_text(json.dumps({"server_list": [{"server_id": "127.0.0.1"}]}))
    cards = [{"RANK_TABLE_FILE": str(table), "RANK_ID": str(rank), "RANK_SIZE": "2"} for rank in range(2)]
    hosts(tmp_path, [*ARGV, f"--train_url={tmp_path}/table"], *cards)
    run = tmp_path / "table/tinydarknet-digits"
    assert world_size(run) == 2 and same(weights(run), weights(two_hosts(tmp_path)))
