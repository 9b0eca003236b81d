"""Records a running server by its metrics: how long units take, and when it is asked."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from math import inf
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from parity_models.errors import LoadError
from parity_models.roles import DEPLOYED, Source
from parity_models.serving.client import (
    ANONYMOUS,
    Client,
    ClientError,
    Credentials,
    MalformedAnswerError,
    StatusError,
    check_address,
)
from parity_models.simulation.recording import POINTS, Recording, Runs

STEP: Final = 1.0
"""Seconds between two looks at the metrics."""

PATIENCE: Final = 5.0
"""Seconds that a server has to answer."""

_MAX_METRICS = 64 * 2**20
"""Bytes that a server's metrics may have."""

FEWEST: Final = 100
"""Units of the deployed model of which their times say something."""

_COUNTERS = (
    "parm_query_failures_total",
    "parm_instance_busy_seconds_total",
    "parm_instance_restarts_total",
    "parm_stand_in_answers_compared_total",
    "parm_stand_in_answers_disagreed_total",
)


Counts = dict[float, float]
"""The buckets of a histogram: for each time in seconds, how many took so long or less."""


def _counts() -> Counts:
    return defaultdict(float)


class Seen:
    """A server's metrics at the time `at`. Raises LoadError for metrics of something else."""

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self.runs: dict[str, Counts] = defaultdict(_counts)
        """The buckets of the times of units, by role."""
        self.run_seconds: dict[str, float] = defaultdict(float)
        self.latencies = _counts()
        self.answers: dict[str, float] = defaultdict(float)
        self.totals: dict[str, float] = defaultdict(float)
        self.up = 0
        try:
            families = list(text_string_to_metric_families(text))
        except (ValueError, KeyError, IndexError) as error:
            raise LoadError(f"its metrics cannot be read: {error}") from error
        for family in families:
            self._add(family)
        if not self.up and DEPLOYED not in self.runs:
            raise LoadError("its metrics are not those of parm serve")

    @property
    def ended(self) -> float:
        """The number of queries that had ended."""
        return sum(self.answers.values()) + self.totals["parm_query_failures_total"]

    def _add(self, family: Metric) -> None:
        for name, labels, value, *_ in family.samples:
            match name:
                case "parm_unit_run_seconds_bucket":
                    self.runs[labels["role"]][_bound(labels)] += value
                case "parm_unit_run_seconds_sum":
                    self.run_seconds[labels["role"]] += value
                case "parm_query_latency_seconds_bucket":
                    self.latencies[_bound(labels)] += value
                case "parm_query_latency_seconds_count":
                    self.answers[labels["source"]] += value
                case "parm_instances_up" if labels.get("role") == DEPLOYED:
                    self.up += int(value)
                case _ if name in _COUNTERS:
                    self.totals[name] += value


def _bound(labels: Mapping[str, str]) -> float:
    return float(labels["le"])


def recording_of(seen: list[Seen], model: str) -> Recording:
    """Summarize the metrics of `model` from the first look to the last. Raises LoadError for too
    few units."""
    first, last = seen[0], seen[-1]
    runs = {}
    for role, counts in last.runs.items():
        found = _runs(first.runs[role], counts, last.run_seconds[role] - first.run_seconds[role])
        if found is not None:
            runs[role] = found
    if DEPLOYED not in runs or runs[DEPLOYED].units < FEWEST:
        units = runs[DEPLOYED].units if DEPLOYED in runs else 0
        raise LoadError(
            f"the server ran {units:,} units of its model meanwhile, fewer than {FEWEST:,}, which "
            "say too little: record it under load, or for longer (--seconds)"
        )
    answers = {source: int(last.answers[source] - first.answers[source]) for source in last.answers}
    total = {name: last.totals[name] - first.totals[name] for name in _COUNTERS}
    compared = int(total["parm_stand_in_answers_compared_total"])
    wait = quantiles_between(first.latencies, last.latencies, (0.5, 0.99, 0.999))
    seconds = last.at - first.at
    return Recording(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        seconds=seconds,
        step=seconds / (len(seen) - 1),
        instances=max(1, max(each.up for each in seen)),
        ended=tuple(max(0, int(b.ended - a.ended)) for a, b in pairwise(seen)),
        rows=max(1.0, answers.get(Source.MODEL, 0) / runs[DEPLOYED].units),
        runs=runs,
        answers=answers,
        failed=int(total["parm_query_failures_total"]),
        p50_ms=1e3 * wait[0],
        p99_ms=1e3 * wait[1],
        p999_ms=1e3 * wait[2],
        busy=total["parm_instance_busy_seconds_total"],
        restarts=int(total["parm_instance_restarts_total"]),
        compared=compared,
        agreed=compared - int(total["parm_stand_in_answers_disagreed_total"]),
    )


