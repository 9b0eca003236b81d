"""Advice from the access log of servers that already run: `parm plan --log`.

A request's latency is a wait and a run. Each server is assumed to run its requests in order of
arrival, so a run begins when those before it are done. The simulator replays these runs: a unit
takes as long as one on the same server at about the same time, so slow spells are kept.
"""

import csv
import heapq
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil, inf, log10
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from parity_models.bundle.bundle import Bundle
from parity_models.documents import content_of
from parity_models.errors import UserError, spell
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, Hedging, NoRedundancy, StandIns
from parity_models.simulation.simulation import Driver, Running, Simulation
from parity_models.sizing.scenario import (
    ALIKE,
    WARM_UP,
    Outcome,
    Scenario,
    SimulationOptions,
    outcome_table,
    service_of,
)

MAX_BYTES = 1 << 28
"""The largest log that is read."""

LEAST, MOST = 100, 500_000
"""The fewest and the most requests that are simulated."""

MAX_SPAN = 1e6
"""The longest time between the first arrival and the last, in seconds."""

TOLERANCE, OVERTAKEN = 0.001, 0.01
"""Requests may end TOLERANCE seconds before the one ahead; a share OVERTAKEN may end earlier."""

NEARBY = 8
"""The run time of a simulated unit is drawn from this many neighbouring runs on a server."""

ASKED = (0.02, 0.05, 0.1, 0.2)
"""The shares of requests for which a stand-in behind a proxy is tried, the smallest first."""

TAKEN = ("instances", "backup_time", "coverage", "differ", "agreement", "seed")
"""The options that a log leaves open."""

WIDTH = 60
"""Columns of the picture."""

FIELDS = "arrival, latency (in seconds) or latency_ms, and upstream if there are several servers"
UNNAMED = "unnamed"


class _Request(msgspec.Struct):
    """A line of a log."""

    arrival: Annotated[float, msgspec.Meta(ge=0)] | datetime
    latency: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] | None = None
    upstream: str = UNNAMED

    def values(self) -> tuple[float, float, str]:
        """Return arrival, latency and upstream, in seconds. Raises ValueError."""
        arrival, latency = self.arrival, self.latency
        if isinstance(arrival, datetime):
            aware = arrival if arrival.tzinfo else arrival.replace(tzinfo=UTC)
            arrival = aware.timestamp()
        if self.latency_ms is not None and latency is None:
            latency = self.latency_ms / 1000
        elif latency is None or self.latency_ms is not None:
            raise ValueError("it needs latency or latency_ms, and not both")
        if self.upstream in ("", "-"):
            raise ValueError("no upstream answered; leave out such requests")
        return arrival, latency, self.upstream


def _requests(path: Path) -> Iterator[tuple[float, float, str]]:
    """Yield arrival, latency and upstream of each request. Raises UserError for invalid lines."""
    try:
        lines = content_of(path, MAX_BYTES).splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as an access log: {error}") from error
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            if not line.strip():
                continue
            if line.lstrip().startswith(b"{"):
                fields = msgspec.json.decode(line)
            else:
                (values,) = csv.reader([line.decode()], strict=True)
                if not names:
                    names = [each.strip() for each in values]
                    if "arrival" not in names:
                        raise ValueError("the first line of CSV must name the columns")
                    continue
                if len(values) != len(names):
                    raise ValueError(f"it has {len(values)} values for {len(names)} columns")
                fields = dict(zip(names, values, strict=True))
            yield msgspec.convert(fields, _Request, strict=False).values()
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path}, line {number}: {error}; it has {FIELDS}") from error


