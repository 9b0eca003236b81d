"""What engines whose instances are workers have in common: units out, reports in, silence noticed.

The event loop receives from the pipes of workers that have some and from one socket (what all
others report), sends to two of each worker (units, control), and waits for none of them. Time-outs
are counted in ticks of the loop rather than read off a clock: when the engine itself did not get to
run (stopped by Ctrl-Z, a long computation on the loop), its workers are not to blame for what it
has not heard.
"""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import zmq
from numpy.typing import NDArray

from parity_models.serving.engine import Engine, EngineListener
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.link import WorkerLink
from parity_models.serving.worker.socket_key import SocketKey, Strangers
from parity_models.serving.worker.wire import (
    Cancel,
    Failed,
    Finished,
    Frame,
    Heartbeat,
    Hello,
    MessageError,
    Report,
    report_of,
    rows_of,
)

TICK = 0.1
"""Seconds between two looks at who was silent for how long."""

AnyWorker = TypeVar("AnyWorker", bound=WorkerLink)

_log = logging.getLogger(__name__)


class WorkerEngine(Engine, Generic[AnyWorker]):
    """The part of an engine that talks to workers, which `_workers` has by instance.

    A worker that was not heard of for `heartbeat_timeout` seconds, or for `join_timeout` before
    it said hello, or has had a unit for `unit_timeout` seconds, is given up. `same_clock`: all
    workers are on this machine, so that their times of units are its own.
    """

    same_clock: ClassVar[bool] = False

    def __init__(
        self,
        *,
        heartbeat_timeout: float,
        join_timeout: float,
        unit_timeout: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._heartbeat_timeout = heartbeat_timeout
        self._join_timeout = join_timeout
        self._unit_timeout = unit_timeout
        self._metrics = metrics or Metrics()
        self._workers: dict[str, AnyWorker] = {}

    @abstractmethod
    def _hello(self, worker: AnyWorker, hello: Hello) -> None:
        """The worker has said that it is ready; the listener is to hear of it."""

    @abstractmethod
    def _give_up(self, worker: AnyWorker, why: str) -> None:
        """The worker does not do what it should."""

    def _reported(self, worker: AnyWorker, report: Report) -> None:
        """What the worker reported has been dealt with."""

    # Engine

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        worker = self._workers.get(instance)
        if worker is None:
            return
        if worker.running is not None:
            raise ValueError(f"instance {instance} still has unit {worker.running.unit}")
        wrong = worker.run(unit, role, rows)
        if wrong is not None:
            self._loop.call_soon(self._listener.unit_failed, unit, wrong)

    def cancel(self, instance: str, unit: int) -> None:
        worker = self._workers.get(instance)
        if worker is not None and worker.running is not None and worker.running.unit == unit:
            worker.tell(Cancel(instance, unit))

    def recycle(self, instance: str, why: str) -> None:
        worker = self._workers.get(instance)
        if worker is not None and worker.joined:
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
        """What workers report is listened to from `_listen` on, until `_close`."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._context.setsockopt(zmq.LINGER, 0)
        self._reports: zmq.Socket[bytes] | None = None
        self._strangers: Strangers | None = None
        self._listening = False

    def _open_reports(self, key: SocketKey | None = None) -> zmq.Socket[bytes]:
        """The socket for reports of workers that have no pipes, to be bound.

        With a `key`, only who has it can report.
        """
        self._reports = self._context.socket(zmq.PULL)
        if key is not None:
            key.listen(self._reports)
            self._strangers = Strangers(self._reports)
        return self._reports

    def _listen(self) -> None:
        self._listening = True
        if self._reports is not None:
            self._loop.add_reader(self._reports.fileno(), self._receive)
        self._tick()

    def _deafen(self) -> None:
        """Hear nothing more of workers."""
        if self._listening:
            self._listening = False
            if self._reports is not None:
                self._loop.remove_reader(self._reports.fileno())
            self._timer.cancel()

    def _close(self) -> None:
        self._deafen()
        if self._strangers is not None:
            self._strangers.close()
        self._context.destroy(linger=0)

    def _receive(self) -> None:
        # The socket's file descriptor tells of news once: all there is must be taken.
        while self._listening and self._reports is not None:
            try:
                frames = self._reports.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            except (zmq.ZMQError, MemoryError) as error:
                self._got_over("receive", error)
                return  # the next tick looks again
            self._take([frame.buffer for frame in frames])

    def _take(self, frames: Sequence[Frame]) -> None:
        """A worker has reported something."""
        if not self._listening:
            return
        try:
            report, tensors = report_of(frames)
        except MessageError as error:
            self._refuse(error)
            return
        worker = self._workers.get(report.instance)
        if worker is None or worker.ended:
            return  # this was still on its way
        worker.silence = 0
        try:
            self._on_report(worker, report, tensors)
            self._reported(worker, report)
        except Exception as error:  # as a listener's mistake may be
            self._got_over("report", error)
            if not worker.joined:
                self._give_up(worker, f"could not join: {error}")

    def _on_report(self, worker: AnyWorker, report: Report, tensors: Sequence[Frame]) -> None:
        running = worker.running
        match report:
            case Finished(_, unit, started, ended) if running is not None and running.unit == unit:
                worker.running = None
                try:
                    outputs = rows_of(tensors[0], running.output, running.rows)
                except MessageError as error:
                    self._refuse(error)
                    self._listener.unit_failed(unit, f"its outputs cannot be read: {error}")
                else:
                    stamps = (started, ended) if self.same_clock else (None, None)
                    self._listener.unit_finished(unit, outputs, started=stamps[0], ended=stamps[1])
            case Failed(_, unit, detail) if running is not None and running.unit == unit:
                worker.running = None
                self._listener.unit_failed(unit, detail)
            case Hello() if not worker.joined:
                self._hello(worker, report)
            case Heartbeat():
                self._metrics.refused("malformed", report.refused)
                self._metrics.refused("stranger", report.strangers)
            case _:
                pass  # what says nothing new

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        self._receive()
        if self._strangers is not None:
            self._metrics.refused("stranger", self._strangers.count())
        for worker in list(self._workers.values()):
            try:
                self._watch(worker)
            except Exception as error:
                self._got_over("watch", error)

    def _watch(self, worker: AnyWorker) -> None:
        """Give the worker up if it was silent, or has had its unit, for too long."""
        limit = self._heartbeat_timeout if worker.joined else self._join_timeout
        silence = worker.silence * TICK
        worker.silence += 1
        if silence >= limit:
            self._give_up(worker, f"was not heard of for {limit:g} s")
            return
        running = worker.running
        if running is not None:
            age = running.age * TICK
            running.age += 1
            if age >= self._unit_timeout:
                why = f"had unit {running.unit} for more than {self._unit_timeout:g} s"
                self._give_up(worker, why)

    def _refuse(self, error: MessageError) -> None:
        _log.debug("refused %s", error)
        self._metrics.refused("malformed")

    def _got_over(self, doing: str, error: Exception) -> None:
        """Something failed that must not stop the engine: it is logged and counted."""
        _log.error("the engine goes on after an error (%s): %s", doing, error, exc_info=error)
        self._metrics.engine_errors.labels(doing).inc()
