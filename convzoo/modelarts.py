"""The boot file of a ModelArts job: `python -m convzoo.modelarts --recipe NAME [--key VALUE ...] [recipe.key=value]`.

The documents' keys, as arguments (`--key VALUE` or `--key=VALUE`) or environment variables, and what the cloud sets
(VC_WORKER_HOSTS, VC_TASK_INDEX, MA_NUM_HOSTS, MA_NUM_GPUS ...) become `torchrun -m convzoo train|eval|export`. Where
the image starts the boot file once a card, by rank table, each of them becomes its rank. Written by Huawei's documents;
not run on ModelArts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from convzoo import cli, errors
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonValue
from convzoo.storage import Remote, is_there, url_of

VERBS = ("train", "eval", "export")
# Where the zoo's programs had copied things to, in paths that its documents set: below these, what a key names.
PLACES = {"data_path": "/cache/data", "load_path": "/cache/checkpoint_path", "output_path": "/cache/train"}
WEIGHTS = ("pre_trained", "pretrained", "train_pretrained", "pretrained_backbone", "resume_yolov3")
MODELS = ("ckpt_file", "ckpt_files", "checkpoint_path", *WEIGHTS[:2])
RECIPE_KEYS = {
    "max_epoch": "train.epochs", "epoch_size": "train.epochs", "lr": "optim.lr", "lr_init": "optim.lr",
    "momentum": "optim.momentum", "weight_decay": "optim.weight_decay", "warmup_epochs": "schedule.warmup_epochs",
    "num_classes": "model.num_classes", "loss_scale": "train.loss_scale", "dataset": "data.name",
    "keep_checkpoint_max": "train.keep_checkpoint_max", "lr_scheduler": "schedule.name",
    "eta_min": "schedule.eta_min", "T_max": "schedule.T_max",
}  # fmt: skip
BATCHES = ("batch_size", "per_batch_size")  # of one device there, of all here
FLAGS = {"workers", "accumulate", "save-every-steps", "log-every-steps", "on-bad-sample", "stage", "size", "batch"}
DEVICES = {"ascend": "npu", "gpu": "cuda", "cpu": "cpu"}
DATASETS = {"cifar10": "cifar10", "imagenet": "image_folder", "imagenet2012": "image_folder", "coco": "coco"}
SUFFIXES = {"onnx": ".onnx", "mindir": ".mindir", "air": ".air", "om": ".om", "pt2": ".pt2", "openvino": ".xml"}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
SPLITS = ("train", "val", "ilsvrc", "validation_preprocess", "val2014", "train2014")
# Said by the cloud or the network, or meaningless here.
NOTHING = {
    "enable_modelarts", "is_distributed", "rank", "group_size", "device_num", "device_id", "bind_cpu", "net",
    "need_modelarts_dataset_unzip", "is_save_on_master", "ckpt_path", "save_ckpt_path", "ckpt_save_dir", "log_path",
    "label_smooth", "use_label_smooth",
}  # fmt: skip
OTHERS = {
    "recipe", "verb", "config_path", "_config_path", "data_url", "train_url", "checkpoint_url", "eval_url",
    "model_train_url", "modelarts_dataset_unzip_name", "data_dir", "train_data_dir", "val_data_dir", "eval_data_dir",
    "file_name", "file_format", "device_target", "testing_shape", "ckpt_file", "ckpt_files", "checkpoint_path",
    *PLACES, *WEIGHTS,
}  # fmt: skip
KEYS = OTHERS | NOTHING | set(RECIPE_KEYS) | set(BATCHES) | FLAGS
PORT = "29500"
TESTING_SHAPE = "416"  # of the zoo's detector, and of what converts from it


@dataclass
class Job:
    """What the arguments and variables ask for, and what the cloud says of the machines."""

    keys: dict[str, str]
    overrides: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    node: int = 0
    nodes: int = 1
    cards: int = 0

    @property
    def devices(self) -> int:
        return self.nodes * max(1, self.cards)


def read_job(argv: list[str], environ: Mapping[str, str]) -> Job:
    """Read a job. Raises UsageError for an unknown key, or a number that is none."""
    keys, overrides, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise UsageError(f"{word}: neither --key VALUE nor section.key=value")
            overrides.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        if key not in KEYS:
            raise UsageError(f"--{key}: unknown; what changes the numbers is set as section.key=value (convzoo list)")
        keys[key] = value.strip("'\"")
    for key in sorted(OTHERS | {"enable_modelarts"}):
        if key not in keys and environ.get(key, environ.get(key.upper())):
            keys[key] = environ.get(key) or environ[key.upper()]
    hosts = [host for host in environ.get("VC_WORKER_HOSTS", "").split(",") if host]
    nodes = _number(environ, "MA_NUM_HOSTS", len(hosts) or 1)
    return Job(keys, overrides, hosts, _number(environ, "VC_TASK_INDEX", 0), nodes, _number(environ, "MA_NUM_GPUS", 0))


def _number(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environ.get(name) or str(otherwise)
    if not text.isdecimal():
        raise UsageError(f"{name}={text}: must be a whole number")
    return int(text)


def command(job: Job) -> list[str]:
    """Return the arguments of `convzoo` that do the job. Raises UsageError where something is missing."""
    keys = job.keys
    verb = keys.get("verb", "train")
    if verb not in VERBS:
        raise UsageError(f"--verb {verb}: one of {', '.join(VERBS)}")
    out = keys.get("train_url") or keys.get("model_train_url")
    argv = [verb]
    if verb == "train":
        recipe = _recipe(job)
        argv += [recipe, *_overrides(job), *_data(job, verb)]
        weights = _first(job, WEIGHTS)
        argv += ["--weights", weights] if weights else []
        name = PurePosixPath(recipe).stem
        argv += ["--out", _joined(_place(out), name)] if out else []
    else:
        model = _first(job, MODELS) or _place(keys.get("checkpoint_url", ""))
        if not model:
            raise UsageError(f"--verb {verb}: which model? --ckpt_file FILE, or --checkpoint_url FOLDER")
        argv += [model, *(_overrides(job) + _data(job, verb) if verb == "eval" else _export(job))]
        argv += ["--out", _joined(_place(out), "eval")] if out and verb == "eval" else []
    if keys.get("testing_shape", TESTING_SHAPE) != TESTING_SHAPE:
        shape = keys["testing_shape"]
        raise UsageError(f"--testing_shape {shape}: the model's own is taken; transform.eval=[...] sets another")
    if keys.get("device_target") and verb != "export":
        argv += ["--device", DEVICES.get(keys["device_target"].lower(), keys["device_target"])]
    return argv + [part for flag in sorted(FLAGS & keys.keys()) for part in (f"--{flag}", keys[flag])]


def _recipe(job: Job) -> str:
    """Return the recipe, of a configuration of the zoo one that is made of it."""
    recipe = job.keys.get("recipe")
    config = job.keys.get("config_path") or job.keys.get("_config_path")
    if recipe or not config:
        if not recipe:
            raise UsageError("--recipe NAME: which recipe? `convzoo list` has them; --config_path takes the zoo's YAML")
        return recipe
    from convzoo.convert.convert import convert_configuration, is_configuration

    if not Path(config).is_file():
        raise UsageError(f"--config_path {config}: no such file")
    if not is_configuration(Path(config)):
        return config
    folder = Path(tempfile.mkdtemp(prefix="convzoo-recipe-"))
    print(convert_configuration(Path(config), folder / f"{Path(config).stem}.yaml").text(False), file=sys.stderr)
    return str(folder / f"{Path(config).stem}.yaml")


def _overrides(job: Job) -> list[str]:
    overrides = []
    for key, value in job.keys.items():
        if key in RECIPE_KEYS:
            overrides.append(f"{RECIPE_KEYS[key]}={DATASETS.get(value, value) if key == 'dataset' else value}")
        elif key in BATCHES:
            if not value.isdecimal():
                raise UsageError(f"--{key} {value}: must be a whole number")
            overrides.append(f"train.batch_size={int(value) * job.devices}")
    return overrides + job.overrides


def _data(job: Job, verb: str) -> list[str]:
    keys = job.keys
    root = _place(keys.get("data_url" if verb == "train" else "eval_url") or keys.get("data_url") or "")
    train = keys.get("train_data_dir") or keys.get("data_dir")
    val = keys.get("val_data_dir") or keys.get("eval_data_dir")
    archive = _archive(job, root) if root else None
    if archive:
        return ["--data", archive]
    if verb == "eval":
        train, val = val or train, None
    data = _below(job, train) if train else root
    argv = ["--data", _above_split(data) if verb == "eval" or not val else data] if data else []
    return argv + (["--val-data", _below(job, val)] if val else [])


def _above_split(place: str) -> str:
    """Return the folder that holds both splits, where one of them is named."""
    path = PurePosixPath(place)
    return _joined(place, "..") if not url_of(place) and path.name in SPLITS and _has_split(path) else place


def _has_split(path: PurePosixPath) -> bool:
    return any((Path(path.parent) / name).is_dir() for name in SPLITS if name != path.name)


def _archive(job: Job, root: str) -> str | None:
    """Return the archive that the documents' key names, or that alone is in the folder."""
    name = job.keys.get("modelarts_dataset_unzip_name", "")
    names = [name] if name.lower().endswith(ARCHIVES) else [name + suffix for suffix in ARCHIVES]
    if url_of(root):
        there = [file for file in Remote(root).files() if "/" not in file]
    else:
        there = (
            [file.name for file in Path(root).iterdir() if not file.name.startswith(".")] if Path(root).is_dir() else []
        )
    if name:
        first = next((file for file in names if file in there), None)
        if first is None and name not in there and not Path(root, name).is_dir():
            raise UsageError(f"{root}: no {' or '.join(names)} in it (modelarts_dataset_unzip_name)")
        return _joined(root, first or name) if first else _joined(root, name)
    return _joined(root, there[0]) if len(there) == 1 and there[0].lower().endswith(ARCHIVES) else None


