"""`parm-lab demo` goes the whole path on real data and leaves what it says."""

from pathlib import Path

import msgspec
import pytest
from PIL import Image

from commands import Here, assert_refused
from parity_models.emulation import Slowdowns, Uniform
from parity_models.models.bundle import open_bundle
from parity_models.tasks import find_task
from parity_models.training import TrainingOptions
from parity_models_lab.demo import DemoSummary, Scenario, run_demo

pytestmark = pytest.mark.slow

SHORT = Scenario(
    instances=3,
    rate=150,
    queries=300,
    warm_up=30,
    slowdowns=Slowdowns(1.0, 0.2, Uniform(0.04, 0.1)),
)


def test_the_demo_serves_twice_and_leaves_a_bundle_a_summary_and_a_picture(tmp_path: Path) -> None:
    told: list[str] = []
    out, options = tmp_path / "new" / "folder", TrainingOptions(epochs=20)
    task = find_task("digits")
    summary = run_demo(out, task, scenario=SHORT, options=options, tell=told.append)
    assert {path.name for path in out.iterdir()} == {"bundle", "summary.json", "latency.png"}
    with Image.open(out / "latency.png") as image:
        assert image.format == "PNG"
    assert msgspec.json.decode((out / "summary.json").read_bytes(), type=DemoSummary) == summary
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert summary.available_accuracy == accuracy.available_accuracy > 0.8
    assert summary.degraded_accuracy == accuracy.degraded_accuracy
    assert summary.degraded_accuracy > 0.8
    for row, report in zip(summary.rows(), summary.policies.values(), strict=True):
        assert (row["answers"], row["errors"], report.errors) == (300, 0, {}), (
            "one worker is killed"
        )
        assert report.accuracy is not None
        assert report.accuracy > 0.8
        assert report.latency is not None
        assert report.latency.gap_ms > 0
    equal, parity = summary.rows()
    assert (equal["policy"], parity["policy"]) == ("equal resources", "parity")
    assert equal["stood in"] == 0
    assert parity["stood in"] != 0
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
