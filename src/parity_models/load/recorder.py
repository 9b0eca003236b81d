"""Records a running server by its metrics: run times of units, and arrivals of queries."""

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
from prometheus_client.parser import text_string_to_metric_families

from parity_models.errors import LoadError
from parity_models.roles import DEPLOYED, Source
from parity_models.serving.client import (
    ANONYMOUS,
    Client,
    ClientError,
    Credentials,
    StatusError,
    UnreachableError,
    check_address,
)
from parity_models.simulation.recording import POINTS, Recording, Runs

STEP: Final = 1.0
"""Seconds between two readings of the metrics."""

PATIENCE: Final = 5.0
"""Seconds that a server has to answer."""

FEWEST: Final = 100
"""Minimum number of units of the deployed model for a recording."""

_MAX_METRICS = 64 * 2**20
"""Maximum size of a server's metrics in bytes."""

_RUN = "parm_unit_run_seconds"
_LATENCY = "parm_query_latency_seconds"
_FAILURES = "parm_query_failures_total"


class Seen:
    """A server's metrics at the time `at`, in seconds.

    `values` are sums by a sample's name, its role or source, and its bucket bound in seconds.
    Raises LoadError for metrics of something else.
    """

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self.values: dict[tuple[str, str, float], float] = defaultdict(float)
        try:
            samples = [each for one in text_string_to_metric_families(text) for each in one.samples]
        except (ValueError, KeyError, IndexError) as error:
            raise LoadError(f"its metrics cannot be read: {error}") from error
        for name, labels, value, *_ in samples:
            if name.startswith("parm_"):
                group = labels.get("role", labels.get("source", ""))
                self.values[name, group, float(labels.get("le", inf))] += value
        self.up = int(self.values["parm_instances_up", DEPLOYED, inf])
        if not self.up and not self.values[f"{_RUN}_count", DEPLOYED, inf]:
            raise LoadError("its metrics are not those of parm serve")

    @property
    def ended(self) -> float:
        """The number of queries that had ended."""
        return _total(self.values, f"{_LATENCY}_count") + _total(self.values, _FAILURES)


def _total(values: Mapping[tuple[str, str, float], float], name: str) -> float:
    return sum(value for (each, _, _), value in values.items() if each == name)


def recording_of(seen: list[Seen], model: str) -> Recording:
    """Summarize the metrics of `model` from the first look to the last.

    Raises:
        LoadError: Too few units ran meanwhile.

    """
    first, last = seen[0], seen[-1]
    gain = {key: value - first.values[key] for key, value in last.values.items()}
    runs = {}
    answers: dict[str, int] = {}
    latencies: dict[float, float] = defaultdict(float)
    for (name, group, bound), value in gain.items():
        if name == f"{_RUN}_count" and value >= 1:
            buckets = {
                le: count
                for (each, role, le), count in gain.items()
                if each == f"{_RUN}_bucket" and role == group
            }
            runs[group] = _runs(buckets, gain[f"{_RUN}_sum", group, inf])
        elif name == f"{_LATENCY}_count":
            answers[group] = int(value)
        elif name == f"{_LATENCY}_bucket":
            latencies[bound] += value
    units = runs[DEPLOYED].units if DEPLOYED in runs else 0
    if units < FEWEST:
        raise LoadError(
            f"the server ran {units:,} units of its model meanwhile, fewer than {FEWEST:,}, which "
            "say too little: record it under load, or for longer (--seconds)"
        )
    compared = int(_total(gain, "parm_stand_in_answers_compared_total"))
    p50, p99, p999 = _quantiles(latencies, (0.5, 0.99, 0.999))
    seconds = last.at - first.at
    return Recording(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        seconds=seconds,
        step=seconds / (len(seen) - 1),
        instances=max(1, max(each.up for each in seen)),
        ended=tuple(max(0, int(b.ended - a.ended)) for a, b in pairwise(seen)),
        rows=max(1.0, answers.get(Source.MODEL, 0) / units),
        runs=runs,
        answers=answers,
        failed=int(_total(gain, _FAILURES)),
        p50_ms=1e3 * p50,
        p99_ms=1e3 * p99,
        p999_ms=1e3 * p999,
        busy=_total(gain, "parm_instance_busy_seconds_total"),
        restarts=int(_total(gain, "parm_instance_restarts_total")),
        compared=compared,
        agreed=compared - int(_total(gain, "parm_stand_in_answers_disagreed_total")),
    )


def _runs(buckets: Mapping[float, float], seconds: float) -> Runs:
    units = int(buckets[inf])
    quantiles = np.asarray(_quantiles(buckets, np.linspace(0, 1, POINTS)))
    # Buckets are wide, but the mean is known.
    scale = seconds / units / quantiles.mean() if quantiles.mean() > 0 else 1.0
    return Runs(units, seconds / units, tuple((scale * quantiles).tolist()))


def _quantiles(buckets: Mapping[float, float], shares: Iterable[float]) -> tuple[float, ...]:
    """Return the quantiles of a histogram: counts of values up to a bound, by this bound.

    Within a bucket, values are taken to be spread evenly; those beyond the last bucket count as its
    bound.
    """
    bounds = sorted(bound for bound in buckets if bound < inf)
    if not bounds or not buckets[inf]:
        return (0.0,) * len(list(shares))
    below = [0.0, *(buckets[bound] / buckets[inf] for bound in bounds)]
    edges = [0.0, *bounds]
    filled = [i for i in range(1, len(edges)) if below[i] > below[i - 1]]
    # A bucket's lower edge counts too: between two that are filled there may be empty ones.
    points = sorted({*filled, *(i - 1 for i in filled)}) or [len(bounds)]
    at = [below[i] for i in points]
    return tuple(np.interp(list(shares), at, [edges[i] for i in points]).tolist())


async def record(
    url: str,
    seconds: float,
    progress: Callable[[float], None] = lambda done: None,
    credentials: Credentials = ANONYMOUS,
) -> Recording:
    """Record a server for some seconds.

    Args:
        url: The server's address, or that of its metrics.
        seconds: How long to record.
        progress: Called after each step with the seconds so far.
        credentials: Shown to the server.

    Raises:
        UserError: `url` is not an address.
        LoadError: The server cannot be reached, or ran too few units.

    """
    server, path = metrics_of(url)
    async with Client(server, credentials) as client:
        begin = time.monotonic()
        seen = [await _look(client, path)]
        for step in range(1, max(1, round(seconds / STEP)) + 1):
            await asyncio.sleep(max(0.0, begin + step * STEP - time.monotonic()))
            seen.append(await _look(client, path))
            progress(step * STEP)
    try:
        return recording_of(seen, urlsplit(server).netloc)
    except LoadError as error:
        raise LoadError(f"{server}{path}: {error}") from error


def metrics_of(url: str) -> tuple[str, str]:
    """Return a server's address, and the path of its metrics. Raises UserError for other URLs."""
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
    except UnreachableError as error:
        raise LoadError(f"no server answers at {url}: {error}") from error
    except (ClientError, LoadError) as error:
        raise LoadError(f"{url}: {error}") from error
