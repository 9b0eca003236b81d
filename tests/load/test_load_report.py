"""The report of a load adds up: results and reports."""

import numpy as np

from parity_models.load import LoadSpec
from parity_models.load.result import LoadResult, report_of
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
