"""`parm rehearse` shows both runs of a failure."""

from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.bundle.bundle import Bundle
from parity_models.load.rehearse import rehearse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return linear_bundle(tmp_path_factory.mktemp("bundle"), weights, backup=weights)


def test_a_rehearsal_shows_the_tails(bundle: Bundle, parm_here: Here) -> None:
    told = parm_here("rehearse", str(bundle.path), columns=80)
    assert told.returncode == 0, told.stderr
    assert "…" not in told.stdout, "the table is cut"
    for said in ("stops now and then", "equal-resources", "adaptive", "backup", "stand-in"):
        assert said in told.stdout


def test_both_runs_ask_the_same(bundle: Bundle) -> None:
    found = rehearse(bundle, seconds=1.0)
    alone, helped = found.without, found.with_stand_ins
    assert alone.sources.keys() == {"model"}
    assert helped.sources.keys() <= {"model", "backup"}
    assert alone.queries == helped.queries > 0


def test_without_a_stand_in_there_is_nothing_to_rehearse(tmp_path: Path, parm_here: Here) -> None:
    alone = linear_bundle(tmp_path, np.ones((FEATURES, CLASSES), np.float32))
    assert_refused(parm_here("rehearse", str(alone.path)), "has no stand-in to see at work")
