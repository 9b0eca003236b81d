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
    BACKUP,
    Action,
    Answer,
    Cancel,
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
)
from parity_models.serving.asked import Answers
from parity_models.serving.comparison import Comparison
from parity_models.serving.engine import Engine
from parity_models.serving.errors import ERRORS, InternalError, UnavailableError
from parity_models.serving.golden import Golden, is_right
from parity_models.serving.metrics import Metrics
from parity_models.serving.poison import Poison
from parity_models.serving.screen import Screen
from parity_models.serving.self_check import SelfCheck
from parity_models.serving.tensors import Tensors
from parity_models.serving.wake_up import WakeUp

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

CHECK_INTERVAL = 1.0
"""Seconds between two self-checks."""

MAX_QUARANTINED = 100
"""How many instances that answered wrongly are remembered by name."""

_log = logging.getLogger(__name__)


class Driver:
    """Drives `scheduler` with `engine`: it is the engine's listener, and starts and stops it.

    `code` encodes and decodes for a policy that asks for it; `default` (*output shape) answers
    where the scheduler says so; the `screen` says which outputs of stand-ins answer nobody.
    Instances are verified with the `golden` queries, by work. Queries that end instances go to
    `poison`.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        code: Code | None,
        metrics: Metrics,
        *,
        default: NDArray[Any] | None,
        screen: Screen,
        golden: Mapping[str, Golden],
        poison: Poison,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._metrics = metrics
        self._default = default
        self._screen = screen
        self._golden = golden
        self._poison = poison
        self._tensors = Tensors(code)
        self._parity_rows = self._tensors.parity_rows
        self.requests = self._tensors.requests
        """The request of each query that is remembered, by the query's id."""
        self.units: dict[int, Run | Verify] = {}
        """The units that the engine has."""
        self.quarantined: deque[str] = deque(maxlen=MAX_QUARANTINED)
        """The instances that answered a golden query wrongly, the latest last."""
        compared = partial(self._report, scheduler.compared)
        self._comparison = None if code is None else Comparison(code, metrics, compared)
        self._self_check = SelfCheck()
        self._check_timer: asyncio.TimerHandle | None = None
        self._wake_up = WakeUp(self._wake)
        self._reports: deque[Callable[[], list[Action]]] = deque()
        self._started = False
        self._draining = False
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
            ForgetQueries: self._tensors.forget_queries,
            ForgetGroup: self._forget_group,
            WakeAt: lambda action: self._wake_up.set(action.time),
        }

    async def start(self, works: Sequence[frozenset[str]]) -> None:
        """Start the engine, which is then checked now and then."""
        await self._engine.start(works, self)
        self._started = True
        self._check()

    async def drain(self) -> None:
        """Returns when no query is under way."""
        self._draining = True
        if self._scheduler.pending:
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop the engine, and give what is under way an error."""
        self._stopped = True
        self._wake_up.cancel()
        if self._check_timer is not None:
            self._check_timer.cancel()
        for asked in set(self.requests.values()):
            asked.fail(UnavailableError("the server was stopped"))
        await self._engine.stop()

    # For the engine: EngineListener

    def instance_joined(
        self, instance: str, works: frozenset[str], node: str | None = None
    ) -> None:
        if self._started:
            self._metrics.restarts.inc()
        self.carry_out(self._scheduler.instance_joined(now(), instance, works, node))

    def instance_left(self, instance: str, why: str) -> None:
        for id in [id for id, run in self.units.items() if run.instance == instance]:
            self._lose(id)
        self.carry_out(self._scheduler.instance_left(now(), instance))

    def unit_finished(self, unit: int, outputs: NDArray[Any]) -> None:
        run = self.units.pop(unit, None)
        if run is None:
            return  # it was lost, or has been reported before
        if isinstance(run, Verify):
            golden = self._golden[run.work]
            right = is_right(golden, run.probe, outputs[0], self._engine.tolerance)
            self.carry_out(self._scheduler.unit_verified(now(), unit, right))
            return
        self._tensors.keep(run, outputs)
        unusable: Collection[int] = ()
        if run.work == BACKUP:
            unusable = [run.subjects[row] for row in self._screen.impossible(outputs)]
            self._metrics.impossible.inc(len(unusable))
        if self._comparison is not None and run.work in self._parity_rows:
            self._comparison.finished(self._parity_rows[run.work], run, outputs)
        self.carry_out(self._scheduler.unit_finished(now(), unit, unusable))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        run = self.units.get(unit)
        if run is not None:
            if isinstance(run, Verify):
                _log.warning("instance %s ran no golden query: %s", run.instance, detail)
            self._lose(unit)
            self.carry_out(self._scheduler.unit_failed(now(), unit, detail, busy=busy))

    def _lose(self, unit: int) -> None:
        del self.units[unit]
        if self._comparison is not None:
            self._comparison.lost(unit)

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
                if isinstance(action, Run) and action.work not in self._parity_rows:
                    self._report(self._scheduler.queries_failed, action.subjects, why)
                if action.unit in self.units:  # the engine may have it
                    self._reports.append(partial(self._recycle_in_vain, action.instance))
                else:
                    self._report(self._scheduler.unit_failed, action.unit, why)
            case Decode(group, slots=slots):
                self._report(self._scheduler.decoded, group, slots)
            case Answer(query):
                asked = self.requests[query]
                self._metrics.failures.labels(Reason.INTERNAL).inc()
                asked.fail(InternalError(f"{Reason.INTERNAL}: {why}"))
                self._report(self._scheduler.queries_abandoned, asked.queries)

    def _recycle_in_vain(self, instance: str) -> list[Action]:
        self._engine.recycle(instance, "may have got a unit, or not")
        return []

    def _report(self, event: Callable[..., list[Action]], *about: Any) -> None:
        """Tell the scheduler once the present actions have been carried out."""
        self._reports.append(lambda: event(now(), *about))

    def _run(self, action: Run) -> None:
        rows = self._tensors.rows(action)
        self.units[action.unit] = action
        self._engine.run(action.instance, action.unit, action.work, rows)

    def _encode(self, action: Encode) -> None:
        started = now()
        self._tensors.encode(action)
        self._metrics.encode.observe(now() - started)
        self._metrics.group_wait.observe(action.group_wait)

    def _decode(self, action: Decode) -> None:
        started = now()
        wrong = [
            slot
            for slot, reconstruction in self._tensors.decode(action).items()
            if self._screen.impossible(reconstruction[np.newaxis])
        ]
        if wrong:
            self._metrics.impossible.inc(len(wrong))
        self._metrics.decode.observe(now() - started)
        self._report(self._scheduler.decoded, action.group, wrong)

    def _answer(self, action: Answer) -> None:
        asked = self.requests[action.query]
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
        asked = self.requests[action.query]
        self._metrics.failures.labels(action.reason).inc()
        if action.reason is Reason.POISON:
            self._poison.remember(self._tensors.row(action.query), now())
        if not asked.future.done():
            error = ERRORS[action.reason]
            text = f"{action.reason}: {action.detail}"
            asked.fail(error(text, retry_after=action.retry_after))
            if len(asked.rows) > 1:  # without this row, nobody needs the others
                self._report(self._scheduler.queries_abandoned, asked.queries)

    def _cancel(self, action: Cancel) -> None:
        run = self.units.get(action.unit)
        if run is None:
            return  # it has ended in the meantime
        if (
            self._comparison is None
            or not isinstance(run, Run)
            or run.work not in self._parity_rows
            or not self._comparison.spares(action.unit, run.subjects)
        ):
            self._engine.cancel(action.instance, action.unit)

    def _verify(self, action: Verify) -> None:
        golden = self._golden.get(action.work)
        if golden is None:
            self._report(self._scheduler.unit_verified, action.unit, True)
            return
        self.units[action.unit] = action
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

    def _forget_group(self, action: ForgetGroup) -> None:
        group = self._tensors.forget_group(action)
        if self._comparison is not None:
            predictions = [self._tensors.prediction(query) for query in group.members]
            self._comparison.group_over(action.group, predictions, group.outputs)

    def _wake(self) -> None:
        self.carry_out(self._scheduler.time_passed(now()))

    # Does the engine have what the scheduler believes?

    def _check(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check)
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