def _export(job: Job) -> list[str]:
    format = job.keys.get("file_format", "onnx").lower()
    name, out = job.keys.get("file_name", "model"), job.keys.get("train_url")
    if format not in SUFFIXES:
        raise UsageError(f"--file_format {format}: one of {', '.join(SUFFIXES)}")
    file = name if name.endswith(SUFFIXES[format]) else f"{name}{SUFFIXES[format]}"
    return ["--format", format, "--out", _joined(_place(out), file) if out else file]


def _first(job: Job, names: tuple[str, ...]) -> str | None:
    value = next(
        (job.keys[name] for name in names if job.keys.get(name, "").lower() not in ("", "false", "none")), None
    )
    return None if value is None else _below(job, value)


def _below(job: Job, path: str) -> str:
    """Return where a path of the documents' really is: below /cache/data it is in data_url, and so on."""
    for key, url in (("data_path", "data_url"), ("load_path", "checkpoint_url"), ("output_path", "train_url")):
        place = job.keys.get(key, PLACES[key]).rstrip("/")
        if job.keys.get(url) and (path == place or path.startswith(f"{place}/")):
            return _joined(_place(job.keys[url]), path[len(place) :].strip("/"))
    if not path.startswith("/") and not url_of(path) and job.keys.get("checkpoint_url") and not Path(path).exists():
        return _joined(_place(job.keys["checkpoint_url"]), path)
    return path


