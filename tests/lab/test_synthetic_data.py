"""Datasets made here are like those they stand for, and the same whenever they are made."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import invoke_lab
from parity_models.errors import DataError
from parity_models.tasks import TASKS, find_task
from parity_models_lab.tasks import Localization, SmallSpeechCommands, make_boxes, make_speech
from parity_models_lab.tasks.make_speech import PROGRAM
from parity_models_lab.tasks.speech import read_second

needs_espeak = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"made speech needs the package {PROGRAM}"
)
needs_garments = pytest.mark.skipif(
    find_task("fashion-mnist").find() is None,
    reason="made boxes hold Fashion-MNIST's garments: the package dataset-fashion-mnist",
)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(*arguments: str) -> str:
    result = invoke_lab("data", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


@needs_espeak
def test_synthetic_speech_is_a_task_with_speakers_apart(tmp_path: Path) -> None:
    run("synth-speech", "--out", str(tmp_path / "a"), "--speakers", "10", "--takes", "1",
        "--words", "yes,no")  # fmt: skip
    data = SmallSpeechCommands().load(tmp_path / "a")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 2, 2]
    assert data.classes == ("no", "yes")
    loudest = [np.abs(read_second(path)).max() for path in tmp_path.rglob("*.wav")]
    assert len(loudest) == 20
    assert min(loudest) > 5000
    make_speech(tmp_path / "b", speakers=10, takes=1, words=("yes", "no"))
    make_speech(tmp_path / "c", speakers=10, takes=1, words=("yes", "no"), seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


@needs_garments
@pytest.mark.slow
def test_synthetic_boxes_hold_the_garment(tmp_path: Path) -> None:
    run("synth-boxes", "--out", str(tmp_path / "a"), "--images", "40")
    data = Localization().load(tmp_path / "a")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [29, 3, 8]
    left, top, right, bottom = data.train.labels.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 1).all()
    assert (bottom <= 1).all()
    longer = 64 * np.maximum(right - left, bottom - top)
    assert ((longer > 19) & (longer < 49)).all()
    make_boxes(tmp_path / "b", images=40)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert "found in" in run(
        "info", "parity_models_lab.tasks:Localization", "--data-dir", str(tmp_path / "b")
    )


def test_speech_without_espeak_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=f"apt install {PROGRAM}"):
        make_speech(tmp_path / "speech")


@needs_garments
def test_what_is_there_is_not_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="is there already"):
        make_boxes(tmp_path, images=10)

    def fail(made: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_boxes(tmp_path / "boxes", images=10, progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few for a test set"):
        make_boxes(tmp_path / "a", images=9)


def test_the_list_says_which_tasks_are_here(tmp_path: Path) -> None:
    said = run("list", "--data-dir", str(tmp_path))
    for name in TASKS.names:
        assert name in said
    assert said.count("scikit-learn") == 2
    assert "not found" in said
