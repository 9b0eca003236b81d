"""The driver: reports to the Scheduler what an engine reports, and carries out its actions.

The scheduler decides; the driver has the engine run units, keeps tensors until the scheduler
forgets them, encodes, decodes, and answers. Everything happens on the event loop's thread, and
actions are carried out in their order.

Carrying out actions never stops half-way: where one fails, the query that it concerns gets an
error, the rest are carried out, and a self-check compares scheduler and engine once a second.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.tensor import one_row, tensors_in
from parity_models.roles import BACKUPS, DEPLOYED, Source, parity_role, source_of
from parity_models.scheduling import (
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Reason,
    Recycle,
    RecycleReason,
    Redundancy,
    Run,
    Scheduler,
    Verify,
    WakeAt,
)
from parity_models.serving.engine import Engine
from parity_models.serving.errors import (
    AbandonedError,
    DeadlineError,
    InferenceError,
    InternalError,
    OverloadedError,
    PoisonError,
    RequestError,
    UnavailableError,
)
from parity_models.serving.golden import Golden, is_right
from parity_models.serving.in_flight import InFlight, Made, Result
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observer, Observers
from parity_models.serving.redundant_work import RedundantWork
from parity_models.serving.request_log import headers_for
from parity_models.serving.stand_ins import StandIns
from parity_models.trust.gates import OutputGate

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

MEASURE_INTERVAL = 0.1
"""Seconds between two measurements of the process."""

CHECK_INTERVAL = 1.0
"""Seconds between two self-checks."""

MAX_QUARANTINED = 100
"""Quarantined instances that are remembered by name."""

_SOURCES = {role: source_of(role) for role in (DEPLOYED, *BACKUPS)}

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Group:
    """A coding group's queries, parity queries (r, *parity shape) and the outputs for these."""

    members: tuple[int, ...]
    parities: Sequence[NDArray[Any]]
    outputs: list[Made | None]


_ERRORS: Mapping[Reason, type[RequestError]] = {
    Reason.OVERLOADED: OverloadedError,
    Reason.NO_INSTANCES: UnavailableError,
    Reason.DEADLINE_EXCEEDED: DeadlineError,
    Reason.INSTANCES_FAILED: InferenceError,
    Reason.POISON: PoisonError,
    Reason.ABANDONED: AbandonedError,
    Reason.INTERNAL: InternalError,
}
"""The error of a query that the scheduler lets fail, by the reason."""


class _Unit(NamedTuple):
    action: Run | Verify
    began: float


