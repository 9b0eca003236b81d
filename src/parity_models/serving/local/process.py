"""A worker process as its engine sees it."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from signal import SIGKILL, strsignal

import msgspec

from parity_models.errors import ServingError
from parity_models.serving.engine import Placement
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.stream import EngineStream
from parity_models.serving.worker.supervised import SupervisedInstance
from parity_models.serving.worker.wire import (
    AssignedModel,
    Assignment,
    Cancel,
    Exit,
    Frame,
    InjectFaults,
    MessageError,
    Report,
    Unit,
    encode,
    report_of,
)

MAX_LAST_WORDS = 2000
"""Bytes of what a worker wrote to stderr that are kept."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerProcess(SupervisedInstance):
    """One life of a worker, with its process. `execute` starts the process.

    Raises OSError where the system has no sockets left, and ServingError if it cannot listen at the
    placement's link.
    """

    def __init__(
        self,
        number: int,
        name: str,
        models: Mapping[str, AssignedModel],
        placement: Placement,
        on_report: Callable[[Report, Frame | None], None],
        metrics: Metrics,
        *,
        execute: Callable[..., Awaitable[Process]] = asyncio.create_subprocess_exec,
    ) -> None:
        super().__init__(number, name, frozenset(models), on_report)
        self.node = placement.node
        self._models = models
        self._placement = placement
        self._metrics = metrics
        self._execute = execute
        self._process: Process | None = None
        self._streams: list[EngineStream] = []
        self._inherited: list[socket.socket] = []
        self._listener = None if placement.link is None else _listen(placement.link)

    async def live(self) -> str:
        if self._listener is None:
            self._units, self._control = self._socket_pair(), self._socket_pair()
        inherited = tuple(each.fileno() for each in self._inherited)
        assignment = Assignment(
            self.name,
            os.getpid(),
            dict(self._models),
            inherited or None,
            self._listener.getsockname()[:2] if self._listener is not None else None,
            self._placement.device,
        )
        self._process = await self._execute(
            *self._placement.prefix,
            sys.executable,
            "-P",
            "-m",
            "parity_models.serving.worker.worker",
            msgspec.json.encode(assignment).decode(),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=os.environ | _ONE_THREAD,
            pass_fds=sorted({model.descriptor for model in self._models.values()} | {*inherited}),
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
        for each in self._inherited:
            each.close()
        if self.why_killed is not None:
            self._end()
        connecting = asyncio.create_task(self._accept())
        last_words = await self._last_words(self._process)
        status = await self._process.wait()
        connecting.cancel()
        if self.why_killed is not None:
            return self.why_killed
        if status < 0:
            return f"was ended by signal {-status} ({strsignal(-status)})"
        return f"ended with status {status}" + (f": {last_words}" if last_words else "")

    async def _last_words(self, process: Process) -> str:
        assert process.stderr is not None
        last = b""
        while words := await process.stderr.read(MAX_LAST_WORDS):
            last = (last + words)[-MAX_LAST_WORDS:]
        return last.decode(errors="replace").strip()

    def send_unit(self, unit: Unit, rows: Sequence[Frame]) -> None:
        self._units.send([encode(unit), *rows])

    def send(self, message: Cancel | Exit | InjectFaults) -> None:
        stream = self._units if isinstance(message, InjectFaults) else self._control
        stream.send([encode(message)])

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    def _end(self) -> None:
        if self.pid is not None:
            # Process.kill would also ask for the exit status, and take it from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.pid, SIGKILL)

    async def cleanup(self) -> None:
        if self._process is not None and self.pid is not None:
            self.kill("was stopped")
            await self._process.wait()
        for stream in self._streams:
            stream.close()
        for each in self._inherited:
            each.close()
        if self._listener is not None:
            self._listener.close()

    def _socket_pair(self) -> EngineStream:
        ours, theirs = socket.socketpair()
        self._inherited.append(theirs)
        return self._stream(ours)

    async def _accept(self) -> None:
        """Wait until the worker has connected, if it does: for units, then for control."""
        if self._listener is not None:
            loop = asyncio.get_running_loop()
            self._units = self._stream((await loop.sock_accept(self._listener))[0])
            self._control = self._stream((await loop.sock_accept(self._listener))[0])

    def _stream(self, end: socket.socket) -> EngineStream:
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        stream = EngineStream(loop, end, self._on_message, self._on_malformed)
        self._streams.append(stream)
        return stream

    def _on_message(self, frames: Sequence[Frame]) -> None:
        self._on_report(*report_of(frames))

    def _on_malformed(self, error: MessageError) -> None:
        self._metrics.refused("malformed")
        self.kill(f"sent {error}")


def _listen(address: str) -> socket.socket:
    try:
        listener = socket.create_server((address, 0))
    except OSError as error:
        raise ServingError(f"cannot listen at {address}: {error.strerror}") from error
    listener.setblocking(False)
    return listener
