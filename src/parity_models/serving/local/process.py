"""A worker process as its engine sees it."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from signal import SIGKILL, strsignal

import msgspec

from parity_models.serving.local.placement import Placement
from parity_models.serving.worker.link import SocketChannel, WorkerLink, ZmqContext
from parity_models.serving.worker.pipe import EngineEnd
from parity_models.serving.worker.wire import (
    AssignedModel,
    Assignment,
    Endpoints,
    Frame,
    Hello,
    MessageError,
    PipeEnds,
)

MAX_LAST_WORDS = 2000
"""Bytes of what a worker wrote to stderr that are kept."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerProcess(WorkerLink):
    """One life of a worker, with its process.

    `number` counts the engine's workers from 0 and is the same in every life, `instance` is not.
    `recycled` if it is to end although its process is in order. `heard` is called with what it
    sends through its pipes; if its place has a link, it has ZeroMQ sockets instead, and sends to
    the endpoint `reports`. `execute` starts the process. Raises OSError where the system has no
    sockets left.
    """

    def __init__(
        self,
        number: int,
        instance: str,
        models: Mapping[str, AssignedModel],
        placement: Placement,
        heard: Callable[[Sequence[Frame]], None],
        *,
        context: ZmqContext,
        reports: str | None = None,
        allows_faults: bool = False,
        execute: Callable[..., Awaitable[Process]] = asyncio.create_subprocess_exec,
    ) -> None:
        self._execute = execute
        self._pipes: tuple[EngineEnd, ...] = ()
        self._sockets: tuple[SocketChannel, ...] = ()
        reached: PipeEnds | Endpoints
        with ExitStack() as undo:
            if placement.link is None:
                loop = asyncio.get_running_loop()
                units = EngineEnd(loop, heard, self._broken)
                undo.callback(units.close)
                control = EngineEnd(loop, heard, self._broken)
                self._pipes = (units, control)
                reached = PipeEnds(units.inherited, control.inherited)
                super().__init__(instance, frozenset(models), *self._pipes)
            else:
                assert reports is not None
                self._sockets = (SocketChannel(context), SocketChannel(context))
                anywhere = f"tcp://{placement.link.worker}:*"
                reached = Endpoints(anywhere, anywhere, reports)
                super().__init__(instance, frozenset(models), *self._sockets)
            undo.pop_all()
        self.number = number
        self.recycled = False
        self._prefix = placement.prefix
        self.node = placement.node
        self._assignment = Assignment(
            instance,
            os.getpid(),
            dict(models),
            reached,
            placement.device,
            allows_faults,
        )
        self._process: Process | None = None
        self._why_killed: str | None = None

    async def live(self) -> str:
        """Start the process and wait for its end; returns why it ended, for people.

        Raises what the system raises where it has no process, descriptors or memory to give.
        """
        descriptors = [model.descriptor for model in self._assignment.models.values()]
        descriptors += [pipe.inherited for pipe in self._pipes]
        self._process = await self._execute(
            *self._prefix,
            sys.executable,
            "-P",
            "-m",
            "parity_models.serving.worker.worker",
            msgspec.json.encode(self._assignment).decode(),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=os.environ | _ONE_THREAD,
            pass_fds=sorted(set(descriptors)),
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
        for pipe in self._pipes:
            pipe.handed_over()
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
        """It listens where it says, and has its models ready."""
        for channel, endpoint in zip(self._sockets, (hello.units, hello.control), strict=False):
            if endpoint is not None:
                channel.socket.connect(endpoint)
        super().join(hello)

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def end(self) -> None:
        """Leave no process behind, whatever `live` came to."""
        if self.pid is not None:
            assert self._process is not None
            self.kill("was stopped")
            await self._process.wait()

    def kill(self, why: str) -> None:
        """kill -9 it, or do so once it has started; the first `why` is why it ended."""
        self._why_killed = self._why_killed or why
        self.ended = True
        if self.pid is not None:
            # Process.kill would also ask for the exit status, and take it from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.pid, SIGKILL)

    def _broken(self, error: MessageError) -> None:
        self.kill(f"sent {error}")
