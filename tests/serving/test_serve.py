"""`parm serve` as its users and Kubernetes have it: it survives its workers, ends clean, and is
restarted in place."""

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commands import parm
from parity_models.serving.limits import FILES_OF_A_WORKER, OTHER_FILES, allow_descriptors
from ports import free_ports
from served import OUTPUTS, Clients, ServerProcess, infer, is_alive, nothing_left_of, queries, until
from triton_requests import grpc_infer

pytestmark = pytest.mark.slow


def service_time(seconds: float) -> str:
    """A fault plan: every unit takes at least this long."""
    return json.dumps({"service_time": {"type": "constant", "seconds": seconds}})


def is_ready(client: httpx.Client) -> bool:
    return client.get("/v2/health/ready").status_code == 200


def test_workers_killed_one_after_another_under_load_cost_no_request(bundle: Path) -> None:
    with ServerProcess(str(bundle), "--policy", "parity", "--instances", "3") as server:
        with server.under_load() as clients:
            for kills, worker in enumerate(server.workers(), 1):
                os.kill(worker, signal.SIGKILL)
                clients.more()
                until(
                    partial(lambda n: server.metric("parm_instance_restarts_total") == n, kills),
                    f"kill {kills}: no restart",
                )
        assert server.metric("parm_query_latency_seconds_count") == len(clients.answers)
        assert server.metric("parm_query_failures_total") == 0
        assert server.metric("parm_instances_up") == 2 * len(server.workers()), "of either role"


def test_signals_switch_redundancy_off_and_on(bundle: Path) -> None:
    with ServerProcess(str(bundle), "--policy", "parity") as server:
        for number, state in ((signal.SIGUSR1, "off"), (signal.SIGUSR2, "on")):
            os.kill(server.process.pid, number)
            is_so = f'parm_redundancy{{state="{state}"}} 1.0'
            until(partial(lambda said: said in httpx.get(server.metrics_url).text, is_so), state)


# The end


def queries_arrived(server: ServerProcess) -> float:
    """Return the number of queries that wait, run or have been answered; each is one row."""
    waiting, running = (
        server.metric(rf'{name}\{{role="deployed"\}}')
        for name in ("parm_queue_depth", "parm_units_in_flight")
    )
    return waiting + running + server.metric("parm_query_latency_seconds_count")


