"""The Chinese documents have the commands, tables, links and pictures of the English ones, and no English cell."""

import re
import shlex

import pytest
import yaml

from claims import tables
from helpers import REPO

PAIRS = [("README.md", "README_CN.md"), ("docs/from-mindspore.md", "docs/from-mindspore.zh.md")]
HAN = re.compile(r"[\u4e00-\u9fff]")


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, list[list[str]]]]:
    """Return the language of each code block and its lines as words, without comments and the room before them."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [
        (language, [shlex.split(line, comments=not language) for line in block.splitlines()])
        for language, block in found
    ]


def codes(line: str) -> list[str]:
    return sorted(re.findall(r"`[^`]+`", line))


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_commands_and_code_are_the_same(english, chinese):
    ours, theirs = blocks(read(english)), blocks(read(chinese))
    assert len(ours) >= 3 and theirs == ours


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_the_chinese_document_says_as_much(english, chinese):
    """Sections, tables from claims, pictures, rows of tables and what stands in backquotes there are the same."""
    ours, theirs = read(english), read(chinese)
    for pattern in (r"^#+ ", r"<!-- claims: ([\w-]+) -->", r"!\[[^\]]*\]\(([^)]+)\)", r"^- "):
        assert re.findall(pattern, theirs, re.M) == re.findall(pattern, ours, re.M)
    rows, their_rows = (re.findall(r"^\|.*\|$", re.sub(tables.BLOCK, "", text), re.M) for text in (ours, theirs))
    assert [codes(row) for row in their_rows] == [codes(row) for row in rows]
    prose = [re.sub(r"^```.*?^```$|^\|[^\n]*$", "", text, flags=re.M | re.S) for text in (ours, theirs)]
    assert set(codes(prose[1])) == set(codes(prose[0])) and len(codes(prose[0])) > 20


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_each_names_the_other_at_its_top(english, chinese):
    for own, other in ((english, chinese), (chinese, english)):
        head = "\n".join(read(own).splitlines()[:4])
        assert f"]({other.rpartition('/')[2]})" in head
    assert not HAN.search(read(english).replace("[中文]", ""))


def test_every_cell_of_their_tables_is_in_chinese():
    words = yaml.safe_load((tables.HERE / "tables.zh.yaml").read_text(encoding="utf-8"))
    specs = yaml.safe_load((tables.HERE / "tables.yaml").read_text(encoding="utf-8"))
    used = {match[2] for match in tables.BLOCK.finditer(read("README_CN.md"))}
    cells = {str(cell) for name in used for row in [specs[name]["columns"], *specs[name]["rows"]] for cell in row}
    names = re.compile(r"\{[^}]*\}|AP50|AP|top-1|top-5")
    assert {cell for cell in cells if re.search("[A-Za-z]", names.sub("", cell))} == words.keys()
    fields = lambda text: sorted(re.findall(r"\{[^}]*\}", text))
    assert all(fields(cell) == fields(word) for cell, word in words.items())
