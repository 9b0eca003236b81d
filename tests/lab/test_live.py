"""The live demo: two sides, harmed alike, in a real browser and without one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from browser import opened
from commands import parm_lab
from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.tasks import find_task
from parity_models_lab.cli.demo_live import gated
from parity_models_lab.live.controls import control_of, worker_of
from parity_models_lab.live.liar import write_liar
from parity_models_lab.processes import descendants
from served import queries, until, write_linear_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("live")
    bundle = write_linear_bundle(folder, backed=True)
    np.save(folder / "inputs.npy", queries(32))
    command = ("--bundle", str(bundle), "--inputs", str(folder / "inputs.npy"), "--port", "0")
    demo = subprocess.Popen(parm_lab("demo", "--live", *command), stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert "Loading libraries" in demo.stdout.readline()
    assert "two servers of 6 instances" in demo.stdout.readline()
    found = re.search(r"http://\S+/ui/", demo.stdout.readline())
    assert found
    yield found[0]
    demo.send_signal(2)
    demo.communicate(timeout=60)
    assert demo.returncode == 130


@pytest.fixture(scope="module")
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url, width=1400, height=1000, refused=True) as page:
        expect(page.locator(".side .badge")).to_have_text(["ready", "ready"])
        yield page


def test_it_says_what_it_does_before_it_loads_what_takes_long() -> None:
    slow = "{'numpy', 'onnxruntime', 'rich', 'torch', 'zmq'} & sys.modules.keys()"
    code = f"import sys, parity_models_lab.cli.demo; sys.exit(repr({slow}) if {slow} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def ask(url: str, what: dict[str, Any], token: str = "", host: str = "") -> httpx.Response:
    headers = {b"x-parm-token": token.encode("latin-1")} | (
        {b"host": host.encode()} if host else {}
    )
    return httpx.post(f"{url}control", json=what, headers=headers, timeout=30)


def test_only_its_own_page_may_harm_it(url: str) -> None:
    kill = {"type": "kill", "instance": "0"}
    token = httpx.get(f"{url}about").json()["controls"]["token"]
    assert ask(url, kill).status_code == 403
    assert ask(url, kill, token[:-1] + "é").status_code == 403
    assert ask(url, kill, token, host="evil.example").status_code == 403
    assert "access-control-allow-origin" not in httpx.get(f"{url}about").headers
    assert ask(url, kill | {"instance": "9"}, token).status_code == 400


def test_both_sides_are_asked_alike_and_killed_alike(page: Page) -> None:
    sides = page.locator(".side")
    expect(sides).to_have_count(2)
    # Agreement is told of before anything was compared, and where there is nothing to compare.
    expect(sides.first.locator(".gates")).to_contain_text("it has no gate")
    expect(sides.last.locator(".gates")).to_have_text("no stand-in answers with this policy")
    for side in sides.all():
        expect(side.locator(".facts")).not_to_contain_text("0.0 queries/s")
    sides.first.locator(".cell").first.get_by_role("button", name="Kill").click()
    for side in sides.all():
        expect(side.locator(".events")).to_contain_text("signal 9")
    for side in sides.all():
        expect(side.locator(".events")).to_contain_text("is up")


def test_an_instance_that_is_stopped_stands_still_for_a_moment_on_both_sides(page: Page) -> None:
    def standing() -> int:
        """How many processes of the demo a signal has stopped."""
        found = 0
        for pid in descendants(os.getpid()):
            with suppress(OSError):  # it has ended
                after_its_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
                found += after_its_name.split()[0] == "T"
        return found

    page.locator(".cell").nth(2).get_by_role("button", name="Stop").click()
    until(lambda: standing() == 2, "no two instances stand still")
    until(lambda: standing() == 0, "instances do not go on")


def test_an_instance_that_is_slowed_down_is_shown_to_be_slow_on_both_sides(page: Page) -> None:
    slow = page.locator(".cell").nth(2).get_by_role("button", name="Slow")
    slow.click()
    for side in page.locator(".side").all():
        expect(side.locator(".cell").nth(2)).to_have_attribute("data-state", "slow", timeout=60_000)
    slow.click()


def test_an_instance_that_is_corrupted_is_found_out_on_both_sides(page: Page) -> None:
    page.locator(".cell").nth(1).get_by_role("button", name="Corrupt").click()
    for side in page.locator(".side").all():
        expect(side.locator(".events")).to_contain_text("golden query")
    page.locator(".cell").nth(1).get_by_role("button", name="Corrupt").click()


def test_the_load_can_be_changed(page: Page) -> None:
    page.get_by_label("Load").fill("0")
    for side in page.locator(".side").all():
        expect(side.locator(".facts")).to_contain_text("0.0 queries/s")
    page.get_by_label("Load").fill("40")
    for side in page.locator(".side").all():
        expect(side.locator(".facts")).not_to_contain_text("0.0 queries/s")


def test_the_policy_of_a_side_can_be_changed(page: Page) -> None:
    right = page.locator(".side").nth(1)
    expect(right.locator("h2")).to_contain_text("policy equal-resources")
    page.get_by_label("right").select_option("hedging")
    expect(right.locator("h2")).to_contain_text("policy hedging")
    expect(right.locator(".badge")).to_have_text("ready")


def test_the_bundle_of_a_task_has_a_gate_calibrated_on_what_it_was_not_trained_on(
    tmp_path: Path,
) -> None:
    task = find_task("digits")
    dataset = task.load(None)
    weights = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
    linear_model(tmp_path / "linear.onnx", dataset.input_shape, (10,), weights)
    model, code = NewModel(tmp_path / "linear.onnx", "linear"), CodeSpec("sum", "subtraction", 2)
    bundle = write_bundle(tmp_path / "bundle", deployed=model, parity=[model], code=code)
    calibrated = gated(bundle, task, dataset)
    level = calibrated.manifest.calibration["reconstruction"].at_most(0.99)
    assert level is not None
    assert level.level >= 0.9
    assert gated(calibrated, task, dataset) is calibrated


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"type": "burn"}', b'{"type": "kill"}', b'{"type": "load", "rate": "much"}'],
)
def test_what_it_cannot_do_is_refused(body: bytes) -> None:
    with pytest.raises(UserError, match="nothing the demo can do"):
        control_of(body)


def test_an_instance_is_a_life_of_a_worker() -> None:
    assert worker_of("2.13", 3) == 2
    for unknown in ("3", "", "-1", "²", "x.1", "9" * 5000):
        with pytest.raises(UserError, match="no instance"):
            worker_of(unknown, 3)


def test_a_liar_is_of_the_same_shape_and_says_something_else(tmp_path: Path) -> None:
    write_linear_bundle(tmp_path)
    model = tmp_path / "linear.onnx"
    write_liar(model, tmp_path / "liar.onnx")
    honest, liar = OnnxModel(model), OnnxModel(tmp_path / "liar.onnx")
    rows = queries(8)
    assert (liar.input, liar.output) == (honest.input, honest.output)
    assert not np.allclose(honest(rows), liar(rows), atol=1e-3)


def test_a_bundle_without_queries_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        parm_lab("demo", "--live", "--bundle", str(tmp_path)), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--inputs" in done.stderr
