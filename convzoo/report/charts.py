"""Curves for a page: lines in a square of 1000 that the page stretches, ticks beside it, and the values to read off."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from convzoo.plain import JsonObject
from convzoo.report.plots import thinned

SIDE = 1000.0  # of the square that the lines are drawn in
DIGITS = 6  # of values to read off
TICKS = 5
SPARSE = 40  # a line of fewer points shows them


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        points: (x, y), x rising.
        colour: 0 to 7, one of the page's; None for one that stays in the background.
    """

    name: str
    points: list[tuple[float, float]]
    colour: int | None = 0


@dataclass(frozen=True)
class Chart:
    """Several lines over one axis.

    Attributes:
        unit: behind each value, "%" or nothing.
        log: y on a logarithmic scale; what is not above 0 is left out.
        limits: of y; None for what the lines need.
        main: which line stands for the run beside others.
    """

    title: str
    x_label: str
    series: list[Series]
    unit: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None
    main: int = 0

    def drawn(self) -> JsonObject:
        """Return what the page's template needs: paths and ticks in shares of the sides, values as JSON."""
        lines = [(line, thinned([p for p in line.points if not self.log or p[1] > 0])) for line in self.series]
        lines = [(line, points) for line, points in lines if points]
        every = [point for _, points in lines for point in points] or [(0.0, 0.0)]
        x_range = 0.0 if min(x for x, _ in every) >= 0 else min(x for x, _ in every), max(x for x, _ in every) or 1.0
        y_range, y_ticks = self._y([y for _, y in every])

        def place(x: float, y: float) -> tuple[float, float]:
            return (x - x_range[0]) / (x_range[1] - x_range[0]), 1 - _share(y, y_range, self.log)

        values = {
            "x": x_range,
            "y": y_range,
            "log": self.log,
            "unit": self.unit,
            "label": self.x_label,
            "series": [{"name": line.name, "points": [[_short(x), _short(y)] for x, y in p]} for line, p in lines],
        }
        return {
            "title": self.title,
            "x_label": self.x_label,
            "summary": self._summary(lines),
            "lines": [
                {
                    "name": line.name,
                    "colour": line.colour,
                    "path": _path([place(*point) for point in points]),
                    "dots": _dots([place(*point) for point in points]) if len(points) <= SPARSE else "",
                    "last": shown(points[-1][1], self.unit),
                }
                for line, points in lines
            ],
            "last_x": shown(max(points[-1][0] for _, points in lines)) if lines else "",
            "x_ticks": [(place(tick, y_range[0])[0], shown(tick)) for tick in _ticks(*x_range)],
            "y_ticks": [(place(0, tick)[1], shown(tick, self.unit)) for tick in y_ticks],
            "values": json.dumps(values).replace("<", "\\u003c"),
        }

    def _y(self, values: Sequence[float]) -> tuple[tuple[float, float], list[float]]:
        """Return the range of y, from tick to tick, and the ticks."""
        low, high = self.limits or (min(values), max(values))
        if self.log and low > 0:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.000001))
            return (low, high), [low * 10**i for i in range(round(math.log10(high / low)) + 1)]
        low = min(low, 0.0) if self.limits is None and low < 0.5 * high else low
        ticks = _ticks(low, high if high > low else low + (abs(low) or 1.0))
        step = ticks[1] - ticks[0]
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(max(high, ticks[1]) / step - 1e-9) * step
        return (low, high), [low + i * step for i in range(round((high - low) / step) + 1)]

    def _summary(self, lines: list[tuple[Series, list[tuple[float, float]]]]) -> str:
        """Say in words what the lines show, for who does not see them."""
        parts = [
            f"{line.name}: from {shown(points[0][1], self.unit)} to {shown(points[-1][1], self.unit)}"
            for line, points in lines
        ]
        return f"{self.title} by {self.x_label}. " + "; ".join(parts)


def shown(value: float, unit: str = "") -> str:
    """Return a number as it is read: `1,250`, `0.034`, `98.61 %`."""
    if unit == "%":
        return f"{value:.2f}".rstrip("0").rstrip(".") + " %"
    if value == 0:
        return "0"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _share(y: float, limits: tuple[float, float], log: bool) -> float:
    if log:
        return math.log(y / limits[0]) / (math.log(limits[1] / limits[0]) or 1.0)
    return (y - limits[0]) / (limits[1] - limits[0])


def _ticks(low: float, high: float) -> list[float]:
    """Return about TICKS round numbers from low to high, two at least."""
    span = high - low or 1.0
    power = 10 ** math.floor(math.log10(span / TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= TICKS)
    first = math.ceil(low / step - 1e-9)
    ticks = [(first + i) * step for i in range(int(span / step + 1e-9) + 1) if (first + i) * step <= high + 1e-9 * span]
    return ticks if len(ticks) > 1 else [first * step, (first + 1) * step]


def _path(places: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{SIDE * x:.1f} {SIDE * y:.1f}" for x, y in places)


def _dots(places: list[tuple[float, float]]) -> str:
    """Return lines of no length, which a round end makes dots of, whatever the square is stretched to."""
    return "".join(f"M{SIDE * x:.1f} {SIDE * y:.1f}h0" for x, y in places)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
