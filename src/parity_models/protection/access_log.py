"""Advice from the access log of servers that already run: `parm plan --log`.

The latency of a request is a wait and a run. Each server is taken to run its requests in their
order, so a request's run is what is left of its latency when those before it are done. The
simulator replays these runs: a unit takes as long as one that ran on the same server at about the
same time. So spells in which a server is slow stay what they are.
"""

import csv
import heapq
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil, inf, isfinite, log10
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from parity_models.documents import content_of
from parity_models.emulation import FaultPlan
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.options import flag_of, gather
from parity_models.printed import Printed
from parity_models.protection.options import SimulationOptions
from parity_models.protection.scene import (
    ALIKE,
    WARM_UP,
    Outcome,
    Scene,
    Service,
    open_service,
    outcome_table,
)
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, Hedging, NoRedundancy, StandIns
from parity_models.simulation import Driver
from parity_models.simulation.simulator import Running

MAX_BYTES = 1 << 28
"""The largest log that is read."""

LEAST, MOST = 100, 500_000
"""The fewest and the most requests that are simulated."""

LONGEST = 86_400.0
"""The longest latency, in seconds."""

MAX_SPAN = 1e6
"""The longest time between the first arrival and the last, in seconds."""

TOLERANCE, OVERTAKEN = 0.001, 0.01
"""A request may end this many seconds before the one ahead of it; so few may end even earlier."""

NEARBY = 8
"""Runs at about the same time on the same server, of which a simulated unit takes one's time."""

ASKED = (0.02, 0.05, 0.1, 0.2)
"""The shares of requests for which a stand-in behind a proxy is tried, the smallest first."""

TAKEN = ("instances", "backup_time", "coverage", "agreement", "seed")
"""The options of simulations that go with a log."""

WIDTH = 60
"""Columns of the picture."""

FIELDS = "arrival, latency (in seconds) or latency_ms, and upstream where there are several servers"


@dataclass(frozen=True)
class AccessLog:
    """Requests in the order of their `arrivals` (n,) with `latencies` (n,), in seconds.

    `servers` are the times at which runs began, and how long they took, for each of them. Each runs
    `slots` requests at a time.
    """

    arrivals: NDArray[np.float64]
    latencies: NDArray[np.float64]
    servers: Sequence[tuple[Sequence[float], Sequence[float]]]
    slots: int

    @classmethod
    def read(cls, path: Path, instances: int | None = None) -> "AccessLog":
        """Read a log in CSV with a header, or in JSON lines.

        Args:
            path: The file. Each line has an arrival, a latency, and the upstream that answered, if
                there are several; other fields are ignored.
            instances: Requests that all servers run at a time; by default, one on each upstream.

        Raises:
            UserError: The file cannot be read, a line of it says something else, or the servers run
                other numbers of requests at a time.

        """
        requests = sorted(_requests(path))
        if not LEAST <= len(requests) <= MOST:
            raise UserError(
                f"{path} has {len(requests):,} requests, and {LEAST:,} to {MOST:,} are simulated; "
                "give the log of a busy hour"
            )
        upstreams = sorted({upstream for _, _, upstream in requests})
        if instances is None and upstreams == [""]:
            raise UserError(
                f"{path} names no upstream; give --instances, the number of requests that the "
                "servers run at a time"
            )
        slots = ceil((instances or 1) / len(upstreams))
        if instances is not None and slots * len(upstreams) != instances:
            raise UserError(
                f"{path} names {len(upstreams)} upstreams, which run equal numbers of requests at "
                f"a time; --instances is a multiple of {len(upstreams)}"
            )
        first = requests[0][0]
        arrivals = np.array([arrival - first for arrival, _, _ in requests])
        if not 0 < arrivals[-1] <= MAX_SPAN:
            raise UserError(
                f"the requests of {path} arrive within {arrivals[-1]:,.0f} s; give a log of more "
                f"than none and at most {MAX_SPAN:,.0f}"
            )
        servers, overtaken = [], 0
        for upstream in upstreams:
            own = [
                (arrival - first, latency)
                for arrival, latency, each in requests
                if each == upstream
            ]
            runs = list(_runs(own, slots))
            overtaken += sum(took < -TOLERANCE for _, took in runs)
            began, took = zip(*runs, strict=True)
            servers.append((began, [max(0.0, each) for each in took]))
        if overtaken > OVERTAKEN * len(requests):
            raise UserError(
                f"{overtaken / len(requests):.0%} of the requests of {path} end before one that "
                f"came earlier to the same server, which so runs more than {slots} at a time; give "
                "--instances, the number that all servers run at a time"
            )
        return cls(arrivals, np.array([each for _, each, _ in requests]), servers, slots)

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
    """Yield when each request began to run, in a queue for so many slots, and for how long."""
    latest: list[float] = []  # the ends of the last `slots` to end, of those that came before
    began = 0.0
    for arrival, latency in requests:
        end = arrival + latency
        began = max(began, arrival, latest[0] if len(latest) == slots else 0.0)
        yield began, end - began
        (heapq.heappush if len(latest) < slots else heapq.heappushpop)(latest, end)


