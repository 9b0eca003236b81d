"""A process of its own that asks a server whether it is live, fifty times a second.

Each time it writes a line of seconds: how long the answer took (0 without one), for how long of
that the server's main thread, and this process, were ready to run and had no processor, and since
when the server has been away.
"""

import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"


def _is_live(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30.0) as connection:
        connection.sendall(_LIVE)
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def _waited(pid: str) -> float:
    """Return the seconds that a process's main thread has waited for a processor."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def main(port: str, pid_file: str) -> None:
    """Ask until this process is ended."""
    last = time.monotonic()
    while True:
        pids = (Path(pid_file).read_text(), "self")
        before, began = list(map(_waited, pids)), time.monotonic()
        live, now = _is_live(int(port)), time.monotonic()
        last = now if live else last
        server, own = (max(0.0, _waited(pid) - at) for pid, at in zip(pids, before, strict=True))
        sys.stdout.write(f"{now - began if live else 0.0} {server} {own} {now - last}\n")
        sys.stdout.flush()
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
