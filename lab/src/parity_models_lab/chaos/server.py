"""The server under test, `parm serve` as a child process, and its instances."""

import asyncio
import gc
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path

from parity_models.errors import ServingError
from parity_models.serving.client import Client, ClientError
from parity_models_lab.chaos.known_model import MODEL, KnownModel
from parity_models_lab.chaos.traffic import POISON, GrpcClient
from parity_models_lab.processes import command_line, descendants, limit_descriptors, resident, send

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
SIGMA = 0.2
"""Standard deviation of the logarithm of a unit's time, which is log-normal."""
DESCRIPTORS = 256
"""The limit of a local server's process: too few for many further connections."""
SHUTDOWN_DELAY = "1"
"""Seconds in which clients leave a server whose place another has taken."""
START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0
KEEP_ALIVE = 2.0
"""Seconds for which an idle connection is used again: less than servers keep them."""
STARTS = 3
"""Attempts to start: Ray gives its processes 30 s, on a busy machine, too."""


class Engine(StrEnum):
    """Engines that run the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


_INSTANCE = {
    Engine.LOCAL: re.compile(r"parity_models\.serving\.worker"),
    Engine.REMOTE: re.compile(r"parity_models\.serving\.worker"),
    Engine.RAY: re.compile(r"^ray::Instance"),
}
"""The command lines of instances, or of upstreams' own, among the servers' descendants."""
_RAY_ENVIRONMENT = {"RAY_worker_niceness": "0"}
"""Ray lets other processes go first; the local engine's instances do not."""


