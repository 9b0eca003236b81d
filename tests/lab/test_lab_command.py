"""The command `parm-lab`: mistakes are refused in one line, nothing is left of them."""

import json
from pathlib import Path

import pytest

from commands import Here, assert_refused
from parity_models_lab import path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("chaos --minutes 0.1s", "must be 0.01 min or more, got 0.1s"),
        ("overload --seconds soon", "must be a number of seconds, or a time with a unit"),
        ("overhead --instances few", "valid integer"),
        ("latency --figure lat", "did you mean late? Give a file, or one of 10, 11"),
        ("train --task nothing --network mlp --out x", "nothing"),
        ("train --task digits --network nothing --out x", "nothing"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(
    lab_here: Here, arguments: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lab_here(*arguments.split()), reason)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_a_request_is_counted_by_file(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "WARM_UP", 5)
    monkeypatch.setattr(path, "COUNTED", 5)
    done = lab_here("path", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "path.json").read_text())["rows"]
    assert "serving/frontend.py" in [row["file"] for row in rows]
    calls = sum(row["calls"] for row in rows)
    assert f"{len(rows)} files and {calls} calls" in done.stdout
    assert calls > len(rows)
