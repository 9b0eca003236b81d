"""A search that was cut off goes on where it was, in real processes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torch import Tensor

from commands import Here, assert_refused, parm
from onnx_models import linear_model
from parity_models.models.bundle import open_bundle
from parity_models.protection.protect import Prepared, SearchOptions, prepare
from parity_models.training import Callbacks, Queries, open_teacher
from parity_models.training.candidates import Proposal
from parity_models.training.search import Done, Search, Searched, SearchFolder
from slow_network import PREDICTING

pytestmark = pytest.mark.slow

INPUTS = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
PATIENCE = 120.0
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
        await_state(folder, process, lambda found: rounds(found) >= 1)
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
    wanted = ("--minutes", "0.3", "--agreement", "0.1", "--extra-work", "10")
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


def state(folder: Path) -> Searched | None:
    try:
        content = (folder / "bundle.protect" / "search.json").read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(content, type=Searched)


def await_state(
    folder: Path, process: "subprocess.Popen[str]", reached: Callable[[Searched], bool]
) -> Searched:
    """What has been done, once that is so."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = state(folder)
        if found is not None and reached(found):
            return found
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("the search does not get on")


def rounds(searched: Searched) -> int:
    """How many trainings are over."""
    return sum(map(len, searched.done.values()))


def assert_kept(before: Searched, after: Searched) -> None:
    """Nothing that was over before has been trained again: it took as long, to the digit."""
    assert after.proposals == before.proposals
    for slug, done in before.done.items():
        assert after.done[slug][: len(done)] == done


def test_after_kill_9_and_ctrl_c_nothing_is_trained_again(
    killed: Path, parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(killed, tmp_path, monkeypatch)
    first = state(folder)
    assert first is not None
    assert not (folder / "bundle").exists()
    for more, flag in (
        (("--inputs", "others.npy"), "--inputs"),
        (("--model", "other.onnx"), "--model"),
        (("--agreement", "0.2"), "--agreement"),
        (("--hflip",), "--hflip"),
    ):
        refused = parm_here(*command("--resume", *more))
        assert_refused(refused, f"was begun with another {flag}; resume it with the same")
        assert state(folder) == first
    with running(folder, "--resume") as process:
        await_state(folder, process, lambda found: rounds(found) > rounds(first))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "interrupted: this is the best so far" in said
    second = state(folder)
    assert second is not None
    assert_kept(first, second)
    assert open_bundle(folder / "bundle").manifest.calibration
    done = parm_here(*command("--resume", "--minutes", "0.1"))
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


def prepared_for(folder: Path) -> Prepared:
    queries = Queries.of(INPUTS[:1400], calibration=INPUTS[1400:1700], test=INPUTS[1700:])
    with open_teacher(folder / "model.onnx", INPUTS) as teacher:
        return prepare(teacher, queries, SearchOptions(), Callbacks())


class Cut(SearchFolder):
    """Ctrl-C comes when what was trained is about to be kept, or to be trained, the n-th time."""

    def __init__(self, path: Path, *, saved: int = 0, begun: int = 0) -> None:
        super().__init__(path)
        self._saved, self._begun = saved, begun

    def save(self, proposal: Proposal, weights: dict[str, Tensor]) -> None:
        self._saved -= 1
        if self._saved == 0:
            raise KeyboardInterrupt
        super().save(proposal, weights)

    def checkpoint(self, proposal: Proposal, rung: int) -> Path:
        self._begun -= 1
        if self._begun == 0:
            raise KeyboardInterrupt
        return super().checkpoint(proposal, rung)


def test_no_more_candidates_are_tried_than_there_is_time_to_judge(folder: Path) -> None:
    names = ("linear", "mlp@0.25", "mlp@0.5", "mlp")
    prepared = prepared_for(folder)
    proposed = tuple(Proposal(name, None, 0.9) for name in names)
    searched = Searched(prepared.options, proposed)
    done = Done(score=0.5, covered=0.5, seconds=0.0, epochs=1)
    # There is time for all in the first, which is cut off rather than waited for.
    for seconds, judging, resumed, untried in (
        (20.0, 0.0, {}, []),
        (1.0, 9.0, {}, names[2:]),
        (1.0, 9.0, {"mlp": done}, ["mlp@0.5"]),
    ):
        search_folder = Cut(folder / "search", begun=2)
        search_folder.begin(searched)
        lesson = replace(prepared.lesson, judging=judging)
        state = msgspec.structs.replace(
            searched, done={name: (each,) for name, each in resumed.items()}
        )
        for name in resumed:
            proposal = Proposal(name, None, 0.9)
            search_folder.save(proposal, lesson.candidate(proposal).weights)
        found = Search(lesson, state, search_folder, Callbacks()).run(seconds)
        told = [name for name, why in found.dropped.items() if why.startswith("not tried")]
        assert told == [f"backup {name}" for name in untried]


def test_when_the_time_is_over_each_has_been_trained_once_and_goes_on_when_resumed(
    folder: Path,
) -> None:
    prepared = prepared_for(folder)
    proposed = (Proposal("linear", None, 0.5), Proposal("mlp@0.25", None, 0.9))
    searched = Searched(prepared.options, proposed)
    search_folder = SearchFolder(folder / "search")
    search_folder.begin(searched)
    found = Search(prepared.lesson, searched, search_folder, Callbacks()).run(0.01)
    assert not found.interrupted
    before = search_folder.read(prepared.options)
    assert [len(done) for done in before.done.values()] == [1, 1]
    Search(prepared.lesson, before, search_folder, Callbacks()).run(3.0)
    after = search_folder.read(prepared.options)
    assert_kept(before, after)
    assert rounds(after) > 2


def test_what_takes_longer_to_judge_than_there_is_time_is_trained_once(folder: Path) -> None:
    prepared = prepared_for(folder)
    proposed = (Proposal("slow_network:SlowToPredict", None, 0.5),)
    searched = Searched(prepared.options, proposed)
    search_folder = SearchFolder(folder / "search")
    search_folder.begin(searched)
    # Of this the last round has half, in which it is judged neither once nor twice.
    found = Search(prepared.lesson, searched, search_folder, Callbacks()).run(2 * PREDICTING)
    assert [each.name for each in found.finalists] == ["backup slow_network:SlowToPredict"]
    [done] = search_folder.read(prepared.options).done.values()
    assert len(done) == 1


def test_ctrl_c_between_two_trainings_leaves_what_was_trained(folder: Path) -> None:
    prepared = prepared_for(folder)
    proposed = (Proposal("linear", None, 0.5), Proposal("mlp@0.25", None, 0.9))
    searched = Searched(prepared.options, proposed)
    for cut, trained in (({"saved": 1}, 1), ({"saved": 2}, 2), ({"begun": 2}, 1)):
        search_folder = Cut(folder / "search", **cut)
        search_folder.begin(searched)
        found = Search(prepared.lesson, searched, search_folder, Callbacks()).run(3.0)
        assert found.interrupted
        assert len(found.finalists) + len(found.dropped) == trained
    cut_at_once = Cut(folder / "search", begun=1)
    with pytest.raises(KeyboardInterrupt):  # there is nothing that could be written
        Search(prepared.lesson, searched, cut_at_once, Callbacks()).run(3.0)
