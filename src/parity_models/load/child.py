"""A child process that says on its standard output when it is ready, or why it is not.

It ends when its standard input does, so that it cannot outlive its parent. `tell` and
`commands` are for the child's own side.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from signal import SIGKILL

from parity_models.errors import ParityModelsError, ServingError, UserError

USERS_MISTAKE = 2
"""The exit code of a child that a user asked for something impossible."""
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
MAX_MESSAGE = 1 << 20
"""The most bytes of one line of output."""


@dataclass(frozen=True)
class Child:
    """A running child process; `message` is its first line of output."""

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
        """Write a line, with its end, and return the next line that the child writes."""
        self.tell(line)
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def end_input(self) -> None:
        """Close the child's standard input, which asks it to end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines that the child writes after its message, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            yield line.decode().strip()

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return await self._process.wait()

    async def failure(self, users: type[ParityModelsError]) -> ParityModelsError:
        """The error to raise for a child that could not start: of class `users` if it exited as for
        a user's mistake, else ServingError."""
        kind = users if await self.wait() == USERS_MISTAKE else ServingError
        return kind(self.message or "the process ended before it was ready")


@asynccontextmanager
async def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run `command` while the context lasts, which begins with the command's first line of output.

    Without an `environment` it has this process's. Raises ServingError if the line does not come
    within START_TIMEOUT seconds.
    """
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


def tell(message: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def exit_code(do: Callable[[], object], tell: Callable[[str], None] = tell) -> int:
    """Call `do`; returns the exit code that `failure` reads. An error's message goes to `tell`."""
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
