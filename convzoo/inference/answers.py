"""What a model says about one picture, and the files that are written from it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convzoo.errors import UsageError
from convzoo.plain import JsonObject
from convzoo.report.draw import NEUTRAL, classified, contact_sheet, save_png
from convzoo.report.draw_boxes import boxed, detection_sheet

OVERVIEW_KEPT = 24
THUMBNAIL_PX, DETECTION_PX = 150, 360  # sides of a picture in the overview


@dataclass(frozen=True)
class Answer:
    """A prediction with the names that belong to it.

    Attributes:
        path: the picture's file.
        names, scores: best first; scores are in 0..1, of a classifier probabilities.
        image: the picture as decoded, upright, [H, W, 3] uint8.
        labels: class indices of the names.
        boxes_xyxy: [N, 4] pixels of `image`, or None from a classifier.
        titles: what people call the classes where the names are ids, or None.
    """

    path: str
    names: list[str]
    scores: list[float]
    image: np.ndarray
    labels: list[int]
    boxes_xyxy: np.ndarray | None = None
    titles: list[str] | None = None

    def row(self) -> JsonObject:
        """Return plain values for JSON lines."""
        titles = [{"title": title} for title in self.titles] if self.titles else [{}] * len(self.names)
        classes: list[JsonObject] = [
            {"class": name, **title, "score": round(score, 6)}
            for name, title, score in zip(self.names, titles, self.scores, strict=True)
        ]
        if self.boxes_xyxy is None:
            return {"path": self.path, **classes[0], "classes": classes}
        height, width = self.image.shape[:2]
        boxes = [[round(value, 2) for value in box] for box in self.boxes_xyxy.tolist()]
        detections = [{**entry, "box_xyxy": box} for entry, box in zip(classes, boxes, strict=True)]
        return {"path": self.path, "width": width, "height": height, "detections": detections}

    def text(self) -> str:
        """Return one line for people: the best three classes, or how many of each class and their best score."""
        if self.boxes_xyxy is None:
            best = zip(self._captions()[:3], self.scores[:3], strict=True)
            return "  ".join([self.path, *(f"{name} {100 * score:5.1f} %" for name, score in best)])
        counts = [
            f"{count} x {name} ({'up to ' * (count > 1)}{100 * score:.1f} %)" for name, count, score in self._counts()
        ]
        return "  ".join([self.path, *(counts or ["nothing"])])

    def drawn(self, fit_px: int | None = None) -> Image.Image:
        """Return the picture with the answer on it; a detector's may be scaled to a longer side."""
        if self.boxes_xyxy is None:
            short = self.titles[:3] if self.titles else None
            return classified(self.image, self._captions()[:3], self.scores[:3], short)
        captions = [f"{name}  {score:.0%}" for name, score in zip(self.titles or self.names, self.scores, strict=True)]
        return boxed(self.image, self.boxes_xyxy, self.labels, captions, fit_px)

    def thumbnail(self) -> tuple[Image.Image, tuple[str, str]]:
        """Return a small picture and two lines for the overview."""
        file = Path(self.path).name
        if self.boxes_xyxy is not None:
            counts = ", ".join(f"{count} x {name}" for name, count, _ in self._counts())
            return self.drawn(DETECTION_PX), (counts or "nothing", file)
        picture = Image.fromarray(self.image)
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        percent = f"{100 * self.scores[0]:.1f} %"
        if self.titles:  # a line to itself: some are as long as the picture is wide
            return picture, (self.titles[0], f"{percent}  {file}")
        return picture, (f"{self.names[0]}  {percent}", file)

    def _captions(self) -> list[str]:
        """Return the classes for people, the id after the title where there are both."""
        if not self.titles:
            return self.names
        return [f"{title} ({name})" for title, name in zip(self.titles, self.names, strict=True)]

    def _counts(self) -> list[tuple[str, int, float]]:
        """Return each class with how often it was found and its best score, the best class first."""
        return [
            (name, self.names.count(name), self.scores[self.names.index(name)]) for name in dict.fromkeys(self.names)
        ]