@dataclass(frozen=True)
class AccessLog:
    """Requests in the order of their `arrivals` (n,) with `latencies` (n,), in seconds.

    `servers` has for each server the times at which runs began, and how long they took. Each runs
    `slots` requests at a time.
    """

    arrivals: NDArray[np.float64]
    latencies: NDArray[np.float64]
    servers: Sequence[tuple[Sequence[float], Sequence[float]]]
    slots: int

    @classmethod
    def read(cls, path: Path, instances: int | None = None) -> "AccessLog":
        """Read a log in CSV with a header, or in JSON lines.

        All servers run `instances` requests at a time, by default one on each upstream. Raises
        UserError for a file that cannot be read, an invalid line, and servers that run unequal
        numbers of requests at a time, or more in all.
        """
        requests = sorted(_requests(path))
        if not LEAST <= len(requests) <= MOST:
            raise UserError(
                f"{path} has {len(requests):,} requests, and {LEAST:,} to {MOST:,} are simulated; "
                "give the log of a busy hour"
            )
        first, span = requests[0][0], requests[-1][0] - requests[0][0]
        if not 0 < span <= MAX_SPAN:
            raise UserError(
                f"the requests of {path} arrive within {span:,.0f} s; give a log that covers more "
                f"than 0 s and at most {MAX_SPAN:,.0f}"
            )
        upstreams: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for arrival, latency, upstream in requests:
            upstreams[upstream].append((arrival - first, latency))
        if instances is None and [*upstreams] == [UNNAMED]:
            raise UserError(
                f"{path} names no upstream; give {spell('instances')}, the number of requests "
                "that the servers run at a time"
            )
        slots = ceil((instances or 1) / len(upstreams))
        if instances is not None and slots * len(upstreams) != instances:
            raise UserError(
                f"{path} names {len(upstreams)} upstreams, which run equal numbers of requests at "
                f"a time; {spell('instances')} is a multiple of {len(upstreams)}"
            )
        runs = [[*_runs(upstreams[each], slots)] for each in sorted(upstreams)]
        overtaken = sum(took < -TOLERANCE for server in runs for _, took in server)
        if overtaken > OVERTAKEN * len(requests):
            raise UserError(
                f"{overtaken / len(requests):.0%} of the requests of {path} end before one that "
                f"came earlier to the same server, so it runs more than {slots} at a time; "
                f"give {spell('instances')}, the number that all servers run at a time"
            )
        arrivals, latencies = np.array([each[:2] for each in requests]).T
        servers = [
            ([began for began, _ in server], [max(0.0, took) for _, took in server])
            for server in runs
        ]
        return cls(arrivals - first, latencies, servers, slots)

    @property
    def run(self) -> float:
        """The median run time in seconds."""
        return float(np.median(np.concatenate([took for _, took in self.servers])))

    def run_time(self, instance: int, time: float, draw: Random) -> float:
        """Return the time of a run on an instance at about this time."""
        began, took = self.servers[instance % len(self.servers)]
        at = bisect(began, time) - NEARBY // 2
        at = max(0, min(at, len(began) - NEARBY))
        return took[draw.randrange(at, min(at + NEARBY, len(began)))]


def _runs(requests: Sequence[tuple[float, float]], slots: int) -> Iterator[tuple[float, float]]:
    """Yield when each request began to run, in a queue for this many slots, and its run time."""
    latest: list[float] = []  # the `slots` latest ends of the requests before
    began = 0.0
    for arrival, latency in requests:
        end = arrival + latency
        began = max(began, arrival, latest[0] if len(latest) == slots else 0.0)
        yield began, end - began
        (heapq.heappush if len(latest) < slots else heapq.heappushpop)(latest, end)


class _Replay(Driver):
    """Simulates servers that take as long as a log's servers at about the same time."""

    def __init__(self, log: AccessLog, shares: Mapping[str, float], *simulation: Any) -> None:
        super().__init__(*simulation)
        self._log, self._shares = log, shares

    def _begin(self, running: Running) -> None:
        took = self._log.run_time(running.instance.slot, self._now, self._random)
        self._release(running, running.there + self._shares[running.run.role] * took)


@dataclass(frozen=True)
class LogAdvice(Printed):
    """The outcomes of the `rows`, by name, for the requests of a log; the first is the log itself.

    `timeout` is the per_try_timeout for a proxy, in seconds; a share `late` of the requests takes
    longer. A stand-in, if any, takes `backup` seconds and may answer a share `coverage`.
    """

    log: AccessLog
    rows: Mapping[str, Outcome]
    timeout: float
    late: float
    backup: float | None
    coverage: float

    @property
    def parts(self) -> Sequence[RenderableType]:
        """The log in a sentence, a table, a picture of tails, and the settings of a proxy."""
        log, count = self.log, len(self.log.arrivals)
        said = (
            f"{count:,} requests at {count / log.arrivals[-1]:.4g} per second; "
            f"{len(log.servers)} x {log.slots} at a time; the median takes {1e3 * log.run:.1f} ms."
        )
        stand_in = (
            f"Give a bundle or {spell('backup_time')} for the rows of a stand-in."
            if self.backup is None
            else f"A stand-in takes {1e3 * self.backup:.1f} ms and may answer {self.coverage:.0%}."
        )
        advice = (
            "With parm serve: one queue for all servers.\n"
            f"Behind Envoy: per_try_timeout: {self.timeout:.3f}s. {self.late:.1%} of the requests "
            f"are then late; the retry budget must allow for them.\n{stand_in}"
        )
        table = outcome_table("", ((name, each, ()) for name, each in self.rows.items()))
        return [said, table, _picture(self.rows), advice]


