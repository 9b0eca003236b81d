"""`parm-lab latency`: rows and pictures of what was run, and of what was run before."""

import json
from pathlib import Path

import pytest

from commands import Here, assert_refused
from small_experiment import SIMULATED


@pytest.mark.slow
def test_it_writes_rows_and_pictures_and_reuses_earlier_runs(
    lab_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SIMULATED)
    arguments = ("latency", "--figure", tmp_path / "small.toml", "--network", "none")
    places = ("--out", tmp_path / "out", "--work", tmp_path / "work")
    first = lab_here(*arguments, *places)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "out" / "small.json").read_text())
    assert result["command"].startswith("parm-lab latency --figure")
    assert result["queries"] == {"real": 2000, "simulated": 1000}
    at = [(row["load"], row["policy"], row["run"]) for row in result["rows"]]
    assert at == [
        (load, policy, "simulated")
        for load in ("0.3", "0.6")
        for policy in ("equal resources", "adaptive parity")
    ]
    for row in result["rows"]:
        assert 0 < row["p50"] <= row["p99"] <= row["p99.9"]
        assert row["failed"] == 0
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")
    again = lab_here(*arguments, *places)
    assert "simulated:" in first.stderr
    assert "simulated:" not in again.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("latency", "--preset", "huge"),
        ("latency", "--figure", "99z"),
        ("latency", "--network", "wireless"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    lab_here: Here, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(lab_here(*arguments, "--work", tmp_path), "")
