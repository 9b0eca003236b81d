"""A page of a server that asks for tokens: whoever has none sees a form, and nothing else."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from served import ServerProcess

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-server"


@pytest.fixture(scope="module")
def server(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tokens = tmp_path_factory.mktemp("access") / "tokens"
    tokens.write_text(TOKEN)
    options = ("--ui", "--tokens", str(tokens), "--policy", "none", "--instances", "1")
    with ServerProcess(bundle, *options) as server:
        yield server


def test_the_page_s_files_are_open_and_what_it_tells_is_not(server: ServerProcess) -> None:
    for path in ("/ui/", "/ui/page.js", "/ui/feed.js"):
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/ui/about", "/ui/events", "/ui/control", "/ui/other", "/ui/../metrics"):
        assert httpx.get(server.url + path).status_code == 401
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{server.url}/ui/about", headers=bearing).json()["title"] == "model"
    elsewhere = {"Host": "evil.example"}
    assert httpx.get(f"{server.url}/ui/", headers=elsewhere).status_code == 403


def test_a_token_after_the_address_is_taken_and_taken_away_from_there(
    server: ServerProcess, browser: Browser
) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/ui/#token={TOKEN}")
    expect(page.locator(".badge")).to_have_text("ready")
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator(".badge")).to_have_text("ready")
    assert not any(TOKEN in url for url in asked[1:])
    page.close()


def test_who_has_none_is_asked_for_one_until_it_is_right(
    server: ServerProcess, browser: Browser
) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/ui/")
    page.get_by_label("Token").fill("a-wrong-token-of-nobody")
    page.get_by_role("button", name="Show").click()
    page.get_by_label("does not take this token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".badge")).to_have_text("ready")
    expect(page.locator("form")).to_have_count(0)
    page.close()
