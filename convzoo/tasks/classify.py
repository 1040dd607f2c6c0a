"""Classification: one label a picture, softmax cross-entropy, top-1 and top-5."""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from convzoo.config.recipe import Recipe
from convzoo.config.registry import register
from convzoo.data.imagenet import titles
from convzoo.data.loader import base_batch
from convzoo.plain import JsonObject
from convzoo.types import Batch, Confusion, MetricReport, Pictures, Prediction, Sample, WorstPicture

TOP_K = 5
WORST_KEPT = 25


@dataclass(frozen=True, order=True, slots=True)
class ClassifiedImage:
    """What was said of one picture; orders by the probability that its true class got, then by id."""

    true_score: float
    id: int
    path: str
    truth: int
    predicted: int
    score: float


class ClassifyMetric:
    """Exact integer counts, a confusion matrix and top-5 hits, and what was said of each picture."""

    def __init__(self, class_names: list[str]):
        self.class_names = class_names
        self.confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)  # [truth, predicted]
        self.top5_hits = 0
        self.pictures: dict[int, ClassifiedImage] = {}

    def update(self, predictions: list[Prediction], batch: Batch) -> None:
        """Count predictions whose labels hold the best five classes, or all of fewer."""
        for prediction, truth, path, valid in zip(
            predictions, batch.targets.tolist(), batch.paths, batch.valid.tolist(), strict=True
        ):
            if not valid:
                continue
            predicted = int(prediction.labels[0])
            self.confusion[truth, predicted] += 1
            place = np.flatnonzero(prediction.labels == truth)
            self.top5_hits += bool(len(place))
            true_score = float(prediction.scores[place[0]]) if len(place) else 0.0
            self.pictures[prediction.id] = ClassifiedImage(
                true_score, prediction.id, path, truth, predicted, float(prediction.scores[0])
            )

    def merge(self, others: list["ClassifyMetric"]) -> "ClassifyMetric":
        """Return the sum of several ranks' counts."""
        total = ClassifyMetric(self.class_names)
        for other in others:
            total.confusion += other.confusion
            total.top5_hits += other.top5_hits
            total.pictures |= other.pictures
        return total

    @property
    def worst(self) -> list[ClassifiedImage]:
        """The wrong pictures whose true class got least, worst first."""
        wrong = (picture for picture in self.pictures.values() if picture.predicted != picture.truth)
        return heapq.nsmallest(WORST_KEPT, wrong)

    def result(self) -> JsonObject:
        """Return top1 and, where there are more than five classes, top5 as fractions, and the number of images."""
        images = int(self.confusion.sum())
        result = {"top1": int(np.trace(self.confusion)) / max(1, images)}
        if len(self.class_names) > TOP_K:
            result["top5"] = self.top5_hits / max(1, images)
        return {**result, "images": images}

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return top1 [R] with each picture as often as weights [R, N] say, by id."""
        right = [picture.predicted == picture.truth for _, picture in sorted(self.pictures.items())]
        return {"top1": weights @ right / weights.sum(1)}

    def text(self) -> str:
        """Return what there is to print besides the summary: nothing."""
        return ""

    def per_class(self) -> list[JsonObject]:
        """Return each class's images, recall and precision (None where undefined) and the class it is mostly taken for.

        ImageNet's classes have titles beside their ids.
        """
        rows, class_titles = [], titles(self.class_names)
        for i, name in enumerate(self.class_names):
            truth, predicted, hits = (
                int(self.confusion[i].sum()),
                int(self.confusion[:, i].sum()),
                int(self.confusion[i, i]),
            )
            others = self.confusion[i].copy()
            others[i] = 0
            row: JsonObject = {"class": name, **({"title": class_titles[i]} if class_titles else {})}
            row |= {"images": truth, "correct": hits}
            row["recall"] = hits / truth if truth else None
            row["precision"] = hits / predicted if predicted else None
            row["most_taken_for"] = self.class_names[int(others.argmax())] if others.any() else None
            if class_titles:
                row["most_taken_for_title"] = class_titles[int(others.argmax())] if others.any() else None
            rows.append(row)
        return rows

    def report(self, dataset: Pictures) -> MetricReport:
        """Return the tables per_class and worst, the confusions, the worst pictures and what was said of each."""
        worst = self.worst_rows()
        return MetricReport(
            {"per_class": self.per_class(), "worst": worst},
            Confusion(self.confusion, self.class_names),
            [WorstPicture(row["id"], _caption(row), classes=(row["predicted"], row["truth"])) for row in worst],
            records={"pictures": [asdict(picture) for _, picture in sorted(self.pictures.items())]},
        )

    def worst_rows(self) -> list[JsonObject]:
        """Return the worst pictures with class names, and with titles where there are any."""
        class_titles = titles(self.class_names)
        rows = []
        for w in self.worst:
            row = {**asdict(w), "truth": self.class_names[w.truth], "predicted": self.class_names[w.predicted]}
            if class_titles:
                row |= {"truth_title": class_titles[w.truth], "predicted_title": class_titles[w.predicted]}
            rows.append(row)
        return rows


class Classify:
    """Image classification with softmax cross-entropy.

    Label smoothing mixes the target with the uniform distribution over all classes (Szegedy et al. 2016,
    arXiv:1512.00567, section 7). With class_weights "balanced" a picture counts n / (K n_k), of n training pictures, K
    classes and n_k pictures of its own: every class as much as every other, and all of them 1 on average (King and Zeng
    2001, "Logistic Regression in Rare Events Data", section 4.2).
    """

    best_metric: str = "top1"
    predicts: Literal["classes", "boxes"] = "classes"
    size_step = 1

    def __init__(
        self,
        class_names: list[str],
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
    ):
        self.class_names = class_names
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.weights: Tensor | None = None  # [K], once the training pictures are known
        self.options: JsonObject = {}

    def collate(self, samples: list[Sample]) -> Batch:
        return base_batch(samples, torch.tensor([sample.target for sample in samples]))

    def start_training(self, labels: np.ndarray) -> None:
        """Weigh the classes by how many of the pictures [N] have each, if that is asked for."""
        if self.class_weights == "balanced":
            counts = np.bincount(labels, minlength=len(self.class_names))
            self.weights = torch.from_numpy(len(labels) / (len(counts) * np.maximum(1, counts)))

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return mean loss and share of right answers of logits [B, K]; half precision is computed in float32."""
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self.weights is None:
            loss = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        else:  # not divided by the batch's own weights: the sum over micro-batches and ranks stays the batch's
            each = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing, reduction="none")
            loss = (each * self.weights.to(each)[batch.targets]).mean()
        return {"loss": loss, "train_top1": (logits.detach().argmax(1) == batch.targets).float().mean()}

    def decode(self, outputs: Tensor) -> Tensor:
        """Return the logits as they are: there is no other stage."""
        return outputs

    def output_shapes(self, size_hw: tuple[int, int], stage: str = "raw") -> dict[str, tuple[int, ...]]:
        return {"logits": (len(self.class_names),)}

    def postprocess(self, outputs: Sequence[Tensor], batch: Batch) -> list[Prediction]:
        """Return the best five classes of each picture, or all of fewer, with softmax probabilities."""
        logits = outputs[0].float().cpu()
        scores, labels = logits.softmax(1).topk(min(TOP_K, logits.shape[1]), dim=1)
        return [
            Prediction(i, label, score)
            for i, label, score in zip(batch.ids.tolist(), labels.numpy(), scores.numpy(), strict=True)
        ]

    def new_metric(self) -> ClassifyMetric:
        return ClassifyMetric(self.class_names)


def _caption(row: JsonObject) -> tuple[str, str]:
    """Return two lines about one of the worst pictures; titles are long, and take the place of the file's name."""
    percent = f"{100 * row['score']:.0f} % sure"
    if "truth_title" in row:
        return row["truth_title"], f"{percent} of {row['predicted_title']}"
    return f"{row['truth']}, not {row['predicted']}", f"{percent}; {row['path'].rpartition('/')[2]}"


@register("loss", "classify")
def cross_entropy(
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    class_weights: Literal["balanced"] | None = None,
) -> JsonObject:
    """Return the settings of the loss; class_weights: see `Classify`."""
    return {"label_smoothing": label_smoothing, "class_weights": class_weights}


@register("task")
def classify(class_names: list[str], recipe: Recipe, loss: JsonObject) -> Classify:
    """Build the classification task."""
    return Classify(class_names, **loss)
