"""What the live page shows of a repository."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

import forked
from browser import opened
from parity_models.serving.page.frames import ModelView
from parity_models.serving.repository.evidence import Seen
from parity_models.serving.repository.rollout import Rollout
from parity_models.serving.repository.rollout_options import RolloutOptions
from parity_models.serving.repository.shown import KEPT, History, ModelsSampler, ShownModel
from repositories import INPUTS, write_version
from served import ServerProcess, until

pytestmark = pytest.mark.slow

ROWS = np.random.default_rng(1).normal(size=(3, INPUTS)).astype(np.float32)


# Without a server


def kinds(history: History) -> list[str]:
    return [event.kind for event in history.after(0)]


def test_traffic_is_told_when_it_moves_and_not_again() -> None:
    rollout, history = Rollout(RolloutOptions()), History()
    shown = ShownModel("digits", rollout, history)
    rollout.load("1", None)
    shown.traffic_may_have_changed()
    assert kinds(history) == []
    rollout.loaded(0.0, "1")
    shown.traffic_may_have_changed()
    shown.traffic_may_have_changed()
    assert kinds(history) == ["current"]
    rollout.load("2", 0.05)
    rollout.loaded(0.0, "2")
    shown.traffic_may_have_changed()
    rollout.load("2", 0.2)
    shown.traffic_may_have_changed()
    assert [event.text for event in history.after(1)] == [
        "version 2 is a canary, for 0.05 of requests",
        "version 2 is a canary, for 0.2 of requests",
    ]
    old, new = shown.view.versions
    assert (old.role, old.share, new.role, new.share) == ("current", 0.8, "canary", 0.2)
    assert "0 of 500 predictions compared" in new.reason
    for _ in range(50):
        rollout.saw(1.0, "2", Seen(failed=True))
    shown.traffic_may_have_changed()
    assert history.after(3)[0].text == "version 1 takes all requests"
    assert shown.view.versions[1].reason.startswith("went back")


def test_frames_tell_what_is_new_and_the_first_of_a_watcher_tells_all() -> None:
    history = History(lambda: 5.0)
    models = [ModelView("digits", ())]
    sampler = ModelsSampler(lambda: models, history)
    history.happened("digits", "1", "loaded", "version 1 is loaded")
    assert sampler.frame(whole=False).models == (models[0],)
    history.happened("digits", "1", "current", "version 1 takes all requests")
    assert [event.kind for event in sampler.frame(whole=True).events] == ["loaded", "current"]
    assert [event.kind for event in sampler.frame(whole=False).events] == ["current"]
    assert sampler.frame(whole=False).events == ()
    for _ in range(2 * KEPT):
        history.happened("digits", "2", "loading", "version 2 is being loaded")
    assert len(sampler.frame(whole=True).events) == KEPT


# With one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown") / "models"
    write_version(folder, "first", "1")
    write_version(folder, "second", "3", times=3)
    broken = write_version(folder, "second", "4")
    (broken / "deployed.onnx").write_bytes(b"no model")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    options = ("--instances", "1", "--policy", "none", "--ui", "--canary-time", "0")
    with ServerProcess("--repository", str(folder), *options) as server:
        yield server


def events(server: ServerProcess, query: str = "") -> Iterator[dict[str, Any]]:
    with httpx.stream("GET", f"{server.url}/ui/events{query}", timeout=30) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def load(server: ServerProcess, name: str, **parameters: str) -> None:
    url = f"{server.url}/v2/repository/models/{name}/load"
    answer = httpx.post(url, json={"parameters": parameters}, timeout=30)
    assert answer.status_code == 200, answer.text


def infer(server: ServerProcess, name: str) -> str:
    """The version that answered."""
    tensor = {"name": "input", "shape": ROWS.shape, "datatype": "FP32", "data": ROWS.tolist()}
    answer = httpx.post(f"{server.url}/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def test_the_page_says_where_the_models_are_and_each_version_is_watched_by_its_name(
    server: ServerProcess,
) -> None:
    about = httpx.get(f"{server.url}/ui/about").json()
    assert (about["title"], about["sides"]) == ("models", [])
    frame = next(events(server, "?" + about["models"].partition("?")[2]))
    assert [model["name"] for model in frame["models"]] == ["first", "second"]
    (good, broken) = frame["models"][1]["versions"]
    assert (good["version"], good["role"], good["share"], good["watched"]) == (
        "3", "current", 1.0, True,
    )  # fmt: skip
    assert (broken["state"], broken["watched"]) == ("UNAVAILABLE", False)
    assert "deployed.onnx" in broken["reason"]
    of_second = [each["kind"] for each in frame["events"] if each["model"] == "second"]
    assert of_second == ["loading", "failed", "loading", "loaded", "current"]
    assert next(events(server))["model"] == "first version 1"
    assert next(events(server, "?model=second"))["model"] == "second version 3"
    assert next(events(server, "?model=second&version=3"))["ready"]
    for nobody in ("?model=second&version=4", "?model=nothing"):
        assert httpx.get(f"{server.url}/ui/events{nobody}").status_code == 503


def test_a_version_that_ends_ends_its_events_and_says_that_it_was_drained(
    folder: Path, server: ServerProcess
) -> None:
    write_version(folder, "rolled", "1")
    load(server, "rolled")
    stream = events(server, "?model=rolled&version=1")
    assert next(stream)["ready"]
    write_version(folder, "rolled", "2", times=2)
    load(server, "rolled")
    for frame in stream:
        assert frame["model"] == "rolled version 1"
    (rolled,) = (
        model for model in next(events(server, "?of=models"))["models"] if model["name"] == "rolled"
    )
    assert [each["role"] for each in rolled["versions"]] == ["", "current"]
    seen = [
        (each["version"], each["kind"])
        for each in next(events(server, "?of=models"))["events"]
        if each["model"] == "rolled"
    ]
    assert seen[-2:] == [("2", "current"), ("1", "drained")]
    assert ("1", "ending") in seen


def test_parm_top_shows_the_first_model(server: ServerProcess) -> None:
    shown = forked.run("top", server.url, "--once", timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "first version 1" in shown.stdout


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    with opened(browser, f"{server.url}/ui/") as page:
        expect(page.locator(".badge")).to_have_text("ready")
        yield page


def test_a_model_is_chosen_and_stays_chosen(page: Page) -> None:
    choice = page.get_by_label("Model", exact=True)
    expect(choice).to_have_value("first")
    choice.select_option("second")
    expect(page.locator(".versions tbody tr")).to_have_count(2)
    expect(page.get_by_role("row", name="3 current 100 %")).to_be_visible()
    expect(page.get_by_role("heading", name="version 3")).to_be_visible()
    expect(page.locator("#models .events")).to_contain_text("version 4 cannot be loaded")
    page.reload()
    expect(page.get_by_role("heading", name="version 3")).to_be_visible()
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.documentElement.scrollWidth <= 360")


def test_a_canary_is_seen_to_come_to_be_compared_and_to_go_back(
    page: Page, folder: Path, server: ServerProcess
) -> None:
    write_version(folder, "judged", "1")
    load(server, "judged")
    page.get_by_label("Model", exact=True).select_option("judged")
    expect(page.locator("main .side")).to_have_count(1)
    write_version(folder, "judged", "2", times=-1.0)
    load(server, "judged", canary="50%")
    expect(page.locator("main .side")).to_have_count(2)
    expect(page.get_by_role("row", name="2 canary 50 %")).to_contain_text("predictions compared")
    releases = page.locator("#models .events")
    expect(releases).to_contain_text("version 2 is a canary, for 0.5 of requests")

    def goes_back() -> bool:
        infer(server, "judged")
        return releases.locator("[data-kind='went back']").count() == 1

    until(goes_back, "the canary stays")
    expect(releases).to_contain_text("predictions differ from the old version's")
    expect(releases).to_contain_text("version 2 has answered all")
    expect(page.locator("main .side")).to_have_count(1)
    expect(page.get_by_role("row", name="2 unavailable")).to_be_visible()


def test_models_that_share_no_instances_show_none(page: Page) -> None:
    expect(page.locator(".versions")).to_be_visible()
    expect(page.get_by_text("Shared instances")).to_be_hidden()


def test_shared_instances_are_seen_to_move_to_a_model_that_is_loaded(
    browser: Browser, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for name in ("first", "second"):
        write_version(models, name, "1")
    options = ("--shared-instances", "5", "--reserve", "first=2", "--policy", "none", "--ui")
    with (
        ServerProcess("--repository", str(models), *options) as server,
        opened(browser, f"{server.url}/ui/?model=second") as page,
    ):
        sharing = page.locator(".sharing tbody")
        expect(sharing.get_by_role("row")).to_have_text([re.compile("first32"), "second210.0"])
        expect(sharing.locator("[aria-current=true]")).to_contain_text("second")
        page.get_by_label("Model", exact=True).select_option("first")
        expect(sharing.locator("[aria-current=true]")).to_contain_text("first")
        write_version(models, "third", "1")
        load(server, "third")
        expect(sharing.get_by_role("row", name="first 2 2")).to_be_visible()
        expect(sharing.get_by_role("row", name="third 1 1")).to_be_visible()
        answer = httpx.post(f"{server.url}/v2/repository/models/second/unload", timeout=30)
        assert answer.status_code == 200
        expect(sharing.get_by_role("row", name="second 0 1")).to_be_visible()


def test_a_server_that_stops_waits_for_no_watcher(folder: Path) -> None:
    options = ("--instances", "1", "--policy", "none", "--ui")
    with ServerProcess("--repository", str(folder), *options) as server:
        streams = [events(server, query) for query in ("?of=models", "?model=first")]
        for stream in streams:
            next(stream)
        server.signal(signal.SIGTERM)
        assert [sum(1 for _ in stream) for stream in streams]
        assert server.wait() == 0
