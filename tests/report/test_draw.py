"""Pictures: boxes where they lie, in fixed colours, with captions that can be read; plots that show what is given."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from convzoo.report import draw_boxes, plots
from convzoo.report.draw_boxes import FALSE, FOUND, MISSED, RIGHT, boxed, colour_of, compared, detection_sheet

GREY = np.full((400, 500, 3), 90, np.uint8)
ONE = np.array([[100.0, 120, 300, 280]])

# Linear sRGB -> OKLab (Ottosson 2020), and how it is seen without green or red cones (Machado 2009, severity 1).
TO_LMS = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
TO_OKLAB = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])
SIGHTS = {
    "normal": np.eye(3),
    "deuteranope": np.array([[0.36732, 0.86065, -0.22797], [0.28009, 0.67250, 0.04741], [-0.01182, 0.04294, 0.96888]]),
    "protanope": np.array([[0.15229, 1.05258, -0.20487], [0.11450, 0.78628, 0.09922], [-0.00388, -0.04812, 1.05200]]),
}


@pytest.fixture(autouse=True)
def _whole_layout(monkeypatch):
    """Plots as users get them; the other tests' are laid out faster."""
    monkeypatch.setitem(plots.STYLE, "figure.constrained_layout.use", True)


def coloured(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Return where [H, W] a picture has exactly this colour."""
    return (np.asarray(picture) == colour).all(-1)


def linear(colours: np.ndarray) -> np.ndarray:
    values = colours / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_each_of_80_classes_has_its_own_colour_and_a_text_colour_that_reads_on_it():
    colours = np.array([colour_of(label) for label in range(80)])
    assert colour_of(80) == colour_of(0)
    for name, sight in SIGHTS.items():
        seen = np.cbrt(np.clip(linear(colours) @ sight.T, 0, None) @ TO_LMS.T) @ TO_OKLAB.T
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(80)
        assert apart.min() >= 0.02 and apart[:8, :8].min() >= 0.1, name
    brightness = linear(colours) @ [0.2126, 0.7152, 0.0722]
    text = linear(np.array([draw_boxes._ink(tuple(colour)) for colour in colours.tolist()])) @ [0.2126, 0.7152, 0.0722]
    light, dark = np.maximum(brightness, text), np.minimum(brightness, text)
    assert ((light + 0.05) / (dark + 0.05)).min() >= 4.5  # what WCAG asks of text


def test_a_box_is_drawn_on_its_border_and_nowhere_else():
    drawn = boxed(GREY, ONE, [3], [""])
    rows, columns = np.nonzero(coloured(drawn, colour_of(3)))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (100, 120, 300, 280)
    changed = (np.asarray(drawn) != GREY).any(-1)
    assert not changed[130:270, 110:290].any() and changed.sum() < 6 * 2 * (200 + 160)


def test_the_best_box_is_on_top():
    drawn = boxed(GREY, np.repeat(ONE, 3, 0), [5, 6, 7], ["", "", ""])
    assert coloured(drawn, colour_of(5)).any()
    assert not coloured(drawn, colour_of(6)).any() and not coloured(drawn, colour_of(7)).any()


@pytest.mark.parametrize(
    "box", [[-9, -9, -1, -1], [500, 0, 600, 50], [300, 280, 100, 120], [9, 9, 9, 50], [np.nan] * 4]
)
def test_a_box_outside_or_without_area_is_left_out(box):
    assert (np.asarray(boxed(GREY, np.array([box]), [0], ["dog"])) == GREY).all()


def test_a_box_partly_outside_ends_at_the_border():
    drawn = boxed(GREY, np.array([[-50, -50, 200, 900.0]]), [0], [""])
    rows, columns = np.nonzero(coloured(drawn, colour_of(0)))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (0, 0, 200, 400)


def test_captions_lie_inside_the_picture_and_beside_each_other(monkeypatch):
    placed = []
    place = draw_boxes._tags
    monkeypatch.setattr(draw_boxes, "_tags", lambda *args: placed.append(place(*args)) or placed[-1])
    rng = np.random.default_rng(0)
    for count in (1, 20, 100):
        low = rng.uniform(-20, 360, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 200, (count, 2))], 1)
        boxed(GREY, boxes, [0] * count, [f"caption {i}" for i in range(count)])
        tags = np.array([box for box, _ in placed[-1]], dtype=float)
        captions = [mark.caption for _, mark in placed[-1]]
        assert (tags[:, :2] >= 0).all() and (tags[:, 2:] <= [500, 400]).all()
        assert captions[-1] == "caption 0" and len(tags) >= min(count, 15)
        areas = (tags[:, 2:] - tags[:, :2]).prod(1)
        shared = draw_boxes._intersections(tags, tags) - np.diag(areas)
        assert shared.max() <= draw_boxes.MAX_TAG_OVERLAP * areas.max()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 5000), (5000, 1), (40, 400), (319, 500)])
@pytest.mark.parametrize("count", [0, 3])
def test_small_and_narrow_pictures(size, count):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, size[1], size[0]]] * count, dtype=float).reshape(-1, 4)
    drawn = boxed(image, boxes, [1] * count, ["person  99%"] * count)
    factor = drawn.width // size[1]
    assert drawn.size == (size[1] * factor, size[0] * factor)
    assert max(drawn.size) <= max(*size, draw_boxes.LONGEST_PX)
    assert min(drawn.size) >= 320 or 2 * factor * max(size) > draw_boxes.LONGEST_PX or factor * max(size) > 1200
    if not count:
        assert (np.asarray(drawn) == image.repeat(factor, 0).repeat(factor, 1)).all()
    assert max(boxed(image, boxes, [1] * count, ["a"] * count, fit_px=360).size) == 360
    compared(image, boxes, ["a"] * count, [False] * count, boxes, ["a"] * count, [0.5] * count, [True] * count)


def test_mistakes_are_loud_and_what_is_right_is_quiet():
    truth = np.array([[20, 40, 120, 140], [150, 40, 250, 140.0]])
    boxes = np.array([[22, 42, 118, 138], [300, 200, 400, 300.0]])
    drawn = compared(
        GREY, truth, ["dog", "cat"], [True, False], boxes, ["dog", "cow"], [0.9, 0.8], [True, False], legend=False
    )
    area = {"found": np.s_[30:150, 10:130], "missed": np.s_[15:150, 140:330], "false": np.s_[170:310, 290:410]}
    counts = {
        place: {
            name: int(coloured(drawn, mark.colour)[where].sum())
            for name, mark in [("missed", MISSED), ("false", FALSE), ("right", RIGHT), ("found", FOUND)]
        }
        for place, where in area.items()
    }
    assert drawn.size == (500, 400)
    assert counts["missed"]["missed"] > 500 and counts["false"]["false"] > 500
    assert 0 < counts["found"]["right"] < counts["false"]["false"] and counts["found"]["found"] > 0
    assert counts["found"]["missed"] == counts["found"]["false"] == 0
    assert counts["false"]["missed"] == counts["missed"]["false"] == 0
    border = coloured(drawn, MISSED.colour)[139, 150:250]
    assert 0.3 < border.mean() < 0.8  # dashed
    with_legend = compared(GREY, truth, ["a", "b"], [True, False], boxes, ["a", "b"], [0.9, 0.8], [True, False])
    assert with_legend.width == 500 and 420 <= with_legend.height <= 460
    for mark in (MISSED, FALSE, RIGHT, FOUND):
        assert coloured(with_legend, mark.colour)[400:].any()


def test_a_sheet_keeps_what_is_drawn_as_it_is():
    drawn = boxed(GREY, ONE, [3], ["dog"], fit_px=360)
    sheet = detection_sheet([drawn] * 5, [("1 dog", "a.jpg")] * 5)
    cells = np.asarray(sheet)[12 + 36 : 12 + 36 + 288, 12 : 12 + 360]
    assert (cells == np.asarray(drawn)).all()
    assert detection_sheet([drawn], [("", "")], legend=True).height > detection_sheet([drawn], [("", "")]).height


@pytest.fixture
def figures(monkeypatch):
    """What is plotted, kept instead of closed."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def test_precision_recall_curves_are_ranked_and_their_mean_is_shown(figures, tmp_path):
    recall = np.linspace(0, 1, 101)
    curves = {"cat": (recall, np.full(101, 0.4)), "dog": (recall, np.full(101, 0.9)), "cow": (recall[:51], np.ones(51))}
    plots.plot_precision_recall(curves, tmp_path / "few.png", "title")
    lines = figures[0].axes[0].lines
    names = [text.get_text().split() for text in figures[0].axes[0].get_legend().get_texts()]
    assert names == [["90.0", "dog"], ["50.5", "cow"], ["40.0", "cat"], ["60.2", "mean"]]
    assert np.allclose(lines[-1].get_ydata()[:51], 100 * (0.4 + 0.9 + 1) / 3)
    assert np.allclose(lines[-1].get_ydata()[51:], 100 * (0.4 + 0.9) / 3)
    assert lines[-1].get_linewidth() > 2 * max(line.get_linewidth() for line in lines[:-1]) - 1
    plots.plot_precision_recall({str(i): (recall, recall[::-1]) for i in range(80)}, tmp_path / "many.png", "title")
    texts = [text.get_text().strip() for text in figures[1].axes[0].get_legend().get_texts()]
    assert texts == ["each of 80 classes", "50.0  mean"] and len(figures[1].axes[0].lines) == 81
    plots.plot_precision_recall({}, tmp_path / "none.png", "title")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("few", "many", "none"))


