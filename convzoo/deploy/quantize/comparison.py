"""An INT8 file beside its float one: how fast, how accurate, and whether it is kept."""

import importlib.metadata
import math
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from convzoo import build, distributed
from convzoo.data.loader import Transformed, label_map
from convzoo.deploy.exported import ExportedModel, open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import layer_errors, schemes
from convzoo.deploy.quantize.calibration import Calibration, Evaluated
from convzoo.deploy.timing import alternate
from convzoo.errors import ConvzooError, DataError, ToleranceError
from convzoo.inference import evaluate
from convzoo.inference.bootstrap import Drop, drops
from convzoo.logs import log
from convzoo.plain import JsonObject
from convzoo.report import tables

ROUNDS, SECONDS = 9, 0.3  # of each variant in each round: short ones, so that a neighbour's burst falls on all alike


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantise to.

    Attributes:
        format: "onnx", "openvino", or "om" on an Ascend host.
        data: folder of the recipe's data set: its validation split is evaluated, its training split calibrated on.
        max_drop: the largest loss of any measure, top-1, or AP and AP50, in points of percent.
        calibration: a folder of pictures to calibrate on instead; calibration_images: at most so many.
        eval_images: evaluate on a fixed random part of so many; None for all.
        out: the file, or a folder for it; None for `MODEL-int8` beside the model.
        soc_version: the Ascend chip of an .om file.
    """

    format: str
    data: Path | None = None
    max_drop: float = 0.5
    calibration: Path | None = None
    calibration_images: int = 300
    eval_images: int | None = None
    out: Path | None = None
    soc_version: str = "Ascend310"


@dataclass(frozen=True)
class Candidate:
    """A scheme that was tried.

    Attributes:
        seconds: the median of a picture, by variant: float32, bfloat16, int8.
        result: as `evaluate` gives it; None where it was slower than float32, and therefore not evaluated.
        drops: what each measure lost; errors: of the layers, worst first.
    """

    scheme: schemes.QuantizationScheme
    seconds: dict[str, float]
    result: JsonObject | None = None
    drops: dict[str, Drop] = field(default_factory=dict)
    errors: list[tuple[str, float]] = field(default_factory=list)

    @property
    def drop(self) -> float:
        """The most points that any measure lost."""
        return max(drop.points for drop in self.drops.values())

    @property
    def speedup(self) -> float:
        """How many times as fast as float32, whatever bfloat16 does here: the file is for other processors too."""
        return self.seconds["float32"] / self.seconds["int8"]


@dataclass(frozen=True)
class QuantizeResult:
    """An INT8 file that was measured and kept."""

    path: Path
    bytes: int
    float_bytes: int
    description: JsonObject

    @property
    def plain(self) -> JsonObject:
        return {"file": str(self.path), "bytes": self.bytes, "float_bytes": self.float_bytes, **self.description}

    def text(self) -> str:
        description = self.description
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in description["latency_ms"].items())
        part = "" if description["eval_images"] is None else f" (a fixed random {description['eval_images']} of them)"
        by, size = f"{description['runtime']} INT8 by {description['by']}", f"{self.bytes / 1e6:.1f} MB"
        points = lost({name: Drop(**drop) for name, drop in description["drops"].items()})
        faster = f"{description['speedup']:.2f} times float32, {description['threads']} threads"
        lines = [
            f"{self.path}  {by}, {size} (float {self.float_bytes / 1e6:.1f})",
            f"  calibrated  {description['calibration_images']} pictures, {description['calibrated_on']}",
            f"  float       {tables.summary(description['float'])}{part}",
            f"  int8        {tables.summary(description['int8'])}",
            f"  lost        {points}, {description['max_drop']:g} allowed; in brackets 95 % of 1000 resamplings",
            f"  batch 1     {times}: {faster}",
        ]
        if description["latency_ms"].get("bfloat16", math.inf) < description["latency_ms"]["int8"]:
            lines.append("  note        the float file in bfloat16 is faster here (--precision bf16); INT8 is smaller")
        return "\n".join(lines)


def lost(drops_: dict[str, Drop]) -> str:
    return ", ".join(f"{drop} points of {name}" for name, drop in drops_.items())


def measure_speed(before: ExportedModel, after: ExportedModel, image: np.ndarray) -> dict[str, float]:
    """Return the median seconds of a picture, float32 [1, 3, H, W], in float32, INT8 and, where it pays, bfloat16."""
    runners = {"float32": before.runner(), "int8": after.runner()}
    if before.format == "openvino" and distributed.computes_bfloat16(torch.device("cpu")):
        runners["bfloat16"] = before.runner("bf16")
    x = torch.from_numpy(image)
    times = alternate({name: lambda run=run: run(x) for name, run in runners.items()}, ROUNDS, SECONDS)
    return {
        name: statistics.median(statistics.median(durations) for durations in rounds) for name, rounds in times.items()
    }


class Comparison:
    """One float file, its calibration and its evaluation, for every scheme.

    Raises:
        DataError: nothing to evaluate, or pictures that are also calibrated on.
    """

    def __init__(self, before: ExportedModel, calibration: Calibration, options: QuantizeOptions, folder: Path):
        self.before, self.calibration, self.options, self.folder = before, calibration, options, folder
        dataset = build.build_dataset(before.recipe, options.data, "val")
        if not len(dataset):
            raise DataError(f"{options.data}: no images to evaluate")
        source = str(options.data or before.recipe.data["name"])
        labels = label_map(dataset.class_names, before.class_names, source)
        self.seen = Transformed(Evaluated(dataset, options.eval_images, calibration), before.pipeline(), labels)
        self.task = before.task()
        self.float_evaluation = self._evaluated(before)
        if self.float_evaluation.result.get(self.task.best_metric) is None:
            raise DataError(f"{options.data}: gives no {self.task.best_metric} to compare by")

    def _evaluated(self, opened: ExportedModel) -> evaluate.Evaluation:
        batch_size = min(64, self.before.recipe.train.batch_size)
        return evaluate.evaluate(opened.runner(), self.task, self.seen, batch_size=batch_size)

    def best(self) -> tuple[Candidate, schemes.Network]:
        """Try one scheme after the other; return the first that passes, and its network. Raises ToleranceError."""
        candidates: list[Candidate] = []
        for scheme in schemes.SCHEMES[self.options.format]:
            log.info(f"INT8 by {scheme}: calibrating on {len(self.calibration)} pictures")
            try:
                worst = [name for name, _ in candidates[-1].errors] if candidates else []
                network = schemes.quantised(self.before.path, self.options.format, scheme, self.calibration, worst)
                candidate = self._tried(scheme, network)
            except ConvzooError as error:
                if type(error) is not ConvzooError:
                    raise
                log.warning(f"not possible: {error}")
                continue
            if self.passes(candidate):
                return candidate, network
            candidates.append(candidate)
            log.warning(f"refused: {self._why(candidate)}")
        raise self.refusal(candidates)

    def _tried(self, scheme: schemes.QuantizationScheme, network: schemes.Network) -> Candidate:
        path = self.folder / f"trial{self.before.path.suffix}"
        schemes.write(network, self.options.format, self.before.info.model_copy(update={"seal": UNSEALED}), path)
        candidate = self.measured(scheme, path)
        if candidate.result and not self.passes(candidate):
            errors = layer_errors.layer_errors(self.options.format, self.before.path, path, self.calibration)
            candidate = replace(candidate, errors=errors)
        return candidate

    def measured(self, scheme: schemes.QuantizationScheme, path: Path) -> Candidate:
        """Time an INT8 file against the float one and, if it is faster, evaluate it."""
        after = open_exported(path)
        seconds = measure_speed(self.before, after, next(iter(self.calibration)))
        candidate = Candidate(scheme, seconds)
        if candidate.speedup <= 1:
            return candidate  # whatever its accuracy
        evaluation = self._evaluated(after)
        return Candidate(scheme, seconds, evaluation.result, drops(self.float_evaluation.metric, evaluation.metric))

    def passes(self, candidate: Candidate) -> bool:
        """Tell whether it is faster than float and within the budget."""
        # Beyond the budget only by more than the rounding of a subtraction.
        return candidate.speedup > 1 and candidate.drop <= self.options.max_drop + 1e-9

    def _why(self, candidate: Candidate) -> str:
        if candidate.speedup <= 1:
            times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in candidate.seconds.items())
            return f"{candidate.scheme}: slower than float ({times})"
        worst = ", ".join(f"{layer_errors.shown(name)} {100 * error:.0f} %" for name, error in candidate.errors[:3])
        largest = f" (largest errors: {worst})" if worst else ""
        loses = f"loses {lost(candidate.drops)}"
        return f"{candidate.scheme}: {loses}, {candidate.speedup:.2f} times as fast{largest}"

    def refusal(self, candidates: list[Candidate]) -> ToleranceError:
        """Return the error that says what each scheme gave; log the layers' errors of the best."""
        if not candidates:
            return ToleranceError(f"{self.before.path.name}: no way of quantising it works; nothing is kept")
        measured = [candidate for candidate in candidates if candidate.errors]
        if measured:
            nearest_miss = min(measured, key=lambda candidate: candidate.drop)
            log.warning(f"{nearest_miss.scheme}: {layer_errors.report(nearest_miss.errors)}")
        reasons = "; ".join(self._why(candidate) for candidate in candidates)
        return ToleranceError(
            f"no INT8 that is faster than float and loses at most {self.options.max_drop:g} points, and none is kept: "
            f"{reasons}"
        )

    def description(self, candidate: Candidate) -> JsonObject:
        """Return what was done and measured: for the metadata and the report."""
        options, runtime = (
            self.options,
            {"onnx": "onnxruntime", "openvino": "openvino", "om": "acl"}[self.options.format],
        )
        return {
            "by": str(candidate.scheme),
            "runtime": runtime,
            "calibrated_on": self.calibration.where,
            "calibration_images": len(self.calibration),
            "eval_images": options.eval_images,
            "evaluated_on": str(options.data or self.before.recipe.data["name"]),
            "max_drop": options.max_drop,
            "float": self.float_evaluation.result,
            "int8": candidate.result,
            "drop_points": round(candidate.drops[self.task.best_metric].points, 4),
            "drops": {name: drop._asdict() for name, drop in candidate.drops.items()},
            "latency_ms": {name: round(1e3 * value, 4) for name, value in candidate.seconds.items()},
            "speedup": round(candidate.speedup, 3),
            "threads": torch.get_num_threads(),
        }

    def written(self, network: schemes.Network, candidate: Candidate, name: str) -> tuple[Path, list[Path]]:
        """Write the network with all that was measured, and check that the file does what the measured one did."""
        info = self.before.info
        provenance = {**info.provenance, "quantization": self.description(candidate)}
        versions = {**info.versions, **{tool: importlib.metadata.version(tool) for tool in ("nncf", "onnxruntime")}}
        changed = {
            "metrics": candidate.result,
            "provenance": provenance,
            "versions": versions,
            "tolerance": None,
            "seal": UNSEALED,
        }
        final = self.folder / "final"
        final.mkdir()
        others = schemes.write(network, self.options.format, info.model_copy(update=changed), final / name)
        x = torch.from_numpy(next(iter(self.calibration)))
        runners = (
            open_exported(final / name).runner(),
            open_exported(self.folder / f"trial{final.joinpath(name).suffix}").runner(),
        )
        if not all(a.equal(b) for a, b in zip(*(run(x) for run in runners), strict=True)):
            raise ConvzooError(f"{name}: written again, it answers otherwise than before; nothing is kept")
        return final / name, others
