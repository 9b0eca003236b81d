"""`parm simulate`: what it takes, prints and writes."""

import json
from pathlib import Path

import pytest

from commands import Here, assert_refused


def test_simulate_compares_settings_and_writes_json(parm_here: Here, tmp_path: Path) -> None:
    done = parm_here(
        "simulate", "--queries", "1000", "--service-time", "25ms", "--backup-time", "5ms",
        "--coverage", "50%", "--policy", "hedging", "--policy", "hedging@hedge-delay=5ms",
        "--policy", "adaptive", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "s.json").read_text())
    assert {"hedging", "adaptive"} < report["policies"].keys()
    assert 0.005 in [each.get("hedge_delay") for each in report["options"]]
    for each in report["policies"].values():
        assert each["p999_ms"] > each["p50_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--rate 0", "'--rate': must be above 0"),
        ("--policy hedging@copies=3", "copies is not an option of the policy hedging"),
        ("--policy hedgin", "did you mean hedging?"),
        ("--policy hedging --dispatch singel-queue", "did you mean single-queue?"),
        ("--dispatch single-queue", "--dispatch needs --policy as well"),
        ("--coverage -0.1", "must be from 0 to 1, got -0.1"),
    ],
)
def test_mistakes_are_told_in_one_line(parm_here: Here, arguments: str, reason: str) -> None:
    assert_refused(parm_here("simulate", *arguments.split(), "--queries", 1000), reason)
