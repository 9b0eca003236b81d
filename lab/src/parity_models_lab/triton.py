"""The Triton of the tests, which `make servers` installs, to compare with."""

import os
import selectors
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from parity_models.errors import LoadError, UserError

ROOT = Path(__file__).resolve().parents[3]


class Triton(NamedTuple):
    """A Triton that is up at these ports of this machine; `pid` is its process."""

    port: int
    grpc_port: int
    pid: int


@contextmanager
def triton(repository: Path) -> Iterator[Triton]:
    """Serve a repository of models while the context lasts.

    Raises UserError if Triton is not installed, and LoadError, with the end of its log, if it ends.
    """
    if not (ROOT / ".servers" / "triton").exists():
        raise UserError(f"{ROOT} has no Triton to compare with; run make servers there")
    port, grpc_port = free_ports(2)
    program = (str(ROOT / "tests" / "servers" / "triton.py"), str(repository))
    with tempfile.NamedTemporaryFile("w+") as log:
        process = psutil.Popen(
            [sys.executable, *program, str(port), str(grpc_port)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    raise LoadError(f"Triton ended: {Path(log.name).read_text()[-2000:]}")
                selectors.DefaultSelector().select(0.1)
            yield Triton(port, grpc_port, process.pid)
        finally:
            process.terminate()
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").is_success
    except httpx.TransportError:
        return False


def free_ports(number: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
