"""The server under test, which can be restarted, and its instances."""

import asyncio
import gc
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import Client, ClientError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.simulation.emulation import FaultPlan, Lie, LogNormal
from parity_models_lab.chaos.known_model import MODEL, KnownModel
from parity_models_lab.processes import Child
from parity_models_lab.served import BEGIN_FAULTS, GRPC, processes, served

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
POISON = 12345.0
"""The first element of a query that crashes the instance that runs it."""
DESCRIPTORS = 256
"""The limit of the process of a server that is not Ray's: too few for many more connections."""
_INSTANCE = re.compile(r"parity_models\.serving\.worker|^ray::Instance")
"""The command lines of instances, among the descendants of servers."""


class Engine(StrEnum):
    """Engines that run the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


RESULTS = Path("runs/chaos")


class TestedServer:
    """A server of the known model, whose units take `service` seconds (median), with `options` of
    ServeOptions. In `folder` are its log, and the file `liar.onnx`, which the last instance runs as
    long as it is there."""

    def __init__(
        self, model: KnownModel, engine: Engine, folder: Path, service: float, **options: Any
    ) -> None:
        self.model, self.liar = model, (folder / "liar.onnx").resolve()
        self._log = folder / "server.log"
        self._engine, self._service = engine, service
        shared: dict[str, Any] = {"reuse_port": True, "share_groups": True, "shutdown_delay": 1.0}
        self._options = ServeOptions(port=0, grpc_port=0, **shared, **options)
        self._started: list[Child] = []

    @property
    def pid(self) -> int:
        """The process that answers clients."""
        return self._started[-1].pid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Run while the context lasts; gives a client. Raises ServingError if it does not start."""
        self.liar.unlink(missing_ok=True)
        async with AsyncExitStack() as self._stack:
            if self._engine is Engine.REMOTE:
                alone = replace(self._options, instances=1, grpc_port=None, shutdown_delay=0.0)
                upstream = replace(alone, policy=PolicyChoice("none"))
                for number in range(INSTANCES):
                    faults = self._faults(None if number else 0)
                    await self._launch(replace(upstream, faults=faults))
                urls = [each.message for each in self._started]
                # The linear model is its own parity model.
                parity = ",".join(f"{url}/{MODEL}" for url in urls)
                engine = EngineChoice("remote", {"deployed": ",".join(urls), "parity": parity})
                self._options = replace(self._options, engine=engine)
            else:
                engine, faults = EngineChoice(self._engine), self._faults(INSTANCES - 1)
                options = replace(self._options, engine=engine, faults=faults)
                self._options = replace(options, instances=INSTANCES)
            await self._start()
            gc.freeze()  # a collection of garbage would hold up the load for a tenth of a second
            async with Client(self.url) as client:
                yield client

    async def restart(self, *, warm: bool) -> None:
        """Start another process on the same ports. If `warm`, this one is asked to end once the
        other is warm; else it is killed first. Raises ServingError if the other does not start."""
        before = self._started[-1]
        if warm:
            await self._start()
            before.end_input()
        else:
            os.kill(before.pid, signal.SIGKILL)
        await before.wait()
        if not warm:
            await self._start()

    async def _start(self) -> None:
        limit = "" if self._engine is Engine.RAY else f"ulimit -n {DESCRIPTORS} && "
        server = await self._launch(self._options, limit)
        self.url = server.message
        urls = self.url, await server.ask(GRPC)
        self.port, self.grpc_port = (int(each.rpartition(":")[2]) for each in urls)
        self._options = replace(self._options, port=self.port, grpc_port=self.grpc_port)

    async def _launch(self, options: ServeOptions, limit: str = "") -> Child:
        shell = ("sh", "-c", f'{limit}exec "$@" 2>> "$0"', str(self._log))
        # Ray lets other processes go first; the local engine's instances do not.
        prefix = ("env", "RAY_worker_niceness=0", *shell)
        server = await self._stack.enter_async_context(served(self.model.bundle, options, prefix))
        server.tell(BEGIN_FAULTS)
        self._started.append(server)
        return server

    def instances(self) -> list[int]:
        """Return the processes of its instances."""
        pids = []
        for each in (each for server in self._started for each in processes(server.pid)):
            with suppress(psutil.Error):
                if _INSTANCE.search(" ".join(each.cmdline())):
                    pids.append(each.pid)
        return pids

    def _faults(self, last: int | None) -> FaultPlan:
        """Return the faults of workers, of which the last, by number, can be made to lie."""
        lies = () if last is None else (Lie(last, str(self.liar)),)
        return FaultPlan(service_time=LogNormal(self._service, 0.2), poison=POISON, lies=lies)


async def metric(client: Client, name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels; 0 where the server does not answer."""
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(5.0):
            answer, _ = await client.ask("GET", "/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    return 0.0
