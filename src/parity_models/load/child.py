"""A child process that writes a line when it is ready, or the reason why it is not.

It ends when its standard input does, so that it cannot outlive its parent. `tell`, `commands` and
`exit_code` are for the child's own side.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from signal import SIGKILL

from parity_models.errors import ParityModelsError, ServingError, UserError

USERS_MISTAKE = 2
"""The exit code of a child that a user asked for something impossible."""
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
MAX_MESSAGE = 1 << 20
"""Maximum size in bytes of a line of output."""


class Child:
    """A running child process; `message` is its first line of output."""

    def __init__(self, message: str, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.message = message
        self.pid = process.pid
        self._input, self._output = process.stdin, process.stdout
        self.wait = process.wait
        self.end_input = process.stdin.close

    def tell(self, line: bytes) -> None:
        """Write a line, with its end, to the child's standard input."""
        self._input.write(line)

    async def ask(self, line: bytes) -> str:
        """Write a line, with its end, and return the next line that the child writes."""
        self.tell(line)
        return (await self._output.readline()).decode().strip()

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines that the child writes after its message, until it ends."""
        async for line in self._output:
            yield line.decode().strip()

    async def failure(self, users: type[ParityModelsError]) -> ParityModelsError:
        """Return the error of a child that could not start: of class `users` if it exited as for a
        user's mistake, else ServingError."""
        kind = users if await self.wait() == USERS_MISTAKE else ServingError
        return kind(self.message or "the process ended before it was ready")


@asynccontextmanager
async def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run a command; the context begins with its first line of output, and ends it.

    Args:
        command: The program and its arguments.
        environment: Its variables, by default those of this process.

    Raises:
        ServingError: The line does not come within START_TIMEOUT seconds.

    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        env=environment,
        start_new_session=True,
        limit=MAX_MESSAGE,
    )
    running = Child("", process)
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                running.message = await running.ask(b"")
        except TimeoutError:
            raise ServingError(
                f"a child process was not ready within {START_TIMEOUT:g} s; the machine has too "
                "much else to do, or too little memory"
            ) from None
        yield running
    finally:
        running.end_input()
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
    """Return a reader of the lines on standard input."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    return lines