# Reading


def _requests(path: Path) -> Iterator[tuple[float, float, str]]:
    """Yield arrival, latency and upstream of each request. Raises UserError for a line of
    anything else."""
    try:
        lines = content_of(path, MAX_BYTES).splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as an access log: {error}") from error
    names: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith(b"{"):
                yield _request(msgspec.json.decode(line))
                continue
            (values,) = csv.reader([line.decode()], strict=True)
            if names is None:
                names = [each.strip() for each in values]
                if "arrival" not in names:
                    raise ValueError("the first line of CSV names the columns")
                continue
            if len(values) != len(names):
                raise ValueError(f"it has {len(values)} values for {len(names)} columns")
            yield _request(dict(zip(names, values, strict=True)))
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path}, line {number}: {error}; it has {FIELDS}") from error


def _request(fields: Mapping[str, Any]) -> tuple[float, float, str]:
    arrival = _number(fields, "arrival")
    if "latency" in fields and "latency_ms" in fields:
        raise ValueError("latency and latency_ms are both there")
    in_ms = "latency_ms" in fields
    latency = _number(fields, "latency_ms" if in_ms else "latency") / (1000 if in_ms else 1)
    if not 0 <= latency <= LONGEST:
        raise ValueError(f"a latency of {latency:g} s is not between 0 and {LONGEST:,.0f}")
    upstream = fields.get("upstream", "")
    if not isinstance(upstream, str) or ("upstream" in fields and upstream in ("", "-")):
        raise ValueError("no upstream answered; leave out such requests")
    return arrival, latency, upstream


def _number(fields: Mapping[str, Any], name: str) -> float:
    given = fields.get(name)
    if given is None:
        raise ValueError(f"there is no {name}")
    if isinstance(given, str) and name == "arrival" and "T" in given:
        found = datetime.fromisoformat(given)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f"{name} is no number")
    number = float(given)
    if not isfinite(number):
        raise ValueError(f"{name} is not finite")
    return number


# Advice


