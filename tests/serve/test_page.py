"""The page in headless Chromium: answers drawn, names shown and never run, no request to anybody else."""

import io
import shutil

import pytest
from PIL import Image
from serving import Running, write_detector

HTML = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(digits_run / "checkpoints/last.safetensors", folder / "digits.safetensors")
    boxes = write_detector(folder, [HTML, *map(str, range(1, 10))])
    with Running([folder / "digits.safetensors", boxes]) as running:
        yield running


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((120, 90), 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_two_models_answer_beside_each_other(browser, server, scheme, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, locale="en-US")
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.locator("#second option").nth(2).wait_for(state="attached")
    page.set_input_files("#files", {"name": f"{HTML}.png", "mimeType": "image/png", "buffer": picture()})
    page.locator("article ol").nth(1).wait_for()
    assert page.locator("article").count() == 2 and page.locator("svg rect").count() >= 2
    page.locator("article").first.locator("li button").first.focus()
    page.keyboard.press("Enter")
    page.locator("img.heat").wait_for(state="attached")
    assert page.locator('[aria-pressed="true"]').count() == 1
    assert page.title() == "convzoo" and not errors
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    own = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/")
    assert len(asked) > 5 and all(url.startswith(own) for url in asked)
    page.click("#language")
    assert page.locator("#choose").inner_text() == "选择图片" and page.locator("html").get_attribute("lang") == "zh-CN"
    page.close()
