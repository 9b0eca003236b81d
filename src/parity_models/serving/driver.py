"""The driver: tells the Scheduler what an engine reports, and carries out its actions.

The scheduler decides; the driver has the engine run units, keeps the tensors, and answers.
Everything happens on the event loop's thread, and actions are carried out in their order.

Carrying out actions never stops half-way: where one fails, the query that it concerns gets an
error, the rest are carried out, and a self-check sees to it that the scheduler and the engine
believe the same.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import (
    BACKUPS,
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
    Run,
    Scheduler,
    Source,
    Verify,
    WakeAt,
    source_of,
)
from parity_models.serving.busy_time import BusyTime
from parity_models.serving.engine import Engine
from parity_models.serving.golden import Golden, is_right
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observers
from parity_models.serving.passed_on import headers_of
from parity_models.serving.poison import Poison
from parity_models.serving.quarantine import Quarantine
from parity_models.serving.redundant_work import RedundantWork
from parity_models.serving.replies import Replies
from parity_models.serving.self_check import CHECK_INTERVAL, SelfCheck
from parity_models.serving.stand_ins import StandInRules, StandIns
from parity_models.serving.tensors import Tensors
from parity_models.serving.wake_up import WakeUp

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

_log = logging.getLogger(__name__)


class Driver:
    """Drives `scheduler` with `engine`: it is the engine's listener, and starts and stops it.

    `code` encodes and decodes for a policy that asks for it; `default` (*output shape) answers
    where the scheduler says so; `rules` say which outputs of stand-ins may. Instances are verified
    with the `golden` queries, by role. Queries that end instances go to `poison`.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        code: Code | None,
        metrics: Metrics,
        *,
        default: NDArray[Any] | None,
        rules: StandInRules,
        golden: Mapping[str, Golden],
        poison: Poison,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._metrics = metrics
        self._golden = golden
        self._tensors = Tensors(code, rules.imitated)
        self._parity_rows = self._tensors.parity_rows
        self.observers = Observers(metrics, RedundantWork(metrics))
        """Those who are told of everything."""
        self.requests = self._tensors.requests
        """The request of each query that is remembered, by the query's id."""
        self.remember = self._tensors.remember
        self._replies = Replies(self.requests, metrics, default, poison, rules.imitated)
        self.units: dict[int, Run | Verify] = {}
        """The units that the engine has."""
        self.busy = BusyTime()
        self.quarantine = Quarantine(metrics)
        self._stand_ins = StandIns(
            code,
            self._tensors,
            rules,
            metrics,
            compared=partial(self._report, scheduler.compared),
            gate_turned=partial(self._report, scheduler.gate_turned),
        )
        self._self_check = SelfCheck()
        self._next_check = WakeUp(self.check_engine)
        self._wake_up = WakeUp(lambda: self.carry_out(scheduler.time_passed(now())))
        self._reports: deque[Callable[[], list[Action]]] = deque()
        self._started = self._draining = self._stopped = False
        self._idle = asyncio.Event()
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Encode: self._encode,
            Decode: self._decode,
            Answer: lambda action: self._replies.answer(action, now()),
            Fail: self._fail,
            Cancel: self._cancel,
            Compare: self._compare,
            Verify: self._verify,
            Recycle: self._recycle,
            ForgetQueries: self._tensors.forget_queries,
            ForgetGroup: self._stand_ins.forget_group,
            WakeAt: lambda action: self._wake_up.set(action.time),
        }

    async def start(self, roles: Sequence[frozenset[str]]) -> None:
        """Start the engine, which is then checked now and then."""
        await self._engine.start(roles, self)
        self._started = True
        self.check_engine()

    async def drain(self) -> None:
        """Returns when no query is under way."""
        self._draining = True
        if self._scheduler.pending:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine, and give what is under way an error."""
        self._stopped = True
        self._wake_up.cancel()
        self._next_check.cancel()
        self._replies.stop()
        await self._engine.stop()

    # For the engine: EngineListener

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        if self._started:
            self._metrics.restarts.inc()
        self.observers.instance_joined(now(), instance, roles, node)
        self.carry_out(self._scheduler.instance_joined(now(), instance, roles, node))

    def instance_left(self, instance: str, why: str) -> None:
        for id in [id for id, run in self.units.items() if run.instance == instance]:
            self._lose(id)
        self.observers.instance_left(now(), instance, why)
        self.carry_out(self._scheduler.instance_left(now(), instance))

    def unit_finished(
        self,
        unit: int,
        outputs: NDArray[Any],
        *,
        started: float | None = None,
        ended: float | None = None,
    ) -> None:
        run = self.units.pop(unit, None)
        if run is None:
            return  # it was lost, or has been reported before
        self._ended(run, finished=True)
        if isinstance(run, Verify):
            golden = self._golden[run.role]
            right = is_right(golden, run.probe, outputs[0, ...], self._engine.tolerance)
            self.carry_out(self._scheduler.unit_verified(now(), unit, right))
            return
        self._tensors.keep(run, outputs)
        unusable: Collection[int] = ()
        if run.role in BACKUPS:
            source = source_of(run.role)
            rows = self._stand_ins.unusable(source, run.subjects, outputs)
            unusable = {run.subjects[row] for row in rows}
            self._refused(unusable, source)
        try:
            self._stand_ins.finished(run, outputs)
        except Exception:  # a decoder of somebody's own may raise: queries have their answers still
            _log.exception("unit %d could not be compared", unit)
        self.carry_out(self._scheduler.unit_finished(now(), unit, unusable))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        run = self.units.get(unit)
        if run is not None:
            if isinstance(run, Verify):
                _log.warning("instance %s ran no golden query: %s", run.instance, detail)
            self._lose(unit)
            self.carry_out(self._scheduler.unit_failed(now(), unit, detail, busy=busy))

    def headers_of(self, unit: int) -> Mapping[str, str]:
        run = self.units.get(unit)
        return headers_of(run, self._tensors, self.observers) if isinstance(run, Run) else {}

    def _lose(self, unit: int) -> None:
        self._ended(self.units.pop(unit), finished=False)
        self._stand_ins.lost(unit)

    def _ended(self, unit: Run | Verify, *, finished: bool) -> None:
        self.busy.end(unit.unit, now())
        self.observers.unit_ended(now(), unit, finished=finished)

    def _refused(self, queries: Collection[int], source: Source) -> None:
        if queries:
            self.observers.refused(now(), queries, source)

    # The scheduler's actions

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Do what the scheduler says, and what it says to that; nothing once it is stopped."""
        if self._stopped:
            return
        self._do_all(actions)
        while self._reports:
            self._do_all(self._reports.popleft()())
        if self._draining and not self._scheduler.pending:
            self._idle.set()

    def _do_all(self, actions: Sequence[Action]) -> None:
        if actions:
            self.observers.acted(now(), actions)
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
                if isinstance(action, Run) and action.role not in self._parity_rows:
                    self._report(self._scheduler.queries_failed, action.subjects, why)
                if action.unit in self.units:  # the engine may have it
                    self._reports.append(partial(self._recycle_in_vain, action.instance))
                else:
                    self._ended(action, finished=False)
                    self._report(self._scheduler.unit_failed, action.unit, why)
            case Decode(group, slots=slots):
                self._report(self._scheduler.decoded, group, slots)
            case Answer(query):
                self._fail(Fail(query, Reason.INTERNAL, why))

    def _recycle_in_vain(self, instance: str) -> list[Action]:
        self._engine.recycle(instance, "may have got a unit, or not")
        return []

    def _report(self, event: Callable[..., list[Action]], *about: Any) -> None:
        """Tell the scheduler once the present actions have been carried out."""
        self._reports.append(lambda: event(now(), *about))

    def _run(self, action: Run) -> None:
        rows = self._tensors.rows(action)
        self.units[action.unit] = action
        self.busy.begin(action.unit, action.role, now())
        self._engine.run(action.instance, action.unit, action.role, rows)

    def _encode(self, action: Encode) -> None:
        started = now()
        self._tensors.encode(action)
        ended = now()
        self._metrics.encode.observe(ended - started)
        self.observers.encoded(started, ended, action)
        self._metrics.group_wait.observe(action.group_wait)

    def _decode(self, action: Decode) -> None:
        started = now()
        wrong = [
            slot
            for slot, reconstruction in self._tensors.decode(action).items()
            if self._stand_ins.unusable(
                Source.RECONSTRUCTION, (action.members[slot],), reconstruction[np.newaxis]
            )
        ]
        ended = now()
        self._metrics.decode.observe(ended - started)
        self.observers.decoded(started, ended, action)
        self._refused([action.members[slot] for slot in wrong], Source.RECONSTRUCTION)
        self._report(self._scheduler.decoded, action.group, wrong)

    def _fail(self, action: Fail) -> None:
        rest = self._replies.fail(action, now())
        if rest:
            self._report(self._scheduler.queries_abandoned, rest)

    def _cancel(self, action: Cancel) -> None:
        run = self.units.get(action.unit)
        if run is not None:
            self._engine.cancel(action.instance, action.unit)

    def _compare(self, action: Compare) -> None:
        run = self.units.get(action.unit)
        if isinstance(run, Run):
            self._stand_ins.sample(run)

    def _verify(self, action: Verify) -> None:
        golden = self._golden.get(action.role)
        if golden is None:
            self._report(self._scheduler.unit_verified, action.unit, True)
            return
        self.units[action.unit] = action
        self.busy.begin(action.unit, action.role, now())
        self._metrics.verifications.inc()
        rows, _ = golden
        row = rows[action.probe % len(rows), ...]
        self._engine.run(action.instance, action.unit, action.role, [row])

    def _recycle(self, action: Recycle) -> None:
        _log.warning("instance %s is replaced: it %s", action.instance, action.why)
        self._metrics.recycled.labels(action.reason).inc()
        if action.reason is RecycleReason.QUARANTINED:
            self.quarantine.add(action.instance)
        self._engine.recycle(action.instance, action.why)

    # Does the engine have what the scheduler believes?

    def check_engine(self) -> None:
        """Repair what differs, now and every CHECK_INTERVAL seconds."""
        self._next_check.set(now() + CHECK_INTERVAL)
        for difference in self._self_check.look(self._scheduler.running(), self._engine.running()):
            _log.error("repairing: %s", difference)
            self._metrics.repairs.inc()
            if not difference.instance_is_there:
                self.instance_left(difference.instance, str(difference))
            elif difference.believed is not None and difference.real is None:
                self.units.setdefault(
                    difference.believed, Run(difference.instance, difference.believed, "", ())
                )
                self.unit_failed(difference.believed, str(difference))
            else:
                self._engine.recycle(difference.instance, str(difference))
