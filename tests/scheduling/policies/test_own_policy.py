"""A user's own policy, and its options, work wherever built-in ones do."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Here
from own_policy import POLICY
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            POLICY,
            {"again_after": 10},
            "again_after must be a number, above 0 and at most 9; got 10",
        ),
        (POLICY, {"again_after": "soon"}, "a number, above 0 and at most 9; got 'soon'"),
        (POLICY, {"scans": 7}, "scans is not an option of the policy"),
        (POLICY, {"again": 7}, "again is not an option .*; did you mean again_after"),
        (f"{__name__}:Path", {}, "cannot be the policy: it must be a subclass of"),
        ("hedgin", {}, "did you mean hedging"),
    ],
)
def test_options_and_policies_are_checked(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PolicyChoice(name, options)


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
