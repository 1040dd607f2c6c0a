"""Any data set written as tar shards in webdataset's layout, to be read by range or one after the other."""

import io
import json
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from convzoo.data.checks.splits import is_boxed
from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.image_folder import FolderImages
from convzoo.data.datasets.shards import ShardImages
from convzoo.data.decode import EXTENSIONS
from convzoo.data.loader import check_same_classes, label_map
from convzoo.errors import DataError, UsageError
from convzoo.files import written_whole
from convzoo.logs import progress
from convzoo.storage import Remote, shown, url_of, written
from convzoo.types import Dataset

NAMES = "classes.txt"


def write_shards(splits: dict[str, Dataset], out: Path, images: int) -> dict[str, int]:
    """Write SPLIT-000000.tar ... and classes.txt into a new folder or URL; return how many shards each split has.

    Pictures keep their bytes (those that are in no file become PNG), and come in a random order, always the same: what
    reads shards one after the other meets all classes soon. Names begin with the number in the data set, whose order
    so stays that of the shards' samples.

    Args:
        images: pictures a shard.
    Raises:
        UsageError: the folder is not empty.
        DataError: a picture cannot be read, a class's name is not one line, or the splits have different classes.
    """
    there = Remote(out).entries() if url_of(out) else out.exists() and (not out.is_dir() or any(out.iterdir()))
    if there:
        raise UsageError(f"{shown(out)}: not empty; choose another folder", ("out",))
    names, *others = (dataset.class_names for dataset in splits.values())
    for other in others:
        check_same_classes(names, other)
    broken = next((name for name in names if name != name.strip() or len(name.splitlines()) != 1), None)
    if broken is not None:
        raise DataError(f"class {broken!r} is not one line of {NAMES}")
    if url_of(out) is None:
        out.mkdir(parents=True, exist_ok=True)
    with written(out / NAMES) as path:
        path.write_text("\n".join([*names, ""]), encoding="utf-8")
    counts = {}
    for split, dataset in splits.items():
        number_of = label_map(dataset.class_names, names, split) or list(range(len(names)))
        order = np.random.RandomState(0).permutation(len(dataset))
        starts = range(0, len(order), images)
        for number, start in enumerate(progress(starts, len(starts), f"shards {split}")):
            with written(out / f"{split}-{number:06d}.tar") as path, written_whole(path) as temporary:
                _write(dataset, order[start : start + images], number_of, temporary)
        counts[split] = len(starts)
    return counts


def _write(dataset: Dataset, chosen: np.ndarray, number_of: list[int], path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for index in map(int, chosen):
            content, suffix = _picture(dataset, index)
            stem = PurePosixPath(dataset.path(index)).stem.replace(".", "_")
            name = f"{index:08d}_{stem[:80]}"
            label, kind = _label(dataset, index, number_of)
            for data, extension in ((content, suffix), (label, kind)):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _picture(dataset: Dataset, index: int) -> tuple[bytes, str]:
    """Return a picture's file and the extension of its kind."""
    suffix = PurePosixPath(dataset.path(index)).suffix.lower()
    if isinstance(dataset, FolderImages | ShardImages | BoxedImages) and suffix in EXTENSIONS:
        return dataset.encoded(index), suffix[1:]
    file = io.BytesIO()
    Image.fromarray(dataset.load(index).image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue(), "png"


def _label(dataset: Dataset, index: int, number_of: list[int]) -> tuple[bytes, str]:
    if not is_boxed(dataset):
        return str(number_of[dataset.labels[index]]).encode(), "cls"
    boxes = dataset.boxes(index)
    plain = {"boxes": boxes.xyxy, "crowd": boxes.crowd, "areas": boxes.areas}
    lists = {key: values.tolist() for key, values in plain.items()}
    return json.dumps({**lists, "labels": [number_of[label] for label in boxes.labels]}).encode(), "json"
