"""The frontend: takes requests for the deployed model and answers them.

A request of n rows is n queries to the scheduler, with consecutive ids, and one future to its
caller. What becomes of the queries is the scheduler's to decide and the driver's to carry out.
Everything happens on the event loop's thread.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.signature import Signature
from parity_models.scheduling import DEPLOYED, Policy, Reason, Scheduler, SchedulerConfig, Source
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health import State
from parity_models.serving.asked import Answers, Asked
from parity_models.serving.driver import Driver
from parity_models.serving.engine import Engine
from parity_models.serving.errors import PoisonError, UnavailableError
from parity_models.serving.gates import ChosenGate
from parity_models.serving.golden import Golden
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observer
from parity_models.serving.poison import Poison
from parity_models.serving.refusals import soon
from parity_models.serving.request_log import CURRENT
from parity_models.serving.screen import Screen
from parity_models.serving.stand_ins import StandInRules

# Not the loop's time(): uvloop's is cached and counts whole milliseconds.
now = time.monotonic

AnyObserver = TypeVar("AnyObserver", bound=Observer)

VERIFIED_WITHIN = 10.0
"""Seconds for which a frontend that starts waits for golden queries, at the most."""


class Frontend:
    """Answers queries for the deployed model, whose `signature` says what they are.

    Where it has several outputs, stand-ins give the one that is `imitated`. `code` encodes and
    decodes for a policy that asks for it; `dispatch` None is the policy's own choice; `default`
    (*output shape) is the answer where `config` asks for default predictions. The `screen` says
    which inputs are served exact and which outputs of stand-ins answer nobody; by default those
    that are not finite; `gates` have stand-ins answer only where they are likely enough to say what
    the model says. Instances are verified with the `golden` queries, by role. The frontend is ready
    while `min_ready` instances of the deployed model take queries. It starts and stops the engine.
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
        screen: Screen | None = None,
        gates: Mapping[Source, ChosenGate] | None = None,
        golden: Mapping[str, Golden] | None = None,
        min_ready: int = 1,
        refuses: Callable[[int, Source], bool] = lambda query, source: False,
    ) -> None:
        self._scheduler = Scheduler(policy, config, dispatch, engine.crowded)
        self._deadline = config.deadline
        self._signature = signature
        self.metrics = metrics
        """What it counts."""
        self._screen = Screen() if screen is None else screen
        self._min_ready = min_ready
        self._poison = Poison()
        self._driver = Driver(
            engine,
            self._scheduler,
            code,
            metrics,
            default=default,
            rules=StandInRules(self._screen, gates or {}, refuses, config.compare_one_in, imitated),
            golden={} if golden is None else golden,
            poison=self._poison,
        )
        self._requests = self._driver.requests
        self._roles: Sequence[str] = ()
        self._stand_ins = False
        self._last_query = 0
        self._started = False
        self._retired = False
        self._closing = False
        self._stopped = False
        metrics.read("parm_queue_depth", "Tasks waiting, by role.", self.queue_depths)
        metrics.read("parm_instances_up", "Instances up, by role.", self.instances_up)
        metrics.read("parm_units_in_flight", "Units running, by role.", self._in_flight)
        metrics.read_total(
            "parm_instance_busy_seconds",
            "Time from when instances were given units to the units' ends, by role.",
            self.busy_seconds,
        )
        metrics.capacity.set_function(lambda: self._scheduler.capacity(now()))
        metrics.read_total(
            "parm_redundant_work_held_back",
            "Times that a late query was not sent to a role, as the budget or the load forbade it.",
            lambda: self._by_role(self._scheduler.work_held_back()),
        )

    def observed_by(self, make: Callable[[Mapping[int, Asked]], AnyObserver]) -> AnyObserver:
        """What `make` makes is told from now on of all that happens; it is given the requests that
        are under way, by query. To be called before the start."""
        observer = make(self._requests)
        self._driver.observers.add(observer)
        return observer

    async def start(self, roles: Sequence[frozenset[str]]) -> None:
        """Start an instance for each of `roles`; returns when all are up and have answered their
        golden queries, or raises what the engine raises."""
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
    ) -> Answers:
        """Answer a query per row of `rows` (n, *input shape), of one kind of the deployed model's.

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
                f"the server is {state} and takes no queries; try again later", retry_after=soon()
            )
        arrived = now()
        if self._poison:
            try:
                self._poison.check(rows, arrived)
            except PoisonError:
                self.metrics.failures.labels(Reason.POISON).inc(len(rows))
                raise
        count = len(rows)
        kind = self._signature.plain or self._signature.kind_of(rows[0, ...])
        asked = Asked(
            first=self._last_query + 1,
            arrived=arrived,
            rows=rows,
            outputs=np.empty((count, *kind.output.shape), kind.output.dtype),
            future=self._loop.create_future(),
            unanswered=count,
            due=arrived + (self._deadline if timeout is None else min(timeout, self._deadline)),
            request=CURRENT.get(),
            sources=[Source.MODEL] * count,
            tenant=tenant,
        )
        self._last_query += count
        queries = asked.queries
        apart: Collection[int] = queries if exact else ()
        if self._stand_ins and not exact:
            unlike = self._screen.unlike(rows)
            if unlike:
                apart = [asked.first + row for row in unlike]
                self.metrics.unlike.inc(len(unlike))
        self._driver.remember(asked)
        deadline = None if timeout is None else arrived + min(timeout, self._deadline)
        alike = (rows.shape[1:], rows.dtype)
        self._driver.carry_out(
            self._scheduler.queries_arrived(
                arrived, queries, alike, deadline, tenant=tenant, exact=apart
            )
        )
        return asked

    def abandon(self, asked: Asked) -> None:
        """Nobody waits for these answers any more."""
        if not self._stopped:
            asked.future.cancel()
            self._driver.carry_out(self._scheduler.queries_abandoned(now(), asked.queries))

    @property
    def ready(self) -> bool:
        """Would a query be answered?"""
        return (
            self._started
            and not self._closing
            and not self._retired
            and self.instances_up()[DEPLOYED] >= self._min_ready
        )

    @property
    def asked(self) -> int:
        """How many queries it has been asked so far."""
        return self._last_query

    def states(self) -> dict[str, State]:
        """How each instance is that is up."""
        return dict(self._scheduler.instances())

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are waiting, by role."""
        return self._by_role(self._scheduler.queue_depths())

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by role."""
        return self._by_role(self._scheduler.instances_up())

    def busy_seconds(self) -> dict[str, float]:
        """How long instances have been busy with units that have ended, in all, by role."""
        return {role: self._driver.busy.seconds.get(role, 0.0) for role in self._roles}

    def check_engine(self) -> None:
        """Repair what scheduler and engine say differently of an instance, if they did so the last
        time as well. It happens by itself every CHECK_INTERVAL seconds."""
        self._driver.check_engine()

    def retire(self) -> None:
        """Be ready no more, so that clients go elsewhere, and take queries all the same."""
        self._retired = True

    async def drain(self) -> None:
        """Take no more queries; returns when all that were taken have ended."""
        self._closing = True
        await self._driver.drain()

    async def stop(self) -> None:
        """Stop the engine. Whatever was not drained gets no answer."""
        self._closing = self._stopped = True
        await self._driver.stop()

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered a golden query wrongly, the latest last."""
        return self._driver.quarantine.names

    def _in_flight(self) -> dict[str, int]:
        return self._by_role(Counter(run.role for run in self._driver.units.values()))

    def _by_role(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {role: counts.get(role, 0) for role in self._roles}
