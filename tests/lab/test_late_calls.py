"""Late is measured against libraries that hedge, over real sockets."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

import pytest

from parity_models_lab import late_calls

pytestmark = pytest.mark.slow


def test_every_library_answers_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with late_calls._plain("spells", 1) as ports:
        monkeypatch.setattr(late_calls, "_plain", lambda *_: nullcontext(ports))
        runs = [
            asyncio.run(late_calls._run("plain", "spells", 0.6, name, calls=100, seed=1))
            for name in late_calls.CONTESTANTS
        ]
    for run in runs:
        assert len(run.latencies) == 100
        assert run.latencies.min() > 2  # ms; a backup's time, or a call's
        assert set(run.row) - {"invalid"} == set(runs[0].row) - {"invalid"}
    late_calls.plot_tails(tmp_path / "late.png", runs)
    assert (tmp_path / "late.png").stat().st_size > 10_000