class Driver:
    """Drives `scheduler` with `engine`: it is the engine's listener, and starts and stops it.

    Args:
        engine: Runs the units.
        scheduler: Decides.
        code: Encodes and decodes, where the policy uses a code.
        metrics: Count what happens.
        gate: Decides which outputs of stand-ins may answer.
        refuses: Returns whether a fault plan refuses a query the stand-in with this source.
        compare_one_in: Groups of which one is compared with predictions.
        default: The answer (*output shape) where the scheduler answers with the default.
        imitated: The output that stand-ins give, if the deployed model has several: its predictions
            are then records with a field for each.
        golden: Queries to verify instances with, by role.

    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        code: Code | None,
        metrics: Metrics,
        gate: OutputGate,
        *,
        refuses: Callable[[int, Source], bool],
        compare_one_in: int,
        default: NDArray[Any] | None = None,
        imitated: str | None = None,
        golden: Mapping[str, Golden],
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._code = code
        self._metrics = metrics
        self._default = default
        self._imitated = imitated
        self._golden = golden
        self.in_flight: dict[int, InFlight] = {}
        """The request of each query that is remembered, by the query's id."""
        self.units: dict[int, _Unit] = {}
        """The units that the engine has."""
        self.busy_seconds: dict[str, float] = {}
        """Time from when instances were given units to the units' ends, summed by role."""
        self.quarantined: deque[str] = deque(maxlen=MAX_QUARANTINED)
        """The instances that answered a golden query wrongly, the latest last."""
        self.poison = Poison()
        self._groups: dict[int, _Group] = {}
        self._parity_rows = {parity_role(j): j for j in range(code.r if code else 0)}
        self._work = RedundantWork(metrics)
        self._observers = Observers(metrics)
        self._stand_ins = StandIns(
            code,
            gate,
            metrics,
            refuses=refuses,
            compared=partial(self._report, scheduler.compared),
            gate_turned=partial(self._report, scheduler.gate_turned),
            one_in=compare_one_in,
        )
        self._differences: set[Difference] = set()
        self._next_check = _Timer(self.check_engine)
        self._next_measure = _Timer(self._measure)
        self._measured = (0.0, 0.0)
        """When the process is measured next, and its processor time at the last time."""
        self._redundancy = Redundancy.ON
        self._wake_up = _Timer(lambda: self.carry_out(scheduler.time_passed(now())))
        self._reports: deque[Callable[[], Sequence[Action]]] = deque()
        self._started = self._draining = self._stopped = False
        self._idle = asyncio.Event()
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Encode: self._encode,
            Decode: self._decode,
            Answer: self._answer,
            Fail: self._fail,
            Cancel: self._cancel,
            Compare: self._compare,
            Verify: self._verify,
            Recycle: self._recycle,
            ForgetQueries: self._forget_queries,
            ForgetGroup: self._forget_group,
            WakeAt: self._wake_at,
        }

    def observe(self, observer: Observer) -> None:
        """Tell this observer, too, from now on."""
        self._observers.add(observer)

    async def start(self, roles: Sequence[frozenset[str]]) -> None:
        """Start the engine, and check it from then on."""
        await self._engine.start(roles, self)
        self._started = True
        self.check_engine()
        self._measured = (now(), time.process_time())
        self._measure()

    async def drain(self) -> None:
        """Return when no query is in flight."""
        self._draining = True
        if self._scheduler.pending:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine; queries in flight get an error."""
        self._stopped = True
        self._wake_up.cancel()
        self._next_check.cancel()
        self._next_measure.cancel()
        for request in set(self.in_flight.values()):
            request.fail(UnavailableError("the server was stopped"))
        await self._engine.stop()

    def arrived(self, request: InFlight, queries: range, actions: Sequence[Action]) -> None:
        """Take a request with these queries, and carry out what the scheduler says to it."""
        for query in queries:
            self.in_flight[query] = request
        if len(queries) > 1:
            request.future.add_done_callback(lambda _: self._detach(request))
        self.carry_out(actions)

    def _detach(self, request: InFlight) -> None:
        """Keep those rows of a request that has ended that are still needed, each by itself."""
        for row, query in enumerate(request.queries):
            if query in self.in_flight:
                self.in_flight[query] = request.detach_row(row)

    # For the engine: EngineListener

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        if self._started:
            self._metrics.restarts.inc()
        at = now()
        self._work.instance_joined(at, instance, roles, node)
        self._observers.tell("instance_joined", at, instance, roles, node)
        self.carry_out(self._scheduler.instance_joined(at, instance, roles, node))

    def instance_left(self, instance: str, why: str) -> None:
        for id in [id for id, unit in self.units.items() if unit.action.instance == instance]:
            self._ended(self.units.pop(id), now(), finished=False)
        at = now()
        self._work.instance_left(at, instance, why)
        self._observers.tell("instance_left", at, instance, why)
        self.carry_out(self._scheduler.instance_left(at, instance))

    def unit_finished(
        self,
        unit: int,
        outputs: NDArray[Any],
        *,
        started: float | None = None,
        ended: float | None = None,
    ) -> None:
        given = self.units.pop(unit, None)
        if given is None:
            return  # it was lost, or has been reported before
        run, at = given.action, now()
        self._ended(given, at, finished=True)
        if isinstance(run, Verify):
            golden = self._golden[run.role]
            right = is_right(golden, run.probe, outputs[0, ...], self._engine.tolerance)
            self.carry_out(self._scheduler.unit_verified(at, unit, right))
            return
        self._keep(run, outputs)
        unusable: Collection[int] = ()
        if run.role in BACKUPS:
            unusable = self._stand_ins.refused(_SOURCES[run.role], run.subjects, outputs)
            self._refused(unusable, _SOURCES[run.role])
        try:
            self._compare_outputs(run, outputs)
        except Exception:  # a user's own decoder may raise: queries have their answers still
            _log.exception("unit %d could not be compared", unit)
        finished = self._scheduler.unit_finished(now(), unit, set(unusable), ended_at=ended)
        self.carry_out(finished)

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        given = self.units.pop(unit, None)
        if given is not None:
            if isinstance(given.action, Verify):
                _log.warning("instance %s ran no golden query: %s", given.action.instance, detail)
            self._ended(given, now(), finished=False)
            self.carry_out(self._scheduler.unit_failed(now(), unit, detail, busy=busy))

    def headers_of(self, unit: int) -> Mapping[str, str]:
        given = self.units.get(unit)
        if given is None or not isinstance(given.action, Run):
            return {}
        run = given.action
        queries: Iterable[int] = run.subjects
        if run.role in self._parity_rows:
            groups = [self._groups[group] for group in run.subjects if group in self._groups]
            queries = [query for group in groups for query in group.members]
        requests = [self.in_flight[query] for query in queries if query in self.in_flight]
        logs = [each.request for each in requests if each.request is not None]
        return {**headers_for(logs), **self._observers.headers(run)}

    def _ended(self, unit: _Unit, at: float, *, finished: bool) -> None:
        """A unit that was taken from `units` is off its instance."""
        action = unit.action
        seconds = self.busy_seconds.get(action.role, 0.0)
        self.busy_seconds[action.role] = seconds + at - unit.began
        self._work.unit_ended(at, action, finished=finished)
        if self._observers.all:
            self._observers.tell("unit_ended", at, action, finished=finished)
        if not finished:
            self._stand_ins.lost(action.unit)

    def _keep(self, run: Run, outputs: NDArray[Any]) -> None:
        """Keep a unit's `outputs` (rows, *output shape), as far as they are still needed."""
        j = self._parity_rows.get(run.role)
        for subject, output in zip(run.subjects, outputs, strict=True):
            if j is None:
                request = self.in_flight.get(subject)
                if request is not None:
                    made = Made(output, run.instance, request.tenant)
                    request.outputs[subject, _SOURCES[run.role]] = made
            else:
                group = self._groups.get(subject)
                if group is not None:
                    group.outputs[j] = Made(output, run.instance)

    def _compare_outputs(self, run: Run, outputs: NDArray[Any]) -> None:
        """Compare what stand-ins and the model have predicted for the same queries."""
        j = self._parity_rows.get(run.role)
        if j is None:
            roles = BACKUPS if run.role == DEPLOYED else (run.role,)
            for query in run.subjects:
                request = self.in_flight.get(query)
                if request is None or len(request.outputs) < 2:
                    continue
                for source in map(_SOURCES.__getitem__, roles):
                    stand_in = request.outputs.get((query, source))
                    prediction = None if stand_in is None else self._prediction(query)
                    if stand_in is not None and prediction is not None:
                        self._stand_ins.compare(source, stand_in, prediction)
        if run.role != DEPLOYED:
            self._stand_ins.finished(j, run, outputs)

    def _prediction(self, query: int) -> Made | None:
        """Return the deployed model's output for a query, if it is here: the imitated one."""
        request = self.in_flight.get(query)
        made = None if request is None else request.outputs.get((query, Source.MODEL))
        if made is None or self._imitated is None:
            return made
        return made._replace(output=made.output[self._imitated])

    def _refused(self, queries: Collection[int], source: Source) -> None:
        if queries:
            self._work.refused(now(), queries, source)
            self._observers.tell("refused", now(), queries, source)

    # The scheduler's actions

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Carry out actions, and what the scheduler says to that; nothing once it is stopped."""
        if self._stopped:
            return
        while True:
            if actions:
                self._do_all(actions)
            if not self._reports:
                break
            actions = self._reports.popleft()()
        if self._draining and not self._scheduler.pending:
            self._idle.set()

    def _do_all(self, actions: Sequence[Action]) -> None:
        at = now()
        self._work.acted(at, actions)
        if self._observers.all:
            self._observers.tell("acted", at, actions)
        for action in actions:
            try:
                self._do[type(action)](action)
            except Exception as error:
                self._undone(action, error)

    def _undone(self, action: Action, error: Exception) -> None:
        """Report an action that could not be carried out, so that nobody waits for its outcome."""
        _log.error("%s could not be carried out", action, exc_info=error)
        self._metrics.undone.inc()
        why = "the server failed to handle the query; its log says why"
        match action:
            case Run() | Verify():
                if isinstance(action, Run) and action.role not in self._parity_rows:
                    self._report(self._scheduler.queries_failed, action.subjects, why)
                if action.unit in self.units:  # the engine may have it
                    self._reports.append(partial(self._recycle_in_vain, action.instance))
                else:
                    self._ended(_Unit(action, now()), now(), finished=False)
                    self._report(self._scheduler.unit_failed, action.unit, why)
            case Decode(group, slots=slots):
                self._report(self._scheduler.decoded, group, slots)
            case Answer(query):
                self._fail(Fail(query, Reason.INTERNAL, why))

    def _recycle_in_vain(self, instance: str) -> Sequence[Action]:
        self._engine.recycle(instance, "may have got a unit, or not")
        return ()

    def _report(self, event: Callable[..., Sequence[Action]], *about: Any) -> None:
        """Report to the scheduler once the present actions have been carried out."""
        self._reports.append(lambda: event(now(), *about))

    def _run(self, action: Run) -> None:
        j = self._parity_rows.get(action.role)
        if j is None:
            requests = [(query, self.in_flight[query]) for query in action.subjects]
            rows = [request.rows[query - request.first, ...] for query, request in requests]
        else:
            rows = [self._groups[group].parities[j] for group in action.subjects]
        self.units[action.unit] = _Unit(action, now())
        self._engine.run(action.instance, action.unit, action.role, rows)

    def _row(self, query: int) -> NDArray[Any]:
        request = self.in_flight[query]
        row: NDArray[Any] = request.rows[query - request.first, ...]
        return row

    def _encode(self, action: Encode) -> None:
        assert self._code is not None
        began = now()
        names = self._code.query_shapes
        rows = (tensors_in(self._row(query)) for query in action.members)
        queries = [dict(zip(names, row, strict=True)) for row in rows]
        with np.errstate(all="ignore"):
            parities = list(map(one_row, self._code.encode(queries)))
        self._groups[action.group] = _Group(action.members, parities, [None] * self._code.r)
        ended = now()
        self._metrics.encode.observe(ended - began)
        self._metrics.group_wait.observe(action.group_wait)
        self._observers.tell("encoded", began, ended, action)

    def _decode(self, action: Decode) -> None:
        assert self._code is not None
        began = now()
        predictions = [
            made.output if here and (made := self._prediction(query)) is not None else None
            for query, here in zip(action.members, action.available, strict=True)
        ]
        parities = [
            made.output if made and here else None
            for made, here in zip(self._groups[action.group].outputs, action.parities, strict=True)
        ]
        with np.errstate(all="ignore"):
            decoded = self._code.decode(predictions, parities)
        wrong = []
        for slot in action.slots:
            query, output = action.members[slot], decoded[slot]
            self.in_flight[query].outputs[query, Source.RECONSTRUCTION] = Made(output, "")
            if self._stand_ins.refused(Source.RECONSTRUCTION, (query,), output[np.newaxis]):
                wrong.append(slot)
        ended = now()
        self._metrics.decode.observe(ended - began)
        self._observers.tell("decoded", began, ended, action)
        self._refused([action.members[slot] for slot in wrong], Source.RECONSTRUCTION)
        self._report(self._scheduler.decoded, action.group, wrong)

    def _answer(self, action: Answer) -> None:
        query, source, at = action.query, action.source, now()
        request = self.in_flight[query]
        row = query - request.first
        if source is Source.DEFAULT:
            request.answers[row] = self._default
        elif self._imitated is None or source is Source.MODEL:
            request.answers[row] = request.outputs[query, source].output
        else:
            request.answers[self._imitated][row] = request.outputs[query, source].output
        request.sources[row] = source
        request.unanswered -= 1
        exemplar = None if request.request is None else request.request.exemplar
        self._metrics.latency(source).observe(at - request.arrived, exemplar)
        self._metrics.deadline_margin.observe(max(0.0, request.due - at))
        if source is Source.RECONSTRUCTION:
            self._metrics.reconstructions.inc()
        if not request.unanswered and not request.future.done():
            request.future.set_result(Result(request.answers, request.sources))

    def _fail(self, action: Fail) -> None:
        """Fail a query, and its request with it."""
        request = self.in_flight[action.query]
        self._metrics.failures.labels(action.reason).inc()
        if action.reason is Reason.POISON:
            self.poison.remember(self._row(action.query), now())
        if request.future.done():
            return
        text = f"{action.reason}: {action.detail}"
        request.fail(_ERRORS[action.reason](text, retry_after=action.retry_after))
        if len(request.rows) > 1:
            self._report(self._scheduler.queries_abandoned, request.queries)

    def _cancel(self, action: Cancel) -> None:
        if action.unit in self.units:
            self._engine.cancel(action.instance, action.unit)

    def _compare(self, action: Compare) -> None:
        unit = self.units.get(action.unit)
        if unit is not None and isinstance(unit.action, Run):
            run = unit.action
            self._stand_ins.sample(run, self._predictions(run) if run.role in BACKUPS else ())

    def _predictions(self, run: Run) -> Iterator[tuple[int, Made]]:
        for query in run.subjects:
            made = self._prediction(query)
            if made is not None:
                yield query, made

    def _verify(self, action: Verify) -> None:
        golden = self._golden.get(action.role)
        if golden is None:
            self._report(self._scheduler.unit_verified, action.unit, True)
            return
        self.units[action.unit] = _Unit(action, now())
        self._metrics.verifications.inc()
        rows, _ = golden
        row = rows[action.probe % len(rows), ...]
        self._engine.run(action.instance, action.unit, action.role, [row])

    def _recycle(self, action: Recycle) -> None:
        instance = action.instance
        _log.warning("instance %s is replaced: it %s", instance, action.why)
        self._metrics.recycled.labels(action.reason).inc()
        if action.reason is RecycleReason.QUARANTINED:
            if len(self.quarantined) == MAX_QUARANTINED:
                self._metrics.quarantined.remove(self.quarantined[0])
            self.quarantined.append(instance)
            self._metrics.quarantined.labels(instance).inc()
        self._engine.recycle(instance, action.why)

    def _wake_at(self, action: WakeAt) -> None:
        self._wake_up.set(action.time)

    def _forget_queries(self, action: ForgetQueries) -> None:
        for query in action.queries:
            del self.in_flight[query]

    def _forget_group(self, action: ForgetGroup) -> None:
        group = self._groups.pop(action.group)
        predictions = [self._prediction(query) for query in group.members]
        self._stand_ins.group_over(action.group, predictions, group.outputs)

    # How late and how busy this process is

    def _measure(self) -> None:
        """Tell the scheduler how late this timer is, and how busy the process is; log changes."""
        at, computed = now(), time.process_time()
        due, before = self._measured
        lag = max(0.0, at - due)
        busy = (computed - before) / (MEASURE_INTERVAL + lag)
        self._measured = (at + MEASURE_INTERVAL, computed)
        self._next_measure.set(at + MEASURE_INTERVAL)
        self.carry_out(self._scheduler.process_measured(at, lag, busy))
        redundancy = self._scheduler.redundancy
        if (
            Redundancy.BOTTLENECK in (redundancy, self._redundancy)
            and redundancy != self._redundancy
        ):
            door = self._scheduler.front_door
            wait = f"reports wait {door.lag * 1e3:.1f} ms, and it uses {door.busy:.0%} of a core"
            if redundancy is Redundancy.BOTTLENECK:
                _log.warning("this process is the bottleneck: %s; nothing redundant is sent", wait)
            else:
                _log.info("this process is no longer the bottleneck: %s", wait)
        elif redundancy is Redundancy.PAUSED and self._redundancy is not redundancy:
            _log.warning("redundant work does not shorten latencies; it is paused")
        elif redundancy is Redundancy.ON and self._redundancy is Redundancy.TESTING:
            _log.info("redundant work shortens latencies; it goes on")
        self._redundancy = redundancy

    # Self-check

    def check_engine(self) -> None:
        """Repair what scheduler and engine say differently of an instance, at two checks in a row:
        what is on its way between the two differs for a moment. Runs every CHECK_INTERVAL seconds.
        """
        self._next_check.set(now() + CHECK_INTERVAL)
        found = differences(self._scheduler.running(), self._engine.running())
        lasting = found & self._differences
        self._differences = found - lasting
        for difference in sorted(lasting, key=lambda each: each.instance):
            _log.error("repairing: %s", difference)
            self._metrics.repairs.inc()
            if not difference.instance_is_there:
                self.instance_left(difference.instance, str(difference))
            elif difference.believed is not None and difference.real is None:
                unit = Run(difference.instance, difference.believed, "", ())
                self.units.setdefault(difference.believed, _Unit(unit, now()))
                self.unit_failed(difference.believed, str(difference))
            else:
                self._engine.recycle(difference.instance, str(difference))


class Difference(NamedTuple):
    """An instance of which scheduler and engine say different things.

    `believed` is its unit by the scheduler, `real` by the engine; None where it has none.
    """

    instance: str
    believed: int | None
    real: int | None
    is_known: bool
    instance_is_there: bool

    def __str__(self) -> str:
        if not self.instance_is_there:
            return f"instance {self.instance} is believed to be up, and the engine does not have it"
        if not self.is_known:
            return f"the engine has instance {self.instance}, which is not believed to be up"
        believed = "no unit" if self.believed is None else f"unit {self.believed}"
        real = "none" if self.real is None else f"unit {self.real}"
        return f"instance {self.instance} is believed to have {believed}, and has {real}"


def differences(
    believed: Mapping[str, int | None], real: Mapping[str, int | None]
) -> set[Difference]:
    """Compare the units of instances, by instance, as scheduler and engine have them."""
    return {
        Difference(name, believed.get(name), real.get(name), name in believed, name in real)
        for name in believed.keys() | real.keys()
        if (name in believed, believed.get(name)) != (name in real, real.get(name))
    }


class Poison:
    """Rows that ended the instances they were tried on; refused for REFUSED seconds."""

    REFUSED = 600.0
    """Seconds for which such a row is refused: the cause may be fixed by then."""

    MAX_ROWS = 1000
    """Rows that are remembered; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def remember(self, row: NDArray[Any], now: float) -> None:
        """Refuse rows like this one (*input shape) from now on."""
        digest = _digest(row)
        self._until[digest] = now + self.REFUSED
        self._until.move_to_end(digest)
        if len(self._until) > self.MAX_ROWS:
            self._until.popitem(last=False)

    def check(self, rows: NDArray[Any], now: float) -> None:
        """Raise PoisonError if one of the rows (n, *input shape) is remembered."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        for i in range(len(rows) if self._until else 0):
            if _digest(rows[i, ...]) in self._until:
                raise PoisonError(
                    f"poison: row {i} ended the instances that it was tried on before; it is "
                    f"refused for {self.REFUSED:.0f} s"
                )


def _digest(row: NDArray[Any]) -> bytes:
    whole = np.ascontiguousarray(row).reshape(-1)
    return blake2b(whole.view(np.uint8).data, digest_size=16).digest()


class _Timer:
    """Calls `wake` at the time that was set last (monotonic, seconds)."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._time = self._timer_time = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def set(self, time: float) -> None:
        """Wake at `time`, instead of at the time that was set before."""
        self._time = time
        # A timer that is too early is set anew when it fires: most are never waited for so long.
        if self._timer is None or time < self._timer_time:
            self._start_timer()

    def cancel(self) -> None:
        """Wake no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is None:
            # Kept, as asking for it is a system call (Python 3.11: it looks at the process id).
            self._loop = asyncio.get_running_loop()
        self._timer_time = self._time
        # uvloop rounds to whole milliseconds: rounding up keeps the timer from firing early, over
        # and over.
        delay = max(0, math.ceil((self._time - now()) * 1e3)) / 1e3
        self._timer = self._loop.call_later(delay, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if now() < self._time:
            self._start_timer()
        else:
            self._wake()
