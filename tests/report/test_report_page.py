"""A run's page in headless Chromium, from file://: read with pointer and keys, on a phone, in the dark, on paper."""

import json

import numpy as np
import pytest

from convzoo.report.charts import Chart, Series
from convzoo.report.html import Cell, ConfusionView, RunView, Table, page
from convzoo.report.pictures import Box, Picture, data_url
from convzoo.training.run_report import write_report
from helpers import rows

HTML = "<img src=x onerror=document.title='run'>"
GREY = data_url(np.full((30, 40, 3), 120, dtype=np.uint8), 40)
# The lowest ratio of a text's luminance to its background's (WCAG 2.2, 1.4.3), and which text has it.
CONTRAST = """() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const own = (node) => rgba(getComputedStyle(node).backgroundColor);
  const ground = (node) => node ? over(own(node), ground(node.parentElement)) : [255, 255, 255];
  let lowest = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.closest(".skip")) continue;
    const below = ground(node), ink = over(rgba(getComputedStyle(node).color), below);
    const [a, b] = [light(ink), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, `${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`];
  }
  return lowest;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, a, img")].filter((node) =>
  !(node.getAttribute("aria-label") || node.alt || node.textContent.trim())).length"""


class Shown:
    """A page that is open, with what it asked for and what it complained of."""

    def __init__(self, browser, path, size=(1280, 900), scheme="light"):
        self.asked, self.errors = [], []
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())

    def check(self) -> None:
        """It asked for itself alone, nothing went wrong, everything has a name, and nothing is beside the screen."""
        assert [url for url in self.asked if not url.startswith("data:")] == self.asked[:1] and not self.errors
        assert self.page.evaluate(NAMELESS) == 0
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        self.page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        ratio, where = self.page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture(scope="module")
def written(digits_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_report([digits_run], out)
    return out


def detector(name: str) -> RunView:
    """Return a view whose every name is HTML, of a detector."""
    boxes = [Box(kind, HTML, 10 * i, 10, 30, 40) for i, kind in enumerate(("right", "false", "missed"))]
    picture = Picture(GREY, (400, 300), HTML, HTML, boxes=boxes, heats=[(HTML, GREY)])
    cells = [[Cell(HTML, 3, share, share == 1.0, [picture]) for share in (1.0, 0.4)] for _ in range(2)]
    chart = Chart(HTML, "step", [Series(HTML, [(i, i * i) for i in range(50)], i) for i in range(8)])
    return RunView(
        name,
        folder=name,
        state="running",
        progress=HTML,
        summary=HTML,
        command=HTML,
        again=HTML,
        recipe={"a": HTML},
        recipe_text=HTML,
        charts=[chart],
        curve=chart,
        confusion=ConfusionView([HTML] * 2, [HTML] * 2, cells, cells[0]),
        classes=Table(HTML, [HTML] * 12, [[HTML] * 12]),
        worst=[picture] * 2,
        explained=[picture],
        has_boxes=True,
        deployment=[Table(HTML, [HTML], [[HTML]], HTML)],
        machine={HTML: HTML},
        missing={"numbers": HTML},
    )


@pytest.mark.parametrize(("size", "scheme"), [((1280, 900), "light"), ((390, 844), "dark")])
def test_a_run_is_read(browser, written, digits_run, size, scheme):
    shown = Shown(browser, written, size, scheme)
    page = shown.page
    slider, steps = page.locator("input[type=range]").first, rows(digits_run, "step")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    step = steps[-5]
    assert slider.get_attribute("aria-valuetext").startswith(f"step {step['step']}: per step {step['loss']:.4g}"[:22])
    assert page.locator(".chart .at b").first.inner_text() == str(step["step"])
    area = page.locator(".plot").first.bounding_box()
    page.mouse.move(area["x"] + 0.5 * area["width"], area["y"] + 50)
    half = steps[len(steps) // 2 - 1]
    near = "half => Math.abs(document.querySelector('.chart .at b').textContent - half) <= 2"
    page.wait_for_function(near, arg=half["step"])  # the browser says when the pointer has moved
    read = page.locator(".chart .legend b").first.inner_text()
    assert float(read) in [pytest.approx(row["loss"], rel=1e-3) for row in steps]
    cell = page.locator("button.cell.right").first
    cell.click()
    assert page.locator(".gallery img").count() == min(6, int(cell.inner_text()))
    assert cell.get_attribute("aria-expanded") == "true"
    page.locator(".gallery button.open").first.click()
    assert page.locator("dialog[open] img").evaluate("(node) => node.complete && node.naturalWidth") == 8
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    shown.check()
    page.close()


@pytest.mark.parametrize(("size", "scheme"), [((390, 844), "light"), ((1280, 900), "dark")])
def test_names_are_shown_and_never_run_and_boxes_have_three_styles(browser, tmp_path, size, scheme):
    (tmp_path / "page.html").write_text(page([detector("a"), detector(HTML)]), encoding="utf-8")
    shown = Shown(browser, tmp_path / "page.html", size, scheme)
    shown.check()
    assert shown.page.title() == f"a · {HTML}" and shown.page.locator("body > img, td > img, code img").count() == 0
    styles = "(nodes) => nodes.map((n) => getComputedStyle(n)).map((s) => `${s.borderTopStyle} ${s.borderTopColor}`)"
    boxes = shown.page.locator(".picture").first.locator(".box").evaluate_all(styles)
    assert len(boxes) == len(set(boxes)) == 3
    shown.page.close()


def test_on_paper_it_is_light_and_has_no_controls(browser, written):
    shown = Shown(browser, written, scheme="dark")
    shown.page.emulate_media(media="print", color_scheme="dark")
    assert not shown.page.locator("nav").is_visible() and not shown.page.locator("button.copy").first.is_visible()
    assert shown.page.evaluate(CONTRAST)[0] >= 4.5
    assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(shown.page.pdf()) > 20_000
    shown.page.close()


def test_the_values_in_the_page_are_those_that_are_read(browser, written):
    shown = Shown(browser, written)
    charts = [json.loads(text) for text in shown.page.locator(".chart script").all_text_contents()]
    last = [chart["series"][0]["points"][-1][1] for chart in charts]
    read = [chart.locator(".legend b").first.inner_text() for chart in shown.page.locator(".chart").all()]
    assert [float(text.removesuffix(" %")) for text in read] == pytest.approx(last, rel=1e-3)
    shown.page.close()
