"""`parm-lab rollout` on real processes, for seconds: what it says adds up."""

import asyncio
from pathlib import Path

import pytest

from parity_models_lab.reliability.rollout import PhaseResult, rollout_claims, run_rollout

pytestmark = pytest.mark.slow


def test_a_rollout_under_load_fails_and_mixes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    result = asyncio.run(
        run_rollout(
            folder=tmp_path,
            seed=1,
            load=0.2,
            seconds=1.0,
            rollouts=1,
            instances=3,
            pause=0.2,
            say=said.append,
        )
    )
    failed, mixed, _ = result.claims
    assert failed.met, failed.found
    assert mixed.met, mixed.found
    assert [row[0] for row in result.rows] == ["before", "kills", "rollouts"]
    assert "1: " in result.rows[2][2]
    assert "2: " in result.rows[2][2]
    assert said[-1].startswith("version 2 after")


def phase(name: str, p999: float, **ends: int) -> PhaseResult:
    return PhaseResult(name, sum(ends.values()), dict(ends), 1.0, 2.0, p999)


def test_what_must_hold_is_computed() -> None:
    before = phase("before", 10.0, one=99)
    good = rollout_claims((before, phase("rollouts", 15.0, one=100)))
    assert [claim.met for claim in good] == [True, True, True]
    bad = PhaseResult(
        "rollouts", 3, {"failed: 503": 1, "mixed: 1 and 2": 1, "1": 1}, 1.0, 2.0, 16.0
    )
    assert [claim.met for claim in rollout_claims((before, bad))] == [False, False, False]
