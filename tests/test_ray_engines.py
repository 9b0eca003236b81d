"""An experiment that runs on every engine runs on Ray, too, from its file."""

from pathlib import Path

import pytest

from commands import Here
from parity_models.training import Settings

SMALL = """
title = "Small"
axis = "rate"
points = [{ rate = 100 }]
real_queries = 100
[setting]
instances = 2
shuffles = 1
service = { type = "constant", seconds = 0.002 }
delay = { type = "constant", seconds = 0.01 }
[[series]]
label = "parity, shared pool"
policy = { name = "parity", max_group_wait = 0.005 }
"""


def test_an_experiment_runs_on_ray(
    parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_models.bench.real_trial.Settings", lambda: Settings(epochs=6))
    (tmp_path / "small.toml").write_text(SMALL)
    out = tmp_path / "engines.md"
    done = parm_here(
        *("reproduce", "engines", "--figure", str(tmp_path / "small.toml"), "--out", str(out)),
        *("--engine", "ray", "--work", str(tmp_path / "work")),
    )
    assert done.returncode == 0, done.stderr
    (row,) = [line.split(" | ") for line in out.read_text().splitlines() if " | ray | " in line]
    assert row[2] == "parity, shared pool"
    assert row[10] == "0"  # failed
    assert float(row[11].removesuffix("%")) > 80  # accuracy
