"""`parm rehearse` shows the runs of a failure, and of an outage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Here, assert_refused, succeeded
from linear_bundles import CLASSES, FEATURES, WEIGHTS, linear_bundle
from parity_models import Bundle, UserError, calibrate, rehearse
from present import some

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return linear_bundle(tmp_path_factory.mktemp("bundle"), WEIGHTS, backup=WEIGHTS)


def test_a_rehearsal_shows_the_tails(bundle: Bundle, parm_here: Here) -> None:
    told = succeeded(parm_here("rehearse", str(bundle.path), columns=80))
    assert "…" not in told.stdout, "the table is cut"
    shown = ("stops now and then", "slowed down from", "equal-resources", "hedging", "adaptive")
    for said in (*shown, "copies", "stand-ins"):
        assert said in told.stdout
    assert "every instance stops" not in told.stdout


def test_all_runs_ask_the_same_and_count_each_answer_once(bundle: Bundle) -> None:
    found = rehearse(bundle, seconds=1.0)
    alone, hedged, helped = found.runs
    assert (alone.copies, alone.stood_in, hedged.stood_in) == (0, 0, 0)
    for run in (alone, hedged, helped):
        assert run.report.queries == alone.report.queries > 0
        assert 0 <= run.copies + run.stood_in <= run.report.answered
    assert not found.outage


def test_a_model_may_give_equal_values(tmp_path: Path) -> None:
    weights = np.zeros((FEATURES, CLASSES), np.float32)
    found = rehearse(linear_bundle(tmp_path, weights, backup=weights), seconds=1.0)
    assert all(run.right == run.answered for run in found.runs)


def test_in_an_outage_only_stand_ins_answer(bundle: Bundle) -> None:
    held_out = np.random.default_rng(1).normal(size=(500, FEATURES)).astype(np.float32)
    found = rehearse(calibrate(bundle, held_out), held_out, seconds=1.0, outage=True, differ=1.0)
    alone, hedged, helped = found.outage
    assert alone.stood_in == hedged.stood_in == 0
    assert helped.stood_in > max(alone.report.answered, hedged.report.answered)
    assert some(helped.right) == pytest.approx(helped.answered), "the backup is the model"
    assert some(helped.recovered) > 0
    text = str(found)
    for said in ("every instance stops", "time-out, default answer", f"{helped.stood_in:,} of"):
        assert said in text


@pytest.mark.parametrize(
    "wrong", [{"instances": 0}, {"instances": -1}, {"seconds": 0.0}, {"seconds": float("nan")}]
)
def test_instances_and_seconds_are_more_than_none(bundle: Bundle, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="1 instance or more, and lasts for a time above 0"):
        rehearse(bundle, **wrong)


def test_without_a_stand_in_there_is_nothing_to_rehearse(tmp_path: Path, parm_here: Here) -> None:
    alone = linear_bundle(tmp_path, np.ones((FEATURES, CLASSES), np.float32))
    assert_refused(parm_here("rehearse", str(alone.path)), "has no stand-in to see at work")
