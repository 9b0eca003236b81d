"""An experiment that runs on every engine runs on Ray, too, from its file."""

from pathlib import Path

import pytest

from commands import Here
from small_experiment import SMALL, train_briefly

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_an_experiment_runs_on_ray(lab_here: Here, tmp_path: Path) -> None:
    # Fewer queries a second: on Ray each takes more of the cores.
    setting, _, parity = SMALL.replace("rate = 300", "rate = 40").split("[[series]]")
    (tmp_path / "small.toml").write_text(f"{setting}[[series]]{parity}")
    train_briefly(tmp_path / "work", tmp_path / "small.toml")
    out = tmp_path / "engines.md"
    done = lab_here(
        *("reproduce", "engines", "--figure", str(tmp_path / "small.toml"), "--out", str(out)),
        *("--engine", "ray", "--work", str(tmp_path / "work")),
    )
    assert done.returncode == 0, done.stderr
    (row,) = [line.split(" | ") for line in out.read_text().splitlines() if " | ray | " in line]
    assert row[2] == "parity, shared pool"
    assert row[10] == "0"  # failed
    assert float(row[11].removesuffix("%")) > 80  # accuracy