def _picture(rows: Mapping[str, Outcome]) -> str:
    """Return a line for each row from its p50 over its p99 to its p99.9, on a logarithmic axis."""
    low = max(1e-3, min(each.p50_ms for each in rows.values()))
    high = max(low, *(each.p999_ms for each in rows.values()))
    label, lines = max(map(len, rows)), ["├ p50  ● p99  ┤ p99.9"]
    for name, each in rows.items():
        at = [
            round((WIDTH - 1) * log10(max(ms, low) / low) / max(1e-9, log10(high / low)))
            for ms in (each.p50_ms, each.p99_ms, each.p999_ms)
        ]
        line = [*" " * at[0], *"─" * (at[2] - at[0] + 1)]
        line[at[2]], line[at[1]], line[at[0]] = "┤●├"
        lines.append(f"{name:{label}}  {''.join(line)}")
    axis = f"{'':{label}}  {low:<.3g} ms".ljust(label + 2 + WIDTH - 8) + f"{high:>.3g} ms"
    return "\n".join([*lines, axis])


def advise(
    log_file: Path | str,
    bundle: Bundle | Path | str | None = None,
    /,
    *,
    options: SimulationOptions | None = None,
    **given: Any,
) -> LogAdvice:
    """Say how hedging, and a stand-in, would change the latencies in an access log.

    Args:
        log_file: The log: CSV with a header, or JSON lines, with `arrival` and `latency` (seconds)
            or `latency_ms` of each request, and `upstream`, if there is one.
        bundle: A bundle with a backup, or its folder. Its time relative to the model counts.
            Without one, give a `backup_time`, and the backup's `coverage`.
        options: All options as a SimulationOptions, instead of fields by name.
        **given: Fields of SimulationOptions: `instances`, `backup_time`, `coverage`, `differ`,
            `agreement`, `seed`. The log gives all else.

    Returns:
        The outcomes. They print as a table and a picture.

    Raises:
        UserError: A line of the log is invalid, or other options are given.
    """
    chosen = gather(SimulationOptions, options, given)
    if type(chosen)(**{name: getattr(chosen, name) for name in TAKEN}) != chosen:
        raise UserError(
            "an access log gives the load and the model's times; with it, give only "
            f"a bundle, {', '.join(map(spell, TAKEN[:-1]))}"
        )
    log = AccessLog.read(Path(log_file), chosen.instances)
    run = log.run
    if not run > 0:
        raise UserError(f"the requests of {log_file} took no time; there is nothing to plan")
    service = service_of(bundle, replace(chosen, service_time=run))
    backup = service.seconds.get(BACKUP)
    coverage = service.coverage.get(Source.BACKUP, 1.0)
    seconds = {DEPLOYED: run} if backup is None else {DEPLOYED: run, BACKUP: backup}
    service = replace(
        service,
        seconds=seconds,
        stand_ins=StandIns(None, backup is not None),
        overhead=0.0,
        max_batch=1,
        added={},
    )
    warm_up = len(log.arrivals) // (WARM_UP + 1)
    logged = log.latencies[warm_up:]
    busy = 1e3 * sum(sum(took) for _, took in log.servers) / len(log.arrivals)
    passed = np.random.default_rng(chosen.seed).random(len(logged)) < coverage
    surest = service.doubts.get(Source.BACKUP, ())
    doubt = float(np.mean(surest[: max(1, int(coverage * len(surest)))] or 0.0))

    def proxied(timeout: float) -> Outcome:
        """Return the outcome if a stand-in is asked when requests reach this age."""
        answered = passed & (logged > timeout + (backup or 0.0))
        latencies = np.where(answered, timeout + (backup or 0.0), logged)
        p50, p99, p999 = (1e3 * np.quantile(latencies, (0.5, 0.99, 0.999))).tolist()
        share = float(answered.mean())
        return Outcome(p50, p99, p999, 1.0, share, 0.0, {}, busy, 0.0, share * doubt)

    timeouts = [ceil(1e3 * float(np.quantile(logged, 1 - share))) / 1e3 for share in ASKED]
    most = ALIKE * min(proxied(each).p99_ms for each in timeouts)
    timeout = next(each for each in timeouts if proxied(each).p99_ms <= most)
    rows = {"as logged": proxied(inf)}
    choices = {"one queue": NoRedundancy.name, "one queue, hedging": Hedging.name}
    if backup is not None:
        rows["a stand-in behind Envoy"] = proxied(timeout)
        choices["one queue, a stand-in"] = Adaptive.name
    slots, seed = log.slots * len(log.servers), chosen.seed
    simulation = Simulation(log.arrivals, slots, 0, {}, seed=seed, warm_up=warm_up)
    shares = {role: each / run for role, each in seconds.items()}
    scenario = Scenario(service, simulation, partial(_Replay, log, shares))
    for name, policy in choices.items():
        choice = PolicyChoice(policy, dispatch="latency-aware")
        rows[name] = scenario.outcome(choice.within(chosen.differ) if choice.has_budget else choice)
    return LogAdvice(log, rows, timeout, float((logged > timeout).mean()), backup, coverage)
