"""A server is restarted in place, or dies, and a second one on its port goes on."""

import signal
import subprocess
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
