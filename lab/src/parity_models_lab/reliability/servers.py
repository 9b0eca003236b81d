"""The server under test on each engine: how it is started, and who its instances are."""

import asyncio
import json
import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from parity_models.errors import ServingError
from parity_models_lab.processes import command_line, descendants, send
from parity_models_lab.reliability.http_client import BrokenError, HttpClients
from parity_models_lab.reliability.known_model import MODEL, KnownModel
from parity_models_lab.reliability.requests import POISON
from parity_models_lab.reliability.serve_process import ServeProcess

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
SIGMA = 0.2
"""Standard deviation of the logarithm of a unit's time, which is log-normal."""
DESCRIPTORS = 256
"""Of the process that clients connect to: enough for everything but further connections."""
RESTART = 1.0
"""Seconds after which what runs upstreams starts one again."""
STARTS = 3
"""Times that a cluster is tried to be started: Ray gives its processes 30 s, on a machine that is
busy, too."""
WORKER = "parity_models.serving.worker.worker"


class Engine(StrEnum):
    """What runs the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


class TestedServer(ABC):
    """A server of the known model. `deadline` and `service` (of a unit) in seconds; `options` are
    further ones of parm serve; files go to `folder`. `lies`: ONNX models by name, which the last
    instance can be made to run in place of its own. `descriptors`: as many as the process has that
    clients connect to, which on Ray is not ours; None: as many as this process.
    """

    def __init__(
        self,
        model: KnownModel,
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
        self.options = options
        self._lies = lies or {}
        self._descriptors = descriptors

    @property
    @abstractmethod
    def front(self) -> ServeProcess:
        """The process that clients talk to, or that started it."""

    @abstractmethod
    async def start(self) -> None:
        """Returns when it is ready. Raises ServingError, with nothing left running, if it does not
        get so far."""

    async def stop(self) -> None:
        await self.front.stop()

    @property
    def url(self) -> str:
        return self.front.url

    @property
    def urls(self) -> list[str]:
        """Of every server that looks after instances, the one that clients talk to first."""
        return [self.url]

    def processes(self) -> list[int]:
        """All that belong to it, for memory and descriptors."""
        return [self.front.pid, *descendants(self.front.pid)]

    @abstractmethod
    def instances(self) -> list[int]:
        """The processes of its instances that are there now."""

    async def kill(self, which: int) -> None:
        """kill -9 of an instance."""
        there = self.instances()
        if there:
            send(there[which % len(there)], signal.SIGKILL)

    def begin_lie(self, name: str) -> None:
        """Let the last instance run this one of `lies` from now on."""
        new = self.folder / "new.onnx"
        new.write_bytes(self._lies[name])
        new.rename(self._lie(name))

    def end_lies(self) -> None:
        """All instances run their own model again."""
        for name in self._lies:
            self._lie(name).unlink(missing_ok=True)

    def _lie(self, name: str) -> Path:
        return (self.folder / f"{name}.onnx").resolve()

    def _faults(self, liar: int | None) -> str:
        plan: dict[str, object] = {
            "service_time": {"type": "lognormal", "median": self.service, "sigma": SIGMA},
            "poison": POISON,
        }
        if liar is not None:
            plan["lies"] = [{"worker": liar, "file": str(self._lie(name))} for name in self._lies]
        return json.dumps(plan)

    def _serve(self, faults: str | None, *arguments: str) -> list[str]:
        given = [*("--deadline", str(self.deadline)), *arguments, *self.options]
        return given if faults is None else [*given, "--faults", faults]


class LocalServer(TestedServer):
    """Worker processes on this machine."""

    async def start(self) -> None:
        count = ("--instances", str(INSTANCES - 1), "--parity-instances", "1")
        arguments = self._serve(self._faults(INSTANCES - 1), str(self.model.bundle), *count)
        ports = ("--port", "0", "--grpc-port", "0")
        log = self.folder / "server.log"
        self._front = ServeProcess([*arguments, *ports], log, descriptors=self._descriptors)
        await self._front.start()

    @property
    def front(self) -> ServeProcess:
        return self._front

    def instances(self) -> list[int]:
        return [pid for pid in descendants(self.front.pid) if WORKER in command_line(pid)]


class RemoteServer(TestedServer):
    """In front of upstreams, each a `parm serve` of its own with one worker."""

    async def start(self) -> None:
        self._upstreams = []
        self._restarts = set[asyncio.Task[None]]()
        self._stopping = False
        for number in range(INSTANCES):
            faults = self._faults(0 if number == INSTANCES - 1 else None)
            log = self.folder / f"upstream-{number}.log"
            one = (str(self.model.bundle), "--policy", "none", "--instances", "1")
            upstream = ServeProcess([*one, "--port", "0", "--faults", faults], log)
            self._upstreams.append(upstream)
        try:
            await asyncio.gather(*(upstream.start() for upstream in self._upstreams))
        except BaseException:
            await asyncio.gather(*(upstream.stop() for upstream in self._upstreams))
            raise
        # From now on each keeps its port: it is started again there.
        for upstream in self._upstreams:
            upstream.keep_port()
        urls = [upstream.url for upstream in self._upstreams]
        deployed, parity = ",".join(urls), ",".join(f"{url}/{MODEL}" for url in urls)
        arguments = self._serve(None, str(self.model.bundle), "--deployed", deployed)
        ports = ("--parity", parity, "--port", "0", "--grpc-port", "0")
        log = self.folder / "server.log"
        self._front = ServeProcess([*arguments, *ports], log, descriptors=self._descriptors)
        await self._front.start()

    async def stop(self) -> None:
        self._stopping = True
        await self._front.stop()
        for restart in list(self._restarts):
            restart.cancel()
        await asyncio.gather(*(upstream.stop() for upstream in self._upstreams))

    @property
    def front(self) -> ServeProcess:
        return self._front

    @property
    def urls(self) -> list[str]:
        return [self.url, *(upstream.url for upstream in self._upstreams)]

    def processes(self) -> list[int]:
        fleet = [upstream.pid for upstream in self._upstreams if upstream.running]
        return [*super().processes(), *fleet, *(each for pid in fleet for each in descendants(pid))]

    def instances(self) -> list[int]:
        return [upstream.pid for upstream in self._upstreams if upstream.running]

    async def kill(self, which: int) -> None:
        """Of the upstream or of its worker, by turns; whoever runs it starts it again.

        While a worker is being started its upstream is left alone: the bundle's folder may hold
        another one just now, which an upstream would open.
        """
        upstream = self._upstreams[which % INSTANCES]
        if which % 2:
            workers = (pid for pid in descendants(upstream.pid) if WORKER in command_line(pid))
            if (worker := next(workers, None)) is not None:
                send(worker, signal.SIGKILL)
        elif upstream.running:
            await upstream.kill()
            task = asyncio.create_task(self._start_again(upstream))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)

    async def _start_again(self, upstream: ServeProcess) -> None:
        await asyncio.sleep(RESTART)
        if not self._stopping:
            with suppress(ServingError):  # killed as it started; who did that starts it again
                await upstream.start()


class RayServer(TestedServer):
    """On a Ray cluster of this machine alone, which is its own. Ray's proxy, to which clients
    connect, has as many descriptors as Ray gives it."""

    async def start(self) -> None:
        count = ("--instances", str(INSTANCES - 1), "--parity-instances", "1")
        cpus = ("--cpus-per-instance", "0.05", "--cpus-per-frontend", "0.05")
        ports = ("--engine", "ray", "--port", "0", "--grpc-port", "0")
        faults = self._faults(INSTANCES - 1)
        arguments = self._serve(faults, str(self.model.bundle), *count, *cpus, *ports)
        # Ray lets other processes go first; other engines' instances do not.
        environment = {"RAY_worker_niceness": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
        self._front = ServeProcess(arguments, self.folder / "server.log", environment)
        for left in reversed(range(STARTS)):
            try:
                await self._front.start()
                break
            except ServingError:
                if not left:
                    raise

    @property
    def front(self) -> ServeProcess:
        return self._front

    def instances(self) -> list[int]:
        return [pid for pid in self._replicas() if re.search(r"shared|deployed", command_line(pid))]

    def _replicas(self) -> list[int]:
        found = descendants(self.front.pid)
        return [pid for pid in found if command_line(pid).startswith("ray::ServeReplica")]


SERVERS: Mapping[Engine, type[TestedServer]]
SERVERS = {Engine.LOCAL: LocalServer, Engine.REMOTE: RemoteServer, Engine.RAY: RayServer}
"""The server under test, by what it runs on."""


async def is_ready(http: HttpClients) -> bool:
    """Does the server say that it is ready?"""
    with suppress(BrokenError, TimeoutError):
        async with asyncio.timeout(5.0):
            return (await http.get("/v2/health/ready")).status == 200
    return False


async def metrics(http: HttpClients) -> dict[str, float]:
    """The server's metrics, each with its labels as it is written; empty if it does not say."""
    with suppress(BrokenError, TimeoutError):
        async with asyncio.timeout(5.0):
            answer = await http.get("/metrics")
        return read_metrics(answer.body.decode())
    return {}


def read_metrics(text: str) -> dict[str, float]:
    """The metrics in Prometheus's format, each with its labels as it is written."""
    return {name: float(value) for name, value in re.findall(r"^(parm_\S+) (\S+)$", text, re.M)}


def instances_up(found: Mapping[str, float]) -> int:
    """How many instances run the deployed model, by the metrics of a server that says so."""
    named = re.compile(r'parm_instances_up\{(.*,)?role="deployed"[,}]')
    return int(sum(value for name, value in found.items() if named.match(name)))


def total(found: dict[str, float], name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(value for key, value in found.items() if re.split("[{ ]", key)[0] == name)
