"""A real browser for tests of pages: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=60_000)  # a busy machine may draw late


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window. Raises RuntimeError, and says what to do, if there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("pages are tested in a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page of this address in a window of its own. Nothing in it may complain."""
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(url)
    yield page
    page.close()
    assert not complaints
