"""The frontend: takes requests for the deployed model and answers them.

A request of n rows is n queries to the scheduler, with consecutive ids, and one future to its
caller. The scheduler decides what becomes of the queries, and the driver carries it out. Everything
happens on the event loop's thread.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.signature import Signature
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling import Policy, Reason, Redundancy, Scheduler, SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health import State
from parity_models.serving.driver import Driver, now
from parity_models.serving.engine import Engine
from parity_models.serving.errors import PoisonError, UnavailableError
from parity_models.serving.golden import Golden
from parity_models.serving.in_flight import InFlight, Result
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observer
from parity_models.serving.refusals import soon
from parity_models.serving.request_log import CURRENT
from parity_models.trust.gates import OutputGate

_log = logging.getLogger(__name__)

AnyObserver = TypeVar("AnyObserver", bound=Observer)

VERIFIED_WITHIN = 10.0
"""Seconds for which a frontend that starts waits for golden queries."""


class Frontend:
    """Answers queries for the deployed model. Starts and stops the engine.

    Args:
        engine: Runs the models.
        policy: The redundancy policy.
        config: Configures the scheduler.
        signature: The deployed model's.
        code: Encodes and decodes, for a policy that uses a code.
        metrics: Count what happens.
        imitated: The output that stand-ins give, if the deployed model has several.
        dispatch: The dispatch rule; None for the policy's own choice.
        default: The answer (*output shape) where `config` asks for default predictions.
        gate: Decides which inputs are served exact, and which outputs of stand-ins may answer. By
            default, what is not finite is refused.
        golden: Queries to verify instances with, by role.
        refuses: Returns whether a fault plan refuses a query, by id, the stand-in with a source.

    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        config: SchedulerConfig,
        signature: Signature,
        code: Code | None,
        metrics: Metrics,
        *,
        imitated: str | None = None,
        dispatch: Dispatch | None = None,
        default: NDArray[Any] | None = None,
        gate: OutputGate | None = None,
        golden: Mapping[str, Golden] | None = None,
        refuses: Callable[[int, Source], bool] = lambda query, source: False,
    ) -> None:
        self.metrics = metrics
        """What it counts."""
        self._scheduler = Scheduler(policy, config, dispatch)
        self._deadline = config.deadline
        self._signature = signature
        self._gate = OutputGate() if gate is None else gate
        self._driver = Driver(
            engine,
            self._scheduler,
            code,
            metrics,
            self._gate,
            refuses=refuses,
            compare_one_in=config.compare_one_in,
            default=default,
            imitated=imitated,
            golden={} if golden is None else golden,
        )
        self._roles: Sequence[str] = ()
        self._stand_ins = False
        self._last_query = 0
        self._started = self._retired = self._closing = self._stopped = False
        metrics.read("parm_queue_depth", "Tasks waiting, by role.", self.queue_depths)
        metrics.read("parm_instances_up", "Instances up, by role.", self.instances_up)
        metrics.read("parm_units_in_flight", "Units running, by role.", self._units_in_flight)
        metrics.read_total(
            "parm_instance_busy_seconds",
            "Time from when instances were given units to the units' ends, by role.",
            self.busy_seconds,
        )
        metrics.lag.set_function(lambda: self.lag)
        metrics.process_busy.set_function(lambda: self._scheduler.front_door.busy)
        for state in Redundancy:
            sends = partial(self._is_redundancy, state)
            metrics.redundancy.labels(state).set_function(sends)
        metrics.capacity.set_function(lambda: self._scheduler.capacity(now()))
        metrics.read_total(
            "parm_redundant_work_held_back",
            "Times that a late query was not sent to a role, as the budget or the load forbade it.",
            lambda: self._by_role(self._scheduler.work_held_back()),
        )

    def observed_by(self, make: Callable[[Mapping[int, InFlight]], AnyObserver]) -> AnyObserver:
        """Tell an observer of everything that happens; to be called before the start.

        Args:
            make: Makes the observer of the requests in flight, by query.

        """
        observer = make(self._driver.in_flight)
        self._driver.observe(observer)
        return observer

    async def start(self, roles: Sequence[frozenset[str]]) -> None:
        """Start an instance for each of `roles`; return when all are up and have answered their
        golden queries. Raises what the engine raises."""
        self._roles = sorted(frozenset().union(*roles))
        self._stand_ins = self._roles != [DEPLOYED]
        # Kept, as asking for it is a system call (Python 3.11: it looks at the process id).
        self._loop = asyncio.get_running_loop()
        await self._driver.start(roles)
        self._started = True
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
    ) -> Result:
        """Answer a query per row of `rows`.

        Where the caller is cancelled, the queries are abandoned.

        Args:
            rows: Inputs (n, *input shape), of one kind of the deployed model's. Not to be changed.
            timeout: Seconds; shortens the configured deadline.
            tenant: Queries share codes only with those of the same tenant.
            exact: Only the deployed model may answer.

        Raises:
            RequestError: As soon as one row is known to get no answer.

        """
        request = self._ask(rows, timeout, tenant, exact=exact)
        try:
            return await request.future
        except asyncio.CancelledError:
            if not self._stopped:
                request.future.cancel()
                self._driver.carry_out(self._scheduler.queries_abandoned(now(), request.queries))
            raise

    def _ask(
        self, rows: NDArray[Any], timeout: float | None, tenant: str | None, *, exact: bool
    ) -> InFlight:
        if self._closing or not self._started:
            state = "stopping" if self._closing else "starting"
            raise UnavailableError(
                f"the server is {state} and takes no queries; try again later", retry_after=soon()
            )
        arrived, poison = now(), self._driver.poison
        if poison:
            try:
                poison.check(rows, arrived)
            except PoisonError:
                self.metrics.failures.labels(Reason.POISON).inc(len(rows))
                raise
        count = len(rows)
        kind = self._signature.plain or self._signature.kind_of(rows[0, ...])
        due = arrived + (self._deadline if timeout is None else min(timeout, self._deadline))
        request = InFlight(
            first=self._last_query + 1,
            arrived=arrived,
            rows=rows,
            answers=np.empty((count, *kind.output.shape), kind.output.dtype),
            future=self._loop.create_future(),
            unanswered=count,
            due=due,
            request=CURRENT.get(),
            sources=[Source.MODEL] * count,
            tenant=tenant,
        )
        self._last_query += count
        queries = request.queries
        alone: Collection[int] = queries if exact else ()
        if self._stand_ins and not exact:
            unlike = self._gate.unlike(rows)
            if unlike:
                alone = [request.first + row for row in unlike]
                self.metrics.unlike.inc(len(unlike))
        self._driver.arrived(
            request,
            queries,
            self._scheduler.queries_arrived(
                arrived,
                queries,
                (rows.shape[1:], rows.dtype),
                None if timeout is None else due,
                tenant=tenant,
                exact=alone,
            ),
        )
        return request

    @property
    def ready(self) -> bool:
        """Whether a query would be answered."""
        return (
            self._started
            and not self._closing
            and not self._retired
            and self.instances_up()[DEPLOYED] > 0
        )

    @property
    def asked(self) -> int:
        """How many queries it has been asked so far."""
        return self._last_query

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered a golden query wrongly, the latest last."""
        return self._driver.quarantined

    def states(self) -> dict[str, State]:
        """Return the state of each instance that is up."""
        return dict(self._scheduler.instances())

    def queue_depths(self) -> dict[str, int]:
        """Return how many tasks are waiting, by role."""
        return self._by_role(self._scheduler.queue_depths())

    def instances_up(self) -> dict[str, int]:
        """Return how many instances are up, by role."""
        return self._by_role(self._scheduler.instances_up())

    def busy_seconds(self) -> dict[str, float]:
        """Return how long instances were busy with units that have ended, by role."""
        return {role: self._driver.busy_seconds.get(role, 0.0) for role in self._roles}

    def check_engine(self) -> None:
        """Repair what scheduler and engine say differently, as every second."""
        self._driver.check_engine()

    @property
    def redundancy(self) -> Redundancy:
        """Whether redundant work is sent, or why not."""
        return self._scheduler.redundancy

    @property
    def lag(self) -> float:
        """How long reports and timers wait for this process, in seconds: a moving average."""
        return self._scheduler.front_door.lag

    @property
    def mean_lag(self) -> float:
        """How long reports and timers waited for this process, in seconds on average."""
        return self._scheduler.front_door.mean_lag

    def switch_redundancy(self, on: bool) -> None:
        """Send redundant work from now on, or none."""
        self._driver.carry_out(self._scheduler.redundancy_switched(now(), on))
        _log.info("redundancy is switched %s", "on" if on else "off")

    def retire(self) -> None:
        """Stop being ready, so that clients go elsewhere, but still take queries."""
        self._retired = True

    async def drain(self) -> None:
        """Take no more queries; return when those that were taken have ended."""
        self._closing = True
        await self._driver.drain()

    async def stop(self) -> None:
        """Stop the engine. Queries in flight get an error."""
        self._closing = self._stopped = True
        await self._driver.stop()

    def _is_redundancy(self, state: Redundancy) -> float:
        return self._scheduler.redundancy is state

    def _units_in_flight(self) -> dict[str, int]:
        return self._by_role(Counter(unit.action.role for unit in self._driver.units.values()))

    def _by_role(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {role: counts.get(role, 0) for role in self._roles}
