"""`parm-lab demo` goes the whole path on real data and leaves what it says."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from commands import Here, assert_refused
from parity_models.models.bundle import open_bundle
from parity_models.training import TrainingOptions
from parity_models_lab.demo import run_demo


@pytest.mark.slow
def test_the_demo_serves_twice_and_leaves_a_bundle_a_summary_and_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    rows = run_demo(out, TrainingOptions(epochs=20), 300, Console(quiet=True))
    assert {path.name for path in out.iterdir()} == {"bundle", "summary.json", "latency.png"}
    with Image.open(out / "latency.png") as image:
        assert image.format == "PNG"
    assert json.loads((out / "summary.json").read_text())["rows"] == rows
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.degraded_accuracy is not None
    assert min(accuracy.available_accuracy, accuracy.degraded_accuracy) > 0.8
    equal, parity = rows
    assert (equal["policy"], parity["policy"]) == ("equal resources", "parity")
    assert (equal["stood in"] == 0, parity["stood in"] != 0) == (True, True)
    for row in rows:
        assert (row["answers"], row["errors"]) == (300, 0), "one worker is killed"
        assert float(str(row["accuracy"])) > 0.8


def test_a_folder_that_cannot_be_written_is_refused(lab_here: Here) -> None:
    assert_refused(lab_here("demo", "--out", "/dev/null/demo"), "--out: nothing can be written")
