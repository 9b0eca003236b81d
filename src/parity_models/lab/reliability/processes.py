"""`parm serve` as a child process, and what /proc knows of it and of its own children."""

import asyncio
import os
import re
import resource
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from parity_models.errors import ServingError

START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0
_PROGRAM = "from parity_models.cli.main import main; main()"


class ServeProcess:
    """`parm serve` with `arguments`; its log goes to `log`. It and its children may have so many
    `descriptors` each; None: as many as this process."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        self._arguments = arguments
        self._descriptors = descriptors
        self._log = log
        self._environment = environment or {}
        self._process: Process | None = None
        self.url = self.grpc_address = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Returns once it is ready. Raises ServingError if it does not get so far."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _PROGRAM, "serve", *self._arguments),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        if self._descriptors is not None:
            limit_descriptors(self._process.pid, self._descriptors)
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        found = re.search(r"http://[^\s/]+", line)
        if found is None:
            await self.stop()
            raise ServingError(f"parm serve did not start; {self._log} says why")
        self.url = found[0]
        grpc = re.search(r"grpc://(\S+)", line)
        self.grpc_address = grpc[1] if grpc else ""

    def keep_port(self) -> None:
        """Where it is started again, it is to listen where it listens now."""
        port = self.url.rsplit(":", 1)[1]
        arguments = list(self._arguments)
        arguments[arguments.index("--port") + 1] = port
        self._arguments = arguments

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._process is None:
            return
        # Process.send_signal would ask for the exit status, and take it from asyncio, which waits
        # for it and would report 255 in its place.
        if self.running:
            send(self._process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """kill -9, as if its machine had failed; workers notice that by themselves."""
        assert self._process is not None
        send(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """The process's children, theirs, and so on; without it."""
    found = []
    todo = [pid]
    while todo:
        for task in _tasks(todo.pop()):
            with suppress(OSError):
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                todo += children
    return found


def command_line(pid: int) -> str:
    """What the process was started as, or calls itself; empty if it is gone."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""


def resident(pid: int) -> int:
    """Bytes of memory that it has in use; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def descriptors(pid: int) -> int:
    """How many files and sockets it has open; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def unread_bytes(local: int, remote: int) -> int:
    """What is in the TCP socket at port `local` of this machine, whose other end is at port
    `remote`, and was not read by its process; 0 if there is no such socket."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, here, there, _, queues, *_ = line.split()
                ports = (int(each.rpartition(":")[2], 16) for each in (here, there))
                if tuple(ports) == (local, remote):
                    return int(queues.partition(":")[2], 16)
    return 0


def limit_descriptors(pid: int, most: int) -> None:
    """Let it have so many descriptors at most; children that it starts likewise."""
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