def test_a_detectors_confusion_matrix_names_what_was_missed_and_false(figures, tmp_path):
    counts = np.array([[5, 1, 2], [0, 7, 0], [3, 0, 0]])
    rows, columns = ["cat", "dog", "nothing"], ["cat", "dog", "missed"]
    plots.plot_confusion(counts, ["cat", "dog"], tmp_path / "a.png", row_names=rows, column_names=columns)
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert [label.get_text() for label in axes.get_xticklabels()] == columns
    assert sorted(int(text.get_text()) for text in axes.texts) == [1, 2, 3, 5, 7]
    plots.plot_confusion(np.eye(81), [str(i) for i in range(81)], tmp_path / "b.png")
    assert len(figures[1].axes[0].get_yticklabels()) == 81 and not figures[1].axes[0].texts


def test_curves_show_what_the_task_logs(figures, tmp_path):
    parts = {"loss_xy": 1.0, "loss_wh": 2.0, "loss_objectness": 300.0, "loss_class": 4.0}
    step = {"kind": "step", "step": 1, "lr": 0.1, "loss": 307.0, **parts}
    epoch = {**step, "kind": "epoch", "epoch": 1, "AP": 0.25, "AP50": 0.5, "AP_small": None}
    plots.plot_curves([step, epoch, {**step, "step": 2}, {**epoch, "step": 2}], tmp_path / "detect", "title")
    loss, shares, _ = (figure.axes[0] for figure in figures)
    labels = [line.get_label() for line in loss.lines]
    assert labels == ["per step", "epoch mean", "xy", "wh", "objectness", "class"] and loss.get_yscale() == "log"
    assert {line.get_label(): list(line.get_ydata()) for line in shares.lines} == {"AP50": [50, 50], "AP": [25, 25]}
    rows = [{"kind": kind, "step": 1, "lr": 0.1, "loss": 2.0, "top1": 0.5} for kind in ("step", "epoch")]
    plots.plot_curves(rows, tmp_path / "classify", "title")
    assert figures[3].axes[0].get_yscale() == "linear" and "top-1" in figures[4].axes[0].get_ylabel()
    assert {path.name for path in (tmp_path / "detect").iterdir()} == {"loss.png", "accuracy.png", "learning_rate.png"}


def test_a_hundred_thousand_steps_are_drawn_with_their_spikes_and_few_points(figures, tmp_path):
    rows = [{"kind": "step", "step": i + 1, "lr": 0.1, "loss": 2.0 + i % 7} for i in range(100_000)]
    rows[54_321]["loss"], rows[77_777]["loss"] = 900.0, 0.25
    plots.plot_curves(rows, tmp_path / "plots", "title")
    (line,) = figures[0].axes[0].lines
    drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert drawn[54_322] == 900 and drawn[77_778] == 0.25 and len(drawn) <= 2000
    assert list(drawn) == sorted(drawn) and min(drawn) <= 100 and max(drawn) > 99_900
