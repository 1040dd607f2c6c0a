"""Use a model on files, folders and globs; what is held in memory is one batch, however many pictures there are.

A batch of large pictures has fewer of them, and the next ones are decoded while it is computed.
"""

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from convzoo.data.decode import EXTENSIONS, decode_rgb
from convzoo.data.imagenet import titles
from convzoo.data.loader import OnBadSample
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.errors import DataError, UsageError
from convzoo.inference.answers import Answer
from convzoo.logs import log
from convzoo.storage import local_path
from convzoo.types import Key, Prediction, Runner, Sample, Task

MIN_SCORE = 0.25  # what people want to see of a detector; its measures count much lower scores too
MAX_PIXELS = 32_000_000  # of a batch, 3 bytes each until they are answered; a picture by itself may have more


def find_pictures(sources: Iterable[str | Path]) -> Iterator[str]:
    """Yield picture files named directly, in folders (sorted, recursive) or by globs.

    Raises:
        UsageError: a source that does not exist or matches nothing.
    """
    for source in (str(local_path(source)) for source in sources):
        if os.path.isdir(source):
            paths = (
                os.path.join(folder, file)
                for folder, _, files in _sorted_walk(source)
                for file in sorted(files)
                if file.lower().endswith(EXTENSIONS)
            )
        elif os.path.exists(source):
            paths = iter([source])
        else:
            paths = iter(sorted(glob.glob(source, recursive=True)))
        first = next(paths, None)
        if first is None:
            missing = "no pictures in this folder" if os.path.isdir(source) else "no such file, folder or glob match"
            raise UsageError(f"{source}: {missing}")
        yield first
        yield from paths


def _sorted_walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield here, folders, files


def predict(
    runner: Runner,
    task: Task,
    pipeline: Pipeline,
    class_names: list[str],
    sources: Iterable[str | Path],
    *,
    batch_size: int = 16,
    on_bad_sample: OnBadSample = "error",
    min_score: float | None = None,
) -> Iterator[Answer]:
    """Yield an answer for each picture, in order.

    Args:
        min_score: leave out a detector's boxes with lower scores; None for all. A classifier's answers stay.
    Raises:
        UsageError: a source that does not exist.
        DataError: a picture that cannot be read, unless on_bad_sample is "skip", which logs it.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        samples: list[tuple[str, Sample]] = []
        number = pixels = 0
        for path, sample in _loaded(find_pictures(sources), pool, workers):
            if isinstance(sample, DataError):
                if on_bad_sample == "error":
                    raise DataError(str(sample), ("on_bad_sample",))
                log.warning(f"skipped {sample}")
                continue
            sample.index, number = number, number + 1
            samples.append((path, sample))
            pixels += sample.image.shape[1] * sample.image.shape[2]
            if len(samples) == batch_size or pixels >= MAX_PIXELS:
                yield from _answers(runner, task, pipeline, class_names, samples, min_score)
                samples, pixels = [], 0
        yield from _answers(runner, task, pipeline, class_names, samples, min_score)


def _loaded(paths: Iterator[str], pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[str, Sample | DataError]]:
    """Yield pictures in order, so many of them decoded ahead."""
    waiting: deque[tuple[str, Future[Sample | DataError]]] = deque()
    while True:
        waiting.extend((path, pool.submit(_load, path)) for path in itertools.islice(paths, ahead + 1 - len(waiting)))
        if not waiting:
            return
        path, future = waiting.popleft()
        yield path, future.result()


def _load(path: str) -> Sample | DataError:
    try:
        image = decode_rgb(Path(path).read_bytes(), path)
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"{path}: cannot be read: {error.strerror}")
    return Sample(image, 0, 0, path, (image.shape[1], image.shape[2]))


def _answers(
    runner: Runner,
    task: Task,
    pipeline: Pipeline,
    class_names: list[str],
    samples: list[tuple[str, Sample]],
    min_score: float | None,
) -> Iterator[Answer]:
    if not samples:
        return
    batch = task.collate([pipeline(sample, Key(0, sample.index)) for _, sample in samples])
    predictions: list[Prediction] = task.postprocess(runner(batch.images), batch)
    for (path, sample), prediction in zip(samples, predictions, strict=True):
        yield answer(path, sample.image.permute(1, 2, 0).numpy(), prediction, class_names, min_score)


def answer(
    path: str, image: np.ndarray, prediction: Prediction, class_names: list[str], min_score: float | None
) -> Answer:
    """Return a prediction about a picture [H, W, 3] uint8 with its names; min_score as in `predict`."""
    labels, scores, boxes = prediction.labels, prediction.scores, prediction.boxes_xyxy
    if boxes is not None and min_score is not None:
        mask = scores >= min_score
        labels, scores, boxes = labels[mask], scores[mask], boxes[mask]
    names, class_titles = [class_names[label] for label in labels], titles(class_names)
    readable = [class_titles[label] for label in labels] if class_titles else None
    return Answer(path, names, scores.astype(float).tolist(), image, labels.tolist(), boxes, readable)