def test_a_signal_under_load_lets_requests_end_and_leaves_nothing(bundle: Path) -> None:
    coded = ("--policy", "parity@max-group-wait=1s", "--instances", "2", "--deadline", "60")
    arguments = (*coded, "--faults", service_time(0.4), "--grpc-port", "0")
    with (
        ServerProcess(str(bundle), *arguments) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        assert client.get("/v2/health/ready").json() == {"ready": True}
        requests = [pool.submit(infer, client, queries(1, seed)) for seed in range(6)]
        calls = [pool.submit(grpc_infer, server.grpc_address, seed) for seed in range(2)]
        until(lambda: queries_arrived(server) == 8, "requests do not arrive")
        with nothing_left_of(server):
            server.signal(signal.SIGTERM)
            until(lambda: not is_ready(client), "still ready")
            assert client.get("/v2/health/live").status_code == 200
            refused = infer(client, queries(1, 99))
            assert refused.status_code == 503
            assert "stopping" in refused.json()["error"]
            assert [request.result().status_code for request in requests] == [200] * 6
            assert all(call.result().as_numpy("output").shape == (1, OUTPUTS) for call in calls)
            assert server.wait() == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/v2/health/live")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_does_not_wait_for_answers(bundle: Path, number: signal.Signals) -> None:
    arguments = ("--policy", "none", "--deadline", "90", "--faults", service_time(60))
    with (
        # Whatever runs the tests may be started to outlive its terminal.
        ServerProcess(
            *(str(bundle), *arguments), before=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
        ) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor() as pool,
    ):
        request = pool.submit(infer, client, queries(1))
        until(lambda: server.metric("parm_units_in_flight") == 1, "nothing runs")
        with nothing_left_of(server):
            server.signal(number)
            until(lambda: not is_ready(client), "still ready")
            assert client.get("/v2/health/live").status_code == 200
            server.signal(signal.SIGTERM)
            assert server.wait() == 130
        assert request.result().status_code == 503


def test_a_signal_while_starting_leaves_nothing(bundle: Path) -> None:
    process = subprocess.Popen(parm("serve", str(bundle), "--port", "0"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text()), "no worker starts")
    workers = [int(child) for child in children.read_text().split()]
    process.terminate()
    assert process.wait(60) == 0
    until(lambda: not any(map(is_alive, workers)), "workers are still there")


def test_clients_that_do_not_look_at_readiness_are_still_served(bundle: Path) -> None:
    with (
        ServerProcess(str(bundle), "--shutdown-delay", "600", "--grpc-port", "0") as server,
        httpx.Client(base_url=server.url) as client,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
        with nothing_left_of(server):
            server.signal(signal.SIGTERM)
            until(lambda: not is_ready(client), "still ready")
            status = health.Check(health_pb2.HealthCheckRequest()).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert client.get("/v2/health/live").status_code == 200
            assert infer(client, queries(1)).status_code == 200
            with httpx.Client(base_url=server.url) as another:
                assert infer(another, queries(1)).status_code == 200
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            assert server.wait() == 130


def full() -> None:
    """Let what is written to standard error fail, as on a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def closed() -> None:
    """Have neither standard input nor standard error."""
    os.closerange(2, 3)
    os.closerange(0, 1)


def test_queries_wait_while_all_workers_start_again(bundle: Path) -> None:
    with ServerProcess(str(bundle)) as server, httpx.Client(base_url=server.url) as client:
        assert infer(client, queries(1)).status_code == 200
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        until(lambda: not server.metric("parm_instances_up"), "workers stay")
        assert infer(client, queries(1)).status_code == 200


@pytest.mark.parametrize("streams", [full, closed])
def test_a_server_serves_whatever_its_streams(bundle: Path, streams: Callable[[], None]) -> None:
    # The bundle has no envelope, which the server notes on standard error once it is ready.
    with (
        ServerProcess(str(bundle), "--access-log", before=streams) as server,
        httpx.Client(base_url=server.url) as client,
        nothing_left_of(server),
    ):
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")
        assert infer(client, queries(1)).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


# Two servers on one port


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


# Open files


NEEDED = 1000 + 2 * FILES_OF_A_WORKER + OTHER_FILES


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of a process that is not this one."""
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, given: limits.__setitem__(0, given[0]))
    return limits


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (256, 4096, NEEDED),
        (256, resource.RLIM_INFINITY, NEEDED),
        (2000, 4096, 2000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        (256, 512, 512),
    ],
)
def test_the_limit_is_raised_to_what_is_needed_or_the_log_says_so(
    limits: list[int], soft: int, hard: int, then: int, caplog: pytest.LogCaptureFixture
) -> None:
    limits[:] = soft, hard
    allow_descriptors(connections=1000, workers=2)
    assert limits == [then, hard]
    assert (f"workers may need {NEEDED}" in caplog.text) == (then == 512)


def test_a_server_that_may_open_too_few_files_does_not_start(bundle: Path) -> None:
    done = subprocess.run(
        parm("serve", "--port", "0", str(bundle)),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)),
        check=False,
    )
    assert done.returncode == 2
    assert not done.stdout
    assert "may open 80 files (RLIMIT_NOFILE)" in done.stderr
    assert "ulimit -Hn" in done.stderr


def test_idle_crowds_leave_descriptors(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = 128
    with ServerProcess(str(bundle)) as server, ExitStack() as idle:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (few, few))
        server.process.send_signal(signal.SIGSTOP)  # so that they come at once
        for _ in range(4 * few):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        os.kill(server.workers()[0], signal.SIGKILL)
        server.process.send_signal(signal.SIGCONT)
        assert httpx.get(f"{server.url}/v2/health/live", timeout=60).status_code == 200
        until(lambda: server.metric("parm_instance_restarts_total") >= 1, "no worker is restarted")
    assert "Too many open files" not in capfd.readouterr().err
