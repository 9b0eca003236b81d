"""The report of a load adds up: results, reports and files."""

import csv
from pathlib import Path

import numpy as np
import pytest

from parity_models.errors import UserError
from parity_models.load import LoadSpec
from parity_models.load.result import LoadResult, report_of, write_latencies
from parity_models.roles import Source

LOAD = LoadSpec(inputs="queries.npy", rate=1, queries=20_000)


def some_result(queries: int, seed: int) -> LoadResult:
    """Made up: of each ten queries two without an answer, one of them not sent."""
    rng = np.random.default_rng(seed)
    not_sent = len(Source) + 1
    outcome = np.arange(queries) % 10 % (not_sent + 1)
    latency = rng.lognormal(-5, 1, queries)
    return LoadResult(
        scheduled=np.sort(rng.random(queries)),
        send_delay=np.where(outcome == not_sent, np.nan, rng.random(queries) * 1e-4),
        latency=np.where(outcome == not_sent, np.nan, latency),
        score=np.where(outcome >= len(Source), np.nan, rng.integers(2, size=queries)),
        outcome=outcome.astype(np.int16),
        outcomes=np.array([*Source, f"HTTP 50{seed}", "not sent, 4 in flight"]),
    )


def test_a_report_adds_up() -> None:
    result = some_result(20_000, seed=1)
    report = report_of(LOAD, result)
    assert report.answered + sum(report.errors.values()) == report.queries == 20_000
    assert sum(source.count for source in report.sources.values()) == report.answered
    assert report.latency is not None
    answered = np.sort(result.latency[result.answered]) * 1e3
    for share, ms in ((0.5, report.latency.p50_ms), (0.999, report.latency.p999_ms)):
        rank = round(share * (report.answered - 1))
        assert answered[rank - 1] <= ms <= answered[rank + 1]
    assert report.latency.max_ms == answered[-1]


def test_a_report_of_nothing_is_one() -> None:
    report = report_of(LOAD, some_result(0, seed=0))
    assert (report.queries, report.answered, report.throughput) == (0, 0, 0.0)
    assert (report.latency, report.send_delay) == (None, None)


def test_every_query_is_in_the_csv_file(tmp_path: Path) -> None:
    result = some_result(60, seed=1)
    write_latencies(tmp_path / "latencies.csv", result)
    with (tmp_path / "latencies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    for query, row in enumerate(rows):
        kind = str(result.outcomes[result.outcome[query]])
        answered = kind in tuple(Source)
        sent = result.scheduled[query] + result.send_delay[query]
        assert row == {
            "scheduled": str(result.scheduled[query]),
            "sent": "" if np.isnan(sent) else str(sent),
            "latency": "" if np.isnan(sent) else str(result.latency[query]),
            "source": kind if answered else "",
            "correct": str(result.score[query]) if answered else "",
            "error": "" if answered else kind,
        }
    with pytest.raises(UserError, match="cannot write"):
        write_latencies(tmp_path, result)
