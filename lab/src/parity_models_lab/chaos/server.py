"""The server under test, `parm serve` as a child process, and its instances."""

import asyncio
import gc
import json
import os
import re
import resource
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import psutil
from prometheus_client.parser import text_string_to_metric_families

from parity_models.errors import ServingError
from parity_models.options import Option
from parity_models.serving.client import Client, ClientError
from parity_models_lab.chaos.known_model import MODEL, KnownModel
from parity_models_lab.served import processes

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
POISON = 12345.0
"""The first element of a query that crashes the instance that runs it."""
DESCRIPTORS = 256
"""The limit of the process of a server that is not Ray's: too few for many more connections."""
START_TIMEOUT, STOP_TIMEOUT = 180.0, 60.0
_INSTANCE = re.compile(r"parity_models\.serving\.worker|^ray::Instance")
"""The command lines of instances, among the descendants of servers."""


class Engine(StrEnum):
    """Engines that run the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


EngineName = Annotated[Engine, Option("What runs the models.")]
ChaosOut = Annotated[Path, Option("The folder for results and logs.", metavar="DIR")]
RESULTS = Path("runs/chaos")


class TestedServer:
    """A server of the known model, at `url`, whose units take `service` seconds (median).

    In `folder` are its log, the file `liar.onnx`, which the last instance runs as long as it is
    there, and the file `pid` of the process that answers clients. `options` are of parm serve.
    """

    def __init__(
        self, model: KnownModel, engine: Engine, folder: Path, service: float, *options: str
    ) -> None:
        self.model, self.liar = model, (folder / "liar.onnx").resolve()
        self.pid_file, self._log = folder / "pid", folder / "server.log"
        self._engine, self._service, self._options = engine, service, options
        self._processes: list[Process] = []

    @property
    def pid(self) -> int:
        """The process that answers clients."""
        return self._processes[-1].pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Run while the context lasts; gives a client. Raises ServingError if it does not start."""
        try:
            await self._start_all()
            gc.freeze()  # a collection of garbage would hold up the load for a tenth of a second
            async with Client(self.url, keep_alive=2.0) as client:  # less than servers keep them
                yield client
        finally:
            for process in reversed(self._processes):
                # Process.send_signal would take the exit status from asyncio, which waits for it.
                for number in (signal.SIGTERM, signal.SIGKILL):
                    if process.returncode is None:
                        os.kill(process.pid, number)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), STOP_TIMEOUT)

    async def _start_all(self) -> None:
        self.liar.unlink(missing_ok=True)
        engine = ["--engine", self._engine, "--instances", str(INSTANCES), *self._faults(liar=True)]
        if self._engine is Engine.REMOTE:
            one = ("--policy", "none", "--instances", "1", "--port", "0", *self._options)
            for number in range(INSTANCES):
                await self._launch(*one, *self._faults(liar=number == 0))
            urls = [await self._address(each) for each in self._processes]
            # The linear model is its own parity model.
            parity = ",".join(f"{url}/{MODEL}" for url in urls)
            engine = ["--deployed", ",".join(urls), "--parity", parity]
        self._arguments = ("--share-groups", "--reuse-port", "--shutdown-delay", "1", *engine)
        await self._start()

    async def restart(self, *, warm: bool) -> None:
        """Start another process on the same ports. If `warm`, this one is asked to end once the
        other is warm; else it is killed first. Raises ServingError if the other does not start."""
        before = self._processes[-1]
        if warm:
            await self._start(self.port)
        with suppress(ProcessLookupError):
            os.kill(before.pid, signal.SIGTERM if warm else signal.SIGKILL)
        await before.wait()
        if not warm:
            await self._start(self.port)

    async def _start(self, port: int = 0) -> None:
        process = await self._launch(*self._arguments, "--port", str(port), *self._options)
        if self._engine is not Engine.RAY:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        self.pid_file.write_text(str(process.pid))
        self.url = await self._address(process)

    async def _launch(self, *arguments: str) -> Process:
        """Start `parm serve` of the model."""
        program = "from parity_models.cli.main import main; main()"
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, "serve", str(self.model.bundle), *arguments),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
                # Ray lets other processes go first; the local engine's instances do not.
                env=os.environ | {"RAY_worker_niceness": "0"},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    async def _address(self, process: Process) -> str:
        """Return a server's URL, once it is ready."""
        assert process.stdout is not None
        line = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                line = (await process.stdout.readline()).decode()
        found = re.search(r"http://[^\s/]+", line)
        if found is None:
            raise ServingError(f"parm serve did not start; {self._log} says why")
        return found[0]

    def instances(self) -> list[int]:
        """Return the processes of its instances."""
        pids = []
        for each in (each for server in self._processes for each in processes(server.pid)):
            with suppress(psutil.Error):
                if _INSTANCE.search(" ".join(each.cmdline())):
                    pids.append(each.pid)
        return pids

    def _faults(self, *, liar: bool) -> tuple[str, str]:
        """Return the option of workers, of which the last can be made to lie."""
        last = 0 if self._engine is Engine.REMOTE else INSTANCES - 1
        plan = {
            "service_time": {"type": "lognormal", "median": self._service, "sigma": 0.2},
            "poison": POISON,
            "lies": [{"worker": last, "file": str(self.liar)}] if liar else [],
        }
        return "--faults", json.dumps(plan)


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
