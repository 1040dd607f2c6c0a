"""Which folder a command's run has: a new one, the one in which it stopped or was killed, or its finished one."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np

from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject
from convzoo.training.lock import RunLock, holder, take_lock
from convzoo.training.run_folder import RunFolder
from convzoo.types import Dataset

FREE_KEYS = {
    "train.keep_checkpoint_max",
    "train.save_every_epochs",
    "data.cache",
}  # may change between two parts of a run
# What a run that was killed as it began may have left; its recipe.yaml is written last.
DESCRIPTION = {"data.json", "env.json", "command.txt"}
BEGINNINGS = {".lock", "splits", "recipe.yaml.tmp"} | DESCRIPTION | {f"{name}.tmp" for name in DESCRIPTION}


def open_run(
    recipe: Recipe, account: JsonObject, out: Path | None, *, resume: bool = False, fresh: bool = False
) -> RunFolder:
    """Return a run's folder, locked unless the run in it is finished; its `stage` says what lies there.

    Without `out` it is the newest unfinished run of this recipe and data below runs/ that no living process has, else
    a new runs/NAME, runs/NAME-2 and so on.

    Args:
        account: of the data, as data.json has it.
        resume: there must be a run.
        fresh: there must be none.

    Raises:
        UsageError: the folder holds something else, a run of another recipe or other data, or a living process's; there
            is nothing to resume, or something where a fresh run was asked for.
    """
    if resume and fresh:
        raise UsageError("a run is either continued or a fresh one", ("resume", "fresh"))
    if out is None:
        return _default_run(recipe, account, resume, fresh)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file, not a folder", ("out",))
    stage = _stage(out, recipe, account, resume, fresh)
    if stage == "finished":
        return RunFolder(out, recipe, stage)
    out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    if lock is None:
        raise UsageError(f"{out}: another process is training there ({holder(out)})", ("out",))
    return _held(out, recipe, account, lock, resume, fresh)


def _held(
    path: Path, recipe: Recipe, account: JsonObject, lock: RunLock, resume: bool = False, fresh: bool = False
) -> RunFolder:
    """Return the folder as it is now: whoever had it meanwhile may have changed it."""
    try:
        stage = _stage(path, recipe, account, resume, fresh)
    except ConvzooError:
        lock.release()
        raise
    return RunFolder(path, recipe, stage, lock)


def _stage(path: Path, recipe: Recipe, account: JsonObject, resume: bool, fresh: bool) -> str:
    """Say what a folder is to this run: "new", "continued" or "finished". Raises UsageError: none of these."""
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if not is_run(path):
        if resume:
            raise UsageError(f"{path}: there is no run in it to continue", ("out",))
        others = [name for name in names if name not in BEGINNINGS]
        if others:
            raise UsageError(f"{path}: holds {others[0]} and is not a run's; choose another folder", ("out",))
        return "new"
    if fresh:
        raise UsageError(f"{path}: holds a run already; a fresh one needs a folder of its own", ("out",))
    texts = differences(path, recipe, account)
    if texts:
        more = f" and {len(texts) - 3} more differences" if len(texts) > 3 else ""
        raise UsageError(
            f"{path} is a run with {'; '.join(texts[:3])}{more}: a run is continued with its own recipe and data, "
            "or a new one started elsewhere",
            ("out",),
        )
    return "finished" if (path / "finished").is_file() else "continued"


def is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and (path / "data.json").is_file()


def _default_run(recipe: Recipe, account: JsonObject, resume: bool, fresh: bool) -> RunFolder:
    base = Path("runs") / recipe.name
    numbers = _numbers(base)
    folders = [_numbered(base, number) for number in sorted(numbers, reverse=True)]
    same = [folder for folder in folders if not fresh and is_run(folder) and not differences(folder, recipe, account)]
    wait_s = None  # for the newest only
    for folder in same:
        if not (folder / "finished").is_file():
            lock = take_lock(folder, wait_s)
            wait_s = 0.0
            if lock is not None:
                return _held(folder, recipe, account, lock)
    if resume and same:
        return RunFolder(same[0], recipe, "finished")
    if resume:
        raise UsageError(f"{base.parent}: no run of this recipe and data below it to continue", ("out",))
    for number in itertools.count(max(numbers, default=0) + 1):
        path = _numbered(base, number)
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # by another process, just now
            continue
        return open_run(recipe, account, path)
    raise AssertionError


def _numbers(base: Path) -> list[int]:
    """Return the numbers of the folders NAME, NAME-2 ... that are there, whatever is in them."""
    pattern = re.compile(re.escape(base.name) + r"(?:-(\d+))?")
    names = [entry.name for entry in base.parent.iterdir()] if base.parent.is_dir() else []
    others = set(recipes.shipped()) - {base.name}  # vgg16-cifar10-224 is no 224th run
    return [int(match[1] or 1) for name in names if name not in others and (match := pattern.fullmatch(name))]


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def differences(path: Path, recipe: Recipe, account: JsonObject) -> list[str]:
    """Return what keeps the run in a folder from being continued with a recipe and data, nothing of the same run.

    Raises:
        ConvzooError: its recipe or its account of the data cannot be read.
    """
    earlier, now = _flat(recipes.load(path / "recipe.yaml").plain()), _flat(recipe.plain())
    keys = sorted((earlier.keys() | now.keys()) - FREE_KEYS)
    texts = [
        f"{key}={_short(earlier.get(key))}, not {_short(now.get(key))}"
        for key in keys
        if earlier.get(key) != now.get(key)
    ]
    try:
        earlier_account = json.loads((path / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvzooError(f"{path}/data.json: cannot be read: {error}") from None
    return texts + _data_differences(earlier_account, account)


def _data_differences(earlier: JsonObject, now: JsonObject) -> list[str]:
    """Compare classes, counts and lists of pictures; where the data lies may change."""
    names, names_now = earlier.get("class_names", []), now["class_names"]
    if names != names_now:
        parts = {"only there": set(names) - set(names_now), "only now": set(names_now) - set(names)}
        texts = [f"{where} {_short(', '.join(sorted(some)))}" for where, some in parts.items() if some]
        return [f"other classes: {'; '.join(texts) or 'the same in another order'}"]
    counts = [
        f"{earlier.get(key)} {split} images, not {now[key]}"
        for split, key in (("training", "train_images"), ("validation", "val_images"))
        if earlier.get(key) != now[key]
    ]
    lists = [
        f"other {split} pictures or labels"
        for split, key in (("training", "train_list_sha256"), ("validation", "val_list_sha256"))
        if key in earlier and earlier[key] != now.get(key)
    ]
    before, after = (account.get("packed_px") for account in (earlier, now))
    packed = [f"pictures packed at {before} pixels, not {after} (None: from their files)"] * (before != after)
    return counts or lists + packed


def list_sha256(dataset: Dataset) -> str:
    """Return a SHA-256 over the pictures' file names and the labels, in order: the same wherever the data lies."""
    digest = hashlib.sha256(np.asarray(dataset.labels, dtype=np.int64).tobytes())
    for index in range(len(dataset)):
        name = dataset.path(index).rpartition("/")[2]
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat(value: object, path: str = "") -> JsonObject:
    if isinstance(value, dict) and value:
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{path}.{key}" if path else key).items()}
    return {path: value}
