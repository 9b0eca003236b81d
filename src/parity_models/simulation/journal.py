"""The journal of a server's scheduler: its events and the actions that followed, as lines of JSON.

The scheduler is deterministic, so a journal replays with the same actions; it tells the story of
each query; and its arrivals and run times are a workload for other policies. It holds ids, times
and roles, no tensors, and numbers in place of tenants' names.
"""

import logging
import os
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.roles import SOURCES, Source
from parity_models.scheduling.actions import Action
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.policies.policy import StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.simulation import FAILED, Driver, Running, SimulationResult

_log = logging.getLogger(__name__)

EVENTS = (
    *("queries_arrived", "queries_abandoned", "queries_failed", "unit_finished", "unit_failed"),
    *("decoded", "instance_joined", "instance_left", "unit_verified", "gate_turned"),
    *("process_measured", "redundancy_switched", "budget_changed", "time_passed"),
)

MAX_BYTES = 1 << 28
"""The size of a file of a journal: some 500,000 queries."""


class Header(msgspec.Struct, frozen=True):
    """The first line: the scheduler. `closed` are gates that start closed; `part` counts the files
    of the journal before this one."""

    policy: str
    options: dict[str, Any]
    dispatch: str | None
    config: SchedulerConfig
    closed: list[Source] = []
    part: int = 0

    @property
    def choice(self) -> PolicyChoice:
        """The policy. Raises UserError for one of a user's own, as no file may import code."""
        if ":" in self.policy:
            raise UserError(f"the journal is of {self.policy}, and only built-in policies replay")
        return PolicyChoice(self.policy, self.options, self.dispatch)


class Event(msgspec.Struct, array_like=True):
    """A line: an event, with the arguments of its method and the actions that followed.

    `request` is the id of the request that brought the queries; the first argument is the time.
    """

    name: str
    request: str
    given: list[Any]
    named: dict[str, Any]
    actions: list[tuple[str, dict[str, Any]]]


class Journal:
    """Records the events of a scheduler in a file, which is replaced.

    `request_id` returns the id of the request that is being read. From `max_bytes` on, it goes on
    in a new file, and the one before is kept as FILE.1. Raises UserError if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        choice: PolicyChoice,
        config: SchedulerConfig,
        request_id: Callable[[], str],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._path, self._request_id, self._max_bytes = path, request_id, max_bytes
        self._header = Header(choice.name, choice.options, choice.dispatch, config)
        self._encode = msgspec.json.Encoder(enc_hook=list).encode  # ranges of queries
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise UserError(f"cannot write the journal {path}: {error.strerror}") from error

    def record(self, scheduler: Scheduler) -> None:
        """Record what is reported to the scheduler from now on."""
        self._header = msgspec.structs.replace(self._header, closed=sorted(scheduler.closed_gates))
        self._write(self._header)
        for name in EVENTS:
            setattr(scheduler, name, self._recorded(name, getattr(scheduler, name)))

    def close(self) -> None:
        """Write what is left."""
        try:
            self._file.close()
        except OSError as error:
            self._end(error)

    def _recorded(self, name: str, report: Callable[..., list[Action]]) -> Callable[..., Any]:
        def recorded(*given: Any, **named: Any) -> list[Action]:
            actions, request, known = report(*given, **named), "", [*given]
            if name == "queries_arrived":
                request, known[2] = self._request_id(), hash(given[2])
                named |= {"tenant": named.get("tenant") and hash(named["tenant"])}
            if not self._file.closed:
                try:
                    self._write(Event(name, request, known, named, _written(actions)))
                except OSError as error:
                    self._end(error)
            return actions

        return recorded

    def _end(self, error: OSError) -> None:
        """Record nothing more, as the disk is full, say."""
        _log.warning("the journal %s ends here: %s", self._path, error.strerror)
        with suppress(OSError):
            self._file.close()

    def _write(self, line: Header | Event) -> None:
        self._file.write(self._encode(line) + b"\n")
        if self._file.tell() > self._max_bytes:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._path.open("wb")
            self._header = msgspec.structs.replace(self._header, part=self._header.part + 1)
            self._write(self._header)


def _written(actions: list[Action]) -> list[tuple[str, dict[str, Any]]]:
    return [(type(each).__name__, msgspec.structs.asdict(each)) for each in actions]


class Recording:
    """A journal that has been read, with the part before it if there is one.

    Raises UserError if it cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        older = Path(f"{path}.1")
        try:
            self.header, self.lines = _read(Path(path))
            if self.header.part and older.exists():
                self.header, before = _read(older)
                self.lines = before + self.lines
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the journal {path}: {error}") from error

    def events(self) -> Iterator[Event]:
        """Yield the events, in order. Raises UserError for a line that is none."""
        decode = msgspec.json.Decoder(Event).decode
        for number, line in enumerate(self.lines, 1):
            try:
                event = decode(line)
                if event.name not in EVENTS or not event.given:
                    raise ValueError("it is no event of the scheduler")
            except ValueError as error:  # msgspec's errors are such
                raise UserError(f"cannot read event {number} of the journal: {error}") from error
            yield event

    def replay(self, stand_ins: StandIns) -> Event | None:
        """Report the events to a new scheduler. Return the first event whose actions differ."""
        policy, dispatch = self.header.choice.build(stand_ins)
        scheduler = Scheduler(policy, self.header.config, dispatch)
        scheduler.closed_gates.update(self.header.closed)
        hints = {name: get_type_hints(getattr(Scheduler, name)) for name in EVENTS}
        for event in self.events():
            kinds = hints[event.name]
            given = dict(zip(kinds, event.given, strict=False)) | event.named
            given = {key: msgspec.convert(x, kinds[key], strict=False) for key, x in given.items()}
            actions = _written(getattr(scheduler, event.name)(**given))
            if msgspec.json.encode(actions) != msgspec.json.encode(event.actions):
                return event
        return None

    def story(self, asked: str) -> Iterator[str]:
        """Yield a line for each event that concerns a request, by id, or a query, by number.

        Raises UserError if the journal does not have it.
        """
        queries, units, began = set[int](), set[int](), 0.0
        for event in self.events():
            arrived = event.name == "queries_arrived" and not queries
            if arrived:
                queries = {q for q in event.given[1] if asked in (event.request, str(q))}
                began = event.given[0] if queries else began
            if not queries:
                continue
            mine = [each for each in event.actions if _concerns(each[1], queries, units)]
            units |= {each["unit"] for name, each in mine if name == "Run"}
            reported = event.name.startswith("unit") and event.given[1] in units
            if arrived or mine or reported:
                about = f" {event.given[1]}" if reported else ""
                did = "; ".join([event.name.replace("_", " ") + about, *map(_say, mine)])
                yield f"{1e3 * (event.given[0] - began):9.1f} ms  {did}"
            for name, each in event.actions:
                if name == "ForgetQueries":
                    queries -= {*each["queries"]}
            if not queries:
                return
        if not began:
            raise UserError(f"the journal has no request or query {asked}")

    def workload(self) -> "Workload":
        """Return what arrived, how fast the instances were, and what became of the queries."""
        events = [*self.events()]
        queries = [q for each in events if each.name == "queries_arrived" for q in each.given[1]]
        if not queries:
            raise UserError("the journal has no queries")
        places, count = {query: place for place, query in enumerate(queries)}, len(queries)
        start = next(x.given[0] for x in events if x.name == "queries_arrived")
        result = SimulationResult(np.full(count, np.nan), np.full(count, FAILED), np.zeros(count))
        found = Workload(np.empty(count), {}, result)
        running: dict[int, tuple[float, str, str]] = {}
        for event in events:
            time, about = event.given[0] - start, [*event.given, None][1]
            if event.name == "queries_arrived":
                found.arrivals[[places[query] for query in about]] = time
            elif event.name == "unit_finished" and about in running:
                began, instance, role = running.pop(about)
                took = (event.named.get("ended_at") or event.given[0]) - start - began
                found.units.setdefault(instance, []).append((began, role, took))
                result.busy[role] += took
            for name, each in event.actions:
                if name == "Run":
                    running[each["unit"]] = time, each["instance"], each["role"]
                    result.units[each["role"]] += 1
                    result.rows[each["role"]] += len(each["subjects"])
                elif name == "Answer" and each["query"] in places:
                    place = places[each["query"]]
                    result.latencies[place] = time - found.arrivals[place]
                    result.sources[place] = SOURCES.index(Source(each["source"]))
                    result.doubts[place] = each["doubt"]
        return found


