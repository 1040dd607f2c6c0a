"""docs/reliability.md: every fault of the list has a row, every row a test that is there and what it saw."""

import re

from helpers import REPO

FAULTS = set(range(1, 31))  # of the list that the rows are numbered by


def test_every_row_names_a_test_that_exists_and_what_it_saw():
    text = (REPO / "docs/reliability.md").read_text(encoding="utf-8")
    tested, _, otherwise = text.partition("## What does not occur")
    rows = [row.strip("|").split("|") for row in re.findall(r"^\| \d.*$", tested, re.M)]
    assert {int(row[0]) for row in rows} == FAULTS and re.search(r"^\| 2 \|", otherwise, re.M)
    for _, fault, happens, tests, *seen in rows:
        names = re.findall(r"(tests/[\w/]+\.py)::(\w+)( \(slow\))?", tests)
        assert names and fault.strip() and happens.strip() and "".join(seen).strip(), fault
        for path, name, slow in names:
            marks = re.findall(rf"((?:^@.*\n)*)^def {name}\(", (REPO / path).read_text(encoding="utf-8"), re.M)
            assert len(marks) == 1, name
            assert bool(slow) == ("mark.slow" in marks[0]), f"{name}: slow or not"
