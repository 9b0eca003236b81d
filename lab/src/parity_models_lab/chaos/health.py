"""A process of its own that asks a server whether it is live, again and again.

Each time it writes a line: the time, the seconds that the answer took (negative without an answer)
and how many of them the server's processes were ready to run and had no processor.
"""

import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

EVERY = 0.02
TIMEOUT = 30.0
_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"


def ask(address: tuple[str, int]) -> bool:
    """Return whether the server answers a new connection, and says 200."""
    with suppress(OSError), socket.create_connection(address, TIMEOUT) as connection:
        connection.sendall(_LIVE)
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def waited(processes: Sequence[str]) -> float:
    """Return the seconds that the processes' main threads have waited for a processor in all."""
    nanoseconds = 0
    for each in processes:
        with suppress(OSError):
            nanoseconds += int(Path(f"/proc/{each}/schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def main(host: str, port: str, pids: str) -> None:
    """Ask until the pipe of standard output breaks; the file `pids` names the processes."""
    while True:
        processes = Path(pids).read_text().split()
        before, began = waited(processes), time.monotonic()
        live = ask((host, int(port)))
        took = time.monotonic() - began
        line = f"{began} {took if live else -1.0} {max(0.0, waited(processes) - before)}"
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            break
        time.sleep(EVERY)


if __name__ == "__main__":
    main(*sys.argv[1:])
