"""A worker process as its engine sees it."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, strsignal
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.serving.local.placement import Placement
from parity_models.serving.local.wire import (
    Assignment,
    Cancel,
    Exit,
    Hello,
    InjectFaults,
    ModelTensors,
    Unit,
    control_endpoint,
    encode,
    units_endpoint,
)

MAX_LAST_WORDS = 2000
"""Bytes of what a worker wrote to stderr that are kept."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(slots=True)
class RunningUnit:
    """A unit that a worker has had for `age` of the engine's ticks."""

    unit: int
    output: TensorSpec
    age: int = 0


class WorkerProcess:
    """One life of a worker: its process, the sockets to it, and the unit it has.

    `number` counts the engine's workers from 0 and is the same in every life, `instance` is
    not. `silence` is how many of the engine's ticks ago it was heard of.
    """

    def __init__(
        self,
        number: int,
        instance: str,
        models: Mapping[str, Path],
        placement: Placement,
        directory: str,
        reports: str,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        self.number = number
        self.instance = instance
        self.joined = False
        self.silence = 0
        self.running: RunningUnit | None = None
        self.works = frozenset(models)
        self._models: dict[str, ModelTensors] = {}
        self._prefix = placement.prefix
        self._assignment = Assignment(
            instance,
            os.getpid(),
            {work: str(path) for work, path in models.items()},
            directory,
            reports,
            units_endpoint(directory, instance, placement.link),
            control_endpoint(directory, instance, placement.link),
            placement.device,
        )
        self._process: Process | None = None
        self._why_killed: str | None = None
        self._units, self._control = context.socket(zmq.PUSH), context.socket(zmq.PUSH)

    async def live(self) -> str:
        """Start the process and wait for its end; returns why it ended, for people."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                sys.executable,
                "-P",
                "-m",
                "parity_models.serving.local.worker",
                msgspec.json.encode(self._assignment).decode(),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
                env=os.environ | _ONE_THREAD,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        except OSError as error:
            return f"had no process: {error}"
        if self._why_killed is not None:
            self.kill(self._why_killed)
        last_words = await self._last_words(self._process)
        status = await self._process.wait()
        if self._why_killed is not None:
            return self._why_killed
        if status < 0:
            return f"was ended by signal {-status} ({strsignal(-status)})"
        return f"ended with status {status}" + (f": {last_words}" if last_words else "")

    async def _last_words(self, process: Process) -> str:
        assert process.stderr is not None
        last = b""
        while words := await process.stderr.read(MAX_LAST_WORDS):
            last = (last + words)[-MAX_LAST_WORDS:]
        return last.decode(errors="replace").strip()

    def join(self, hello: Hello) -> None:
        """The worker has said hello: it listens, and has its models ready."""
        self._units.connect(hello.units)
        self._control.connect(hello.control)
        self._models = hello.models
        self.joined = True

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    def run(self, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> str | None:
        """Send it a unit; returns what is wrong with the unit, if something is."""
        model = self._models.get(work)
        if model is None:
            return f"instance {self.instance} does not run {work}"
        for row in rows:
            if row.shape != model.input.shape or row.dtype != model.input.dtype:
                return f"{work} takes {model.input}, got {row.dtype} {list(row.shape)}"
        self.running = RunningUnit(unit, model.output)
        frames: list[bytes | memoryview] = [encode(Unit(unit, work))]
        frames += [np.ascontiguousarray(row).data for row in rows]
        self._units.send_multipart(frames, zmq.NOBLOCK, copy=False)
        return None

    def inject(self, faults: InjectFaults) -> None:
        """Have all units that it is sent from now on suffer these."""
        self._units.send(encode(faults), zmq.NOBLOCK)

    def tell(self, message: Cancel | Exit) -> None:
        self._control.send(encode(message), zmq.NOBLOCK)

    def kill(self, why: str) -> None:
        """kill -9 it, or do so once it has started; the first `why` is why it ended."""
        self._why_killed = self._why_killed or why
        if self.pid is not None:
            # Process.kill would also ask for the exit status, and take it from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.pid, SIGKILL)

    def close(self) -> None:
        """Close the sockets, and remove the files of those that the worker had."""
        for socket, endpoint in (
            (self._units, self._assignment.units),
            (self._control, self._assignment.control),
        ):
            socket.close(linger=0)
            if endpoint.startswith("ipc://"):
                Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
