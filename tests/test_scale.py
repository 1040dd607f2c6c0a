"""docs/scale.md: what the script computes, and nothing else; the computation keeps the relations of its formulas."""

import importlib.util
import re
from typing import Any

import pytest

from helpers import REPO

spec = importlib.util.spec_from_file_location("scale", REPO / "benchmarks/scale.py")
assert spec and spec.loader
scale: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)


@pytest.fixture(scope="module")
def works():
    return [scale.work_of(name) for name in scale.NAMES]


def test_the_document_holds_the_tables_that_the_script_computes(works):
    measured = scale.json.loads(scale.MEASURED.read_text()) if scale.MEASURED.exists() else {}
    text = scale.DOCUMENT.read_text(encoding="utf-8")
    assert text == scale.rendered(measured, works), "run `python benchmarks/scale.py --write`"
    assert {match[2] for match in scale.BLOCK.finditer(text)} == scale.tables(measured, works).keys()
    prose = re.sub(r"`[^`]*`", "", scale.BLOCK.sub("", text))
    assert not re.findall(r"\d[\d,.]*\s?(?:%|ms|img/s|pictures/s|times faster)", prose.replace("5 ms besides", ""))


def test_what_is_counted_is_what_the_papers_say(works):
    counted = {work.name: work for work in works}
    assert counted["vgg16-imagenet"].flops / 6e9 == pytest.approx(15.5, rel=0.01)  # multiplications of one pass forward
    assert counted["densenet121-imagenet"].flops / 6e9 == pytest.approx(2.87, rel=0.02)
    assert counted["yolov3-coco"].flops / 3e9 == pytest.approx(65.9, rel=0.01)  # BFLOPS, as Darknet prints
    assert counted["vgg16-imagenet"].gradient_bytes == 4 * 138_357_544


def test_an_all_reduce_is_the_rings():
    assert scale.all_reduce_s(1, 1e9, 1e9, 1e-3) == 0
    assert scale.all_reduce_s(2, 1e9, 1e9, 0) == pytest.approx(1)
    assert scale.all_reduce_s(1024, 1e9, 1e9, 0) == pytest.approx(2, rel=1e-3)
    assert scale.all_reduce_s(5, 1 << 20, 1e18, 1e-3) == pytest.approx(8e-3)  # a bucket, four steps twice
    assert scale.all_reduce_s(5, 30 << 20, 1e18, 1e-3) == pytest.approx(16e-3)


def test_scaling_keeps_its_relations(works):
    device = scale.assumed()
    slow, middle, fast = scale.NETWORKS.values()
    for work in works:
        for n in scale.COUNTS:
            own, growing = (scale.batch_of(work, n, grows) for grows in (False, True))
            values = [scale.efficiency(work, device, n, network, own) for network in (slow, middle, fast)]
            assert values == sorted(values) and values[-1] <= 1 + 1e-12
            assert scale.efficiency(work, device, n, middle, growing) >= values[1] - 1e-12
        assert scale.efficiency(work, device, 1, slow, work.batch) == pytest.approx(1)
        last = [scale.last_that_pays(work, device, network) for network in (slow, middle, fast)]
        assert last == sorted(last) and all(work.batch % n == 0 for n in last)
