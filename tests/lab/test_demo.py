"""`parm-lab demo` goes the whole path on real data and leaves what it says."""

import json
from pathlib import Path

import pytest
from PIL import Image

from commands import Here, assert_refused
from parity_models.models.bundle import open_bundle
from parity_models.training import TrainingOptions
from parity_models_lab.demo import Scenario, run_demo
from parity_models_lab.tasks import find_task

pytestmark = pytest.mark.slow

SHORT = Scenario(instances=3, rate=150, queries=300, warm_up=30, slow_every=1.0)


def test_the_demo_serves_twice_and_leaves_a_bundle_a_summary_and_a_picture(tmp_path: Path) -> None:
    told: list[str] = []
    out, options = tmp_path / "new" / "folder", TrainingOptions(epochs=20)
    rows = run_demo(out, find_task("digits"), scenario=SHORT, options=options, tell=told.append)
    assert {path.name for path in out.iterdir()} == {"bundle", "summary.json", "latency.png"}
    with Image.open(out / "latency.png") as image:
        assert image.format == "PNG"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == rows
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.degraded_accuracy is not None
    assert summary["A_a"] == accuracy.available_accuracy > 0.8
    assert summary["A_d"] == accuracy.degraded_accuracy > 0.8
    equal, parity = rows
    assert (equal["policy"], parity["policy"]) == ("equal resources", "parity")
    assert (equal["stood in"] == 0, parity["stood in"] != 0) == (True, True)
    for row in summary["rows"]:
        assert (row["answers"], row["errors"]) == (300, 0), "one worker is killed"
        assert row["accuracy"] > 0.8
        assert row["gap"] > 0
    for said in (
        "Injected in both alike: each worker is slow 17% of the time",
        "a query takes 40 to 100 ms longer",
        "worker 0 is killed after 1 s",
        "300 queries at 150/s (Poisson)",
        "Serving: parity",
    ):
        assert said in "\n".join(told)
    assert SHORT.faults(1) == SHORT.faults(1) != SHORT.faults(2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--task", "nonesuch"), "there is no task 'nonesuch'"),
        (("--out", "/dev/null/demo"), "cannot make the folder"),
        (("--task", "fashion-mnist", "--data-dir", "/nonesuch"), "nonesuch"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    arguments: tuple[str, ...], reason: str, lab_here: Here, tmp_path: Path
) -> None:
    assert_refused(lab_here("demo", "--out", tmp_path / "out", *arguments), reason)
