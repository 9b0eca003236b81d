"""A process of its own that asks a server whether it is live, fifty times a second.

Each time it writes a line: the seconds that the answer took (negative without one), and those in
which the server's process was ready to run and had no processor.
"""

import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"


def ask(port: int) -> bool:
    """Return whether the server answers a new connection, and says 200."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30.0) as connection:
        connection.sendall(_LIVE)
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def waited(pid_file: str) -> float:
    """Return the seconds that the server's main thread has waited for a processor."""
    with suppress(OSError):
        waits = Path(f"/proc/{Path(pid_file).read_text()}/schedstat").read_text().split()
        return int(waits[1]) / 1e9
    return 0.0


def main(port: str, pid_file: str) -> None:
    """Ask until the pipe of standard output breaks."""
    with suppress(BrokenPipeError):
        while True:
            before, began = waited(pid_file), time.monotonic()
            live = ask(int(port))
            took = time.monotonic() - began if live else -1.0
            sys.stdout.write(f"{took} {max(0.0, waited(pid_file) - before)}\n")
            sys.stdout.flush()
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
