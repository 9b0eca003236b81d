"""The command `parm-lab`: mistakes are refused in one line; the cost of requests is measured."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from commands import Here, assert_refused
from parity_models.bundle.bundle import open_bundle
from parity_models.training import TrainingOptions
from parity_models_lab import demo, overhead, path
from parity_models_lab.overhead import CASES, FLOOR, OURS, TRITONS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("chaos --minutes 0.1s", "at least 0.01 min; got '0.1s'"),
        ("chaos --events kill,rain", "there is no event 'rain'; there are calm, kill"),
        ("chaos --engine ray --events frontend", "there is no event 'frontend'"),
        ("chaos --engine cloud", "must be one of local, remote, ray"),
        ("demo --out /dev/null/demo", "--out: nothing can be written"),
        ("chaos --minutes soon", "must be a number of minutes, or a time with a unit"),
        ("overhead --instances 1", "No such option"),
        ("promises --streams few", "must be a whole number, at least 1; got 'few'"),
        ("latency --figure lat", "validation-budgets; did you mean late?"),
        ("rivals --data-dir . --out .", "cannot read the trace"),
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


MAX_FILES, MAX_CALLS = 25, 120
"""The most files and Python calls that a request may take in the server's process. Before you raise
them, look for calls to spare: `parm-lab path` counts them by file."""


# `make check` runs it, although it takes some seconds.
def test_a_request_passes_few_files_and_calls(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "WARM_UP", 20)
    monkeypatch.setattr(path, "COUNTED", 20)
    monkeypatch.setattr(overhead, "TRAINING", 0.5)
    done = lab_here("path", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "path.json").read_text())["rows"]
    assert "serving/frontend.py" in [row["file"] for row in rows]
    calls = sum(row["calls"] for row in rows)
    assert f"{len(rows)} files and {calls} calls" in done.stdout
    assert len(rows) <= MAX_FILES
    assert calls <= MAX_CALLS


@pytest.mark.slow
@pytest.mark.servers
def test_overhead_compares_servers_with_triton(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [each for each in CASES if each.clients == 16]
    given = {"CASES": cases, "ROUNDS": 3, "SECONDS": 0.1, "TRAINING": 0.5}
    for name, value in given.items():
        monkeypatch.setattr(overhead, name, value)
    done = lab_here("overhead", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    expected = [(str(case), each) for case in cases for each in (*TRITONS, *OURS, FLOOR)]
    assert [(row["clients"], row["server"]) for row in rows] == expected
    for row in rows:
        assert 0 < row["CPU µs"] < 1e6 * (os.cpu_count() or 1) / row["requests/s"]
        assert row["rate from"] <= row["rate x"] <= row["rate to"]
        assert row["RSS MiB"] > 10
    for case in map(str, cases):
        tritons = [row for row in rows if row["clients"] == case and row["server"] in TRITONS]
        for name in ("rate", "CPU", "p50"):
            assert any(row[f"{name} from"] == row[f"{name} to"] == 1 for row in tritons)


RECORDED_TASKS = {"banking77", "boxes", "embeddings", "fashion-mnist"}


@pytest.mark.slow
def test_promises_are_counted(lab_here: Here, tmp_path: Path) -> None:
    done = lab_here("promises", "--streams", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "promises.json").read_text())["rows"]
    assert {row["task"] for row in found} == RECORDED_TASKS
    assert all(row["shown"] >= row["budget"] for row in found)
    assert all(0 <= row["differ"] < 2 for row in found)


@pytest.mark.slow
def test_the_demo_rehearses_a_failure_and_leaves_a_bundle(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TrainingOptions", partial(TrainingOptions, epochs=20))
    monkeypatch.setattr(demo, "SECONDS", 1.0)
    out = tmp_path / "new" / "folder"
    done = lab_here("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "an instance stops now and then" in done.stdout
    assert "every instance stops" in done.stdout
    accuracy = open_bundle(out / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.backup_accuracy is not None
    assert min(accuracy.available_accuracy, accuracy.backup_accuracy) > 0.8
