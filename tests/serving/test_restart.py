"""A server is restarted in place, or dies, and a second one on its port goes on."""

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from commands import parm
from ports import free_ports
from served import Clients, ServerProcess, infer, queries

pytestmark = pytest.mark.slow

ROW = queries(1)
AGAIN = 5
"""Requests of which one has a new connection."""


def clients_of(url: str, *, may_fail: bool = False) -> Clients:
    """Clients that ask some 50 times a second, now and then over a new connection."""

    def ask(kept: httpx.Client, number: int) -> None:
        answer = infer(cast(Any, httpx) if number % AGAIN == 0 else kept, ROW, url)
        assert answer.status_code == 200, answer.text

    return Clients(ask, 5, pause=0.1, may_fail=may_fail)


def sharing(plain: Path, port: int) -> ServerProcess:
    options = ("--port", str(port), "--reuse-port", "--shutdown-delay", "2")
    return ServerProcess(str(plain), "--instances", "2", "--policy", "none", *options)


def test_a_restart_in_place_refuses_and_loses_nothing(plain: Path) -> None:
    (port,) = free_ports(1)
    with ExitStack() as servers:
        old = servers.enter_context(sharing(plain, port))
        with clients_of(old.url) as clients:
            clients.more()
            servers.enter_context(sharing(plain, port))  # is warm now
            old.signal(signal.SIGTERM)
            assert old.wait() == 0
            clients.more(50)


def test_of_two_servers_on_one_port_one_goes_on_when_the_other_is_killed(plain: Path) -> None:
    (port,) = free_ports(1)
    with sharing(plain, port) as one, sharing(plain, port) as other:
        taken = subprocess.run(
            parm("serve", str(plain), "--port", str(port)), capture_output=True, text=True
        )
        assert taken.returncode == 2, "it does not say --reuse-port"
        assert "Address already in use" in taken.stderr
        with clients_of(one.url, may_fail=True) as clients:
            clients.more()
            one.signal(signal.SIGKILL)
            one.wait()
            clients.more(50)
            # Of each client a request, and its connection; some more while the process ends.
            assert len(clients.failures) <= 20
            assert not [each for each in clients.failures if "refused" in each]
        assert other.metric("parm_requests_total") > 20


class Inheriting:
    """`parm serve` with a socket that listens already, as systemd starts it, and its notices."""

    def __init__(self, plain: Path, listening: socket.socket, folder: Path) -> None:
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / f"notify-{time.monotonic_ns()}"
        self.notices.bind(str(address))
        self.notices.settimeout(120)
        # The shell has the process id that the server will have.
        options = ("--instances", "1", "--policy", "none", "--shutdown-delay", "1")
        command = parm("serve", str(plain), *options)
        self.process = subprocess.Popen(
            ["bash", "-c", 'LISTEN_PID=$$ exec "$@" 3<&"$0"', str(listening.fileno()), *command],
            pass_fds=(listening.fileno(),),
            env=os.environ | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(address)},
            stdout=subprocess.DEVNULL,
        )

    def wait_until_ready(self) -> None:
        assert self.notices.recv(100) == b"READY=1"

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(120) == 0
        self.notices.close()


def test_the_socket_of_a_socket_unit_outlives_the_server(plain: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = Inheriting(plain, listening, tmp_path)
        server.wait_until_ready()
        with clients_of(url) as clients:
            clients.more()
            server.stop()  # requests wait
            server = Inheriting(plain, listening, tmp_path)
            server.wait_until_ready()
            clients.more(50)
        server.stop()
