"""The frontend: drives a Scheduler with real time, real tensors and an engine.

A request of n rows is n queries to the scheduler, with consecutive ids, and one future to its
caller. The scheduler decides; the frontend keeps the tensors and carries out its actions, in
order. Everything happens on the event loop's thread.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    Run,
    Scheduler,
    SchedulerConfig,
    Source,
    WakeAt,
    parity_work,
)
from parity_models.scheduling.dispatch import Dispatch
from parity_models.serving.comparison import Comparison
from parity_models.serving.engine import Engine
from parity_models.serving.errors import (
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from parity_models.serving.metrics import Metrics

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

_SOURCES = {DEPLOYED: Source.MODEL, BACKUP: Source.BACKUP}
"""What an output answers as, by the work it came from."""

_ERRORS: Mapping[Reason, type[RequestError]] = {
    Reason.OVERLOADED: OverloadedError,
    Reason.DEADLINE_EXCEEDED: DeadlineError,
    Reason.INSTANCES_FAILED: InferenceError,
}


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a request: `outputs` (n, *output shape), and the source of each row."""

    outputs: NDArray[Any]
    sources: Sequence[Source]


@dataclass(slots=True, eq=False)
class _Request:
    """A request's tensors; query `first + i` is its row i.

    What a query can be answered with, or decoded from, is `at_hand` by its id and the source.
    """

    first: int
    arrived: float
    rows: NDArray[Any]
    outputs: NDArray[Any]
    future: asyncio.Future[Answers]
    unanswered: int
    sources: list[Source]
    at_hand: dict[tuple[int, Source], NDArray[Any]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Group:
    """A coding group's queries, parity queries (r, *parity shape) and what came of the latter."""

    members: tuple[int, ...]
    parities: NDArray[Any]
    outputs: list[NDArray[Any] | None]


class Frontend:
    """Answers queries for the deployed model whose output is `output`.

    `code` encodes and decodes for a policy that asks for it; `dispatch` None is the policy's own
    choice; `default` (*output shape) is the answer where `config` asks for default predictions.
    The frontend is its engine's listener, and starts and stops it.
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
    ) -> None:
        self._engine = engine
        self._scheduler = Scheduler(policy, config, dispatch)
        self._default = default
        self._deadline = config.deadline
        self._output = output
        self._code = code
        self._metrics = metrics
        self._comparison = None if code is None else Comparison(code, metrics)
        self._requests: dict[int, _Request] = {}
        self._groups: dict[int, _Group] = {}
        self._units: dict[int, Run] = {}
        self._parity_row = {parity_work(j): j for j in range(code.r if code else 0)}
        self._works: Sequence[str] = ()
        self._decoded: list[int] = []
        self._last_query = 0
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._closing = False
        self._idle = asyncio.Event()
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Encode: self._encode,
            Decode: self._decode,
            Answer: self._answer,
            Fail: self._fail,
            Cancel: self._cancel,
            ForgetQueries: self._forget_queries,
            ForgetGroup: self._forget_group,
            WakeAt: self._wake_at,
        }
        metrics.read("parm_queue_depth", "Tasks waiting, by work.", "work", self.queue_depths)
        metrics.read("parm_instances_up", "Instances up, by work.", "work", self.instances_up)
        metrics.read("parm_units_in_flight", "Units running, by work.", "work", self._in_flight)

    # For those who ask

    async def start(self, works: Sequence[frozenset[str]]) -> None:
        """Start an instance for each of `works`; returns when all are up, or raises what the
        engine raises."""
        self._works = sorted(frozenset().union(*works))
        await self._engine.start(works, self)
        self._started = True

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Answers:
        """Answer a query per row of `rows` (n, *input shape), in the deployed model's dtype.

        `timeout` in seconds shortens the configured deadline. The queries share coding groups
        with those of the same `tenant`, or with none where they are to be `exact`. Raises a
        RequestError as soon as one row is known to get no answer.
        """
        if self._closing or not self._started:
            state = "stopping" if self._closing else "starting"
            raise UnavailableError(f"the server is {state} and takes no queries; try again later")
        if self._code is not None and rows.dtype.kind == "f" and not np.isfinite(rows).all():
            # Encoded with others it would spoil their reconstructions.
            raise InvalidRequestError(
                "the input has values that are not finite, which a coded server cannot take"
            )
        count = len(rows)
        arrived = now()
        request = _Request(
            first=self._last_query + 1,
            arrived=arrived,
            rows=rows,
            outputs=np.empty((count, *self._output.shape), self._output.dtype),
            future=asyncio.get_running_loop().create_future(),
            unanswered=count,
            sources=[Source.MODEL] * count,
        )
        self._last_query += count
        queries = range(request.first, request.first + count)
        self._requests.update(dict.fromkeys(queries, request))
        deadline = None if timeout is None else arrived + min(timeout, self._deadline)
        kind = (rows.shape[1:], rows.dtype)
        self._carry_out(
            self._scheduler.queries_arrived(
                arrived, queries, kind, deadline, tenant=tenant, exact=queries if exact else ()
            )
        )
        return await request.future

    @property
    def ready(self) -> bool:
        """Does an instance of the deployed model wait for queries?"""
        return self._started and not self._closing and self.instances_up()[DEPLOYED] > 0

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are waiting, by work."""
        return self._by_work(self._scheduler.queue_depths())

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by work."""
        return self._by_work(self._scheduler.instances_up())

    async def drain(self) -> None:
        """Take no more queries; returns when all that were taken have ended."""
        self._closing = True
        if self._scheduler.pending:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine. Whatever was not drained gets no answer."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for request in set(self._requests.values()):
            if not request.future.done():
                request.future.set_exception(UnavailableError("the server was stopped"))
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
        run = self._units.pop(unit)
        j = self._parity_row.get(run.work)
        for subject, output in zip(run.subjects, outputs, strict=True):
            if j is None:
                request = self._requests.get(subject)
                if request is not None:
                    request.at_hand[subject, _SOURCES[run.work]] = output
            else:
                group = self._groups.get(subject)
                if group is not None:
                    group.outputs[j] = output
        if self._comparison is not None and j is not None:
            self._comparison.finished(unit, j, run.subjects, outputs)
        self._carry_out(self._scheduler.unit_finished(now(), unit))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        self._lose(unit)
        self._carry_out(self._scheduler.unit_failed(now(), unit, detail, busy=busy))

    def _lose(self, unit: int) -> None:
        del self._units[unit]
        if self._comparison is not None:
            self._comparison.lost(unit)

    # The scheduler's actions

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._do[type(action)](action)
        while self._decoded:
            self._carry_out(self._scheduler.decoded(now(), self._decoded.pop()))
        if self._closing and not self._scheduler.pending:
            self._idle.set()

    def _run(self, action: Run) -> None:
        self._units[action.unit] = action
        j = self._parity_row.get(action.work)
        if j is None:
            rows = [self._row(query) for query in action.subjects]
        else:
            rows = [self._groups[group].parities[j] for group in action.subjects]
        self._engine.run(action.instance, action.unit, action.work, rows)

    def _encode(self, action: Encode) -> None:
        assert self._code is not None
        started = now()
        parities = self._code.encode([self._row(query) for query in action.members])
        self._groups[action.group] = _Group(action.members, parities, [None] * self._code.r)
        self._metrics.encode.observe(now() - started)
        self._metrics.group_wait.observe(action.group_wait)

    def _decode(self, action: Decode) -> None:
        assert self._code is not None
        started = now()
        outputs = self._groups[action.group].outputs
        decoded = self._code.decode(
            [
                self._requests[query].at_hand[query, Source.MODEL] if here else None
                for query, here in zip(action.members, action.available, strict=True)
            ],
            [
                output if here else None
                for output, here in zip(outputs, action.parities, strict=True)
            ],
        )
        for slot in action.slots:
            query = action.members[slot]
            self._requests[query].at_hand[query, Source.RECONSTRUCTION] = decoded[slot]
        self._decoded.append(action.group)
        self._metrics.decode.observe(now() - started)

    def _answer(self, action: Answer) -> None:
        request = self._requests[action.query]
        row = action.query - request.first
        if action.source is Source.DEFAULT:
            request.outputs[row] = self._default
        else:
            request.outputs[row] = request.at_hand[action.query, action.source]
        request.sources[row] = action.source
        request.unanswered -= 1
        self._metrics.latency[action.source].observe(now() - request.arrived)
        if action.source is Source.RECONSTRUCTION:
            self._metrics.reconstructions.inc()
        if not request.unanswered and not request.future.done():
            request.future.set_result(Answers(request.outputs, request.sources))

    def _fail(self, action: Fail) -> None:
        request = self._requests[action.query]
        self._metrics.failures.labels(action.reason).inc()
        if not request.future.done():
            error = _ERRORS[action.reason]
            request.future.set_exception(error(f"{action.reason}: {action.detail}"))

    def _cancel(self, action: Cancel) -> None:
        run = self._units[action.unit]
        if (
            self._comparison is None
            or run.work not in self._parity_row
            or not self._comparison.spares(action.unit, run.subjects)
        ):
            self._engine.cancel(action.instance, action.unit)

    def _forget_queries(self, action: ForgetQueries) -> None:
        for query in action.queries:
            del self._requests[query]

    def _forget_group(self, action: ForgetGroup) -> None:
        group = self._groups.pop(action.group)
        if self._comparison is not None:
            predictions = [
                self._requests[query].at_hand.get((query, Source.MODEL)) for query in group.members
            ]
            self._comparison.group_over(action.group, predictions, group.outputs)

    def _wake_at(self, action: WakeAt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # uvloop rounds to whole milliseconds: rounding up keeps the wake-up from coming early,
        # over and over.
        delay = max(0, math.ceil((action.time - now()) * 1e3)) / 1e3
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake, action)

    def _wake(self, action: WakeAt) -> None:
        if now() < action.time:
            self._wake_at(action)
        else:
            self._carry_out(self._scheduler.time_passed(now()))

    # Tensors

    def _row(self, query: int) -> NDArray[Any]:
        request = self._requests[query]
        row: NDArray[Any] = request.rows[query - request.first]
        return row

    def _in_flight(self) -> dict[str, int]:
        return self._by_work(Counter(run.work for run in self._units.values()))

    def _by_work(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {work: counts.get(work, 0) for work in self._works}
