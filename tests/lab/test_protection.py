"""parm-lab reproduce protect: what is judged and written, and all of it on a small model."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from commands import Here, assert_refused
from parity_models.faults import Constant, FaultPlan, Slowdowns
from parity_models.protection.in_place import InPlace
from parity_models.protection.simulated import Scene
from parity_models.simulation.course import SHARES
from parity_models_lab.protection.protection_report import write_report
from parity_models_lab.protection.results import (
    Found,
    Proof,
    Real,
    Search,
    Simulated,
    StandIn,
    Tails,
)
from parity_models_lab.protection.tails import run_for_real
from parity_models_lab.protection.targets import on_time, stand_ins
from served import predictions, queries, write_linear_bundle

SCENE = Scene(200.0, 4, 1, FaultPlan(), 0, 40_000, 4_000)


def found(*stand_ins: StandIn, accuracy: float | None = 0.9) -> Found:
    plans = (
        Simulated(3.4, 20.0, 40.0, 0.0, "no redundancy", 0.0, None),
        Simulated(3.4, 10.0, 20.0, 0.2, "backup mlp", 0.05, 0.2),
    )
    served = InPlace(1.0, tuple(np.full(len(SHARES), 0.6).tolist()), 900)
    times = {"1": 3.0, "4": 11.0}
    return Found(times, accuracy, served, stand_ins, 2000, SCENE, plans, "backup mlp")


def proof(
    seconds: float,
    p99: float,
    p999: float,
    *stand_ins: StandIn,
    failed: int = 0,
    accuracy: float | None = 0.9,
) -> Proof:
    failures = {"timeout": failed} if failed else {}
    runs = {
        "no redundancy": Real(4.1, 21.0, 41.0, 0.0, 9000),
        "backup mlp": Real(4.1, p99, p999, 0.19, 9000, failures),
    }
    search = Search(2.0, seconds, found(*stand_ins, accuracy=accuracy))
    tails = Tails(runs)
    return Proof("A net", 0.95, "2026-01-01", (1.0, 2.0), search, tails)


@pytest.mark.parametrize(
    ("seconds", "p99", "p999", "failed", "met"),
    [
        (120.0, 10.0, 20.0, 0, [True, True, True]),
        (131.9, 11.7, 17.5, 0, [True, True, True]),
        (132.1, 11.8, 17.3, 0, [False, False, False]),
        (107.9, 8.6, 23.6, 0, [False, False, False]),
        (120.0, 10.0, 20.0, 1, [True, False, False]),
    ],
)
def test_minutes_and_tails_are_judged_by_how_far_they_are_off(
    seconds: float, p99: float, p999: float, failed: int, met: list[bool]
) -> None:
    judged = list(on_time(proof(seconds, p99, p999, failed=failed, accuracy=None)))
    assert [target.met for target in judged] == met


def test_a_stand_in_that_is_slower_counts_for_nothing() -> None:
    slow = StandIn("slow", 1.5, 0.99, 0.9, 0.9)
    same = StandIn("same", 1.0, 0.97, 0.889, 0.8)
    fast = StandIn("fast", 0.1, 0.9, 0.84, 0.5)
    as_good, tenth = stand_ins(proof(120, 10, 20, slow, same, fast))
    assert not as_good.met
    assert as_good.measured == "88.9% (same)"
    assert tenth.met
    assert tenth.measured == "10%, A_d 84.0% (fast)"
    as_good, tenth = stand_ins(proof(120, 10, 20, slow))
    assert (as_good.met, as_good.measured) == (False, "none is as fast")
    assert not tenth.met
    as_good, _ = stand_ins(proof(120, 10, 20, StandIn("as good", 1.0, 0.97, 0.89, 0.8)))
    assert as_good.met


def test_without_labels_accuracies_are_not_judged() -> None:
    assert list(stand_ins(proof(120, 10, 20, StandIn("one", 1.0, 0.97, None, 0.8)))) == []


def test_a_tail_that_was_not_run_is_not_judged() -> None:
    simulated = msgspec.structs.replace(proof(120, 10, 20, accuracy=None), tails=None)
    _, *tails = on_time(simulated)
    assert [(target.met, target.measured) for target in tails] == 2 * [(None, "not run")]


def test_a_search_that_finds_nothing_is_a_target_missed(tmp_path: Path) -> None:
    nothing = Proof("A net", 0.95, "2026-01-01", (1.0, 2.0), Search(2.0, 119.0, None))
    [target] = [*on_time(nothing), *stand_ins(nothing)]
    assert (target.met, target.measured) == (False, "119 s, without a stand-in")
    write_report(tmp_path / "page.md", [nothing], "parm ...")
    assert "It found no stand-in." in (tmp_path / "page.md").read_text()


def test_the_page_has_what_was_judged_and_how_busy_the_machine_was(tmp_path: Path) -> None:
    page = tmp_path / "folder" / "page.md"
    mlp = StandIn("mlp", 0.2, 0.97, None, 0.8)
    write_report(page, [proof(150, 12.0, 20.0, mlp, accuracy=None)], "parm ...")
    said = page.read_text()
    assert "load was 1.0 before, and 2.0" in said
    assert "0 failed. In a calm server units held an instance for 1.00 ms besides" in said
    assert "| 120 s ± 10% | 150 s | **no** |" in said
    assert "| ± 15% | -17% | **no** |" in said
    assert "0.60 ms more at the median, 0.60 at p99" in said
    assert "| backup mlp | 4.10 | 3.40 | -17% | 12.00 | 10.00 | -17% |" in said


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_run(
    lab_here: Here, tmp_path: Path
) -> None:
    args = ("reproduce", "protect", "--quick", "--work", tmp_path / "work")
    assert_refused(lab_here(*args, "--out", tmp_path), "--out is the report's file")
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_what_was_simulated_is_run_for_real_with_its_contention(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path, coded=False, backed=True)
    rows = queries(64)
    np.savez(tmp_path / "queries.npz", inputs=rows, labels=predictions(rows).argmax(axis=1))
    slow = FaultPlan(slowdowns=Slowdowns(0.0, 3600.0, Constant(0.03), workers=(0,)))
    scene = Scene(40.0, 2, 1, slow, 0, 1000, 100)
    said: list[str] = []
    tails = await run_for_real(
        bundle,
        msgspec.structs.replace(found(), scene=scene),
        tmp_path / "queries.npz",
        0,
        2.0,
        said.append,
    )
    assert said == ["no redundancy", "backup mlp"]
    without, protected = tails.runs["no redundancy"], tails.runs["backup mlp"]
    assert (without.failures, protected.failures) == ({}, {})
    assert without.queries == protected.queries == 80
    assert without.p99_ms > 30
    assert without.stood_in == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_on_a_small_model_and_once(lab_here: Here, tmp_path: Path) -> None:
    page, work = tmp_path / "page.md", tmp_path / "work"
    args = ("reproduce", "protect", "--quick", "--work", work, "--out", page)
    first = lab_here(*args)
    assert first.returncode == 0, first.stderr
    said = page.read_text()
    for heading in ("## Targets", "## A small MLP", "| no redundancy |"):
        assert heading in said
    assert said.count("| yes |") + said.count("| **no** |") >= 5
    assert "no redundancy, for real" in first.stderr
    again = lab_here(*args)
    assert again.stderr == ""
    assert page.read_text() == said
