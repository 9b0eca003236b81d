"""The frontend: turns the rows of requests into queries, drives the Scheduler, and gives Results.

A request of n rows is n queries to the scheduler, with consecutive ids, and one future to its
caller. The scheduler decides; the frontend has the engine run units, keeps tensors until the
scheduler forgets them, encodes, decodes, and answers. Everything happens on the event loop's
thread, and actions are carried out in their order.

Carrying out actions never stops half-way: if one fails, its query gets an error, and the rest are
carried out. A self-check compares scheduler and engine once a second.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from hashlib import blake2b
from math import ceil
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parity_models.codes import Code
from parity_models.roles import BACKUP, DEPLOYED, SOURCES, Source, parity_role, source_of
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Audit,
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
    Run,
    Verify,
    WakeAt,
)
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health import State
from parity_models.scheduling.policies import Policy, Redundancy
from parity_models.scheduling.process_load import MEASURE_INTERVAL
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving import errors
from parity_models.serving.engine import Engine
from parity_models.serving.limits import LARGE
from parity_models.serving.metrics import ANSWERED, CANCELLED, COPY, PARITY, SENT, Metrics, labelled
from parity_models.serving.models import Result
from parity_models.serving.request_log import CURRENT, RequestLog, headers_for
from parity_models.serving.stand_ins import Made, Outputs, StandInOutputs
from parity_models.tensors.signature import Signature, one_row, pack, tensors_in
from parity_models.trust.gate import served
from parity_models.trust.golden import is_near

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

VERIFIED_WITHIN = 10.0
"""Maximum seconds that a starting frontend waits for golden queries."""

CHECK_EVERY = 10
"""Measurements between two self-checks."""

MESSAGE_EVERY = 60.0
"""Minimum seconds between two messages on the state of redundant work."""


MAX_QUARANTINED = 100
"""Maximum number of instances named for wrong answers."""

Golden = tuple[NDArray[Any], NDArray[Any]]
"""Golden queries (n, *input shape) of a model, and its outputs for them (n, *output shape)."""

_REDUNDANCY = {
    Redundancy.ON: "on, as the policy decides",
    Redundancy.TESTING: "on and off in turns, to test whether it shortens latencies",
    Redundancy.PAUSED: "paused, as it does not shorten latencies",
    Redundancy.BOTTLENECK: "stopped, as the server's own process is the bottleneck",
    Redundancy.OFF: "switched off",
}

_DIFFER = {
    "parm_differ_budget": "The share of all answers that may differ from the model's.",
    "parm_differ_estimate": "The share of all answers that differ from the model's, estimated.",
    "parm_differ_at_most": "The upper bound (95 %) of the share of all answers that differ.",
}

_SOURCES = {role: source_of(role) for role in (DEPLOYED, BACKUP)}

_GONE: Final = "gone"
"""Stands for the unit of an instance that does not exist."""

_ERRORS: Mapping[Reason, type[errors.RequestError]] = {
    Reason.OVERLOADED: errors.OverloadedError,
    Reason.NO_INSTANCES: errors.UnavailableError,
    Reason.DEADLINE_EXCEEDED: errors.DeadlineError,
    Reason.INSTANCES_FAILED: errors.InferenceError,
    Reason.POISON: errors.PoisonError,
    Reason.ABANDONED: errors.AbandonedError,
    Reason.INTERNAL: errors.InternalError,
}
"""The error of a query that the scheduler fails, by the reason."""

_log = logging.getLogger(__name__)


class InFlight(Struct, eq=False):
    """A request in flight; its `future` is of a Result, or of a RequestError.

    Query `first + i` is its row i. `outputs` can answer a query, or help to decode another, by the
    query's id and the source.
    """

    first: int
    arrived: float
    rows: NDArray[Any]
    answers: NDArray[Any]
    future: asyncio.Future[Result]
    unanswered: int
    request: RequestLog | None
    sources: list[Source]
    doubts: list[float] = []
    tenant: str | None = None
    outputs: dict[tuple[int, Source], Made] = {}

    @property
    def queries(self) -> range:
        return range(self.first, self.first + len(self.rows))

    def detach_row(self, row: int) -> "InFlight":
        """Return a copy of one row, without the tensors of the others and without a caller."""
        query, only = self.first + row, slice(row, row + 1)
        cancelled: asyncio.Future[Result] = self.future.get_loop().create_future()
        cancelled.cancel()
        return InFlight(
            first=query,
            arrived=self.arrived,
            rows=self.rows[only].copy(),
            answers=self.answers[only].copy(),
            future=cancelled,
            unanswered=1,
            request=self.request,
            sources=self.sources[only],
            tenant=self.tenant,
            outputs={
                key: made._replace(output=made.output.copy())
                for source in SOURCES
                if (made := self.outputs.get(key := (query, source))) is not None
            },
        )

    def fail(self, error: errors.RequestError) -> None:
        """End it with this error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class Observer:
    """Observes events and the scheduler's actions, with their times (monotonic, in seconds).

    Each method does nothing by default. They run on the serving thread, so they must be quick.
    """

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        """These actions of the scheduler are about to be carried out."""

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        """An instance is up."""

    def instance_left(self, now: float, instance: str, why: str) -> None:
        """An instance is gone, and its unit with it, which `unit_ended` reported."""

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""

    def ticked(self, now: float) -> None:
        """Time passed; called every MEASURE_INTERVAL."""

    def headers(self, unit: Run) -> Mapping[str, str]:
        """Return headers for the request that sends this unit to another server."""
        return {}


