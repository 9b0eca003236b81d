"""The frontend: drives a Scheduler with real time, real tensors and an engine.

A request of n rows is n queries to the scheduler, with consecutive ids, and one future to its
caller. The scheduler decides; the frontend keeps the tensors and carries out its actions, in
order. Everything happens on the event loop's thread.

Carrying out actions never stops half-way: where one fails, the query that it concerns gets an
error, the rest are carried out, and a self-check sees to it that the scheduler and the engine
believe the same.
"""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Policy,
    Reason,
    Recycle,
    RecycleReason,
    Run,
    Scheduler,
    SchedulerConfig,
    Source,
    Verify,
    WakeAt,
    parity_work,
)
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health import State
from parity_models.serving.asked import Answers, Asked
from parity_models.serving.comparison import Comparison, Made
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
from parity_models.serving.metrics import Metrics
from parity_models.serving.poison import Poison
from parity_models.serving.screen import Screen
from parity_models.serving.self_check import SelfCheck

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

CHECK_INTERVAL = 1.0
"""Seconds between two self-checks."""

VERIFIED_WITHIN = 10.0
"""Seconds for which a frontend that starts waits for golden queries, at the most."""

MAX_QUARANTINED = 100
"""How many instances that answered wrongly are remembered by name."""

_SOURCES = {DEPLOYED: Source.MODEL, BACKUP: Source.BACKUP}
"""What an output answers as, by the work it came from."""

_ERRORS: Mapping[Reason, type[RequestError]] = {
    Reason.OVERLOADED: OverloadedError,
    Reason.NO_INSTANCES: UnavailableError,
    Reason.DEADLINE_EXCEEDED: DeadlineError,
    Reason.INSTANCES_FAILED: InferenceError,
    Reason.POISON: PoisonError,
    Reason.ABANDONED: AbandonedError,
    Reason.INTERNAL: InternalError,
}

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Group:
    """A coding group's queries, parity queries (r, *parity shape) and what came of the latter."""

    members: tuple[int, ...]
    parities: NDArray[Any]
    outputs: list[Made | None]