def _runs(before: Counts, after: Counts, seconds: float) -> Runs | None:
    units = int(after[inf] - before[inf])
    if units < 1:
        return None
    mean = seconds / units
    quantiles = np.asarray(quantiles_between(before, after, np.linspace(0, 1, POINTS)))
    # Buckets are wide, but the mean is known.
    scale = mean / quantiles.mean() if quantiles.mean() > 0 else 1.0
    return Runs(units, mean, tuple((scale * quantiles).tolist()))


def quantiles_between(
    before: Mapping[float, float], after: Mapping[float, float], shares: Iterable[float]
) -> tuple[float, ...]:
    """The quantiles at `shares` of what a histogram's buckets counted between two looks.

    Within a bucket, values are taken to be spread evenly; those beyond the last bucket count as its
    bound.
    """
    bounds = sorted(bound for bound in after if bound < inf)
    total = after[inf] - before[inf]
    if not total or not bounds:
        return (0.0,) * len(list(shares))
    below = [0.0, *((after[bound] - before[bound]) / total for bound in bounds)]
    edges = [0.0, *bounds]
    filled = [0, *(i for i in range(1, len(edges)) if below[i] > below[i - 1])]
    starts = [i - 1 for i in filled[1:]]
    # A bucket's lower edge counts too: between two that are filled there may be empty ones.
    points = sorted({*starts, *filled[1:]})
    at = [below[i] for i in points]
    return tuple(np.interp(list(shares), at, [edges[i] for i in points]).tolist())


async def record(
    url: str,
    seconds: float,
    progress: Callable[[float], None] = lambda done: None,
    credentials: Credentials = ANONYMOUS,
) -> Recording:
    """Record the server at `url` for so many seconds; `progress` is called with them
    after each step.

    `url` is the server's address, or that of its metrics; the server is shown the `credentials`.
    Raises UserError for what is none, LoadError where nobody answers, or what answers says too
    little.
    """
    server, path = metrics_of(url)
    metrics = f"{server}{path}"
    async with Client(server, credentials) as client:
        begin = time.monotonic()
        seen = [await _look(client, path)]
        for step in range(1, max(1, round(seconds / STEP)) + 1):
            await asyncio.sleep(max(0.0, begin + step * STEP - time.monotonic()))
            seen.append(await _look(client, path))
            progress(step * STEP)
    try:
        return recording_of(seen, urlsplit(metrics).netloc)
    except LoadError as error:
        raise LoadError(f"{metrics}: {error}") from error


def metrics_of(url: str) -> tuple[str, str]:
    """A server's address, and the path of its metrics. Raises UserError for what is no address."""
    parts = urlsplit(check_address(url))
    path = parts.path if parts.path.strip("/") else "/metrics"
    return f"{parts.scheme}://{parts.netloc}", path


async def _look(client: Client, path: str) -> Seen:
    at, url = time.monotonic(), f"{client.url}{path}"
    try:
        async with asyncio.timeout(PATIENCE):
            content, _ = await client.ask("GET", path, limit=_MAX_METRICS)
        return Seen(content.decode(errors="replace"), at)
    except TimeoutError as error:
        raise LoadError(f"{url} has sent nothing for {PATIENCE:g} s") from error
    except StatusError as error:
        why = f"{error.text}{error.hint}"
        raise LoadError(f"{url} refuses (HTTP {error.status}): {why}") from error
    except MalformedAnswerError as error:
        raise LoadError(f"{url} {error}") from error
    except ClientError as error:
        raise LoadError(f"no server answers at {url}: {error}") from error
    except LoadError as error:
        raise LoadError(f"{url}: {error}") from error