class TestedServer:
    """A server of the known model.

    Args:
        model: The model, whose right answers are known.
        engine: What runs its instances.
        folder: For its log and for lies.
        deadline: Of a query, in seconds.
        service: Median seconds of a unit.
        options: Further options of parm serve.
        lies: ONNX models by name, which the last instance can be made to run.
        descriptors: Limit of a local server's process; None: this process's.

    """

    def __init__(
        self,
        model: KnownModel,
        engine: Engine,
        folder: Path,
        *,
        deadline: float,
        service: float,
        options: Sequence[str] = (),
        lies: Mapping[str, bytes] | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.model = model
        self.folder = folder
        self.deadline = deadline
        self.service = service
        self._engine = engine
        self._options = options
        self._lies = lies or {}
        self._descriptors = descriptors if engine is not Engine.RAY else None
        self._process: Process | None = None
        self._started: list[Process] = []
        self._upstreams: list[Process] = []
        self.url = self.grpc_address = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def pids(self) -> Path:
        """The file with the processes that answer clients, now that they start and end."""
        return self.folder / "pids"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return once it is ready. Raises ServingError if it does not get so far."""
        engine: tuple[str, ...] = ("--instances", str(INSTANCES), *self._faults(INSTANCES - 1))
        if self._engine is Engine.RAY:
            engine = ("--engine", "ray", *engine)
        elif self._engine is Engine.REMOTE:
            engine = await self._start_upstreams()
        self._arguments = (
            *("--share-groups", "--reuse-port", *engine),
            *("--deadline", str(self.deadline), "--shutdown-delay", SHUTDOWN_DELAY),
            *self._options,
        )
        for left in reversed(range(STARTS if self._engine is Engine.RAY else 1)):
            try:
                await self._start()
                break
            except ServingError:
                if not left:
                    raise

    async def restart(self, *, warm: bool) -> None:
        """Start another process on the same ports. If `warm`, this one is asked to end once the
        other is warm; else it is killed first. Raises ServingError if the other does not start."""
        before = self._process
        assert before is not None
        if warm:
            await self._start(*self._ports)
            send(before.pid, signal.SIGTERM)
            await before.wait()
        else:
            send(before.pid, signal.SIGKILL)
            await before.wait()
            await self._start(*self._ports)

    async def _start(self, port: str = "0", grpc_port: str = "0") -> None:
        before = () if self._process is None else (self.pid,)
        self._process = await self._launch(
            *self._arguments, "--port", port, "--grpc-port", grpc_port
        )
        self._started.append(self._process)
        if self._descriptors is not None:
            limit_descriptors(self.pid, self._descriptors)
        self.pids.write_text(" ".join(map(str, (*before, self.pid))))
        self.url, self.grpc_address = await self._addresses(self._process)
        self._ports = (self.url.rpartition(":")[2], self.grpc_address.rpartition(":")[2])

    async def _start_upstreams(self) -> tuple[str, ...]:
        """Start a server for each instance. Return the options of a server in front of them."""
        one = ("--policy", "none", "--instances", "1", "--port", "0", *self._options)
        for number in range(INSTANCES):
            faults = self._faults(0 if number == INSTANCES - 1 else None)
            self._upstreams.append(await self._launch(*one, *faults))
        urls = [(await self._addresses(each))[0] for each in self._upstreams]
        # The linear model is its own parity model.
        parity = ",".join(f"{url}/{MODEL}" for url in urls)
        return ("--deployed", ",".join(urls), "--parity", parity)

    async def _launch(self, *arguments: str) -> Process:
        """Start `parm serve` of the model."""
        program = "from parity_models.cli.main import main; main()"
        with (self.folder / "server.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, "serve", str(self.model.bundle), *arguments),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
                env=os.environ | (_RAY_ENVIRONMENT if self._engine is Engine.RAY else {}),
                start_new_session=True,
            )

    async def _addresses(self, process: Process) -> tuple[str, str]:
        """Return a server's URL and its address of gRPC, once it is ready."""
        assert process.stdout is not None
        line = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                line = (await process.stdout.readline()).decode()
        found = re.search(r"http://[^\s/]+", line)
        if found is None:
            await self.stop()
            raise ServingError(f"parm serve did not start; {self.folder / 'server.log'} says why")
        grpc = re.search(r"grpc://(\S+)", line)
        return found[0], grpc[1] if grpc else ""

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        for process in (*self._started, *self._upstreams):
            await self._end(process)

    async def _end(self, process: Process) -> None:
        # Process.send_signal would ask for the exit status, and take it from asyncio, which waits
        # for it and would report 255 in its place.
        if process.returncode is None:
            send(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            send(process.pid, signal.SIGKILL)
            await process.wait()

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        return sum(map(resident, self._all()))

    def instances(self) -> list[int]:
        """Return the processes of its instances."""
        pattern = _INSTANCE[self._engine]
        return [pid for pid in self._all() if pattern.search(command_line(pid))]

    def _all(self) -> list[int]:
        servers = [self.pid, *(each.pid for each in self._upstreams)]
        return [*servers, *(pid for each in servers for pid in descendants(each))]

    def kill(self, which: int) -> None:
        """Kill an instance by SIGKILL."""
        there = self.instances()
        if there:
            send(there[which % len(there)], signal.SIGKILL)

    def begin_lie(self, name: str) -> None:
        """Let the last instance run this lie from now on."""
        new = self.folder / "new.onnx"
        new.write_bytes(self._lies[name])
        new.rename(self._lie(name))

    def end_lies(self) -> None:
        """Let all instances run their own model again."""
        for name in self._lies:
            self._lie(name).unlink(missing_ok=True)

    def _lie(self, name: str) -> Path:
        return (self.folder / f"{name}.onnx").resolve()

    def _faults(self, liar: int | None) -> tuple[str, str]:
        """Return the option of workers of which this one can be made to lie."""
        lies = () if liar is None else self._lies
        plan: dict[str, object] = {
            "service_time": {"type": "lognormal", "median": self.service, "sigma": SIGMA},
            "poison": POISON,
            "lies": [{"worker": liar, "file": str(self._lie(each))} for each in lies],
        }
        return "--faults", json.dumps(plan)


@asynccontextmanager
async def running(server: TestedServer) -> AsyncIterator[tuple[Client, GrpcClient | None]]:
    """Run the server while the context lasts; gives clients of it, over gRPC if it speaks that.

    Raises ServingError if it does not start.
    """
    await server.start()
    gc.freeze()  # a collection of garbage would hold up the load for a tenth of a second
    grpc = GrpcClient(server.grpc_address) if server.grpc_address else None
    try:
        async with Client(server.url, keep_alive=KEEP_ALIVE) as http:
            yield http, grpc
    finally:
        if grpc is not None:
            await grpc.close()
        server.end_lies()
        await server.stop()


async def metrics(http: Client) -> dict[str, float]:
    """Return the server's metrics by name with labels; empty if it does not answer."""
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(5.0):
            answer, _ = await http.ask("GET", "/metrics")
        return read_metrics(answer.decode())
    return {}


def read_metrics(text: str) -> dict[str, float]:
    """Return the metrics in a text of Prometheus's format."""
    return {name: float(value) for name, value in re.findall(r"^(parm_\S+) (\S+)$", text, re.M)}


def instances_up(found: Mapping[str, float]) -> int:
    """Return how many instances run the deployed model, by the server's metrics."""
    named = re.compile(r'parm_instances_up\{(.*,)?role="deployed"[,}]')
    return int(sum(value for name, value in found.items() if named.match(name)))
