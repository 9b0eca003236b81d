"""`parm-lab reproduce`: reports and pictures of what was run, and of what was run before."""

from pathlib import Path

import pytest

from commands import Here, assert_refused
from small_experiment import SIMULATED


@pytest.mark.slow
def test_reproduce_writes_a_report_and_pictures_and_reuses_what_was_run(
    lab_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SIMULATED)
    arguments = ("reproduce", "latency", "--figure", tmp_path / "small.toml", "--network", "none")
    places = ("--out", tmp_path / "latency.md", "--work", tmp_path / "work")
    first = lab_here(*arguments, *places)
    assert first.returncode == 0, first.stderr
    report = (tmp_path / "latency.md").read_text()
    assert "| 0.6 | adaptive parity |" in report
    assert "Everything here is simulated." in report
    assert (tmp_path / "latency" / "small.png").read_bytes().startswith(b"\x89PNG")
    again = lab_here(*arguments, *places)
    assert "simulated:" in first.stderr
    assert "simulated:" not in again.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("reproduce", "latency", "--preset", "huge"),
        ("reproduce", "latency", "--figure", "99z"),
        ("reproduce", "latency", "--network", "wireless"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    lab_here: Here, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(lab_here(*arguments, "--work", tmp_path), "")
