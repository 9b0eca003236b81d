"""The local engine: supervised worker processes on this machine."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import zmq

from parity_models.errors import FaultPlanError, ServingError
from parity_models.faults import FaultPlan
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import EngineListener, Parts
from parity_models.serving.local.placement import Addresses, Place, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.local.run_queue import all_cores_used
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.copies import ModelCopies, copied
from parity_models.serving.worker.sockets import bind
from parity_models.serving.worker.wire import Exit, Hello, InjectFaults
from parity_models.serving.worker.workers import WorkerEngine

START_TIMEOUT = 60.0
"""Seconds a worker may take to load and warm its models."""

LONG_SERVICE = 60.0
"""Seconds after which an instance that is recycled counts as one that served well."""

GRACE = 1.0
"""Seconds workers are given to exit by themselves."""

_log = logging.getLogger(__name__)


class LocalEngine(WorkerEngine[WorkerProcess]):
    """Supervised worker processes on this machine: runs `models`, by role, in worker processes.

    It copies them when it starts: whatever becomes of the files, workers run what they held when
    they were pinned. A worker that was killed is noticed at once; one that was not heard of for
    `heartbeat_timeout` seconds, or has had a unit for `unit_timeout` seconds, is killed. Either
    is started again, with a back-off, until it works. Worker i serves the i-th of the roles the
    engine is started with; as an instance it is called "i", and "i.n" after n restarts. It runs
    at the i-th of `placements`, or at Placement() if there are none, as do those that are added.
    Faults can be injected only if it `allows_faults`. At first, as many workers start at a time as
    `starts_at_once`, or all. `worker` makes each life of one.
    """

    name = "local"
    takes_faults = True
    takes_placements = True
    grows = True
    same_clock = True

    @classmethod
    def build(cls, options: Any, parts: Parts) -> "LocalEngine":
        return cls(
            parts.models,
            placements=parts.placements,
            unit_timeout=parts.unit_timeout,
            metrics=parts.metrics,
            allows_faults=parts.allows_faults,
            starts_at_once=parts.starts_at_once,
        )

    def __init__(
        self,
        models: Mapping[str, PinnedModel],
        *,
        placements: Sequence[Placement] = (),
        heartbeat_timeout: float = 2.0,
        unit_timeout: float = 10.0,
        metrics: Metrics | None = None,
        allows_faults: bool = False,
        starts_at_once: int | None = None,
        worker: Callable[..., WorkerProcess] = WorkerProcess,
    ) -> None:
        super().__init__(
            heartbeat_timeout=heartbeat_timeout,
            join_timeout=START_TIMEOUT,
            unit_timeout=unit_timeout,
            metrics=metrics,
        )
        self._models = models
        self._worker = worker
        self._copies: ModelCopies | None = None
        self._placements = placements
        self._allows_faults = allows_faults
        self._turns = None if starts_at_once is None else asyncio.Semaphore(starts_at_once)
        self._having_turns: set[int] = set()
        self._endpoints: dict[str, str] = {}
        self._to_join: set[int] = set()
        self._places: dict[int, Place] = {}
        self._lives: defaultdict[int, Iterator[int]] = defaultdict(count)
        self._stopping = asyncio.Event()
        self._faults: tuple[FaultPlan, float] | None = None
        self._kills: list[asyncio.Task[None]] = []

    # Engine

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        if not roles:
            raise ServingError("an engine needs at least one instance")
        unknown = frozenset[str]().union(*roles) - self._models.keys()
        if unknown:
            raise ServingError(f"no model was given to run as {', '.join(sorted(unknown))}")
        placements = self._placements or (Placement(),) * len(roles)
        if len(placements) != len(roles):
            raise ServingError(f"{len(placements)} placements for {len(roles)} instances")
        used = {role: self._models[role] for role in sorted(frozenset[str]().union(*roles))}
        self._open(listener)
        try:
            self._copies = await copied(used)
            self._started = self._loop.create_future()
            reports = [self._reports_endpoint(place.link) for place in placements]
            self._listen()
            self._to_join.update(range(len(roles)))
            for number, each in enumerate(zip(roles, placements, reports, strict=True)):
                self._fill(Place(number, *each))
            await self._started
        except BaseException:
            if self._copies is not None:
                await self.stop()
            else:
                self._leave_nothing()
            raise

    async def stop(self) -> None:
        if self._stopping.is_set() or self._copies is None:
            return
        self._stopping.set()
        self._deafen()
        for kill in self._kills:
            kill.cancel()
        for worker in self._workers.values():
            if worker.joined:
                worker.tell(Exit(worker.instance))
            else:
                worker.kill("was stopped")
        for place in self._places.values():
            place.closed.set()
        supervisors = {place.supervisor for place in self._places.values()}
        try:
            if supervisors:
                _, supervisors = await asyncio.wait(supervisors, timeout=GRACE)
            if supervisors:
                self._kill_all()
                await asyncio.wait(supervisors)
        finally:
            self._kill_all()
            self._leave_nothing()

    def recycle(self, instance: str, why: str) -> None:
        worker = self._workers.get(instance)
        if worker is not None and worker.joined:
            worker.recycled = True
            worker.kill(why)

    @property
    def places(self) -> int:
        return sum(not place.closed.is_set() for place in self._places.values())

    @property
    def ending(self) -> int:
        return len(self._places) - self.places

    def add(self, roles: frozenset[str]) -> None:
        number = next(number for number in count() if number not in self._places)
        self._fill(Place(number, roles, Placement()))

    def dismiss(self, instance: str) -> None:
        worker = self._workers.get(instance)
        if worker is not None and worker.joined:
            self._give_up_place(worker.number)

    def give_up_place(self) -> bool:
        up = {each.number for each in self._workers.values() if each.joined and not each.ended}
        for number, place in self._places.items():
            if number not in up and not place.closed.is_set():
                self._give_up_place(number)
                return True
        return False

    def _give_up_place(self, number: int) -> None:
        self._places[number].closed.set()
        for worker in self._workers.values():
            if worker.number == number:
                worker.kill("is not needed any more")

    def pids(self) -> dict[str, int]:
        """The process ids of the workers that are up, by instance."""
        return {
            instance: worker.pid
            for instance, worker in self._workers.items()
            if worker.pid is not None
        }

    def crowded(self, instances: Collection[str]) -> bool:
        return all_cores_used(self.pids(), instances)

    # Faults

    def inject_faults(self, plan: FaultPlan, start: float | None = None) -> None:
        """Let the plan's time begin at `start` of time.monotonic(), or now; replaces any other.

        Raises FaultPlanError if the plan names a worker that the engine does not have, or it allows
        no faults.
        """
        if not self._allows_faults:
            raise FaultPlanError("the engine was not started for faults; give it allows_faults")
        plan.check(len(self._places))
        start = time.monotonic() if start is None else start
        self._faults = (plan, start)
        for worker in self._workers.values():
            if worker.joined:
                worker.tell_before_units(InjectFaults(plan, worker.number, start))
        for kill in self._kills:
            kill.cancel()
        self._kills = [
            asyncio.create_task(self._kill_by_plan(number, plan, start)) for number in self._places
        ]

    async def _kill_by_plan(self, number: int, plan: FaultPlan, start: float) -> None:
        for at in plan.kill_times(number):
            await asyncio.sleep(start + at - time.monotonic())
            for worker in self._workers.values():
                if worker.number == number:
                    worker.kill("was killed by the fault plan")

    # What workers report

    def _reports_endpoint(self, link: Addresses | None) -> str | None:
        """Where the engine listens to a worker with this link; None if it has a pipe instead."""
        if link is None:
            return None
        at = f"tcp://{link.engine}:*"
        if at not in self._endpoints:
            try:
                self._endpoints[at] = bind(self._reports or self._open_reports(), at)
            except zmq.ZMQError as error:
                raise ServingError(f"cannot listen at {at}: {error.strerror}") from error
        return self._endpoints[at]

    def _hello(self, worker: WorkerProcess, hello: Hello) -> None:
        worker.join(hello)
        if self._faults is not None:
            plan, start = self._faults
            worker.tell_before_units(InjectFaults(plan, worker.number, start))
        self._to_join.discard(worker.number)
        self._pass_turn(worker.number)
        if not self._to_join and not self._started.done():
            self._started.set_result(None)
        self._listener.instance_joined(worker.instance, worker.roles, worker.node)

    # Supervision

    def _fill(self, place: Place) -> None:
        """Have a worker in this place from now on."""
        self._places[place.number] = place
        place.supervisor = asyncio.create_task(self._supervise(place))

    async def _supervise(self, place: Place) -> None:
        """Have one worker after the other in a place, until it is given up."""
        assert self._copies is not None
        number = place.number
        models = {role: self._copies.assigned[role] for role in sorted(place.roles)}
        broken, recycled = Backoff(), Backoff(LONG_SERVICE)
        await self._take_turn(number)
        while not place.closed.is_set():
            life = next(self._lives[number])
            instance = f"{number}.{life}" if life else f"{number}"
            began = self._loop.time()
            worker: WorkerProcess | None = None
            try:
                worker = self._worker(
                    number,
                    instance,
                    models,
                    place.placement,
                    self._take,
                    context=self._context,
                    reports=place.reports,
                    allows_faults=self._allows_faults,
                )
                self._workers[instance] = worker
                why = await worker.live()
            except Exception as error:  # whatever is lacking now may be there later
                why = f"could not be run: {error!r}"
                self._metrics.engine_errors.labels("start").inc()
            await self._bury(worker)
            self._pass_turn(number)
            if self._stopping.is_set():
                return
            if number in self._to_join:
                if not self._started.done():
                    failure = ServingError(f"worker {number} could not start: it {why}")
                    self._started.set_exception(failure)
                return
            served = worker is not None and worker.joined
            if served:
                # Not called from here: a listener's mistake must not end the supervision.
                self._loop.call_soon(self._listener.instance_left, instance, why)
            if place.closed.is_set():
                _log.info("worker %s %s", instance, why)
                break
            backoff = recycled if worker is not None and worker.recycled else broken
            pause = backoff.after(self._loop.time() - began if served else 0.0)
            _log.warning("worker %s %s; it is restarted in %.1f s", instance, why, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(place.closed.wait(), pause)
        self._pass_turn(number)
        del self._places[number]

    async def _take_turn(self, number: int) -> None:
        """Wait until the worker may start for the first time."""
        if self._turns is not None:
            await self._turns.acquire()
            self._having_turns.add(number)

    def _pass_turn(self, number: int) -> None:
        """It has started, or it has not: the next one may."""
        if self._turns is not None and number in self._having_turns:
            self._having_turns.remove(number)
            self._turns.release()

    async def _bury(self, worker: WorkerProcess | None) -> None:
        """Leave no process, socket or file of a worker behind."""
        if worker is not None:
            del self._workers[worker.instance]
            try:
                await worker.end()
                worker.close()
            except Exception as error:
                self._got_over("clean up", error)

    def _leave_nothing(self) -> None:
        self._close()
        if self._copies is not None:
            self._copies.close()

    def _give_up(self, worker: WorkerProcess, why: str) -> None:
        worker.kill(why)

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill("was stopped")
