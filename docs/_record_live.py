"""Records the picture of the live demo in docs/how-to/watch.md: docs/images/live-demo.webp.

    parm-lab demo --live --port 8080 &
    python docs/_record_live.py http://127.0.0.1:8080/ui/ docs/images/live-demo.webp

Chromium has to be there (apt-get install chromium), and Playwright and Pillow, as `make setup` has
them. The demo is watched for half a minute; an instance is slowed down, and another one killed.
"""

import io
import shutil
import sys
import time

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

SECONDS, EVERY = 36, 0.6
SIZE = ViewportSize(width=1160, height=860)
WIDTH = 800
MOMENTS = {8: (0, "Slow"), 18: (3, "Kill"), 26: (0, "Slow")}
"""What is done to which instance, after so many seconds."""


def record(page: Page) -> list[Image.Image]:
    """The frames, scaled."""
    frames = []
    began = time.monotonic()
    moments = dict(MOMENTS)
    while (elapsed := time.monotonic() - began) < SECONDS:
        for at in [at for at in moments if at <= elapsed]:
            instance, button = moments.pop(at)
            page.locator(".cell").nth(instance).get_by_role("button", name=button).click()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append(picture.resize((WIDTH, WIDTH * picture.height // picture.width)))
        time.sleep(max(0.0, EVERY - (time.monotonic() - began - elapsed)))
    return frames


def main(url: str, file: str) -> None:
    """Watch the demo at `url`, and write the animated picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.locator(".badge", has_text="ready").nth(1).wait_for()
        frames = record(page)
        browser.close()
    frames[0].save(
        file,
        save_all=True,
        append_images=frames[1:],
        duration=int(1000 * EVERY / 2),
        loop=0,
        quality=55,
        method=4,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
