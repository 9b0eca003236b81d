"""The journal of a server's scheduler: its events and the actions that followed, as lines of JSON.

The scheduler is deterministic, so a journal replays with the same actions; it tells the story of
each query; and its arrivals and run times are a workload for other policies. It holds ids, times
and roles, no tensors, and numbers in place of tenants' names.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import StrEnum
from functools import partial
from inspect import signature
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_type_hints

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
from parity_models.simulation.simulation import FAILED, SimulationResult

_log = logging.getLogger(__name__)

EventName = StrEnum(
    "EventName",
    "queries_arrived queries_abandoned queries_failed unit_finished unit_failed decoded "
    "instance_joined instance_left unit_verified gate_turned process_measured "
    "redundancy_switched budget_changed time_passed",
)
"""The methods of a scheduler that report events."""

_encode = msgspec.json.Encoder(enc_hook=list).encode  # ranges of queries, as lists

MAX_BYTES = 1 << 28
"""The size of a file of a journal: some 500,000 queries."""


class Header(msgspec.Struct, frozen=True):
    """The first line of each file: the scheduler. `closed` are gates that start closed."""

    policy: str
    options: dict[str, Any]
    dispatch: str | None
    config: SchedulerConfig
    closed: list[Source] = []

    @property
    def choice(self) -> PolicyChoice:
        """The policy. Raises UserError for one of a user's own, as no file may import code."""
        if ":" in self.policy:
            raise UserError(f"the journal is of {self.policy}, and only built-in policies replay")
        return PolicyChoice(self.policy, self.options, self.dispatch)


class Event(msgspec.Struct, array_like=True):
    """A line: an event, with the arguments of its method by name and the actions that followed.

    `request` is the id of the request that brought the queries; `unlike` are queries that no
    stand-in may see, which was found out then.
    """

    name: EventName
    time: float
    given: dict[str, Any]
    actions: list[dict[str, Any]]
    request: str = ""
    unlike: list[int] = []


