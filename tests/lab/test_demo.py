"""`parm-lab demo` goes the whole path on real data and leaves what it says."""

import json
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from commands import Here, assert_refused
from parity_models.emulation import Slowdowns, Uniform
from parity_models.load.report import LoadReport
from parity_models.models.bundle import open_bundle
from parity_models.tasks import find_task
from parity_models.training import TrainingOptions
from parity_models_lab.demo import CODE, Scenario, run_demo

pytestmark = pytest.mark.slow

SHORT = Scenario(
    instances=3,
    rate=150,
    queries=300,
    warm_up=30,
    slowdowns=Slowdowns(1.0, 0.2, Uniform(0.04, 0.1)),
)


@pytest.fixture(scope="module")
def told_and_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    told: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    run_demo(
        out,
        find_task("digits"),
        scenario=SHORT,
        options=TrainingOptions(epochs=20),
        tell=told.append,
    )
    return "\n".join(told), out


def test_the_demo_leaves_a_bundle_a_summary_and_a_picture(
    told_and_folder: tuple[str, Path],
) -> None:
    _, out = told_and_folder
    assert {path.name for path in out.iterdir()} == {"bundle", "summary.json", "latency.png"}
    bundle = open_bundle(out / "bundle")
    assert bundle.manifest.code == CODE
    with Image.open(out / "latency.png") as image:
        assert image.format == "PNG"
    summary = json.loads((out / "summary.json").read_text())
    accuracy = bundle.manifest.accuracy
    assert accuracy is not None
    assert summary["available_accuracy"] == accuracy.available_accuracy > 0.8
    assert accuracy.degraded_accuracy is not None
    assert summary["degraded_accuracy"] == accuracy.degraded_accuracy > 0.8
    assert set(summary) == {"policies", "available_accuracy", "degraded_accuracy"}
    assert set(summary["policies"]) == {"equal resources", "parity"}
    for policy in summary["policies"].values():
        report = msgspec.convert(policy, LoadReport)
        assert report.latency is not None
        assert report.latency.gap_ms > 0


def test_every_query_is_answered_in_both_runs_though_a_worker_is_killed(
    told_and_folder: tuple[str, Path],
) -> None:
    _, out = told_and_folder
    policies = json.loads((out / "summary.json").read_text())["policies"]
    for policy in policies.values():
        assert (policy["answered"], policy["errors"]) == (300, {})
        assert policy["accuracy"] > 0.8
    assert set(policies["equal resources"]["sources"]) == {"model"}
    assert policies["parity"]["sources"]["reconstruction"]["count"] > 0


def test_the_demo_says_what_it_injects(told_and_folder: tuple[str, Path]) -> None:
    told, _ = told_and_folder
    for said in (
        "Injected in both alike: each worker is slow 17% of the time",
        "a query takes 40 to 100 ms longer",
        "worker 0 is killed after 1 s",
        "300 queries at 150/s (Poisson)",
        "Serving: equal resources",
        "Serving: parity",
    ):
        assert said in told


def test_both_runs_follow_one_plan_that_the_seed_fixes() -> None:
    assert SHORT.faults(1) == SHORT.faults(1) != SHORT.faults(2)
    (kill,) = SHORT.faults(1).kills
    assert kill.at == SHORT.half_time


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
