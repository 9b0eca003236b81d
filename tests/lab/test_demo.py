"""`parm-lab demo` goes the whole path on real data and leaves a bundle."""

from functools import partial
from pathlib import Path

import pytest

from commands import Here
from parity_models.models.bundle import open_bundle
from parity_models.training import TrainingOptions
from parity_models_lab import demo


@pytest.mark.slow
def test_the_demo_rehearses_a_failure_and_leaves_a_bundle(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TrainingOptions", partial(TrainingOptions, epochs=20))
    monkeypatch.setattr(demo, "SECONDS", 1.0)
    out = tmp_path / "new" / "folder"
    done = lab_here("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "one instance is stopped now and then" in done.stdout
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.degraded_accuracy is not None
    assert min(accuracy.available_accuracy, accuracy.degraded_accuracy) > 0.8
