"""What engines whose instances are workers have in common: units out, reports in, silence noticed.

The event loop only ever receives from one socket (what workers report) and sends to two of each
worker (units, control), and waits for none of them. Time-outs are counted in ticks of the loop
rather than read off a clock: when the engine itself did not get to run (stopped by Ctrl-Z, a
long computation on the loop), its workers are not to blame for what it has not heard.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import zmq
from numpy.typing import NDArray

from parity_models.serving.engine import EngineListener
from parity_models.serving.local.link import WorkerLink
from parity_models.serving.local.wire import (
    Cancel,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Report,
    decode_report,
    rows_of,
)

TICK = 0.1
"""Seconds between two looks at who was silent for how long."""

Link = TypeVar("Link", bound=WorkerLink)


class WorkerEngine(ABC, Generic[Link]):
    """The part of an Engine that talks to workers, which `_workers` has by instance.

    A worker that was not heard of for `heartbeat_timeout` seconds, or for `join_timeout` before
    it said hello, or has had a unit for `unit_timeout` seconds, is given up.
    """

    def __init__(
        self, *, heartbeat_timeout: float, join_timeout: float, unit_timeout: float
    ) -> None:
        self._heartbeat_timeout = heartbeat_timeout
        self._join_timeout = join_timeout
        self._unit_timeout = unit_timeout
        self._workers: dict[str, Link] = {}

    @abstractmethod
    def _hello(self, worker: Link, hello: Hello) -> None:
        """The worker has said that it is ready; the listener is to hear of it."""

    @abstractmethod
    def _give_up(self, worker: Link, why: str) -> None:
        """The worker does not do what it should."""

    def _reported(self, worker: Link, report: Report) -> None:
        """What the worker reported has been dealt with."""

    # Engine

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
            worker.tell(Cancel(instance, unit))

    def recycle(self, instance: str, why: str) -> None:
        worker = self._workers.get(instance)
        if worker is not None:
            self._give_up(worker, why)

    def running(self) -> Mapping[str, int | None]:
        return {
            worker.instance: None if worker.running is None else worker.running.unit
            for worker in self._workers.values()
            if worker.joined
        }

    @property
    def tolerance(self) -> float:
        return 1e-5

    # For engines

    def _open(self, listener: EngineListener) -> None:
        """Make the socket of reports. It is listened to from `_listen` on, until `_close`."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._context.setsockopt(zmq.LINGER, 0)
        self._reports = self._context.socket(zmq.PULL)
        self._listening = False

    def _listen(self) -> None:
        self._listening = True
        self._loop.add_reader(self._reports.fileno(), self._receive)
        self._tick()

    def _deafen(self) -> None:
        """Hear nothing more of workers."""
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._reports.fileno())
            self._timer.cancel()

    def _close(self) -> None:
        self._deafen()
        self._context.destroy(linger=0)

    def _receive(self) -> None:
        # The socket's file descriptor tells of news once: all there is must be taken.
        while self._listening:
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
            case Hello():
                self._hello(worker, report)
            case Heartbeat():
                pass
        self._reported(worker, report)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        for worker in list(self._workers.values()):
            limit = self._heartbeat_timeout if worker.joined else self._join_timeout
            if worker.silence * TICK >= limit:
                self._give_up(worker, f"was not heard of for {limit:g} s")
            worker.silence += 1
            running = worker.running
            if running is not None:
                if running.age * TICK >= self._unit_timeout:
                    why = f"had unit {running.unit} for more than {self._unit_timeout:g} s"
                    self._give_up(worker, why)
                running.age += 1
