"""The outcome of every query of a load, and the result in numbers, for people and for files.

Latencies are those of answered queries, from the scheduled send.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.load.spec import LoadSpec
from parity_models.roles import SOURCES, Source


@dataclass(frozen=True)
class LoadResult:
    """Arrays (n,) by query in order of arrival; times in seconds.

    `scheduled` counts from the first query, `send_delay` and `latency` from the scheduled time:
    to the actual send (NaN if there was none), and to the answer or the error. `score` is 1 if
    the class is right, else 0; NaN without an answer or a label. `outcome` indexes `outcomes`: the
    sources of answers, then the kinds of errors that occurred.
    """

    scheduled: NDArray[np.float64]
    send_delay: NDArray[np.float64]
    latency: NDArray[np.float64]
    score: NDArray[np.float64]
    outcome: NDArray[np.int16]
    outcomes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.scheduled)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """A mask (n,) of the queries that got an answer."""
        answered: NDArray[np.bool_] = self.outcome < len(SOURCES)
        return answered

    def came_from(self, source: Source) -> NDArray[np.bool_]:
        """Return which queries were answered from `source`."""
        here: NDArray[np.bool_] = self.outcome == SOURCES.index(source)
        return here

    def errors(self) -> dict[str, int]:
        """Return the number of queries that ended in each kind of error."""
        kinds, counts = np.unique(self.outcome[~self.answered], return_counts=True)
        return {str(self.outcomes[kind]): int(n) for kind, n in zip(kinds, counts, strict=True)}


# The report


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles of times, and their `gap_ms`, p99.9 − p50, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p995_ms: float
    p999_ms: float
    max_ms: float
    gap_ms: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> "Percentiles | None":
        """Return the percentiles of times (n,) in seconds; None if there are none."""
        if not len(seconds):
            return None
        ms = (np.quantile(seconds, (0.5, 0.9, 0.99, 0.995, 0.999, 1)) * 1e3).tolist()
        return cls(*[*ms, ms[4] - ms[0]])


class Answered(msgspec.Struct, frozen=True):
    """The number of queries answered from a source, and their mean score (None without labels)."""

    count: int
    accuracy: float | None


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a load.

    `queries` are those counted, fewer than `planned` if the load was interrupted: `answered` and
    `errors` by kind add up to them. `offered` and `throughput` are queries due, and answers, per
    second. `latency` is None without answers. `send_delay` is how late requests were sent (the
    generator's own error, with waits for new connections); None: none was sent.
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
    send_delay: Percentiles | None

    def came_from(self, source: Source) -> int:
        """Return the number of queries answered from `source`."""
        return self.sources[source].count if source in self.sources else 0


def report_of(spec: LoadSpec, result: LoadResult) -> LoadReport:
    """Sum up the result of `spec`."""
    answered = result.answered
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
        latency=Percentiles.of(result.latency[answered]),
        send_delay=Percentiles.of(result.send_delay[~np.isnan(result.send_delay)]),
    )


def _per_second(count: int, times: NDArray[np.float64]) -> float:
    """Return `count` per second until the last of `times`."""
    return count / float(times.max()) if count and times.max() > 0 else 0.0


def _mean(scores: NDArray[np.float64]) -> float | None:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else None
