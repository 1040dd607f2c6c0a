"""What a server counts, in Prometheus' text format (version 0.0.4: its "Exposition formats" page)."""

import bisect
from collections.abc import Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PICTURES = (1, 2, 4, 8, 16, 32, 64)
FAMILIES = {
    "convzoo_requests_total": ("counter", "Requests by endpoint, model and HTTP status.", ()),
    "convzoo_request_seconds": ("histogram", "From a request's head to the end of its answer.", SECONDS),
    "convzoo_batch_pictures": ("histogram", "Pictures in a batch that ran.", PICTURES),
    "convzoo_run_seconds": ("histogram", "Time a batch took in the model.", SECONDS),
    "convzoo_waiting": ("gauge", "Requests without an answer.", ()),
    "convzoo_held_bytes": ("gauge", "Bytes of the requests without an answer.", ()),
    "convzoo_model_loads_total": ("counter", "Times that a model's file was opened, by outcome.", ()),
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and histograms of FAMILIES; all live on the server's event loop."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in FAMILIES}
        self._histograms: dict[str, dict[Labels, list[float]]] = {name: {} for name in FAMILIES}

    def add(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Count, or move a gauge."""
        values, key = self._values[name], tuple(labels.items())
        values[key] = values.get(key, 0) + amount

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Count a value in the first bucket whose bound it does not exceed."""
        bounds = FAMILIES[name][2]
        counts = self._histograms[name].setdefault(tuple(labels.items()), [0.0] * (len(bounds) + 2))
        counts[bisect.bisect_left(bounds, value)] += 1
        counts[-1] += value

    def text(self) -> str:
        """Return everything as Prometheus reads it."""
        lines = []
        for name, (kind, what, bounds) in FAMILIES.items():
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_braces(dict(key))} {value:.15g}" for key, value in self._values[name].items()]
            for key, (*counts, total) in self._histograms[name].items():
                below = 0.0
                for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
                    below += count
                    lines.append(f"{name}_bucket{_braces({**dict(key), 'le': bound})} {below:.15g}")
                lines += [
                    f"{name}_sum{_braces(dict(key))} {total:.15g}",
                    f"{name}_count{_braces(dict(key))} {below:.15g}",
                ]
        return "\n".join([*lines, ""])


def _braces(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items()) + "}"
