"""The local engine: supervised worker processes on this machine."""

import asyncio
import os
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from signal import SIGKILL, strsignal
from typing import Any

import msgspec

from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import ServingError
from parity_models.serving.engine import Placement
from parity_models.serving.worker import wire
from parity_models.serving.worker.supervised import (
    OnReport,
    SupervisedEngine,
    SupervisedInstance,
    assign,
)

START_TIMEOUT = 60.0
"""Seconds a worker may take to load and warm its models."""

MAX_LAST_WORDS = 2000
"""Last bytes of a worker's stderr that are kept."""

_INHERITED = (
    *("PATH", "HOME", "LANG", "LC_", "TZ", "TMP", "TEMP", "PYTHON", "LD_", "DYLD_", "MALLOC_"),
    *("OMP_", "KMP_", "OPENBLAS_", "MKL_", "ORT_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_"),
)
"""Prefixes of the environment variables that workers inherit. They run foreign models, so they get
no credentials."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class EngineStream(asyncio.Protocol):
    """The engine's end of a stream.

    `on_report` is called with each report, `on_error` once if the stream is malformed; then nothing
    more is read. The end of the stream is not reported: the process ends as well.
    """

    def __init__(self, on_report: OnReport, on_error: Callable[[wire.MessageError], None]) -> None:
        self._on_report = on_report
        self._on_error = on_error
        self._messages = wire.Messages()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for header, tensor in self._messages.of(data):
                self._on_report(wire.read(wire.REPORT, header), tensor)
        except wire.MessageError as error:
            self.close()
            self._on_error(error)

    def send(self, header: bytes, tensor: Sequence[wire.Frame] = ()) -> None:
        """Send a message, with a tensor in pieces, without waiting. If the worker is gone, nothing
        is sent: its supervisor will notice."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(wire.parts_of(header, tensor)[0])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class WorkerProcess(SupervisedInstance):
    """One life of a worker, with its process."""

    def __init__(
        self,
        engine: SupervisedEngine,
        number: int,
        name: str,
        models: Mapping[str, wire.AssignedModel],
    ) -> None:
        super().__init__(engine, number, name, models)
        placements = engine.parts.placements
        self._placement = placements[number] if placements else Placement()
        self.node = self._placement.node
        self._process: Process | None = None
        self._streams: list[EngineStream] = []
        """The control and the units stream; both are open once the worker has said hello."""
        self._server: asyncio.Server | None = None

    async def live(self) -> str:
        ends: list[socket.socket] = []
        try:
            await self._listen(ends)
            self._process = await self._start([each.fileno() for each in ends])
        finally:
            for each in ends:
                each.close()
        if self.why_killed is not None:
            self._end()
        last_words = await self._last_words(self._process)
        status = await self._process.wait()
        if self.why_killed is not None:
            return self.why_killed
        if status < 0:
            return f"was ended by signal {-status} ({strsignal(-status)})"
        return f"ended with status {status}" + (f": {last_words}" if last_words else "")

    async def _listen(self, ends: list[socket.socket]) -> None:
        """Open the streams, and add the worker's ends to `ends`; or listen at the placement's link,
        to which the worker connects for control, then for units."""
        loop, link = asyncio.get_running_loop(), self._placement.link
        if link is not None:
            try:
                self._server = await loop.create_server(self._stream, link, 0)
            except OSError as error:
                raise ServingError(f"cannot listen at {link}: {error.strerror}") from error
            return
        for _ in range(2):
            ours, theirs = socket.socketpair()
            ends.append(theirs)
            await loop.create_unix_connection(self._stream, sock=ours)

    async def _start(self, ends: list[int]) -> Process:
        """Start the process, which inherits these ends of its streams."""
        assignment = wire.Assignment(
            self.name,
            os.getpid(),
            dict(self._models),
            tuple(ends) or None,
            None if self._server is None else self._server.sockets[0].getsockname()[:2],
        )
        return await asyncio.create_subprocess_exec(
            *self._placement.prefix,
            sys.executable,
            "-P",
            "-m",
            "parity_models.serving.worker.worker",
            msgspec.json.encode(assignment).decode(),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env={name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
            | _ONE_THREAD,
            pass_fds=sorted({model.content for model in self._models.values()} | {*ends}),
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )

    async def _last_words(self, process: Process) -> str:
        assert process.stderr is not None
        last = b""
        while words := await process.stderr.read(MAX_LAST_WORDS):
            last = (last + words)[-MAX_LAST_WORDS:]
        return last.decode(errors="replace").strip()

    def send_unit(self, unit: wire.Unit, rows: Sequence[wire.Frame]) -> None:
        self._streams[1].send(wire.encode(unit), rows)

    def send(self, message: wire.Cancel | wire.InjectFaults) -> None:
        self._streams[1 if isinstance(message, wire.InjectFaults) else 0].send(wire.encode(message))

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    def _end(self) -> None:
        if self.pid is not None:
            # Process.kill would poll the exit status, and take it from the task that waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.pid, SIGKILL)

    async def cleanup(self) -> None:
        if self._process is not None and self.pid is not None:
            self.kill("was stopped")
            await self._process.wait()
        for stream in self._streams:
            stream.close()
        if self._server is not None:
            self._server.close()

    def _stream(self) -> EngineStream:
        stream = EngineStream(self._on_report, lambda error: self.kill(f"sent {error}"))
        self._streams.append(stream)
        return stream


class LocalEngine(SupervisedEngine):
    """Runs models in supervised worker processes on this machine.

    It copies the models when it starts, so workers run the pinned content even if the files
    change. Worker i runs at the i-th of the parts' placements. See SupervisedEngine for the rest.
    """

    name = "local"
    instance_kind = WorkerProcess
    takes_placements = True
    same_clock = True
    grace = 3.0
    heartbeat_timeout = 2.0
    join_timeout = START_TIMEOUT
    tolerance = 1e-5

    def pids(self) -> dict[str, int]:
        """Return the process ids of the workers that are up, by instance."""
        return {
            name: worker.pid
            for name, worker in self._instances.items()
            if isinstance(worker, WorkerProcess) and worker.pid is not None
        }

    def _prepare(
        self, models: Mapping[str, PinnedModel], instances: int
    ) -> Mapping[str, wire.AssignedModel]:
        return assign(models, self._keep)

    def _keep(self, model: PinnedModel) -> int:
        """Copy a model to a file without a name, which workers inherit: later ones, too, load the
        checked content, even if the bundle's folder or the temporary folder is gone.

        Raises ModelError for a model that was changed since it was checked, and ServingError if it
        cannot be copied.
        """
        try:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the resources
            self._resources.enter_context(copy)
            copy.write(model.read())
            copy.flush()
        except OSError as error:
            raise ServingError(
                f"cannot keep a copy of {model.path} among temporary files: {error.strerror}; set "
                "TMPDIR to a folder with room for it"
            ) from error
        return copy.fileno()
