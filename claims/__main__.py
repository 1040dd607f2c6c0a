"""Measure the published numbers again: `python -m claims [--quick] [ID ...]`.

For each claim: expected, got, and whether that is within what the claim allows; what cannot run here says why. Exit 0
when all that ran is within, else 4. Measured again is only what changed; interrupted, the same command goes on. First
come the claims without speeds, one on each core, the longest first; then the others, which need a quiet machine.

    python -m claims --keep [ID ...]        the same, and keep the comparison for docs/results.md; what cannot run here
                                            keeps what was kept of it elsewhere
    python -m claims --list                 what there is
    python -m claims --record [ID ...]      measure every seed and setting and write claims/measurements.json
    python -m claims --write                write the documents' tables from it
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from claims.claim import VERIFICATION, Measurement, claims, expected, is_within, measured, record, shown
from claims.run import RUNS, MeasurementError, measure, missing
from claims.tables import NOT_MEASURED, documents, rendered

FIRST, NOT_RUN = "first", "not run"
COLUMNS = ("claim", "value", "expected", "got", "verdict", "on")
VERDICT = COLUMNS.index("verdict")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="claims; all by default")
    parser.add_argument("--quick", action="store_true", help="those that take seconds, under five minutes in all")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.ids if name not in claims()]
    if unknown:
        print(f"claims: no claim '{unknown[0]}'; --list shows all", file=sys.stderr)
        return 2
    names = arguments.ids or [name for name, claim in claims().items() if claim.quick or not arguments.quick]
    if arguments.list:
        show_list(names)
    elif arguments.write:
        for path in documents():
            path.write_text(rendered(path), encoding="utf-8")
            print(path)
    elif arguments.record:
        return record_all(names)
    else:
        return verify(names, arguments.keep)
    return 0


def show_list(names: list[str]) -> None:
    for name in names:
        claim = claims()[name]
        state = f"{len(measured(name))} measured" if measured(name) else NOT_MEASURED
        print(f"{name:32} {claim.minutes:>5g} min  {state:14} {missing(claim) or ''}  {claim.title}")


def verify(names: list[str], keep: bool = False) -> int:
    """Measure each claim once and print the comparison as a table; keep it for the documents if asked."""
    rows: list[tuple[str, ...]] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    alone = [name for name in names if claims()[name].needs_quiet]
    beside = sorted({*names} - {*alone}, key=lambda name: claims()[name].minutes, reverse=True)
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        # Both are lazy: the first of those alone begins when all others are compared.
        for compared in itertools.chain(at_once.map(check, beside), map(check, alone)):
            rows += compared
            print("\n".join(f"| {' | '.join(row)} |" for row in compared), flush=True)
    verdicts = [row[VERDICT] for row in rows]
    first = verdicts.count(FIRST)
    ran = [verdict for verdict in verdicts if verdict != FIRST and not verdict.startswith(NOT_RUN)]
    within = ran.count("within")
    absent = len(rows) - len(ran) - first
    new = f"{first} measured first here (--record keeps them), " if first else ""
    print(f"\n{within} of {len(ran)} values within, {new}{absent} claims not run here; logs in {RUNS}")
    if keep:
        keep_rows(rows)
    return 0 if within == len(ran) else 4


def keep_rows(rows: list[tuple[str, ...]]) -> None:
    """Put a comparison in the place of what was kept of its claims, but where it did not run and the other did."""
    kept: dict[str, list[Sequence[str]]] = {}
    for row in json.loads(VERIFICATION.read_text(encoding="utf-8"))["rows"]:
        kept.setdefault(row[0], []).append(row)
    for name, new in itertools.groupby(rows, lambda row: row[0]):
        compared: list[Sequence[str]] = list(new)
        if name not in kept or not compared[0][VERDICT].startswith(NOT_RUN):
            kept[name] = compared
    ordered = [row for name in claims() for row in kept.get(name, [])]
    VERIFICATION.write_text(json.dumps({"columns": COLUMNS, "rows": ordered}, indent=1) + "\n", encoding="utf-8")


def check(name: str) -> list[tuple[str, ...]]:
    """Return a row for each value of a claim: name, value, expected, got, verdict, commit and CPU."""
    claim = claims()[name]
    reason = missing(claim)
    if reason:
        return [(name, "", "", "", f"{NOT_RUN}: {reason}", "")]
    try:
        got = measure(name, claim.seeds[0], claim.settings[0])
    except MeasurementError as error:
        print(f"claims: {name}: {error}", file=sys.stderr)
        return [(name, "", "", "", "FAILED", "")]
    rows = []
    for key, value in claim.values.items():
        # A speed is a property of a kind of CPU, an accuracy of none.
        seen = expected(name, key, got.cpu if value.unit == "times" else None, new=got)
        text = NOT_MEASURED
        if seen is not None:
            span = "" if seen.low == seen.high else f", {shown(value, seen.low)} to {shown(value, seen.high)}"
            text = f"{shown(value, seen.mean)}{span}"
        verdict = "within" if is_within(value, seen, got.values[key]) else "NOT WITHIN"
        if seen is None and verdict == "within":
            verdict = FIRST
        rows.append((name, key, text, shown(value, got.values[key]), verdict, f"{got.commit}, {got.cpu}"))
    return rows


def record_all(names: list[str]) -> int:
    """Measure every seed and setting of each claim that this machine can, and keep the results."""
    worst = 0
    for name in names:
        claim = claims()[name]
        reason = missing(claim)
        if reason:
            print(f"{name}: not run: {reason}")
            continue
        for setting in claim.settings:
            for seed in claim.seeds:
                try:
                    got: Measurement = measure(name, seed, setting)
                except MeasurementError as error:
                    print(f"claims: {name}: {error}", file=sys.stderr)
                    worst = 1
                    continue
                record([got])
                print(f"{name}, seed {seed}, {setting} ({got.cpu}): {json.dumps(got.values)}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
