"""The local engine: supervised worker processes on this machine.

The event loop only ever receives from one socket (what workers report) and sends to two of each
worker (units, control), and waits for none of them. Time-outs are counted in ticks of the loop
rather than read off a clock: when the engine itself did not get to run (stopped by Ctrl-Z, a
long computation on the loop), its workers are not to blame for what it has not heard.
"""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import zmq
from numpy.typing import NDArray

from parity_models.errors import ServingError
from parity_models.faults import FaultPlan
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import EngineListener
from parity_models.serving.local.placement import Link, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.local.wire import (
    Cancel,
    Exit,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    InjectFaults,
    bind,
    decode_report,
    reports_endpoint,
    rows_of,
)

START_TIMEOUT = 60.0
"""Seconds a worker may take to load and warm its models."""

GRACE = 1.0
"""Seconds workers are given to exit by themselves."""

MAX_DIRECTORY = 80
"""Characters of a path that leave room for the name of a socket in what a socket's may have."""

_TICK = 0.1

_log = logging.getLogger(__name__)


class LocalEngine:
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
        self._models = {work: path.resolve() for work, path in models.items()}
        self._placements = placements
        self._heartbeat_timeout = heartbeat_timeout
        self._unit_timeout = unit_timeout
        self._workers: dict[str, WorkerProcess] = {}
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
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._directory = _private_directory()
        self._context = zmq.Context()
        self._reports = self._context.socket(zmq.PULL)
        reports = [self._reports_endpoint(place.link) for place in placements]
        self._loop.add_reader(self._reports.fileno(), self._receive)
        self._tick()
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

    def run(self, instance: str, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> None:
        worker = self._workers.get(instance)
        if worker is None:
            return
        if worker.running is not None:
            raise ValueError(f"instance {instance} still has unit {worker.running.unit}")
        wrong = worker.run(unit, work, rows)
        if wrong is not None:
            self._loop.call_soon(self._listener.unit_failed, unit, wrong)

    def cancel(self, instance: str, unit: int) -> None:
        worker = self._workers.get(instance)
        if worker is not None and worker.running is not None and worker.running.unit == unit:
            worker.tell(Cancel(unit))

    async def stop(self) -> None:
        if self._stopping.is_set() or not self._supervisors:
            return
        self._stopping.set()
        self._loop.remove_reader(self._reports.fileno())
        for kill in self._kills:
            kill.cancel()
        for worker in self._workers.values():
            if worker.joined:
                worker.tell(Exit())
            else:
                worker.kill("was stopped")
        try:
            _, alive = await asyncio.wait(self._supervisors, timeout=GRACE)
            if alive:
                self._kill_all()
                await asyncio.wait(alive)
        finally:
            self._kill_all()
            self._timer.cancel()
            self._context.destroy(linger=0)
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
                worker.inject(InjectFaults(plan, worker.number, start))
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
                self._context.destroy(linger=0)
                shutil.rmtree(self._directory)
                raise ServingError(f"cannot listen at {at}: {error.strerror}") from error
        return self._endpoints[at]

    def _receive(self) -> None:
        # The socket's file descriptor tells of news once: all there is must be taken.
        while not self._stopping.is_set():
            try:
                frames = self._reports.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._on_report(frames)
            except BaseException:  # as a listener's mistake may be
                self._loop.call_soon(self._receive)
                raise

    def _on_report(self, frames: Sequence[zmq.Frame]) -> None:
        report = decode_report(frames[0].buffer)
        worker = self._workers.get(report.instance)
        if worker is None:
            return  # it has left; this was still on its way
        worker.silence = 0
        running = worker.running
        match report:
            case Finished(_, unit) if running is not None:
                outputs = rows_of(frames[1], running.output)
                worker.running = None
                self._listener.unit_finished(unit, outputs)
            case Failed(_, unit, detail):
                worker.running = None
                self._listener.unit_failed(unit, detail)
            case Hello(instance):
                worker.join(report)
                if self._faults is not None:
                    plan, start = self._faults
                    worker.inject(InjectFaults(plan, worker.number, start))
                self._to_join.discard(worker.number)
                if not self._to_join and not self._started.done():
                    self._started.set_result(None)
                self._listener.instance_joined(instance, worker.works)
            case Heartbeat():
                pass

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

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._tick)
        for worker in self._workers.values():
            limit = self._heartbeat_timeout if worker.joined else START_TIMEOUT
            if worker.silence * _TICK >= limit:
                worker.kill(f"was not heard of for {limit:g} s")
            worker.silence += 1
            running = worker.running
            if running is not None:
                if running.age * _TICK >= self._unit_timeout:
                    worker.kill(f"had unit {running.unit} for more than {self._unit_timeout:g} s")
                running.age += 1

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
