"""A load's result in numbers, for people and for files: summary and histogram.

Latencies are those of answered queries, from the scheduled send, in an HDR histogram of
microseconds with three significant digits, from which all their percentiles are read.
"""

from pathlib import Path

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from parity_models.load import LoadSpec
from parity_models.load.result import SOURCES, LoadResult

PRECISE_MS = 1.0
"""A generator that sends 99 % of its queries less late than that is a good one."""
HOUR = 3600 * 10**6
DIGITS = 3


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles of latency and their `gap_ms`, p99.9 − p50, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p995_ms: float
    p999_ms: float
    max_ms: float
    gap_ms: float


class SendDelay(msgspec.Struct, frozen=True):
    """The delay of requests behind their schedule, in milliseconds: the generator's own error.

    A wait for a new connection is in it.
    """

    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def precise(self) -> bool:
        return self.p99_ms <= PRECISE_MS


class Answered(msgspec.Struct, frozen=True):
    """The number of queries answered from a source, and their mean score (None without labels)."""

    count: int
    accuracy: float | None


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a load.

    `queries` are those counted, fewer than `planned` if the load was interrupted: `answered` and
    `errors` by kind add up to them. `offered` and `throughput` are queries due, and answers, per
    second. `latency`, `send_delay` and `histogram` (HDR, format V2, compressed, base64;
    microseconds) are None where there are no answers, or nothing was sent.
    """

    load: LoadSpec
    planned: int
    queries: int
    answered: int
    errors: dict[str, int]
    offered: float
    throughput: float
    accuracy: float | None
    sources: dict[str, Answered]
    latency: Percentiles | None
    send_delay: SendDelay | None
    histogram: str | None


def report_of(spec: LoadSpec, result: LoadResult) -> LoadReport:
    """Sum up the result of `spec`."""
    answered = result.answered
    histogram = HdrHistogram(1, HOUR, DIGITS)
    microseconds = np.maximum(1, np.rint(result.latency[answered] * 1e6)).astype(np.int64)
    for value, count in zip(*np.unique(microseconds, return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    p50, p90, p99, p995, p999 = (
        histogram.get_value_at_percentile(at) / 1e3 for at in (50, 90, 99, 99.5, 99.9)
    )
    longest = histogram.get_max_value() / 1e3
    sent = result.send_delay[~np.isnan(result.send_delay)]
    return LoadReport(
        load=spec,
        planned=(len(spec.due) - spec.warm_up_requests) * spec.batch,
        queries=len(result),
        answered=int(answered.sum()),
        errors=result.errors(),
        offered=_per_second(len(result), result.scheduled),
        throughput=_per_second(int(answered.sum()), (result.scheduled + result.latency)[answered]),
        accuracy=_mean(result.score[answered]),
        sources={
            str(source): Answered(int(here.sum()), _mean(result.score[here]))
            for source in SOURCES
            if (here := result.came_from(source)).any()
        },
        latency=Percentiles(p50, p90, p99, p995, p999, longest, p999 - p50)
        if answered.any()
        else None,
        send_delay=SendDelay(*(np.quantile(sent, [0.5, 0.99, 1]) * 1e3).tolist())
        if len(sent)
        else None,
        histogram=histogram.encode().decode() if answered.any() else None,
    )


def _per_second(count: int, times: NDArray[np.float64]) -> float:
    """Return `count` per second until the last of `times`."""
    return count / float(times.max()) if count and times.max() > 0 else 0.0


def _mean(scores: NDArray[np.float64]) -> float | None:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else None


def write_latencies(path: Path, result: LoadResult) -> None:
    """Write a Parquet file with a row for each query, in order of arrival.

    Times in seconds: `scheduled` and `sent` since the first query was due, `latency` from the
    scheduled time. `source`, or `error`; `correct` is the answer's score by the metric: for
    top-1, 1 or 0. What does not apply is null.
    """
    # Only now: a report needs no Arrow.
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def or_null(values: NDArray[np.float64]) -> pa.Array:
        return pa.array(values, mask=np.isnan(values))

    kinds = pa.DictionaryArray.from_arrays(
        pa.array(result.outcome), pa.array(result.outcomes.tolist(), pa.string())
    )
    nothing, answered = pa.scalar(None, kinds.type), pa.array(result.answered)
    table = pa.table(
        {
            "scheduled": result.scheduled,
            "sent": or_null(result.scheduled + result.send_delay),
            "latency": or_null(result.latency),
            "source": pc.if_else(answered, kinds, nothing),
            "correct": or_null(result.score),
            "error": pc.if_else(answered, nothing, kinds),
        }
    )
    pq.write_table(table, path)
