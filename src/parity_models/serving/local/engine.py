"""The local engine: supervised worker processes on this machine."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import zmq

from parity_models.errors import ServingError
from parity_models.faults import FaultPlan
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import EngineListener
from parity_models.serving.local.placement import Link, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.local.wire import Exit, Hello, InjectFaults, bind, reports_endpoint
from parity_models.serving.local.workers import WorkerEngine

START_TIMEOUT = 60.0
"""Seconds a worker may take to load and warm its models."""

GRACE = 1.0
"""Seconds workers are given to exit by themselves."""

MAX_DIRECTORY = 80
"""Characters of a path that leave room for the name of a socket in what a socket's may have."""

_log = logging.getLogger(__name__)


class LocalEngine(WorkerEngine[WorkerProcess]):
    """An Engine that runs `models`, ONNX files by work, in worker processes.

    A worker that was killed is noticed at once; one that was not heard of for
    `heartbeat_timeout` seconds, or has had a unit for `unit_timeout` seconds, is killed. Either
    is started again, with a back-off. Worker i serves the i-th of the works the engine is
    started with; as an instance it is called "i", and "i.n" after n restarts. It runs at the
    i-th of `placements`, or at Placement() if there are none.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        *,
        placements: Sequence[Placement] = (),
        heartbeat_timeout: float = 2.0,
        unit_timeout: float = 10.0,
    ) -> None:
        super().__init__(
            heartbeat_timeout=heartbeat_timeout,
            join_timeout=START_TIMEOUT,
            unit_timeout=unit_timeout,
        )
        self._models = {work: path.resolve() for work, path in models.items()}
        self._placements = placements
        self._endpoints: dict[str, str] = {}
        self._to_join: set[int] = set()
        self._supervisors: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._faults: tuple[FaultPlan, float] | None = None
        self._kills: list[asyncio.Task[None]] = []

    # Engine

    async def start(self, works: Sequence[frozenset[str]], listener: EngineListener) -> None:
        if not works:
            raise ServingError("an engine needs at least one instance")
        unknown = frozenset[str]().union(*works) - self._models.keys()
        if unknown:
            raise ServingError(f"no model was given to run as {', '.join(sorted(unknown))}")
        placements = self._placements or (Placement(),) * len(works)
        if len(placements) != len(works):
            raise ServingError(f"{len(placements)} placements for {len(works)} instances")
        self._directory = _private_directory()
        self._open(listener)
        self._started = self._loop.create_future()
        reports = [self._reports_endpoint(place.link) for place in placements]
        self._listen()
        self._to_join.update(range(len(works)))
        self._supervisors = [
            asyncio.create_task(self._supervise(number, *each))
            for number, each in enumerate(zip(works, placements, reports, strict=True))
        ]
        try:
            await self._started
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._stopping.is_set() or not self._supervisors:
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
        try:
            _, alive = await asyncio.wait(self._supervisors, timeout=GRACE)
            if alive:
                self._kill_all()
                await asyncio.wait(alive)
        finally:
            self._kill_all()
            self._close()
            shutil.rmtree(self._directory, ignore_errors=True)

    def pids(self) -> dict[str, int]:
        """The process ids of the workers that are up, by instance."""
        return {
            instance: worker.pid
            for instance, worker in self._workers.items()
            if worker.pid is not None
        }

    # Faults

    def inject_faults(self, plan: FaultPlan, start: float | None = None) -> None:
        """Let the plan's time begin at `start` of time.monotonic(), or now; replaces any other.

        Raises FaultPlanError if the plan names a worker that the engine does not have.
        """
        plan.check(len(self._supervisors))
        start = time.monotonic() if start is None else start
        self._faults = (plan, start)
        for worker in self._workers.values():
            if worker.joined:
                worker.tell_before_units(InjectFaults(plan, worker.number, start))
        for kill in self._kills:
            kill.cancel()
        self._kills = [
            asyncio.create_task(self._kill_by_plan(number, plan, start))
            for number in range(len(self._supervisors))
        ]

    async def _kill_by_plan(self, number: int, plan: FaultPlan, start: float) -> None:
        for at in plan.kill_times(number):
            await asyncio.sleep(start + at - time.monotonic())
            for worker in self._workers.values():
                if worker.number == number:
                    worker.kill("was killed by the fault plan")

    # What workers report

    def _reports_endpoint(self, link: Link | None) -> str:
        """Where the engine listens to a worker with this link."""
        at = reports_endpoint(self._directory, link)
        if at not in self._endpoints:
            try:
                self._endpoints[at] = bind(self._reports, at)
            except zmq.ZMQError as error:
                self._close()
                shutil.rmtree(self._directory)
                raise ServingError(f"cannot listen at {at}: {error.strerror}") from error
        return self._endpoints[at]

    def _hello(self, worker: WorkerProcess, hello: Hello) -> None:
        worker.join(hello)
        if self._faults is not None:
            plan, start = self._faults
            worker.tell_before_units(InjectFaults(plan, worker.number, start))
        self._to_join.discard(worker.number)
        if not self._to_join and not self._started.done():
            self._started.set_result(None)
        self._listener.instance_joined(worker.instance, worker.works)

    # Supervision

    async def _supervise(
        self, number: int, works: frozenset[str], placement: Placement, reports: str
    ) -> None:
        models = {work: self._models[work] for work in sorted(works)}
        backoff = Backoff()
        for life in count():
            instance = f"{number}.{life}" if life else f"{number}"
            worker = WorkerProcess(
                number, instance, models, placement, self._directory, reports, self._context
            )
            began = self._loop.time()
            self._workers[instance] = worker
            why = await worker.live()
            worker.close()
            del self._workers[instance]
            if self._stopping.is_set():
                return
            if number in self._to_join:
                if not self._started.done():
                    error = ServingError(f"worker {number} could not start: it {why}")
                    self._started.set_exception(error)
                return
            if worker.joined:
                # Not called from here: a listener's mistake must not end the supervision.
                self._loop.call_soon(self._listener.instance_left, instance, why)
            pause = backoff.after(self._loop.time() - began if worker.joined else 0.0)
            _log.warning("worker %s %s; it is restarted in %.1f s", instance, why, pause)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue
            return

    def _give_up(self, worker: WorkerProcess, why: str) -> None:
        worker.kill(why)

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill("was stopped")


def _private_directory() -> str:
    """A new directory for sockets that only this user can enter (mkdtemp: mode 0700)."""
    try:
        directory = tempfile.mkdtemp(prefix="parm-")
    except OSError as error:
        raise ServingError(f"cannot make a directory for sockets: {error}") from error
    if len(directory) > MAX_DIRECTORY:
        shutil.rmtree(directory)
        raise ServingError(
            f"{directory} is too long a path for sockets; set TMPDIR to one of at most "
            f"{MAX_DIRECTORY - 14} characters"
        )
    return directory
