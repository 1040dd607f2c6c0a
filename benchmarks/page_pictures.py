"""Pictures of the page that `convzoo serve` has, taken in a headless Chromium, docs/images/page.jpg among them.

    python benchmarks/page_pictures.py MODEL [MODEL] --pictures PICTURE [PICTURE] [--out FOLDER] [--docs FILE]

Takes desktop and phone, light and dark, before and after an answer, with an explanation and in Chinese; --docs takes
only the picture of the documents: two models on the first picture, at a desktop's width.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

SIZES = {"desktop": (1180, 860), "phone": (390, 844)}


@contextmanager
def server(models: list[Path]) -> Iterator[str]:
    """Give the address of a server of these models."""
    command = [sys.executable, "-m", "convzoo", "serve", *map(str, models), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield next(found[1] for line in process.stderr if (found := re.search(r"page is (http\S+)", line)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def opened(browser: Browser, url: str, size: str, scheme: str, locale: str = "en-US") -> Page:
    """Return the page as a reader first sees it."""
    width, height = SIZES[size]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        locale=locale,
        device_scale_factor=1.5,
    )
    page.goto(url)
    page.locator("#first option").first.wait_for(state="attached")
    return page


def answered(page: Page, pictures: list[Path], models: int) -> None:
    """Ask about pictures, one after the other, and wait for every answer."""
    for i, picture in enumerate(pictures):
        page.set_input_files("#files", str(picture))
        page.locator("article .facts").nth(models * (i + 1) - 1).wait_for(timeout=120_000)
        page.locator("#status", has_text=re.compile("[:：]")).wait_for(timeout=120_000)


def explained(page: Page) -> None:
    """Ask of the newest picture what speaks for its first answer."""
    page.locator("article li button").first.click()
    page.locator("img.heat").first.wait_for(timeout=120_000)
    page.mouse.move(0, 0)


def take_all(browser: Browser, url: str, models: int, pictures: list[Path], out: Path) -> None:
    for size in SIZES:
        for scheme in ("light", "dark"):
            page = opened(browser, url, size, scheme)
            page.screenshot(path=out / f"{size}-{scheme}-before.png")
            answered(page, pictures, models)
            page.screenshot(path=out / f"{size}-{scheme}-after.png", full_page=True)
            explained(page)
            page.screenshot(path=out / f"{size}-{scheme}-explained.png", full_page=True)
            page.close()
    page = opened(browser, url, "desktop", "light", "zh-CN")
    answered(page, pictures[:1], models)
    page.screenshot(path=out / "desktop-chinese.png", full_page=True)


def take_one(browser: Browser, url: str, models: int, picture: Path, path: Path) -> None:
    page = opened(browser, url, "desktop", "light")
    answered(page, [picture], models)
    explained(page)
    page.locator("#answers").screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    shown = min(2, len(arguments.models))
    with server(arguments.models) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            take_all(browser, url, shown, arguments.pictures, arguments.out)
        if arguments.docs:
            take_one(browser, url, shown, arguments.pictures[0], arguments.docs)
        browser.close()


if __name__ == "__main__":
    main()
