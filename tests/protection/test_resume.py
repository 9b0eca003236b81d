"""A search that was cut off goes on where it was, in real processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from commands import Here, assert_refused, parm
from onnx_models import linear_model
from parity_models.models.bundle import open_bundle

pytestmark = pytest.mark.slow

INPUTS = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
PATIENCE = 280.0
"""Seconds for a process to get on, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and their queries."""
    made = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("model.onnx", "other.onnx")):
        weights = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
        linear_model(made / name, (6,), (4,), 3 * weights)
    np.save(made / "inputs.npy", INPUTS)
    np.save(made / "others.npy", INPUTS + 1)
    return made


@pytest.fixture(scope="module")
def killed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it in which a search was killed after its first trainings."""
    folder = tmp_path_factory.mktemp("killed") / "copy"
    shutil.copytree(made, folder)
    with running(folder) as process:
        await_more(folder, process, than=0)
        process.kill()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder, for one test, which is in it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*more: str) -> list[str]:
    usual = ("--model", "model.onnx", "--inputs", "inputs.npy", "--out", "bundle")
    wanted = ("--minutes", "1", "--agreement", "0.1")
    return ["protect", *usual, *wanted, *more]


@contextmanager
def running(folder: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        parm(*command(*more)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


Done = dict[str, list[object]]
"""What each candidate was, by its file, at the end of each round."""


def done_in(folder: Path) -> Done:
    found: Done = {}
    for path in (folder / "bundle.protect").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.stem] = json.loads(file.metadata()["done"])
    return found


def await_more(folder: Path, process: "subprocess.Popen[str]", than: int) -> None:
    """Wait until more trainings than these are over."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if rounds(done_in(folder)) > than:
            return
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("the search does not get on")


def rounds(done: Done) -> int:
    """How many trainings are over."""
    return sum(map(len, done.values()))


def test_after_kill_9_and_ctrl_c_nothing_is_trained_again(
    killed: Path, parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(killed, tmp_path, monkeypatch)
    first = done_in(folder)
    assert not (folder / "bundle").exists()
    for more, flag in (
        (("--inputs", "others.npy"), "--inputs"),
        (("--model", "other.onnx"), "--model"),
        (("--agreement", "0.2"), "--agreement"),
    ):
        refused = parm_here(*command("--resume", *more))
        assert_refused(refused, f"was begun with another {flag}; resume it with the same")
        assert done_in(folder) == first
    # With minutes enough, a slow machine is not interrupted in what follows the search. It may have
    # trained so little that no level of agreement is shown.
    with running(folder, "--resume", "--minutes", "3", "--ungated") as process:
        await_more(folder, process, than=rounds(first))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "interrupted: this is the best so far" in said
    second = done_in(folder)
    # Nothing was trained again: it took as long, to the digit.
    assert all(second[name][: len(done)] == done for name, done in first.items())
    manifest = open_bundle(folder / "bundle").manifest
    assert manifest.backups or manifest.parity
    done = parm_here(*command("--resume", "--minutes", "0.1", "--ungated"))
    assert done.returncode == 0, done.stderr
    assert "interrupted" not in done.stdout + done.stderr
    assert not list((folder / "bundle.protect").iterdir())


def test_a_damaged_state_is_refused(
    killed: Path, parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(killed, tmp_path, monkeypatch)
    file = folder / "bundle.protect" / "search.json"
    file.write_bytes(file.read_bytes()[:-20])
    assert_refused(parm_here(*command("--resume")), "search.json is damaged")