@dataclass(frozen=True)
class LogAdvice(Printed):
    """The outcomes of the `rows`, by name, for the requests of a log; the first is the log itself.

    `timeout` is the per_try_timeout for a proxy, in seconds, and a share `late` of the requests is
    older. A stand-in takes `backup` seconds and may answer a share `coverage`; None: there is none.
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
            f"{len(log.servers)} x {log.slots} run at a time, for {1e3 * log.run:.1f} ms (median)."
        )
        advice = (
            "One queue for all servers is what parm serve has.\n"
            f"Behind Envoy: per_try_timeout: {self.timeout:.3f}s. {self.late:.1%} of the requests "
            "are late then; the retry budget has to allow as many."
        )
        if self.backup is None:
            advice += "\nGive BUNDLE or --backup-time for the rows of a stand-in."
        else:
            advice += (
                f"\nA stand-in takes {1e3 * self.backup:.1f} ms and may answer {self.coverage:.0%}."
            )
        table = outcome_table("", ((name, each, ()) for name, each in self.rows.items()))
        return [said, table, _picture(self.rows), advice]


def advise(
    log_file: Path | str,
    bundle: Bundle | Path | str | None = None,
    /,
    *,
    on_tried: Callable[[str], None] = lambda text: None,
    options: SimulationOptions | None = None,
    **given: Any,
) -> LogAdvice:
    """Say what hedging, and a stand-in, make of the requests in an access log.

    Args:
        log_file: The log: CSV with a header, or JSON lines, with `arrival` and `latency` (seconds)
            or `latency_ms` of each request, and `upstream`, where there is one.
        bundle: A bundle with a backup, or its folder. Its time relative to the model counts.
            Without one, give a `backup_time`, and the backup's `coverage`.
        on_tried: Called with the row that is simulated next.
        options: All of SimulationOptions at once, in place of some by name.
        **given: Fields of SimulationOptions: `instances`, `backup_time`, `coverage`, `agreement`,
            `seed`. The log says all else.

    Returns:
        The outcomes. They print as a table and a picture.

    Raises:
        UserError: A line of the log says something else, or other options are given.
    """
    chosen = gather(SimulationOptions, options, given)
    if type(chosen)(**{name: getattr(chosen, name) for name in TAKEN}) != chosen:
        raise UserError(
            "an access log has the load, and the times of the model: with it, give no more than "
            f"BUNDLE, {', '.join(map(flag_of, TAKEN[:-1]))}"
        )
    log = AccessLog.read(Path(log_file), chosen.instances)
    run = log.run
    if not run > 0:
        raise UserError(f"the requests of {log_file} took no time; there is nothing to plan")
    times, _, _ = open_service(bundle, replace(chosen, service_time=run))
    backup = times.seconds.get(BACKUP)
    coverage = times.coverage.get(str(Source.BACKUP), 1.0)
    service = Service(
        {DEPLOYED: run} | ({} if backup is None else {BACKUP: backup}),
        StandIns(None, () if backup is None else (BACKUP,)),
        {} if backup is None else {str(Source.BACKUP): coverage},
        overhead=0.0,
    )
    warm_up = len(log.arrivals) // (WARM_UP + 1)
    logged = log.latencies[warm_up:]
    busy = 1e3 * sum(sum(took) for _, took in log.servers) / len(log.arrivals)
    passed = np.random.default_rng(chosen.seed).random(len(logged)) < coverage

    def proxied(timeout: float) -> Outcome:
        """Return the outcome if a stand-in is asked for requests of this age."""
        answered = passed & (logged > timeout + (backup or 0.0))
        latencies = np.where(answered, timeout + (backup or 0.0), logged)
        p50, p99, p999 = (1e3 * np.quantile(latencies, (0.5, 0.99, 0.999))).tolist()
        return Outcome(p50, p99, p999, 1.0, float(answered.mean()), 0.0, {}, busy, 0.0)

    by_timeout = {
        each: proxied(each)
        for each in (ceil(1e3 * float(np.quantile(logged, 1 - share))) / 1e3 for share in ASKED)
    }
    lowest = min(each.p99_ms for each in by_timeout.values())
    timeout, behind = next(each for each in by_timeout.items() if each[1].p99_ms <= ALIKE * lowest)
    rows = {"as logged": proxied(inf)}
    if backup is not None:
        rows["a stand-in behind Envoy"] = behind
    scene = Scene(
        service,
        log.arrivals,
        warm_up,
        log.slots * len(log.servers),
        FaultPlan(),
        chosen.seed,
        driver=partial(_Replay, log, {role: each / run for role, each in service.seconds.items()}),
    )
    choices = {
        "one queue": NoRedundancy.name,
        "one queue, hedging": Hedging.name,
        **({} if backup is None else {"one queue, a stand-in": Adaptive.name}),
    }
    for name, policy in choices.items():
        on_tried(name)
        rows[name] = scene.outcome(PolicyChoice(policy, dispatch="latency-aware"))
    late = float((logged > timeout).mean())
    return LogAdvice(log, rows, timeout, late, backup, coverage)


def _picture(rows: Mapping[str, Outcome]) -> str:
    """Return a line for each row from its p50 over its p99 to its p99.9, on a logarithmic axis."""
    low = max(1e-3, min(each.p50_ms for each in rows.values()))
    high = max(each.p999_ms for each in rows.values())
    scale = (WIDTH - 1) / max(1e-9, log10(high / low)) if high > low else 0.0

    def column(ms: float) -> int:
        return round(scale * log10(max(ms, low) / low))

    label = max(map(len, rows))
    lines = []
    for name, each in rows.items():
        p50, p99, p999 = map(column, (each.p50_ms, each.p99_ms, each.p999_ms))
        line = [" "] * p50 + ["─"] * (p999 - p50 + 1)
        line[p999], line[p99], line[p50] = "┤", "●", "├"
        lines.append(f"{name:{label}}  {''.join(line)}")
    axis = f"{'':{label}}  {low:<.3g} ms".ljust(label + 2 + WIDTH - 8) + f"{high:>.3g} ms"
    return "\n".join(["├ p50  ● p99  ┤ p99.9", *lines, axis])


class _Replay(Driver):
    """Simulates servers that take as long as those of a log did at about the same time."""

    def __init__(self, log: AccessLog, shares: Mapping[str, float], *simulation: Any) -> None:
        super().__init__(*simulation)
        self._log, self._shares = log, shares

    def _begin(self, running: Running) -> None:
        took = self._log.run_time(running.instance.slot, self._now, self._random)
        self._release(running, running.there + self._shares[running.run.role] * took)
