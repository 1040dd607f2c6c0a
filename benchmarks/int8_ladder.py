"""INT8 for OpenVINO by our ladder of schemes and by NNCF's search with accuracy control: what is lost, speed, seconds.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/int8_ladder.py [--data DIR] [--calibration PICTURES] MODEL ...

Of the ladder each scheme up to the first that passes is a row; its search takes the sum of their seconds. NNCF gets the
same pictures, budget and measure, and ranks layers by hits (a detector's by its outputs). Seconds hold quantising,
timing and evaluating; speed is measured once more at the end, all networks of a model by turns. taskset, since NNCF
takes all cores.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy import export, library
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import layer_errors, schemes
from convzoo.deploy.quantize.calibration import find_calibration
from convzoo.deploy.quantize.comparison import Candidate, Comparison, QuantizeOptions
from convzoo.deploy.quantize.schemes import QuantizationScheme
from convzoo.deploy.timing import alternate
from convzoo.inference import torch_model
from convzoo.inference.evaluate import evaluate
from convzoo.types import Batch, Key, Prediction, Sample

ROUNDS, SECONDS = 5, 1.0


class Way(NamedTuple):
    """A network made in one way: its file, how many tensors it quantises, what it gave, and how long that took."""

    name: str
    path: Path
    quantisers: int
    candidate: Candidate
    seconds: float


def compared(path: Path, options: QuantizeOptions, folder: Path) -> Comparison:
    opened = torch_model.open_model(path, torch.device("cpu"))
    before = open_exported(export.export(opened, export.ExportOptions("openvino", out=folder, data=options.data)).path)
    size, most = before.info.size, options.calibration_images
    calibration = find_calibration(opened, options.data, options.calibration, most, size)
    return Comparison(before, calibration, options, folder)


def ladder(session: Comparison) -> Iterator[Way]:
    way = None
    for scheme in schemes.SCHEMES["openvino"]:
        started, errors = time.perf_counter(), []
        if way and way.candidate.result:
            errors = layer_errors.layer_errors("openvino", session.before.path, way.path, session.calibration)
        worst = [name for name, _ in errors]
        network = schemes.quantised(session.before.path, "openvino", scheme, session.calibration, worst)
        way = measured(session, f"ladder: {scheme}", scheme, network, started)
        yield way
        if session.passes(way.candidate):
            return


def accuracy_control(session: Comparison) -> Iterator[Way]:
    nncf, core = library("nncf", "INT8"), library("openvino", "INT8").Core()
    samples = [session.seen[Key(0, i)] for i in range(len(session.seen))]
    pictures = [session.task.collate([sample]) for sample in samples if isinstance(sample, Sample)]
    for preset in ("mixed", "performance"):
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            network = nncf.quantize_with_accuracy_control(
                core.read_model(session.before.path),
                nncf.Dataset(session.calibration, lambda image: image),
                nncf.Dataset(pictures, lambda batch: pixels(session, batch)),
                validation(session),
                max_drop=session.options.max_drop / 100,
                preset=nncf.QuantizationPreset(preset),
                subset_size=len(session.calibration),
            )
        scheme = QuantizationScheme("nncf", preset)
        yield measured(session, f"accuracy control: {preset}", scheme, network, started)


def pixels(session: Comparison, batch: Batch) -> Any:
    transform = session.before.recipe.transform
    return normalize(batch.images, transform.mean, transform.std).numpy()


def validation(session: Comparison) -> Callable[[Any, Iterable[Batch]], tuple[float, list[Any]]]:
    """Return what NNCF asks for: the measure of a compiled network, and what to rank layers by, for each picture."""

    def validate(network: Any, batches: Iterable[Batch]) -> tuple[float, list[Any]]:
        metric, items = session.task.new_metric(), []
        for batch in batches:
            outputs = [torch.tensor(output) for output in network(pixels(session, batch)).values()]
            [prediction] = session.task.postprocess(outputs, batch)
            metric.update([prediction], batch)
            is_top1 = session.task.best_metric == "top1"
            items.append(hit(prediction, batch) if is_top1 else [output.numpy() for output in outputs])
        return metric.result()[session.task.best_metric] or 0.0, items

    return validate


def hit(prediction: Prediction, batch: Batch) -> float:
    return float(prediction.labels[0] == batch.targets[0])


def measured(session: Comparison, name: str, scheme: QuantizationScheme, network: Any, started: float) -> Way:
    path = session.folder / f"{name}.xml"
    schemes.write(network, "openvino", session.before.info.model_copy(update={"seal": UNSEALED}), path)
    quantisers = sum(node.get_type_name() == "FakeQuantize" for node in network.get_ops())
    return Way(name, path, quantisers, session.measured(scheme, path), time.perf_counter() - started)


def rows(session: Comparison, ways: list[Way]) -> Iterator[str]:
    measure, x = session.task.best_metric, torch.from_numpy(next(iter(session.calibration)))
    runners = {way.name: open_exported(way.path).runner() for way in ways} | {"float32": session.before.runner()}
    durations = alternate({name: lambda run=run: run(x) for name, run in runners.items()}, ROUNDS, SECONDS)
    ms = {name: 1e3 * statistics.median(map(statistics.median, rounds)) for name, rounds in durations.items()}
    for way in ways:
        after = evaluate(open_exported(way.path).runner(), session.task, session.seen, batch_size=64).result
        # Of what was too slow to evaluate, too.
        drop = f"{100 * (session.float_evaluation.result[measure] - after[measure]):.2f}"
        speed = f"{ms['float32'] / ms[way.name]:.2f}"
        passes = "yes" if session.passes(way.candidate) else "no"
        model = session.before.recipe.model["name"]
        yield f"| {model} | {way.name} | {way.quantisers} | {drop} | {speed} | {way.seconds:.0f} | {passes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--max-drop", type=float, default=0.5, help="points of percent")
    arguments = parser.parse_args()
    options = QuantizeOptions("openvino", arguments.data, arguments.max_drop, arguments.calibration)
    print("| network | way | quantisers | points lost | times float32 | seconds | passes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for path in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            session = compared(path, options, Path(folder))
            for line in rows(session, [*ladder(session), *accuracy_control(session)]):
                print(line, flush=True)


if __name__ == "__main__":
    main()