class Journal:
    """Records what is reported to a scheduler from now on in a file, which is replaced.

    `request_id` returns the id of the request that is being read. From `max_bytes` on, it goes on
    in a new file, and the one before is kept as FILE.1. Raises UserError if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        choice: PolicyChoice,
        scheduler: Scheduler,
        request_id: Callable[[], str],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._path, self._older, self._max_bytes = path, Path(f"{path}.1"), max_bytes
        self._request_id = request_id
        closed = sorted(scheduler.closed_gates)
        config = scheduler.config
        self._header = Header(choice.name, choice.options, choice.dispatch, config, closed)
        try:
            self._older.unlink(missing_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise UserError(f"cannot write the journal {path}: {error.strerror}") from error
        self._write(self._header)
        self._unlike: list[int] = []
        scheduler.is_unlike = partial(self._screened, scheduler.is_unlike)
        for name in EventName:
            setattr(scheduler, name, self._recorded(name, getattr(scheduler, name)))

    def close(self, error: OSError | None = None) -> None:
        """Write what is left. After an `error`, as the disk is full, say, record nothing more."""
        try:
            self._file.close()
        except OSError as again:
            error = again
        if error is not None:
            _log.warning("the journal %s ends here: %s", self._path, error.strerror)

    def _recorded(self, name: str, report: Callable[..., list[Action]]) -> Callable[..., Any]:
        _, *parameters = signature(report).parameters  # the first is the time

        def recorded(now: float, *values: Any, **named: Any) -> list[Action]:
            actions, request = report(now, *values, **named), ""
            given = dict(zip(parameters, values, strict=False)) | named
            if name == "queries_arrived":
                request, tenant = self._request_id(), given.get("tenant")
                given |= {"kind": hash(given["kind"]), "tenant": tenant and hash(tenant)}
            if not self._file.closed:
                self._write((name, now, given, actions, request, self._unlike))
            self._unlike.clear()
            return actions

        return recorded

    def _screened(self, is_unlike: Callable[[int], bool], query: int) -> bool:
        unlike = is_unlike(query)
        if unlike:
            self._unlike.append(query)
        return unlike

    def _write(self, line: Header | tuple[object, ...]) -> None:
        try:
            self._file.write(_encode(line) + b"\n")
            if self._file.tell() > self._max_bytes:
                self._file.close()
                os.replace(self._path, self._older)
                self._file = self._path.open("wb")
                self._write(self._header)
        except OSError as error:
            self.close(error)


class Workload(NamedTuple):
    """The load and the instances of a journal. Times in seconds from the first query on.

    `arrivals` (n,) are the times of queries, and `result` is their fate; `seconds` is the median
    time of a unit, by role. `slowness` has, for each instance, when each unit began, in order, and
    how many times as long as usual it took.
    """

    arrivals: NDArray[np.float64]
    seconds: Mapping[str, float]
    slowness: Sequence[Sequence[tuple[float, float]]]
    result: SimulationResult


class Recording:
    """A journal that has been read, with the file before it if there is one.

    Raises UserError if it cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        older = Path(f"{path}.1")
        try:
            content = older.read_bytes() if older.exists() else b""
            content += Path(path).read_bytes()
            first, *lines = content.split(b"\n")[:-1]  # the last line may be cut off
            self.header = msgspec.json.decode(first, type=Header)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the journal {path}: {error}") from error
        self.lines = [line for line in lines if line != first]

    def events(self) -> Iterator[Event]:
        """Yield the events, in order. Raises UserError for a line that is none."""
        decode = msgspec.json.Decoder(Event).decode
        for number, line in enumerate(self.lines, 1):
            try:
                yield decode(line)
            except ValueError as error:  # msgspec's errors are such
                raise UserError(f"cannot read event {number} of the journal: {error}") from error

    def replay(self, stand_ins: StandIns) -> Event | None:
        """Report the events to a new scheduler. Return the first event whose actions differ."""
        policy, dispatch = self.header.choice.build(stand_ins)
        scheduler = Scheduler(policy, self.header.config, dispatch)
        scheduler.closed_gates.update(self.header.closed)
        unlike = set[int]()
        scheduler.is_unlike = unlike.__contains__
        hints = {name: get_type_hints(getattr(Scheduler, name)) for name in EventName}
        for event in self.events():
            unlike.update(event.unlike)
            kinds, given = hints[event.name], event.given
            given = {key: msgspec.convert(x, kinds[key], strict=False) for key, x in given.items()}
            actions = getattr(scheduler, event.name)(event.time, **given)
            if _encode(actions) != _encode(event.actions):
                return event
        return None

    def story(self, asked: str) -> Iterator[str]:
        """Yield a line for each event that concerns a request, by id, or a query, by number.

        Raises UserError if the journal does not have it.
        """
        queries, units, began = set[int](), set[int](), None
        for event in self.events():
            unit, about = event.given.get("unit"), event.given.get("queries", ())
            arrived = {query for query in about if asked in (event.request, str(query))}
            queries |= arrived
            if not queries:
                continue
            began = event.time if began is None else began
            mine = [each for each in event.actions if _concerns(each, queries, units)]
            units |= {each["unit"] for each in mine if each["type"] == "Run"}
            if arrived or mine or unit in units:
                name = event.name.replace("_", " ") + (f" {unit}" if unit in units else "")
                said = "; ".join([name, *map(_say, mine)])
                yield f"{1e3 * (event.time - began):9.1f} ms  {said}"
            queries.difference_update(*(x["queries"] for x in mine if x["type"] == "ForgetQueries"))
            if not queries:
                return
        if began is None:
            raise UserError(f"the journal has no request or query {asked}")

    def workload(self) -> Workload:
        """Return what arrived, how fast the instances were, and what became of the queries.

        Raises UserError if no query arrived, or no unit ended.
        """
        arrivals, fates = dict[int, float](), dict[int, tuple[float, float, float]]()
        units, rows = Counter[str](), Counter[str]()
        running = dict[int, tuple[float, str, str]]()
        ran = defaultdict[str, list[tuple[float, str, float]]](list)
        times = defaultdict[str, list[float]](list)
        for event in self.events():
            if event.name == "queries_arrived":
                arrivals |= dict.fromkeys(event.given["queries"], event.time)
            elif event.name == "unit_finished" and event.given["unit"] in running:
                began, instance, role = running.pop(event.given["unit"])
                took = (event.given.get("ended_at") or event.time) - began
                ran[instance].append((began, role, took))
                times[role].append(took)
            for each in event.actions:
                if each["type"] == "Run":
                    role, subjects = each["role"], each["subjects"]
                    running[each["unit"]] = event.time, each["instance"], role
                    units[role], rows[role] = units[role] + 1, rows[role] + len(subjects)
                elif each["type"] == "Answer" and each["query"] in arrivals:
                    query, source = each["query"], SOURCES.index(Source(each["source"]))
                    fates[query] = event.time - arrivals[query], source, each["doubt"]
        if not arrivals or not ran:
            raise UserError(f"the journal has no {'unit that ended' if arrivals else 'queries'}")
        start, seconds = min(arrivals.values()), {role: median(x) for role, x in times.items()}
        slowness = [
            [(began - start, took / seconds[role]) for began, role, took in each]
            for each in ran.values()
        ]
        fate = np.array([fates.get(query, (nan, FAILED, 0.0)) for query in arrivals])
        latencies, sources, doubts = fate.T
        busy = defaultdict(float, {role: sum(each) for role, each in times.items()})
        result = SimulationResult(latencies, sources, doubts, units, busy, rows=rows)
        return Workload(np.array([*arrivals.values()]) - start, seconds, slowness, result)


def _concerns(action: Mapping[str, Any], queries: Set[int], units: Set[int]) -> bool:
    """Return whether an action is about one of the queries, or one of the units."""
    about = {action.get("query"), *action.get("queries", ()), *action.get("members", ())}
    if not action.get("role", "").startswith("parity"):  # whose subjects are groups
        about.update(action.get("subjects", ()))
    return not about.isdisjoint(queries) or action.get("unit") in units


def _say(action: Mapping[str, Any]) -> str:
    return " ".join([action["type"], *(f"{k}={v}" for k, v in action.items() if k != "type")])