def _place(path: str) -> str:
    """Return a folder, OBS through its S3 interface."""
    return f"s3://{path.removeprefix('obs://')}" if path.startswith("obs://") else path


def _joined(place: str, name: str) -> str:
    if name == "..":
        return place.rstrip("/").rpartition("/")[0]
    return f"{place.rstrip('/')}/{name}" if name else place


def start(job: Job, argv: list[str], environ: Mapping[str, str]) -> int:
    """Do the job on this machine's cards and return its exit code."""
    if "RANK_TABLE_FILE" in environ or "RANK" in environ:  # one boot file a card: this is one of the ranks
        os.environ.update(rank_variables(job, environ))
        return cli.main(argv)
    if argv[0] == "export":
        return _export_any(job, argv)
    if job.devices == 1:
        return cli.main(argv)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(max(1, job.cards))]
    if job.nodes > 1:
        if len(job.hosts) != job.nodes or job.node >= job.nodes:
            raise UsageError(f"VC_WORKER_HOSTS has {len(job.hosts)} of {job.nodes} hosts, VC_TASK_INDEX is {job.node}")
        torchrun += ["--nnodes", str(job.nodes), "--node-rank", str(job.node), "--master-addr", job.hosts[0]]
        torchrun += ["--master-port", environ.get("MASTER_PORT", PORT)]
    else:
        torchrun += ["--standalone"]
    process = subprocess.Popen([*torchrun, "-m", "convzoo", *argv])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    code = process.wait()
    interrupted = (
        argv[0] == "train" and "--out" in argv and is_there(_joined(argv[argv.index("--out") + 1], "interrupted"))
    )
    return 75 if code == 1 and interrupted else code  # torchrun itself makes 1 of every failure


def _export_any(job: Job, argv: list[str]) -> int:
    """Export a model file, or weights of another program, which become one first."""
    model = Path(argv[1])
    if model.suffix == ".safetensors":
        return cli.main(argv)
    with tempfile.TemporaryDirectory(prefix="convzoo-model-") as folder:
        own = str(Path(folder) / f"{model.stem}.safetensors")
        classes = ["--num-classes", job.keys["num_classes"]] if "num_classes" in job.keys else []
        return cli.main(["convert", argv[1], *classes, "--out", own]) or cli.main(["export", own, *argv[2:]])


def rank_variables(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what torchrun would set, from the variables of a rank table's process. Raises UsageError."""
    if "RANK" in environ:
        return {}
    rank, size = environ.get("RANK_ID"), environ.get("RANK_SIZE")
    if rank is None or size is None:
        raise UsageError("RANK_TABLE_FILE is set, but not RANK_ID and RANK_SIZE")
    local = environ.get("DEVICE_ID") or environ.get("ASCEND_DEVICE_ID") or "0"
    address = job.hosts[0] if job.hosts else _first_server(Path(environ["RANK_TABLE_FILE"]))
    master = {"MASTER_ADDR": address, "MASTER_PORT": environ.get("MASTER_PORT", PORT)}
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, **master}


def _first_server(path: Path) -> str:
    try:
        table: JsonValue = json.loads(path.read_text(encoding="utf-8"))
        return str(table["server_list"][0]["server_id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UsageError(f"{path}: no rank table with a server_list (RANK_TABLE_FILE)") from None


def main(argv: list[str] | None = None) -> int:
    """Read the job, do it and return its exit code."""
    try:
        job = read_job(sys.argv[1:] if argv is None else argv, os.environ)
        return start(job, command(job), os.environ)
    except ConvzooError as error:
        return errors.report(error)


if __name__ == "__main__":
    sys.exit(main())
