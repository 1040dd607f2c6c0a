"""Every test that docs/reliability.md names is there."""

import re

from helpers import REPO


def test_the_tests_of_the_table_exist():
    names = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (REPO / "docs/reliability.md").read_text(encoding="utf-8"))
    assert len(names) > 15
    missing = [name for path, name in names if f"def {name}(" not in (REPO / path).read_text(encoding="utf-8")]
    assert not missing
