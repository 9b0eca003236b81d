"""`parm serve` as a child process."""

import asyncio
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from parity_models.errors import ServingError
from parity_models_lab.parm import parm
from parity_models_lab.processes import limit_descriptors, send

START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0


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
                *parm("serve", *self._arguments),
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
