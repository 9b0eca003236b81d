"""The page in a real browser, and over HTTP."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from repositories import write_version
from served import ServerProcess, infer, queries

expect.set_options(timeout=60_000)  # a busy machine may draw late


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window, driven by Playwright."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("pages are tested in a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def server(backed: Path) -> Iterator[ServerProcess]:
    slow = {"service_time": {"type": "constant", "seconds": 0.02}}
    options = ("--ui", "--instances", "3", "--agreement", "0", "--faults", json.dumps(slow))
    with ServerProcess(str(backed), *options) as server:
        yield server


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


pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-server"


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    with opened(browser, f"{server.url}/ui/") as page:
        expect(page.locator(".badge")).to_have_text("ready")
        yield page


def test_it_shows_an_instance_killed_and_back(page: Page, server: ServerProcess) -> None:
    expect(page.locator(".cell")).to_have_count(3)
    os.kill(server.workers()[0], signal.SIGKILL)
    expect(page.locator(".events")).to_contain_text("signal 9")
    expect(page.locator(".events")).to_contain_text("is up")
    expect(page.locator(".cell")).to_have_count(3)


def test_it_is_read_out_and_fits_a_phone_and_the_dark(page: Page) -> None:
    expect(page.get_by_role("heading", name="Instances")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="up").first).to_be_visible()
    charts = page.get_by_role("img").and_(page.locator(".chart"))
    expect(charts).to_have_count(2)
    for chart in charts.all():
        expect(chart).to_have_accessible_name(re.compile("."))
    expect(page.get_by_role("log")).to_be_visible()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.documentElement.scrollWidth <= 360")


def test_a_repository_s_model_is_chosen_and_stays_so(browser: Browser, tmp_path: Path) -> None:
    write_version(tmp_path / "models", "first", "1")
    write_version(tmp_path / "models", "second", "3", times=3)
    broken = write_version(tmp_path / "models", "second", "4")
    (broken / "deployed.onnx").write_bytes(b"no model")
    options = ("--instances", "1", "--policy", "none", "--ui")
    with (
        ServerProcess("--repository", str(tmp_path / "models"), *options) as server,
        opened(browser, f"{server.url}/ui/") as page,
    ):
        choice = page.get_by_label("Model", exact=True)
        expect(choice).to_have_value("first")
        expect(page.get_by_role("heading", name="version 1")).to_be_visible()
        choice.select_option("second")
        expect(page.get_by_role("row", name="4 unavailable")).to_contain_text("deployed.onnx")
        page.reload()
        expect(page.get_by_role("heading", name="version 3 ready")).to_be_visible()
        expect(page.locator("#server .side")).to_have_count(1)


# With tokens


@pytest.fixture(scope="module")
def guarded(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tokens = tmp_path_factory.mktemp("access") / "tokens"
    tokens.write_text(TOKEN)
    options = ("--ui", "--tokens", str(tokens), "--policy", "none", "--instances", "1")
    with ServerProcess(str(plain), *options) as server:
        yield server


def test_the_page_s_files_are_open_and_the_server_s_state_is_not(guarded: ServerProcess) -> None:
    for path in ("/ui/", "/ui/page.js", "/ui/feed.js"):
        assert httpx.get(guarded.url + path).status_code == 200
    for path in ("/ui/about", "/ui/frame", "/ui/control", "/ui/other", "/ui/../metrics"):
        assert httpx.get(guarded.url + path).status_code == 401
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{guarded.url}/ui/about", headers=bearing).json()["title"] == "model"
    elsewhere = {"Host": "evil.example"}
    assert httpx.get(f"{guarded.url}/ui/", headers=elsewhere).status_code == 403


def test_a_token_after_the_address_is_taken(guarded: ServerProcess, browser: Browser) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{guarded.url}/ui/#token={TOKEN}")
    expect(page.locator(".badge")).to_have_text("ready")
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator(".badge")).to_have_text("ready")
    assert not any(TOKEN in url for url in asked[1:])
    page.close()


def test_a_token_is_asked_for_until_it_is_right(guarded: ServerProcess, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{guarded.url}/ui/")
    page.get_by_label("Token").fill("a-wrong-token")
    page.get_by_role("button", name="Show").click()
    page.get_by_label("does not take this token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".badge")).to_have_text("ready")
    expect(page.locator("form")).to_have_count(0)
    page.close()


# Over HTTP


def test_the_page_loads_nothing_from_elsewhere_and_changes_nothing(server: ServerProcess) -> None:
    page = httpx.get(f"{server.url}/ui", follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "://" not in page.text
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
        file = httpx.get(f"{server.url}/ui/{name}")
        assert (file.status_code, file.headers["content-type"].split(";")[0]) == (200, kind)
    about = httpx.get(f"{server.url}/ui/about").json()
    assert about == {"title": "model", "repository": False}
    assert httpx.post(f"{server.url}/ui/control", json={"type": "kill"}).status_code == 404
    assert httpx.post(f"{server.url}/ui/about").status_code == 405


@pytest.mark.parametrize("path", ["/ui/", "/ui/about", "/ui/frame", "/ui/page.js"])
def test_pages_of_others_that_lead_here_are_refused(server: ServerProcess, path: str) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"X-Forwarded-For": "192.0.2.1"},  # a proxy on this machine gives its own Host
    ):
        answer = httpx.get(f"{server.url}{path}", headers=headers)
        assert answer.status_code == 403
        assert "127.0.0.1" in answer.json()["error"]


def test_the_frame_says_what_the_server_does(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.get("/ui/frame")
        assert answer.headers["content-type"] == "application/json"
        assert "access-control-allow-origin" not in answer.headers
        first = answer.json()
        assert first["ready"]
        assert [cell["state"] for cell in first["instances"]] == ["up"] * 3
        assert infer(client, queries(4)).is_success
        points: list[Any] = []
        while not (points and points[-1]["answered"]):
            time.sleep(0.2)
            points = client.get("/ui/frame").json()["points"]
        assert sum(points[-1]["answers"].values()) > 0
        assert points[-1]["answered"]["p50"] >= 20


def test_a_server_that_stops_waits_for_no_watcher(plain: Path) -> None:
    options = ("--ui", "--policy", "none", "--instances", "1")
    with (
        ServerProcess(str(plain), *options) as server,
        httpx.Client(base_url=server.url, timeout=60) as watcher,
    ):
        assert watcher.get("/ui/frame").json()["ready"]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
