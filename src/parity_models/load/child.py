"""A child process that says on its standard output when it is ready, or why it is not.

It ends when its standard input does, so that it cannot outlive whoever started it. `tell` and
`commands` are for the child's own side.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from signal import SIGKILL
from typing import TextIO

from parity_models.errors import ParityModelsError, ServingError, UserError

USERS_MISTAKE = 2
"""The exit code of a child that was asked for what cannot be done."""
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
MAX_MESSAGE = 1 << 20
"""Bytes that the first line of output may have."""


@dataclass(frozen=True)
class Child:
    """A running child, and the `message` it began with: its first line of output."""

    message: str
    _process: Process

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: bytes) -> None:
        """Write a line, with its end, to the child's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    async def ask(self, line: bytes) -> str:
        """Write a line likewise; what the child writes next, a line."""
        self.tell(line)
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def end_input(self) -> None:
        """Let the child's standard input end, which asks it to."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def lines(self) -> AsyncIterator[str]:
        """What the child writes after its message, a line at a time, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            yield line.decode().strip()

    async def wait(self) -> int:
        """Wait for its end; its exit code."""
        return await self._process.wait()

    async def failure(self, users: type[ParityModelsError]) -> ParityModelsError:
        """Once its message was no good: the error to raise, `users` for a user's mistake."""
        kind = users if await self.wait() == USERS_MISTAKE else ServingError
        return kind(self.message or "the process ended before it was ready")


@asynccontextmanager
async def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run `command` while the context lasts, from its first line of output on; without an
    `environment`, in this process's."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        env=environment,
        start_new_session=True,
        limit=MAX_MESSAGE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                message = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            raise ServingError(
                f"a child process was not ready within {START_TIMEOUT:g} s; the machine has too "
                "much else to do, or too little memory"
            ) from None
        yield Child(message, process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            # Process.kill would take the exit status from asyncio, which waits for it.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, SIGKILL)
            await process.wait()


def keep_output() -> Callable[[str], None]:
    """Keep standard output for what this process tells by what this returns, as by `tell`.

    What is written there otherwise, by libraries or by processes that are started from now on, goes
    to standard error; and those that outlive this one do not keep whoever listens waiting.
    """
    sys.stdout.flush()
    kept = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # which no process that is started inherits
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return partial(tell, to=kept)


def tell(message: str, to: TextIO | None = None) -> None:
    """Write a line to standard output at once."""
    to = to or sys.stdout
    to.write(f"{message}\n")
    to.flush()


def exit_code(do: Callable[[], object], tell: Callable[[str], None] = tell) -> int:
    """Do it, and tell why not if it cannot be done; the exit code that `failure` reads."""
    try:
        do()
    except ParityModelsError as error:
        tell(str(error))
        return USERS_MISTAKE if isinstance(error, UserError) else 1
    return 0


async def commands() -> asyncio.StreamReader:
    """The lines on standard input, for as long as there are some."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    return lines
