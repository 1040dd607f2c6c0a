"""What a conversion says of itself fits on a screen, and says what the file itself does not."""

import struct

import pytest

from convzoo.config import recipe as recipes
from convzoo.convert.convert import complete
from convzoo.convert.report import ConversionReport, preprocessing_words, report_weights
from convzoo.convert.sources import open_source


def test_a_detectors_report_fits_on_a_screen_and_names_its_anchors(tmp_path):
    """All zeros are weights too: a file of the right size, of which the disk holds the header."""
    path = tmp_path / "yolov3.weights"
    path.write_bytes(struct.pack("<iiiq", 0, 2, 0, 32_013_312))
    with open(path, "r+b") as file:
        file.truncate(248_007_048)
    report = ConversionReport()
    report_weights(*complete(open_source(path)), report)
    text = report.text()
    assert len(text.splitlines()) < 20 and len(report.tensors) == 366
    assert "10x13 16x30 33x23 px at stride 8; 30x61 62x45 59x119 px at stride 16; 116x90" in text
    assert "letterboxed on grey to 416x416, RGB values 0..1" in text and "61,949,149 of them parameters" in text
    assert report.text(verbose=True).splitlines() == text.splitlines() + report.tensors


@pytest.mark.parametrize("name", recipes.shipped())
def test_preprocessing_has_words(name):
    """No shipped recipe's evaluation has a step that reads as keys and values."""
    words = preprocessing_words(recipes.load(name).plain()["transform"])
    assert "=" not in words and "RGB values 0..1" in words