@dataclass
class Workload:
    """The load and the instances of a journal. Times in seconds from the first query on.

    `arrivals` (n,) are the times of queries, and `result` is their fate; `units` has the beginning,
    role and time of those that each instance ran.
    """

    arrivals: NDArray[np.float64]
    units: dict[str, list[tuple[float, str, float]]]
    result: SimulationResult

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """The median time of a unit, by role."""
        ran = [*chain.from_iterable(self.units.values())]
        return {role: median(x[2] for x in ran if x[1] == role) for role in {x[1] for x in ran}}

    def driver(self, *given: Any) -> Driver:
        """Return the driver of a simulation in which each instance is, at each time, as slow as
        one of the journal was. Raises UserError if none ran anything."""
        if not self.units:
            raise UserError("the journal has no unit that ended")
        return _AsRecorded(self, *given)


class _AsRecorded(Driver):
    def __init__(self, recorded: Workload, *given: Any) -> None:
        usual = recorded.seconds
        self._slowness = [
            ([began for began, _, _ in ran], [took / usual[role] for _, role, took in ran])
            for ran in recorded.units.values()
        ]
        super().__init__(*given)

    def _begin(self, running: Running) -> None:
        began, slowness = self._slowness[running.instance.slot % len(self._slowness)]
        at = bisect(began, running.there) - 1
        took = self._takes(running.run.role, len(running.run.subjects))
        self._release(running, running.there + took * (slowness[at] if at >= 0 else 1.0))


def _read(path: Path) -> tuple[Header, list[bytes]]:
    first, *lines = path.read_bytes().split(b"\n")[:-1]  # the last line may be cut off
    return msgspec.json.decode(first, type=Header), lines


def _concerns(action: Mapping[str, Any], queries: Collection[int], units: Collection[int]) -> bool:
    """Return whether an action is about one of the queries, or one of the units."""
    about = {action.get("query"), *action.get("queries", ()), *action.get("members", ())}
    if "role" in action and not action["role"].startswith("parity"):
        about |= {*action.get("subjects", ())}
    return not about.isdisjoint(queries) or action.get("unit") in units


def _say(action: tuple[str, Mapping[str, Any]]) -> str:
    name, fields = action
    return " ".join([name, *(f"{key}={value}" for key, value in fields.items())])
