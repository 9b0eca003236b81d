"""`parm-lab demo` goes the whole path on real data and leaves a bundle."""

from pathlib import Path

import pytest
from rich.console import Console

from commands import Here, assert_refused
from parity_models.models.bundle import open_bundle
from parity_models.training import TrainingOptions
from parity_models_lab.demo import run_demo


@pytest.mark.slow
def test_the_demo_rehearses_a_failure_and_leaves_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    found = run_demo(out, TrainingOptions(epochs=20), Console(quiet=True), seconds=1.0)
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.degraded_accuracy is not None
    assert min(accuracy.available_accuracy, accuracy.degraded_accuracy) > 0.8
    for run in (found.without, found.with_stand_ins):
        assert run.answers > 0
    assert not found.without.sources.keys() - {"model"}


def test_a_folder_that_cannot_be_written_is_refused(lab_here: Here) -> None:
    assert_refused(lab_here("demo", "--out", "/dev/null/demo"), "--out: nothing can be written")
