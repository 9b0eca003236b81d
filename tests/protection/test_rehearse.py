"""`parm rehearse` shows both runs of a failure."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.emulation import FaultPlan
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.protection.rehearse import Fault, rehearse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return linear_bundle(tmp_path_factory.mktemp("bundle"), weights, backup=weights)


def test_a_rehearsal_shows_the_tails(bundle: Bundle, tmp_path: Path, parm_here: Here) -> None:
    out = tmp_path / "rehearsed.json"
    of = ("rehearse", str(bundle.path))
    told = parm_here(*of, "--json", str(out), columns=80)
    assert told.returncode == 0, told.stderr
    assert "…" not in told.stdout, "the table is cut"
    for said in ("stopped now and then", "equal-resources", "adaptive", "backup", "stand-in"):
        assert said in told.stdout
    found = json.loads(out.read_text())
    alone, helped = found["without"], found["with_stand_ins"]
    assert alone["sources"].keys() == {"model"}
    assert helped["sources"].keys() <= {"model", "backup"}
    assert alone["answers"] + alone["failed"] == helped["answers"] + helped["failed"] > 0


def test_without_a_stand_in_there_is_nothing_to_rehearse(tmp_path: Path, parm_here: Here) -> None:
    alone = linear_bundle(tmp_path, np.ones((FEATURES, CLASSES), np.float32))
    assert_refused(parm_here("rehearse", str(alone.path)), "has no stand-in to see at work")
    for fault in Fault:
        plan = fault.plan(3.0, 0.02)
        plan.check(1)  # only the first instance has it
        assert plan != FaultPlan()
    with pytest.raises(UserError, match="must be one of kill, stop, slow, got 'burn'"):
        rehearse(alone, fault="burn")