class Frontend:
    """Answers queries for the deployed model whose output is `output`.

    `code` encodes and decodes for a policy that asks for it; `dispatch` None is the policy's own
    choice; `default` (*output shape) is the answer where `config` asks for default predictions.
    The `screen` says which inputs are served exact and which outputs of stand-ins answer nobody; by
    default those that are not finite. Instances are verified with the `golden` queries, by work.
    The frontend is ready while `min_ready` instances of the deployed model take queries. It is its
    engine's listener, and starts and stops it.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        config: SchedulerConfig,
        output: TensorSpec,
        code: Code | None,
        metrics: Metrics,
        *,
        dispatch: Dispatch | None = None,
        default: NDArray[Any] | None = None,
        screen: Screen | None = None,
        golden: Mapping[str, Golden] | None = None,
        min_ready: int = 1,
    ) -> None:
        self._engine = engine
        self._scheduler = Scheduler(policy, config, dispatch)
        self._default = default
        self._deadline = config.deadline
        self._output = output
        self._code = code
        self._metrics = metrics
        self._screen = Screen() if screen is None else screen
        self._golden = {} if golden is None else golden
        self._min_ready = min_ready
        self._comparison = None if code is None else Comparison(code, metrics, self._compared)
        self._poison = Poison()
        self._self_check = SelfCheck()
        self._requests: dict[int, Asked] = {}
        self._groups: dict[int, _Group] = {}
        self._units: dict[int, Run | Verify] = {}
        self.quarantined: deque[str] = deque(maxlen=MAX_QUARANTINED)
        """The instances that answered a golden query wrongly, the latest last."""
        self._parity_row = {parity_work(j): j for j in range(code.r if code else 0)}
        self._works: Sequence[str] = ()
        self._stand_ins = False
        self._last_query = 0
        self._reports: deque[Callable[[], list[Action]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._wake_time = 0.0
        self._check_timer: asyncio.TimerHandle | None = None
        self._started = False
        self._retired = False
        self._closing = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Encode: self._encode,
            Decode: self._decode,
            Answer: self._answer,
            Fail: self._fail,
            Cancel: self._cancel,
            Verify: self._verify,
            Recycle: self._recycle,
            ForgetQueries: self._forget_queries,
            ForgetGroup: self._forget_group,
            WakeAt: self._wake_at,
        }
        metrics.read("parm_queue_depth", "Tasks waiting, by work.", "work", self.queue_depths)
        metrics.read("parm_instances_up", "Instances up, by work.", "work", self.instances_up)
        metrics.read("parm_units_in_flight", "Units running, by work.", "work", self._in_flight)

    # For those who ask

    async def start(self, works: Sequence[frozenset[str]]) -> None:
        """Start an instance for each of `works`; returns when all are up and have answered their
        golden queries, or raises what the engine raises."""
        self._works = sorted(frozenset().union(*works))
        self._stand_ins = self._works != [DEPLOYED]
        # Kept, as asking for it is a system call (Python 3.11: it looks at the process id).
        self._loop = asyncio.get_running_loop()
        await self._engine.start(works, self)
        self._started = True
        self._check()
        with suppress(TimeoutError):
            async with asyncio.timeout(VERIFIED_WITHIN):
                while any(state is State.VERIFYING for _, state in self._scheduler.instances()):
                    await asyncio.sleep(0.002)

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Answers:
        """Answer a query per row of `rows` (n, *input shape), in the deployed model's dtype.

        `timeout` in seconds shortens the configured deadline. Queries share codes only with those
        of the same `tenant`; `exact` ones are answered by the deployed model alone. Raises a
        RequestError as soon as one row is known to get no answer. Who is cancelled while waiting
        has given the queries up.
        """
        asked = self.ask(rows, timeout, tenant=tenant, exact=exact)
        try:
            return await asked.future
        except asyncio.CancelledError:
            self.abandon(asked)
            raise

    def ask(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Asked:
        """As `infer`, for callers that do not wait: the answers are the future's.

        Raises RequestErrors only for what reaches no scheduler.
        """
        if self._closing or not self._started:
            state = "stopping" if self._closing else "starting"
            raise UnavailableError(
                f"the server is {state} and takes no queries; try again later", retry_after=1.0
            )
        arrived = now()
        if self._poison:
            try:
                self._poison.check(rows, arrived)
            except PoisonError:
                self._metrics.failures.labels(Reason.POISON).inc(len(rows))
                raise
        count = len(rows)
        asked = Asked(
            first=self._last_query + 1,
            arrived=arrived,
            rows=rows,
            outputs=np.empty((count, *self._output.shape), self._output.dtype),
            future=self._loop.create_future(),
            unanswered=count,
            sources=[Source.MODEL] * count,
        )
        self._last_query += count
        queries = asked.queries
        apart: Collection[int] = queries if exact else ()
        if self._stand_ins and not exact:
            unlike = self._screen.unlike(rows)
            if unlike:
                apart = [asked.first + row for row in unlike]
                self._metrics.unlike.inc(len(unlike))
        for query in queries:
            self._requests[query] = asked
        deadline = None if timeout is None else arrived + min(timeout, self._deadline)
        kind = (rows.shape[1:], rows.dtype)
        self._carry_out(
            self._scheduler.queries_arrived(
                arrived, queries, kind, deadline, tenant=tenant, exact=apart
            )
        )
        return asked

    def abandon(self, asked: Asked) -> None:
        """Nobody waits for these answers any more."""
        if not self._stopped:
            asked.future.cancel()
            self._carry_out(self._scheduler.queries_abandoned(now(), asked.queries))

    @property
    def ready(self) -> bool:
        """Would a query be answered?"""
        return (
            self._started
            and not self._closing
            and not self._retired
            and self.instances_up()[DEPLOYED] >= self._min_ready
        )

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are waiting, by work."""
        return self._by_work(self._scheduler.queue_depths())

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by work."""
        return self._by_work(self._scheduler.instances_up())

    def retire(self) -> None:
        """Be ready no more, so that clients go elsewhere, and take queries all the same."""
        self._retired = True

    async def drain(self) -> None:
        """Take no more queries; returns when all that were taken have ended."""
        self._closing = True
        if self._scheduler.pending:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine. Whatever was not drained gets no answer."""
        self._closing = self._stopped = True
        for timer in (self._timer, self._check_timer):
            if timer is not None:
                timer.cancel()
        for asked in set(self._requests.values()):
            if not asked.future.done():
                asked.future.set_exception(UnavailableError("the server was stopped"))
        await self._engine.stop()

    # For the engine: EngineListener

    def instance_joined(
        self, instance: str, works: frozenset[str], node: str | None = None
    ) -> None:
        if self._started:
            self._metrics.restarts.inc()
        self._carry_out(self._scheduler.instance_joined(now(), instance, works, node))

    def instance_left(self, instance: str, why: str) -> None:
        for id in [id for id, run in self._units.items() if run.instance == instance]:
            self._lose(id)
        self._carry_out(self._scheduler.instance_left(now(), instance))

    def unit_finished(self, unit: int, outputs: NDArray[Any]) -> None:
        run = self._units.pop(unit, None)
        if run is None:
            return  # it was lost, or has been reported before
        if isinstance(run, Verify):
            golden = self._golden[run.work]
            right = is_right(golden, run.probe, outputs[0], self._engine.tolerance)
            self._carry_out(self._scheduler.unit_verified(now(), unit, right))
            return
        j = self._parity_row.get(run.work)
        for subject, output in zip(run.subjects, outputs, strict=True):
            if j is None:
                asked = self._requests.get(subject)
                if asked is not None:
                    asked.at_hand[subject, _SOURCES[run.work]] = output
                    if self._comparison is not None:
                        asked.ran_on[subject] = run.instance
            else:
                group = self._groups.get(subject)
                if group is not None:
                    group.outputs[j] = Made(output, run.instance)
        unusable: Collection[int] = ()
        if run.work == BACKUP:
            unusable = [run.subjects[row] for row in self._screen.impossible(outputs)]
            self._metrics.impossible.inc(len(unusable))
        if self._comparison is not None and j is not None:
            self._comparison.finished(j, run, outputs)
        self._carry_out(self._scheduler.unit_finished(now(), unit, unusable))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        run = self._units.get(unit)
        if run is not None:
            if isinstance(run, Verify):
                _log.warning("instance %s ran no golden query: %s", run.instance, detail)
            self._lose(unit)
            self._carry_out(self._scheduler.unit_failed(now(), unit, detail, busy=busy))

    def _lose(self, unit: int) -> None:
        del self._units[unit]
        if self._comparison is not None:
            self._comparison.lost(unit)

    # The scheduler's actions

    def _carry_out(self, actions: Sequence[Action]) -> None:
        if self._stopped:
            return
        self._do_all(actions)
        while self._reports:
            self._do_all(self._reports.popleft()())
        if self._closing and not self._scheduler.pending:
            self._idle.set()

    def _do_all(self, actions: Sequence[Action]) -> None:
        for action in actions:
            try:
                self._do[type(action)](action)
            except Exception as error:
                self._undone(action, error)

    def _undone(self, action: Action, error: Exception) -> None:
        """An action could not be carried out: nobody is to wait for what does not come."""
        _log.error("%s could not be carried out", action, exc_info=error)
        self._metrics.undone.inc()
        why = "the server failed to handle the query; its log says why"
        match action:
            case Run() | Verify():
                if isinstance(action, Run) and action.work in _SOURCES:
                    self._report(self._scheduler.queries_failed, action.subjects, why)
                if action.unit in self._units:  # the engine may have it
                    self._reports.append(partial(self._recycle_in_vain, action.instance))
                else:
                    self._report(self._scheduler.unit_failed, action.unit, why)
            case Decode(group, slots=slots):
                self._report(self._scheduler.decoded, group, slots)
            case Answer(query):
                asked = self._requests[query]
                self._metrics.failures.labels(Reason.INTERNAL).inc()
                if not asked.future.done():
                    asked.future.set_exception(InternalError(f"{Reason.INTERNAL}: {why}"))
                self._report(self._scheduler.queries_abandoned, asked.queries)

    def _recycle_in_vain(self, instance: str) -> list[Action]:
        self._engine.recycle(instance, "may have got a unit, or not")
        return []

    def _report(self, event: Callable[..., list[Action]], *about: Any) -> None:
        """Tell the scheduler once the present actions have been carried out."""
        self._reports.append(lambda: event(now(), *about))

    def _run(self, action: Run) -> None:
        j = self._parity_row.get(action.work)
        if j is None:
            rows = [self._row(query) for query in action.subjects]
        else:
            rows = [self._groups[group].parities[j] for group in action.subjects]
        self._units[action.unit] = action
        self._engine.run(action.instance, action.unit, action.work, rows)

    def _encode(self, action: Encode) -> None:
        assert self._code is not None
        started = now()
        with np.errstate(all="ignore"):
            parities = self._code.encode([self._row(query) for query in action.members])
        self._groups[action.group] = _Group(action.members, parities, [None] * self._code.r)
        self._metrics.encode.observe(now() - started)
        self._metrics.group_wait.observe(action.group_wait)

    def _decode(self, action: Decode) -> None:
        assert self._code is not None
        started = now()
        outputs = self._groups[action.group].outputs
        with np.errstate(all="ignore"):
            decoded = self._code.decode(
                [
                    self._requests[query].at_hand[query, Source.MODEL] if here else None
                    for query, here in zip(action.members, action.available, strict=True)
                ],
                [
                    made.output if made and here else None
                    for made, here in zip(outputs, action.parities, strict=True)
                ],
            )
        wrong = []
        for slot in action.slots:
            query = action.members[slot]
            if self._screen.impossible(decoded[slot][np.newaxis]):
                wrong.append(slot)
            self._requests[query].at_hand[query, Source.RECONSTRUCTION] = decoded[slot]
        if wrong:
            self._metrics.impossible.inc(len(wrong))
        self._metrics.decode.observe(now() - started)
        self._report(self._scheduler.decoded, action.group, wrong)

    def _answer(self, action: Answer) -> None:
        asked = self._requests[action.query]
        row = action.query - asked.first
        if action.source is Source.DEFAULT:
            asked.outputs[row] = self._default
        else:
            asked.outputs[row] = asked.at_hand[action.query, action.source]
        asked.sources[row] = action.source
        asked.unanswered -= 1
        self._metrics.latency[action.source].observe(now() - asked.arrived)
        if action.source is Source.RECONSTRUCTION:
            self._metrics.reconstructions.inc()
        if not asked.unanswered and not asked.future.done():
            asked.future.set_result(Answers(asked.outputs, asked.sources))

    def _fail(self, action: Fail) -> None:
        asked = self._requests[action.query]
        self._metrics.failures.labels(action.reason).inc()
        if action.reason is Reason.POISON:
            self._poison.remember(self._row(action.query), now())
        if not asked.future.done():
            error = _ERRORS[action.reason](
                f"{action.reason}: {action.detail}", retry_after=action.retry_after
            )
            asked.future.set_exception(error)
            if len(asked.rows) > 1:  # without this row, nobody needs the others
                self._report(self._scheduler.queries_abandoned, asked.queries)

    def _cancel(self, action: Cancel) -> None:
        run = self._units.get(action.unit)
        if run is None:
            return  # it has ended in the meantime
        if (
            self._comparison is None
            or not isinstance(run, Run)
            or run.work not in self._parity_row
            or not self._comparison.spares(action.unit, run.subjects)
        ):
            self._engine.cancel(action.instance, action.unit)

    def _verify(self, action: Verify) -> None:
        golden = self._golden.get(action.work)
        if golden is None:
            self._report(self._scheduler.unit_verified, action.unit, True)
            return
        self._units[action.unit] = action
        self._metrics.verifications.inc()
        rows, _ = golden
        row = rows[action.probe % len(rows)]
        self._engine.run(action.instance, action.unit, action.work, [row])

    def _recycle(self, action: Recycle) -> None:
        _log.warning("instance %s is replaced: it %s", action.instance, action.why)
        self._metrics.recycled.labels(action.reason).inc()
        if action.reason is RecycleReason.QUARANTINED:
            if len(self.quarantined) == MAX_QUARANTINED:
                self._metrics.quarantined.remove(self.quarantined[0])
            self.quarantined.append(action.instance)
            self._metrics.quarantined.labels(action.instance).inc()
        self._engine.recycle(action.instance, action.why)

    def _forget_queries(self, action: ForgetQueries) -> None:
        for query in action.queries:
            del self._requests[query]

    def _forget_group(self, action: ForgetGroup) -> None:
        group = self._groups.pop(action.group)
        if self._comparison is not None:
            predictions = [self._prediction(query) for query in group.members]
            self._comparison.group_over(action.group, predictions, group.outputs)

    def _compared(self, instance: str, agreed: bool) -> None:
        self._report(self._scheduler.compared, instance, agreed)

    def _wake_at(self, action: WakeAt) -> None:
        self._wake_time = action.time
        # A timer that is too early is set anew when it fires: most are never waited for so long.
        if self._timer is None or action.time < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._wake_time
        # uvloop rounds to whole milliseconds: rounding up keeps the wake-up from coming early,
        # over and over.
        delay = max(0, math.ceil((self._timer_at - now()) * 1e3)) / 1e3
        self._timer = self._loop.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if now() < self._wake_time:
            self._set_timer()
        else:
            self._carry_out(self._scheduler.time_passed(now()))

    # Does the engine have what the scheduler believes?

    def _check(self) -> None:
        self._check_timer = self._loop.call_later(CHECK_INTERVAL, self._check)
        for difference in self._self_check.look(self._scheduler.running(), self._engine.running()):
            _log.error("repairing: %s", difference)
            self._metrics.repairs.inc()
            if not difference.instance_is_there:
                self.instance_left(difference.instance, str(difference))
            elif difference.believed is not None and difference.real is None:
                self._units.setdefault(
                    difference.believed, Run(difference.instance, difference.believed, "", ())
                )
                self.unit_failed(difference.believed, str(difference))
            else:
                self._engine.recycle(difference.instance, str(difference))

    # Tensors

    def _row(self, query: int) -> NDArray[Any]:
        asked = self._requests[query]
        row: NDArray[Any] = asked.rows[query - asked.first]
        return row

    def _prediction(self, query: int) -> Made | None:
        asked = self._requests[query]
        output = asked.at_hand.get((query, Source.MODEL))
        return None if output is None else Made(output, asked.ran_on[query])

    def _in_flight(self) -> dict[str, int]:
        return self._by_work(Counter(run.work for run in self._units.values()))

    def _by_work(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {work: counts.get(work, 0) for work in self._works}
