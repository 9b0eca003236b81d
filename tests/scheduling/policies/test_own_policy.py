"""A user's own policy, and its options, work wherever built-in ones do."""

import json
from pathlib import Path

import pytest

from commands import Here
from own_policy import POLICY
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice


def test_its_options_are_checked_as_it_says() -> None:
    with pytest.raises(
        UserError, match="again_after must be a number, above 0 and at most 9; got 10"
    ):
        PolicyChoice(POLICY, {"again_after": 10})
    with pytest.raises(
        UserError, match="again_after must be a number, above 0 and at most 9; got 'soon'"
    ):
        PolicyChoice(POLICY, {"again_after": "soon"})
    with pytest.raises(UserError, match="scans is not an option of the policy"):
        PolicyChoice(POLICY, {"scans": 7})
    with pytest.raises(UserError, match=r"again is not an option .*; did you mean again_after"):
        PolicyChoice(POLICY, {"again": 7})


def test_class_that_is_no_policy_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be the policy: it must be a subclass of"):
        PolicyChoice(f"{__name__}:Path")
    with pytest.raises(UserError, match="did you mean hedging"):
        PolicyChoice("hedgin")


def test_it_is_simulated(parm_here: Here, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    short = ("--queries", 1000, "--service-time", "25ms", "--json", out)
    flags = ("--policy", f"{POLICY}@again-after=1ms", "--dispatch=latency-aware")
    done = parm_here("simulate", *flags, *short)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    asked = {"name": POLICY, "dispatch": "latency-aware", "again_after": 0.001}
    assert asked in numbers["options"]
    assert f"{POLICY}@again-after=1, latency-aware" in numbers["policies"]