def save_annotated(answers: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """Pass answers on while writing an annotated copy of each picture, and overview.png of the first ones."""
    thumbnails: list[tuple[Image.Image, tuple[str, str]]] = []  # small: the pictures themselves may be large
    detector, used_names = False, {"overview": 1}
    for answer in answers:
        save_png(answer.drawn(), folder / f"{unique_name(answer, used_names)}.png")
        detector = answer.boxes_xyxy is not None
        if len(thumbnails) < OVERVIEW_KEPT:
            thumbnails.append(answer.thumbnail())
        yield answer
    if thumbnails:
        images, captions = zip(*thumbnails, strict=True)
        if detector:
            sheet = detection_sheet(images, captions, columns=4, cell_px=DETECTION_PX)
        else:
            sheet = contact_sheet([np.asarray(image) for image in images], captions, [NEUTRAL] * len(images))
        save_png(sheet, folder / "overview.png")


def save_yolo_txt(answers: Iterable[Answer], folder: Path, class_names: list[str]) -> Iterator[Answer]:
    """Pass a detector's answers on while writing a text file for each picture, and classes.txt.

    A line is `class cx cy w h score`, all but the class index fractions of 1; the box in shares of the upright picture.
    """
    used_names: dict[str, int] = {}
    for answer in answers:
        height, width = answer.image.shape[:2]
        x1, y1, x2, y2 = (boxes_of(answer) / [width, height, width, height]).T
        if not used_names:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
            used_names["classes"] = 1
        columns = zip(answer.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, answer.scores, strict=True)
        lines = [" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n" for label, *values in columns]
        (folder / f"{unique_name(answer, used_names)}.txt").write_text("".join(lines), encoding="utf-8")
        yield answer


def save_crops(answers: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """Pass a detector's answers on and write what each box holds as CLASS/PICTURE-NNN.png; NNN counts, best first."""
    used_names: dict[str, int] = {}
    for answer in answers:
        height, width = answer.image.shape[:2]
        stem = unique_name(answer, used_names)
        low, high = np.floor(boxes_of(answer)[:, :2]), np.ceil(boxes_of(answer)[:, 2:])
        corners = np.clip(np.concatenate([low, high], 1), 0, [width, height, width, height]).astype(int)
        for number, (name, (x1, y1, x2, y2)) in enumerate(zip(answer.names, corners.tolist(), strict=True), 1):
            if x1 < x2 and y1 < y2:
                crop = Image.fromarray(np.ascontiguousarray(answer.image[y1:y2, x1:x2]))
                save_png(crop, folder / _file_name(name) / f"{stem}-{number:03}.png")
        yield answer


def detections_only(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Pass a detector's answers on. Raises UsageError for a classifier's."""
    for answer in answers:
        boxes_of(answer)
        yield answer


def boxes_of(answer: Answer) -> np.ndarray:
    """Return a detector's boxes [N, 4] as float64. Raises UsageError for a classifier's answer."""
    if answer.boxes_xyxy is None:
        raise UsageError(
            "the model classifies whole pictures; boxes take a detector", ("min_score", "yolo_txt", "coco", "crops")
        )
    return np.asarray(answer.boxes_xyxy, dtype=np.float64)


def unique_name(answer: Answer, used_names: dict[str, int]) -> str:
    """Return the picture's name without its ending, numbered where several folders have that name."""
    name = stem = Path(answer.path).stem
    while name in used_names:
        used_names[stem] += 1
        name = f"{stem}-{used_names[stem]}"
    used_names[name] = 1
    return name


def _file_name(class_name: str) -> str:
    """Return a class name as any file system takes it."""
    return re.sub(r"[^\w \-.,()+]", "_", class_name).strip(" .") or "_"
