"""The page in headless Chromium: pictures come in by every way, names are shown and never run, nobody else is asked."""

import base64
import io
import itertools
import re
import shutil

import pytest
from PIL import Image
from serving import Running, until, write_detector

HTML = "<img src=x onerror=document.title='run'>"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# Every text with the least contrast (WCAG 2.2, 1.4.3) that it has against what lies behind it, a score's bar included.
CONTRASTS = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const behind = (node) => {
    const colours = [];
    for (; node; node = node.parentElement) colours.push(parse(getComputedStyle(node).backgroundColor));
    return colours.reverse().reduce((under, colour) => over(colour, under), [255, 255, 255, 1]);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("option")) continue;
    const backs = [behind(node)], bar = node.closest("li")?.querySelector(".bar");
    if (bar) backs.push(over(parse(getComputedStyle(bar).backgroundColor), backs[0]));
    const ink = parse(getComputedStyle(node).color);
    found.push([walker.currentNode.data.trim(), Math.min(...backs.map((back) => ratio(over(ink, back), back)))]);
  }
  return found;
}"""
# The same of borders and marks that are needed to tell a control (1.4.11): against the page around it.
BORDERS = """() => [...document.querySelectorAll("select, button.quiet, .drop")].map((node) => {
  const style = getComputedStyle(node);
  return [style.borderTopColor, getComputedStyle(node.parentElement).backgroundColor, style.borderTopWidth];
})"""


@pytest.fixture(scope="module")
def server(digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(digits_run / "checkpoints/last.safetensors", folder / "digits.safetensors")
    boxes = write_detector(folder, [HTML, *map(str, range(1, 10))])
    with Running([folder / "digits.safetensors", boxes]) as running:
        yield running


@pytest.fixture
def opened(browser, server):
    """Open the page; whatever it asked for, and whatever failed in it, is looked at when the test is over."""
    pages, asked, errors = [], [], []

    def call(size: str = "desktop", scheme: str = "light", locale: str = "en-US"):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale)
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#second option").nth(2).wait_for(state="attached")
        return page

    yield call
    assert all(page.title() == "convzoo" for page in pages) and not errors
    own = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/", "data:")
    assert len(asked) > 5 and all(url.startswith(own) for url in asked)
    for page in pages:
        page.close()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((120, 90), 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def choose(page, name: str = "a.png", content: bytes | None = None, kind: str = "image/png") -> None:
    page.set_input_files("#files", {"name": name, "mimeType": kind, "buffer": content or picture()})


def transfer(page, name: str = "a.png"):
    """Return a DataTransfer with a picture in it, as a drag or the clipboard holds one."""
    return page.evaluate_handle(
        """([text, name]) => {
          const held = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          held.items.add(new File([bytes], name, { type: "image/png" }));
          return held;
        }""",
        [base64.b64encode(picture()).decode(), name],
    )


def answered(page, count: int = 2) -> None:
    """Wait until so many models have answered."""
    page.locator("article ol").nth(count - 1).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_two_models_answer_beside_each_other(opened, scheme, size):
    page = opened(size, scheme)
    choose(page, f"{HTML}.png")
    answered(page)
    assert page.locator("article").count() == 2 and page.locator("svg rect").count() >= 2
    assert HTML in page.locator(".tag").all_text_contents() and page.locator("h3").inner_text() == f"{HTML}.png"
    page.locator("article").first.locator("li button").first.click()
    page.locator("img.heat").wait_for(state="attached")
    page.locator(".key i").first.wait_for()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20 and [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tops = [box["y"] for box in (card.bounding_box() for card in page.locator("article").all()) if box]
    assert (tops[0] == tops[1]) == (size == "desktop")  # beside each other where there is room, else below


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_stand_out_from_the_page(opened, scheme):
    page = opened(scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    borders = page.evaluate(BORDERS)
    assert len(borders) >= 5
    for border, _, width in borders:
        assert float(width.removesuffix("px")) >= 1 and contrast(border, paper) >= 3, (border, paper)


def test_names_of_boxes_do_not_cover_each_other(opened):
    page = opened("phone")
    choose(page)
    answered(page)
    card = page.locator("article").last  # the detector, of random weights: its boxes lie on each other
    hidden = card.locator(".tag.behind")
    until(lambda: hidden.count() > 0)
    places = [tag.bounding_box() for tag in card.locator(".tag:not(.behind)").all()]
    for a, b in itertools.combinations(places, 2):
        apart = [max(a[x], b[x]) - min(a[x] + a[size], b[x] + b[size]) for x, size in (("x", "width"), ("y", "height"))]
        assert max(apart) > -0.5, (a, b)
    assert places and not hidden.first.is_visible()
    are_behind = card.locator(".tag").evaluate_all("tags => tags.map((tag) => tag.classList.contains('behind'))")
    card.locator("li").nth(are_behind[::-1].index(True)).hover()  # the best is the first of the list and the last drawn
    until(lambda: any(tag.is_visible() for tag in hidden.all()))


def contrast(a: str, b: str) -> float:
    """Return WCAG's contrast of two opaque CSS colours."""

    def light(colour: str) -> float:
        parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([light(a), light(b)])
    return (high + 0.05) / (low + 0.05)


