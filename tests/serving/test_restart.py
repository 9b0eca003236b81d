"""A server is restarted in place, or dies, and a second one on its port goes on."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from commands import parm
from ports import free_ports
from served import INPUTS, ServerProcess, queries, until, write_linear_bundle

pytestmark = pytest.mark.slow

RATE = 50.0
"""Requests a second."""
AGAIN = 5
"""Requests of which one has a new connection."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"), coded=False)


class Clients:
    """Clients that ask RATE times a second, over kept connections and new ones."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.failures: list[str] = []
        tensor = {"name": "input", "shape": [1, INPUTS], "datatype": "FP32"}
        self._body = {"inputs": [tensor | {"data": queries(1).ravel().tolist()}]}
        self._url = f"{url}/v2/models/model/infer"
        self._over = threading.Event()

    @contextmanager
    def asking(self, clients: int = 5) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(clients,)) for _ in range(clients)]
        for each in threads:
            each.start()
        try:
            self.answers(20)
            yield
            self.answers(50)
        finally:
            self._over.set()
            for each in threads:
                each.join()

    def answers(self, number: int) -> None:
        """Wait for so many more."""
        goal = self.answered + number
        until(lambda: self.answered >= goal, f"no answers, but {self.failures[:3]}")

    def _ask(self, clients: int) -> None:
        kept = httpx.Client(timeout=60)
        for number in range(10**9):
            if self._over.wait(clients / RATE):
                return
            try:
                ask = httpx.post if number % AGAIN == 0 else kept.post
                answer = ask(self._url, json=self._body, timeout=60)
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.failures.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))


def sharing(bundle: Path, port: int) -> ServerProcess:
    options = ("--port", str(port), "--reuse-port", "--shutdown-delay", "2")
    return ServerProcess(str(bundle), "--instances", "2", "--policy", "none", *options)


def test_a_restart_in_place_refuses_and_loses_nothing(bundle: Path) -> None:
    (port,) = free_ports(1)
    with ExitStack() as servers:
        old = servers.enter_context(sharing(bundle, port))
        clients = Clients(old.url)
        with clients.asking():
            servers.enter_context(sharing(bundle, port))  # is warm now
            old.signal(signal.SIGTERM)
            assert old.wait() == 0
    assert clients.failures == []


def test_of_two_servers_on_one_port_one_goes_on_when_the_other_is_killed(bundle: Path) -> None:
    (port,) = free_ports(1)
    with sharing(bundle, port) as one, sharing(bundle, port) as other:
        taken = subprocess.run(
            parm("serve", str(bundle), "--port", str(port)), capture_output=True, text=True
        )
        assert taken.returncode == 2, "it does not say --reuse-port"
        assert "Address already in use" in taken.stderr
        clients = Clients(one.url)
        with clients.asking():
            one.signal(signal.SIGKILL)
            one.wait()
            clients.answers(20)
            # Of each client a request, and its connection; some more while the process ends.
            assert len(clients.failures) <= 20
            assert not [each for each in clients.failures if "refused" in each]
        assert other.metric("parm_requests_total") > 20


class Inheriting:
    """`parm serve` with a socket that listens already, as systemd starts it, and its notices."""

    def __init__(self, bundle: Path, listening: socket.socket, folder: Path) -> None:
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / f"notify-{time.monotonic_ns()}"
        self.notices.bind(str(address))
        self.notices.settimeout(120)
        # The shell has the process id that the server will have.
        options = ("--instances", "1", "--policy", "none", "--shutdown-delay", "1")
        command = parm("serve", str(bundle), *options)
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


def test_the_socket_of_a_socket_unit_outlives_the_server(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        clients = Clients(f"http://127.0.0.1:{listening.getsockname()[1]}")
        server = Inheriting(bundle, listening, tmp_path)
        server.wait_until_ready()
        with clients.asking():
            server.stop()  # requests wait
            server = Inheriting(bundle, listening, tmp_path)
            server.wait_until_ready()
        server.stop()
        assert clients.failures == []
