"""Late is measured against libraries that hedge, over real sockets."""

from pathlib import Path

import pytest

from parity_models_lab import late_calls
from parity_models_lab.results import ResultCache

pytestmark = pytest.mark.slow


def test_every_library_answers_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"KINDS": ("plain",), "SLOWNESS": ("spells",), "LOADS": (0.6,)}.items():
        monkeypatch.setattr(late_calls, name, value)
    monkeypatch.setattr(late_calls, "WARM_UP", 20)
    kept = ResultCache(tmp_path / "runs")
    runs = list(late_calls.compare(100, 1, kept))
    assert [run.row["library"] for run in runs] == [*late_calls.CONTESTANTS]
    for run in runs:
        assert len(run.latencies) == 100
        assert min(run.latencies) > 1  # ms; a backup's time, or a call's
        assert set(run.row) - {"invalid"} == set(runs[0].row) - {"invalid"}
    assert list(late_calls.compare(100, 1, kept)) == runs, "runs that were kept were made again"
    monkeypatch.setattr(late_calls, "LOADS", (0.3, 0.6, 0.9))
    late_calls.plot_tails(tmp_path / "late.png", runs)
    assert (tmp_path / "late.png").stat().st_size > 10_000