def test_a_dropped_and_a_pasted_picture_are_answered(opened):
    page = opened()
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer(page)})
    assert "over" in (page.locator("#drop").get_attribute("class") or "")
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer(page, "dropped.png")})
    answered(page)
    assert "over" not in (page.locator("#drop").get_attribute("class") or "")
    page.evaluate(
        "(held) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: held }))",
        transfer(page, "pasted.png"),
    )
    answered(page, 4)
    assert page.locator("h3").all_inner_texts() == ["pasted.png", "dropped.png"]  # the newest first


def test_a_photograph_is_taken_and_answered_and_the_camera_let_go(opened, server):
    page = opened()
    page.context.grant_permissions(["camera"], origin=f"http://127.0.0.1:{server.port}")
    page.click("#photograph")
    until(lambda: page.evaluate("document.getElementById('video').videoWidth > 0"))
    stream = page.evaluate_handle("document.getElementById('video').srcObject")
    page.click("#shoot")
    answered(page)
    assert page.locator("h3").inner_text() == "photograph.jpg" and not page.locator("#viewfinder").is_visible()
    assert stream.evaluate("(stream) => stream.getTracks().every((track) => track.readyState === 'ended')")
    page.click("#photograph")
    until(lambda: page.evaluate("document.getElementById('video').videoWidth > 0"))
    page.keyboard.press("Escape")
    until(lambda: page.evaluate("document.getElementById('video').srcObject === null"))


def test_everything_is_reached_and_used_by_keys(opened):
    page, choosers = opened(), []
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # long before it is needed: Chromium is told so without an answer
    focused = "document.activeElement.id || document.activeElement.textContent"
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
    assert order == ["language", "first", "second", "choose", "photograph"]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "choose"
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("1") and bool(choosers))
    choosers[0].set_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    answered(page)
    page.focus("#photograph")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove a.png"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('article li button')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator("img.heat").wait_for(state="attached")
    assert page.locator('[aria-pressed="true"]').count() == 1
    page.keyboard.press("Space")
    page.locator("img.heat").wait_for(state="detached")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0 and page.evaluate(focused) == "choose"


def test_a_screen_reader_has_a_name_for_everything(opened):
    page = opened()
    choose(page)
    answered(page)
    page.locator("article").first.locator("li button").first.click()
    page.locator("img.heat").wait_for(state="attached")
    page.locator("#status", has_text="digits:").wait_for()
    tree = page.locator("body").aria_snapshot()
    roles = re.findall(r"- (button|combobox|img|heading|list)\b( \"[^\"]+\")?", tree)
    assert len(roles) > 15 and all(name for role, name in roles if role != "img"), tree
    assert '- img "The picture a.png"' in tree and '- img "What speaks for' in tree
    assert '- combobox "Model"' in tree and '- combobox "Compared with"' in tree
    levels = [int(level) for level in re.findall(r"- heading \"[^\"]+\" \[level=(\d)\]", tree)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for size in page.locator("button, select").evaluate_all("nodes => nodes.map((node) => node.offsetHeight)"):
        assert size == 0 or size >= 40  # what fingers can hit


def test_both_languages_say_everything_again(opened):
    page = opened(locale="zh-CN")
    assert page.locator("#choose").inner_text() == "选择图片" and page.locator("html").get_attribute("lang") == "zh-CN"
    choose(page)
    answered(page)
    assert "毫秒" in page.locator("article .facts").first.inner_text()
    page.click("#language")
    assert (
        page.locator("html").get_attribute("lang") == "en" and page.locator("#choose").inner_text() == "Choose pictures"
    )
    text = page.locator("body").inner_text().replace("中文", "")
    assert "ms in the model" in text and not re.search(r"[\u4e00-\u9fff]", text)
    labels = page.locator("[aria-label], [title], [alt]").evaluate_all(
        "nodes => nodes.map((node) => `${node.ariaLabel} ${node.title} ${node.alt}`).join()"
    )
    assert not re.search(r"[\u4e00-\u9fff]", labels)
    page.evaluate("localStorage.clear()")


def test_both_languages_have_the_same_texts(opened):
    page = opened()
    keys = page.evaluate("import('/static/text.js').then(({ TEXTS }) => Object.values(TEXTS).map(Object.entries))")
    english, chinese = (dict(entries) for entries in keys)
    holes = lambda text: sorted(re.findall(r"\{\w+\}", text))
    assert english.keys() == chinese.keys() and len(english) > 25
    assert all(holes(english[key]) == holes(chinese[key]) for key in english)


def test_what_is_no_picture_is_said_and_the_page_goes_on(opened):
    page = opened()
    choose(page, f"{HTML}.txt", b"text", "text/plain")
    page.locator("#status", has_text="is no picture").wait_for()
    assert HTML in page.locator("#status").inner_text() and page.locator("article").count() == 0
    page.select_option("#second", "")
    choose(page)
    answered(page, 1)
    assert page.locator("article").count() == 1


def test_a_damaged_picture_shows_the_servers_words(browser, server):
    """Apart from the others, because Chromium writes the server's 422 and the broken picture to its console."""
    page = browser.new_page(locale="en-US")
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.locator("#second option").nth(2).wait_for(state="attached")
    choose(page, "a.png", picture()[:200])
    page.locator(".facts.error").nth(1).wait_for()
    assert "damaged picture" in page.locator(".facts.error").first.inner_text()
    page.close()