class _Group(NamedTuple):
    """A coding group's queries, parity queries (r, *parity shape), and outputs for the latter."""

    members: tuple[int, ...]
    parities: Sequence[NDArray[Any]]
    outputs: list[Made | None]


class _Unit(NamedTuple):
    """A unit that the engine has, and how many of its subjects are redundant.

    `predictions` are those for its subjects, if it only runs to be compared with them; `late`, if
    these queries were late.
    """

    action: Run | Verify
    began: float
    redundant: int = 0
    predictions: Mapping[int, Outputs] = {}
    late: bool = False


class Frontend(Collector):
    """Answers queries for the deployed model. Starts, listens to and stops the engine.

    Args:
        engine: Runs the models.
        policy: The redundancy policy.
        config: Configures the scheduler.
        signature: The deployed model's.
        code: Encodes and decodes, for a policy that uses a code.
        metrics: Count what happens.
        stand_ins: Judges the outputs of stand-ins.
        imitated: The output that stand-ins give, if the deployed model has several: its predictions
            are then records with a field for each.
        dispatch: The dispatch rule; None for the policy's own choice.

    """

    _failed_by_model = 0
    _arriving: asyncio.Handle | None = None
    """Starts units at the end of this turn of the event loop, in which more queries may arrive."""

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        config: SchedulerConfig,
        signature: Signature,
        code: Code | None,
        metrics: Metrics,
        stand_ins: StandInOutputs,
        *,
        imitated: str | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        self.metrics = metrics
        """The metrics that it updates."""
        self.observers: list[Observer] = []
        """Observe its work; to be added before the start."""
        self.in_flight: dict[int, InFlight] = {}
        """The request of each query that is remembered, by the query's id."""
        self.asked = 0
        """The number of queries so far."""
        self.quarantined: deque[str] = deque(maxlen=MAX_QUARANTINED)
        """The instances that answered wrongly, the latest last."""
        self._engine = engine
        self.scheduler = Scheduler(policy, config, dispatch, self._is_unlike)
        """Makes the decisions. Others may read its state, but report no events to it."""
        self._deadline = config.deadline
        self._signature = signature
        self._code = code
        self._imitated = imitated
        self._golden: Mapping[str, Golden] = {}
        self._roles: Sequence[str] = ()
        self._units: dict[int, _Unit] = {}
        """The units that the engine has."""
        self._groups: dict[int, _Group] = {}
        self._answers: dict[int, list[NDArray[Any]]] = {}
        """The different answers to queries that instances ran again, the client's first."""
        self._parity_rows = {parity_role(j): j for j in range(code.r if code else 0)}
        self._busy: dict[str, float] = {}
        self._held = 0
        """Rows of large requests that have not arrived at the scheduler yet."""
        self._room_again = asyncio.Event()
        """Wakes large requests that wait for room for their next slices."""
        self._poison = PoisonedRows()
        self._originals: dict[int, Run] = {}
        """The first unit of the deployed model to run each query; a later one runs a copy."""
        self._redundant = cache(lambda kind, fate: metrics.redundant.labels(kind, fate).inc)
        self._timed = cache(lambda role: metrics.unit_run.labels(role).observe)
        self.stand_ins = stand_ins
        """Judges the outputs of stand-ins."""
        stand_ins.on_gate_turned = lambda *turn: self._report(self.scheduler.gate_turned, *turn)
        self.scheduler.closed_gates.update(
            source for source, judge in stand_ins.judges.items() if not judge.asks
        )
        self._failed_observers: set[Observer] = set()
        self._reports: deque[Callable[[], Sequence[Action] | None]] = deque()
        self._wake_at = WakeAt(0.0)
        self._timer_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._tick_due = self._used = 0.0
        self._logged, self._next_message = Redundancy.ON, 0.0
        self._differences: set[tuple[str, int | str | None, int | str | None]] = set()
        self._started = self._retired = self._closing = self._stopped = False
        self._idle = asyncio.Event()
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Encode: self._encode,
            Decode: self._decode,
            Answer: self._answer,
            Audit: self._audit,
            Fail: self._fail,
            Cancel: self._cancel,
            Compare: self._compare,
            Verify: self._verify,
            Recycle: self._recycle,
            ForgetQueries: self._forget_queries,
            ForgetGroup: self._forget_group,
            WakeAt: self._set_timer,
        }
        metrics.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return its state as metrics."""
        scheduler, gauge = self.scheduler, GaugeMetricFamily
        depths, up = self.queue_depths(), self.instances_up()
        running = Counter(unit.action.role for unit in self._units.values())
        yield labelled(gauge, "parm_queue_depth", "Tasks waiting, by role.", depths)
        yield labelled(gauge, "parm_instances_up", "Instances up, by role.", up)
        yield labelled(
            gauge,
            "parm_units_in_flight",
            "Units running, by role.",
            {role: running[role] for role in self._roles},
        )
        yield labelled(
            CounterMetricFamily,
            "parm_instance_busy_seconds",
            "Time from the starts of units on instances to their ends, by role.",
            self.busy_seconds(),
        )
        yield labelled(
            gauge,
            "parm_redundancy",
            "1 for the state of redundant work: on, testing (whether it helps), paused (it does "
            "not), bottleneck (the server's own process), or off.",
            {state: state is scheduler.redundancy for state in Redundancy},
            "state",
        )
        yield gauge(
            "parm_degraded",
            "1 while no instance of the model is up, or all are stuck: stand-ins answer.",
            scheduler.degraded,
        )
        yield gauge(
            "parm_loop_lag_seconds",
            "Recent wait of reports and timers for this process.",
            scheduler.process_load.lag,
        )
        yield gauge(
            "parm_process_busy",
            "Share of the time in which the loop computes, without waits for a core.",
            scheduler.process_load.busy,
        )
        if self.differ is not None:
            values = (self.differ, *self.stand_ins.differing())
            for (name, help_text), value in zip(_DIFFER.items(), values, strict=True):
                yield gauge(name, help_text, value)

    # Requests

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Result:
        """Answer a query per row of `rows`.

        If the caller is cancelled, the queries are abandoned.

        Args:
            rows: Inputs (n, *input shape), of one kind of the deployed model's. Not to be changed.
            timeout: Seconds; shortens the configured deadline.
            tenant: Queries share coding groups only with those of the same tenant.
            exact: Only the deployed model may answer.

        Raises:
            RequestError: As soon as one row is known to get no answer.

        """
        arrived, count = now(), len(rows)
        large = count > LARGE
        if large:
            self.check_admission(count, timeout)
        elif self._closing or not self._started:
            raise self._closed()
        kind = self._signature.plain or self._signature.kind_of(rows[0, ...])
        due = arrived + (self._deadline if timeout is None else min(timeout, self._deadline))
        first = self.asked + 1
        request = InFlight(
            first=first,
            arrived=arrived,
            rows=rows,
            answers=np.empty((count, *kind.output.shape), kind.output.dtype),
            future=self._loop.create_future(),
            unanswered=count,
            request=CURRENT.get(),
            sources=[Source.MODEL] * count,
            tenant=tenant,
        )
        self.asked += count
        if count > 1:
            request.future.add_done_callback(lambda _: self._detach(request))
        # A large request arrives in slices, as the queue drains: other queries come in between,
        # and no turn of the event loop is long.
        step, held = (max(1, self._room // 4), count) if large else (count, 0)
        self._held += held
        try:
            for begin in range(0, count, step):
                if begin and not await self._room_for(request, due):
                    break
                part = rows[begin : begin + step] if large else rows
                queries = range(first + begin, first + begin + len(part))
                if self._poison.until and self._is_poison(request, part):
                    break
                for query in queries:
                    self.in_flight[query] = request
                left = count - begin - len(part) if large else 0
                self._held, held = self._held + left - held, left
                self._carry_out(
                    self.scheduler.queries_arrived(
                        now() if begin else arrived,
                        queries,
                        (rows.shape[1:], rows.dtype),
                        due if begin or timeout is not None else None,
                        tenant=tenant,
                        exact=queries if exact else (),
                        admitted=large,
                        more=True,
                    )
                )
                self._arriving = self._arriving or self._loop.call_soon(self._start_units)
            return await request.future
        except asyncio.CancelledError:
            if not self._stopped:
                request.future.cancel()
                self._carry_out(self.scheduler.queries_abandoned(now(), request.queries))
            raise
        finally:
            self._held -= held

    def _start_units(self) -> None:
        self._arriving = None
        self._carry_out(self.scheduler.time_passed(now()))

    def check_admission(self, rows: int, timeout: float | None = None) -> None:
        """Raise the error of a request of this many rows, still unread, if it would be refused."""
        if self._closing or not self._started:
            raise self._closed()
        at = now()
        due = at + (self._deadline if timeout is None else min(timeout, self._deadline))
        held = self._held if rows > LARGE else 0
        refusal = self.scheduler.refusal(at, rows, due, held)
        if refusal is not None:
            reason, detail, retry_after = refusal
            self.metrics.failures.labels(reason).inc(rows)
            raise _ERRORS[reason](f"{reason}: {detail}", retry_after=retry_after)

    def _closed(self) -> errors.RequestError:
        state = "stopping" if self._closing else "starting"
        return errors.UnavailableError(
            f"the server is {state} and takes no queries; try again later",
            retry_after=errors.soon(),
        )

    def _is_unlike(self, query: int) -> bool:
        """Return whether a query's inputs are unlike those that stand-ins learned from."""
        request = self.in_flight[query]
        row = query - request.first
        unlike = bool(self.stand_ins.gate.unlike(request.rows[row : row + 1, ...]))
        if unlike:
            self.metrics.unlike.inc()
        return unlike

    def _is_poison(self, request: InFlight, rows: NDArray[Any]) -> bool:
        """Fail the request if one of the rows is remembered as poison; return whether."""
        row = self._poison.find(rows, now())
        if row is not None:
            why = (
                f"row {row} ended the instances that it was tried on before; it is refused for "
                f"{PoisonedRows.REFUSED:.0f} s"
            )
            self._fail_request(request, Reason.POISON, why)
        return row is not None

    def _fail_request(self, request: InFlight, reason: Reason, why: str) -> None:
        """Fail a request some of whose rows have not arrived at the scheduler."""
        self.metrics.failures.labels(reason).inc(request.unanswered)
        request.fail(_ERRORS[reason](f"{reason}: {why}"))
        self._carry_out(self.scheduler.queries_abandoned(now(), request.queries))

    @property
    def _room(self) -> int:
        """The number of waiting queries at which further rows of large requests are held back: a
        full batch for each instance. They arrive in slices of a quarter of that."""
        return self.scheduler.max_batch * max(1, self.scheduler.up(DEPLOYED))

    async def _room_for(self, request: InFlight, due: float) -> bool:
        """Wait until the next slice of a request may arrive. Return False if it has ended."""
        if self.scheduler.waiting >= self._room // 2:  # else instances may be idle soon
            await asyncio.sleep(0)
        while self.scheduler.waiting >= self._room and not request.future.done():
            at = now()
            if at >= due:
                why = f"no answer within {at - request.arrived:.3f} s"
                self._fail_request(request, Reason.DEADLINE_EXCEEDED, why)
                break
            self._room_again.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due - at):
                    await self._room_again.wait()
        if self._stopped:
            request.fail(errors.UnavailableError("the server was stopped"))
        return not request.future.done()

    def _detach(self, request: InFlight) -> None:
        """Keep only those rows of an ended request that are still needed."""
        self._room_again.set()
        for row, query in enumerate(request.queries):
            if query in self.in_flight:
                self.in_flight[query] = request.detach_row(row)

    # Start and stop

    async def start(
        self, roles: Sequence[frozenset[str]], golden: Mapping[str, Golden] | None = None
    ) -> None:
        """Start an instance for each of `roles`; return when all are up and have answered their
        `golden` queries, by role. Raises the engine's errors."""
        self._golden = golden or {}
        self._roles = sorted(frozenset().union(*roles))
        # Kept, as each look-up is a system call (Python 3.11 reads the process id).
        self._loop = asyncio.get_running_loop()
        await self._engine.start(roles, self)
        self._started = True
        self._tick_due, self._used = now(), time.thread_time()
        self._tick()
        with suppress(TimeoutError):
            async with asyncio.timeout(VERIFIED_WITHIN):
                while any(state is State.VERIFYING for _, state in self.scheduler.instances()):
                    await asyncio.sleep(0.002)

    def retire(self) -> None:
        """Stop being ready, so that clients go elsewhere, but still take queries."""
        self._retired = True

    async def drain(self) -> None:
        """Take no more queries; return when all earlier ones have ended."""
        self._closing = True
        if self.scheduler.pending or self._held:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine. Queries in flight get an error."""
        self._closing = self._stopped = True
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        for request in set(self.in_flight.values()):
            request.fail(errors.UnavailableError("the server was stopped"))
        self._room_again.set()
        await self._engine.stop()
        self.stand_ins.close()

    def switch_redundancy(self, on: bool) -> None:
        """Switch redundant work on or off."""
        self._carry_out(self.scheduler.redundancy_switched(now(), on))
        _log.info("redundancy is switched %s", "on" if on else "off")

    def change_budget(self, differ: float) -> None:
        """Change the share of all answers that may differ; the policy has such a budget."""
        self._carry_out(self.scheduler.budget_changed(now(), differ))
        self.stand_ins.change_budget(differ)
        _log.info("the share of answers that may differ is %g", differ)

    # Its state

    @property
    def differ(self) -> float | None:
        """The share of all answers that may differ from the model's; None without a budget."""
        return self.stand_ins.differ

    @property
    def differing(self) -> str:
        """The share of all answers that differ, in words; empty without a budget."""
        if self.differ is None:
            return ""
        share, most = self.stand_ins.differing()
        return (
            f"{100 * share:.2g} % of all answers differ from the model's (95 %: at most "
            f"{100 * most:.2g} %), budget {100 * self.differ:.3g} %"
        )

    @property
    def ready(self) -> bool:
        """True if a query would be answered."""
        return (
            self._started
            and not self._closing
            and not self._retired
            and (self.instances_up()[DEPLOYED] > 0 or self.scheduler.degraded)
        )

    def queue_depths(self) -> dict[str, int]:
        """Return how many tasks are waiting, by role."""
        depths = {role: self.scheduler.queued(role) for role in self._roles}
        return depths | {DEPLOYED: depths.get(DEPLOYED, 0) + self._held}

    def instances_up(self) -> dict[str, int]:
        """Return how many instances are up, by role."""
        return {role: self.scheduler.up(role) for role in self._roles}

    def busy_seconds(self) -> dict[str, float]:
        """Return how long instances were busy with units that have ended, by role."""
        return {role: self._busy.get(role, 0.0) for role in self._roles}

    # For the engine: EngineListener

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        if self._started:
            self.metrics.restarts.inc()
        at = now()
        self._tell("instance_joined", at, instance, roles, node)
        self._carry_out(self.scheduler.instance_joined(at, instance, roles, node))

    def instance_left(self, instance: str, why: str) -> None:
        for id in [id for id, unit in self._units.items() if unit.action.instance == instance]:
            self._ended(self._units.pop(id), now(), finished=False)
        at = now()
        self._tell("instance_left", at, instance, why)
        self._carry_out(self.scheduler.instance_left(at, instance))

    def unit_finished(
        self, unit: int, outputs: NDArray[Any], *, ended: float | None = None
    ) -> None:
        given = self._units.pop(unit, None)
        if given is None:
            return  # it was lost, or has been reported before
        run, at = given.action, now()
        self._ended(given, at, finished=True)
        if isinstance(run, Verify):
            output, right, answer = outputs[0, ...], True, 0
            if run.query is None:
                golden = self._golden[run.role][1]
                right = self._is_like(output, golden[run.probe % len(golden), ...])
            else:
                answer = self._number_of_answer(run.query, output)
            self._carry_out(self.scheduler.unit_verified(at, unit, right, answer))
            return
        j, source = self._parity_rows.get(run.role), _SOURCES.get(run.role, Source.RECONSTRUCTION)
        rows: Iterable[Any] = outputs
        if outputs.dtype.hasobject:  # iteration would yield str in place of arrays of shape ()
            rows = (outputs[i, ...] for i in range(len(outputs)))
        for subject, output in zip(run.subjects, rows, strict=True):
            if j is None:
                request = self.in_flight.get(subject)
                if request is not None and (subject, source) not in request.outputs:
                    made = Made(output, run.instance, request.tenant)
                    request.outputs[subject, source] = made
            elif subject in self._groups:
                self._groups[subject].outputs[j] = Made(output, run.instance)
        refused: Collection[int] = ()
        doubts: Mapping[int, float] = {}
        if run.role == BACKUP:
            refused, doubts = self.stand_ins.judge(source, run.subjects, outputs)
        if given.predictions:
            try:
                self.stand_ins.compare_unit(j, run, outputs, given.predictions, late=given.late)
            except Exception:  # a user's own decoder may raise; queries are unaffected
                _log.exception("unit %d could not be compared", unit)
        self._carry_out(
            self.scheduler.unit_finished(now(), unit, set(refused), doubts=doubts, ended_at=ended)
        )

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        given = self._units.pop(unit, None)
        if given is not None:
            if isinstance(given.action, Verify):
                _log.warning("instance %s ran no golden query: %s", given.action.instance, detail)
            self._ended(given, now(), finished=False)
            self._carry_out(self.scheduler.unit_failed(now(), unit, detail, busy=busy))

    def headers_of(self, unit: int) -> Mapping[str, str]:
        given = self._units.get(unit)
        if given is None or not isinstance(given.action, Run):
            return {}
        run = given.action
        queries: Sequence[int] = run.subjects
        if run.role in self._parity_rows:
            groups = [self._groups[group] for group in run.subjects if group in self._groups]
            queries = [query for group in groups for query in group.members]
        requests = [self.in_flight[query] for query in queries if query in self.in_flight]
        logs = [each.request for each in requests if each.request is not None]
        headers: dict[str, str] = headers_for(logs)
        for more in self._tell("headers", run):
            headers |= more or {}
        return headers

    def _ended(self, unit: _Unit, at: float, *, finished: bool) -> None:
        """Record that a unit, taken from `_units`, is off its instance."""
        action = unit.action
        self._busy[action.role] = self._busy.get(action.role, 0.0) + at - unit.began
        if finished and isinstance(action, Run):
            self._timed(action.role)(at - unit.began)
        if self.observers:
            self._tell("unit_ended", at, action, finished=finished)

    def _is_like(self, output: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Return whether two outputs for one query are equal, within the engine's tolerance."""
        if output.dtype != expected.dtype or output.shape != expected.shape:
            return False
        pairs = zip(tensors_in(output), tensors_in(expected), strict=True)
        return all(is_near(one, other, self._engine.tolerance) for one, other in pairs)

    def _number_of_answer(self, query: int, output: NDArray[Any]) -> int:
        """Return the number of this answer among a query's different ones; the client's is 0."""
        first = self.in_flight[query].outputs[query, Source.MODEL]
        known = self._answers.setdefault(query, [first.output])
        alike = (number for number, each in enumerate(known) if self._is_like(output, each))
        number = next(alike, len(known))
        if number == len(known):
            known.append(output)
        return number

    def _prediction(self, query: int) -> Made | None:
        """Return the deployed model's (imitated) output for a query, if it has arrived."""
        request = self.in_flight.get(query)
        made = None if request is None else request.outputs.get((query, Source.MODEL))
        if made is None or self._imitated is None:
            return made
        return made._replace(output=made.output[self._imitated])

    def _tell(self, event: str, *about: object, **more: object) -> list[Any]:
        """Call the method `event` of each observer; return what they return. An exception in one
        affects neither the others nor the server: it is logged the first time."""
        returned = []
        for each in self.observers:
            try:
                returned.append(getattr(each, event)(*about, **more))
            except Exception:
                if each not in self._failed_observers:
                    self._failed_observers.add(each)
                    _log.exception("%s failed; queries are unaffected", type(each).__name__)
        return returned

    # The scheduler's actions

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """Carry out actions and those that follow; nothing once the frontend is stopped."""
        if self._stopped:
            return
        while True:
            if actions and self.observers:
                self._tell("acted", now(), actions)
            for action in actions:
                try:
                    self._do[type(action)](action)
                except Exception as error:
                    self._undone(action, error)
            if not self._reports:
                break
            actions = self._reports.popleft()() or ()
        if self._held and self.scheduler.waiting < self._room:
            self._room_again.set()
        if self._closing and not (self.scheduler.pending or self._held):
            self._idle.set()

    def _undone(self, action: Action, error: Exception) -> None:
        """Report an action that could not be carried out, so that no caller waits for it."""
        _log.error("%s could not be carried out", action, exc_info=error)
        self.metrics.undone.inc()
        why = "the server failed to handle the query; its log says why"
        match action:
            case Run() | Verify():
                if isinstance(action, Run) and action.role not in self._parity_rows:
                    self._report(self.scheduler.queries_failed, action.subjects, why)
                if action.unit in self._units:  # the engine may have it
                    why = "may or may not have got a unit"
                    self._reports.append(partial(self._engine.recycle, action.instance, why))
                else:
                    self._ended(_Unit(action, now()), now(), finished=False)
                    self._report(self.scheduler.unit_failed, action.unit, why)
            case Decode(group, slots=slots):
                self._report(self.scheduler.decoded, group, slots)
            case Answer(query):
                self._fail(Fail(query, Reason.INTERNAL, why))

    def _report(self, event: Callable[..., Sequence[Action]], *about: Any) -> None:
        """Report to the scheduler once the present actions have been carried out."""
        self._reports.append(lambda: event(now(), *about))

    def _run(self, action: Run) -> None:
        j, at = self._parity_rows.get(action.role), now()
        redundant = 0 if action.role == DEPLOYED else len(action.subjects)
        rows = []
        for subject in action.subjects:
            if j is None:
                request = self.in_flight[subject]
                rows.append(request.rows[subject - request.first, ...])
            else:
                rows.append(self._groups[subject].parities[j])
            if action.role == DEPLOYED:
                # A query that is run again because its unit failed is not a copy.
                original = self._originals.get(subject)
                if original is not None and original.unit in self._units:
                    redundant += 1
                else:
                    self._originals[subject] = action
        if redundant:
            self._redundant(_kind(action.role), SENT)(redundant)
        self._units[action.unit] = _Unit(action, at, redundant)
        self._engine.run(action.instance, action.unit, action.role, rows)

    def _row(self, query: int) -> Any:
        request = self.in_flight[query]
        return request.rows[query - request.first, ...]

    def _encode(self, action: Encode) -> None:
        assert self._code is not None
        names = self._code.query_shapes
        rows = (tensors_in(self._row(query)) for query in action.members)
        queries = [dict(zip(names, row, strict=True)) for row in rows]
        with np.errstate(all="ignore"):
            parities = list(map(one_row, self._code.encode(queries)))
        self._groups[action.group] = _Group(action.members, parities, [None] * self._code.r)

    def _decode(self, action: Decode) -> None:
        assert self._code is not None
        predictions = [
            made.output if known and (made := self._prediction(query)) is not None else None
            for query, known in zip(action.members, action.available, strict=True)
        ]
        parities = [
            made.output if made and known else None
            for made, known in zip(self._groups[action.group].outputs, action.parities, strict=True)
        ]
        with np.errstate(all="ignore"):
            decoded = self._code.decode(predictions, parities)
        wrong, doubts, source = [], {}, Source.RECONSTRUCTION
        for slot in action.slots:
            query, output = action.members[slot], decoded[slot]
            self.in_flight[query].outputs[query, source] = Made(output, "")
            refused, found = self.stand_ins.judge(source, (query,), output[np.newaxis])
            if refused:
                wrong.append(slot)
            else:
                doubts[slot] = found[query]
        self._report(self.scheduler.decoded, action.group, wrong, doubts)

    def _answer(self, action: Answer) -> None:
        query, source, at = action.query, action.source, now()
        request = self.in_flight[query]
        row = query - request.first
        if source is Source.MODEL:
            made = request.outputs[query, source]
            request.answers[row] = made.output
            self.stand_ins.answers += 1
            if made.instance != self._originals[query].instance:
                self._redundant(COPY, ANSWERED)()
        else:
            self._redundant(PARITY if source is Source.RECONSTRUCTION else source, ANSWERED)()
            answers = request.answers if self._imitated is None else request.answers[self._imitated]
            answers[row] = served(request.outputs[query, source].output)
            self.stand_ins.answered(source, action.doubt)
        request.sources[row] = source
        if action.doubt:
            request.doubts = request.doubts or [0.0] * len(request.rows)
            request.doubts[row] = action.doubt
        request.unanswered -= 1
        self.metrics.latency(source).observe(at - request.arrived)
        if not request.unanswered and not request.future.done():
            degraded = source is not Source.MODEL and self.scheduler.degraded
            request.future.set_result(
                Result(request.answers, request.sources, request.doubts, degraded)
            )

    def _audit(self, action: Audit) -> None:
        request, prediction = self.in_flight[action.query], self._prediction(action.query)
        source = Source.BACKUP
        if action.answered:
            source = request.sources[action.query - request.first] or source
        assert prediction is not None
        stand_in = request.outputs[action.query, source]
        self.stand_ins.compare(
            source, stand_in, prediction, late=action.late, answered=action.answered
        )

    def _fail(self, action: Fail) -> None:
        """Fail a query, and its request with it."""
        request = self.in_flight[action.query]
        self.metrics.failures.labels(action.reason).inc()
        if action.reason is Reason.INSTANCES_FAILED:  # a model that fails all would flood the log
            self._failed_by_model += 1
            if self._failed_by_model.bit_count() == 1:
                count = self._failed_by_model
                _log.warning("%d queries failed in the model; the newest: %s", count, action.detail)
        if action.reason is Reason.POISON:
            self._poison.remember(self._row(action.query), now())
        if request.future.done():
            return
        detail = action.detail
        if action.reason is Reason.DEADLINE_EXCEEDED:  # rows of large requests arrive later
            detail = f"no answer within {now() - request.arrived:.3f} s"
        text = f"{action.reason}: {detail}"
        request.fail(_ERRORS[action.reason](text, retry_after=action.retry_after))
        if len(request.rows) > 1:
            self._report(self.scheduler.queries_abandoned, request.queries)

    def _cancel(self, action: Cancel) -> None:
        unit = self._units.get(action.unit)
        if unit is not None:
            if unit.redundant:
                self._redundant(_kind(unit.action.role), CANCELLED)(unit.redundant)
            self._engine.cancel(action.instance, action.unit)

    def _compare(self, action: Compare) -> None:
        unit = self._units.get(action.unit)
        if unit is None or not isinstance(unit.action, Run):
            return
        predictions: dict[int, Outputs] = {}
        for subject in unit.action.subjects:
            queries: Sequence[int] = (subject,)
            if unit.action.role != BACKUP:  # groups that are over have none
                queries = self._groups[subject].members if subject in self._groups else ()
            predictions[subject] = [self._prediction(query) for query in queries]
        self._units[action.unit] = unit._replace(predictions=predictions, late=action.late)

    def _verify(self, action: Verify) -> None:
        golden = self._golden.get(action.role)
        if action.query is not None:
            row = self._row(action.query)
        elif golden is not None:
            rows, _ = golden
            row = rows[action.probe % len(rows), ...]
        else:
            self._report(self.scheduler.unit_verified, action.unit, True)
            return
        self._units[action.unit] = _Unit(action, now())
        self._engine.run(action.instance, action.unit, action.role, [row])

    def _recycle(self, action: Recycle) -> None:
        instance = action.instance
        _log.warning("instance %s is replaced: it %s", instance, action.why)
        self.metrics.recycled.labels(action.reason).inc()
        if action.reason is RecycleReason.QUARANTINED:
            self.quarantined.append(instance)
        self._engine.recycle(instance, action.why)

    def _forget_queries(self, action: ForgetQueries) -> None:
        for query in action.queries:
            del self.in_flight[query]
            self._originals.pop(query, None)
        if self._answers:
            for query in action.queries:
                self._answers.pop(query, None)

    def _forget_group(self, action: ForgetGroup) -> None:
        group = self._groups.pop(action.group)
        predictions = [self._prediction(query) for query in group.members]
        self.stand_ins.group_over(predictions, group.outputs)

    # Time

    def _set_timer(self, action: WakeAt) -> None:
        """Set the time at which the scheduler is next called, in place of the one set before."""
        self._wake_at, time = action, action.time
        if self._timer is not None:
            if self._timer_at <= time:
                return  # it is set again when it fires; most times are replaced before
            self._timer.cancel()
        self._timer_at = time
        # uvloop rounds to milliseconds: rounding up keeps the timer from firing early repeatedly.
        delay = max(0, ceil((time - now()) * 1e3)) / 1e3
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        at = now()
        if at < self._wake_at.time:
            self._set_timer(self._wake_at)
        else:
            self._carry_out(self.scheduler.time_passed(at))

    def _tick(self) -> None:
        """Report the delay of this timer and how busy the loop was."""
        at, used = now(), time.thread_time()
        lag = max(0.0, at - self._tick_due)
        busy = (used - self._used) / (MEASURE_INTERVAL + lag)
        self._tick_due, self._used = at + MEASURE_INTERVAL, used
        self._ticker = self._loop.call_later(MEASURE_INTERVAL, self._tick)
        if self._ticks % CHECK_EVERY == 0:
            self.check_engine()
        self._ticks += 1
        self._tell("ticked", at)
        self._carry_out(self.scheduler.process_measured(at, lag, busy))
        self.log_redundancy(at)

    @property
    def redundancy(self) -> str:
        """The state of redundant work, in words."""
        scheduler = self.scheduler
        text = _REDUNDANCY[scheduler.redundancy]
        if scheduler.redundancy is Redundancy.BOTTLENECK:
            load = scheduler.process_load
            text += (
                f"; it is busy {load.busy:.0%} of the time, reports wait {load.lag * 1e3:.1f} ms"
            )
        return f"redundant work: {text}"

    def log_redundancy(self, at: float) -> None:
        """Log the state of redundant work if it has changed while queries are in flight, at most
        once in MESSAGE_EVERY seconds."""
        state = self.scheduler.redundancy
        if (
            self.in_flight
            and state not in (self._logged, Redundancy.TESTING, Redundancy.OFF)
            and at >= self._next_message
        ):
            self._logged, self._next_message = state, at + MESSAGE_EVERY
            bad = state in (Redundancy.PAUSED, Redundancy.BOTTLENECK)
            _log.log(logging.WARNING if bad else logging.INFO, "%s", self.redundancy)

    def check_engine(self) -> None:
        """Replace an instance that scheduler and engine disagree on at two checks in a row, a
        second apart: they may differ for a moment, while a report is on its way."""
        believed, real = self.scheduler.running(), self._engine.running()
        found = {
            (name, believed.get(name, _GONE), real.get(name, _GONE))
            for name in believed.keys() | real.keys()
        }
        found = {each for each in found if each[1] != each[2]}
        lasting = found & self._differences
        self._differences = found - lasting
        for instance, thought, has in sorted(lasting, key=lambda each: each[0]):
            why = f"is believed to run unit {thought} and runs {has}"
            _log.error("repairing: instance %s %s", instance, why)
            self.metrics.repairs.inc()
            if has == _GONE:
                self.instance_left(instance, why)
            else:
                self._engine.recycle(instance, why)


class PoisonedRows:
    """Rows that ended the instances they were tried on; refused for REFUSED seconds."""

    REFUSED = 600.0
    """Seconds for which such a row is refused; the cause may be fixed by then."""

    MAX_ROWS = 1000
    """Maximum number of rows that are remembered; the oldest are forgotten first."""

    def __init__(self) -> None:
        self.until: OrderedDict[bytes, float] = OrderedDict()
        """The time from which each row, by its digest, may be tried again."""

    def remember(self, row: NDArray[Any], now: float) -> None:
        """Refuse rows like this one (*input shape) from now on."""
        digest = _digest(row)
        self.until[digest] = now + self.REFUSED
        self.until.move_to_end(digest)
        if len(self.until) > self.MAX_ROWS:
            self.until.popitem(last=False)

    def find(self, rows: NDArray[Any], now: float) -> int | None:
        """Return the first of the rows (n, *input shape) that is remembered, if one is."""
        while self.until and next(iter(self.until.values())) <= now:
            self.until.popitem(last=False)
        found = (i for i in range(len(rows)) if _digest(rows[i, ...]) in self.until)
        return next(found, None) if self.until else None


def _kind(role: str) -> str:
    """Return the kind of redundant work of a unit with this role."""
    return COPY if role == DEPLOYED else role if role == BACKUP else PARITY


def _digest(row: NDArray[Any]) -> bytes:
    return blake2b(pack(row), digest_size=16).digest()
