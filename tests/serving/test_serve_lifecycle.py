"""A server as Kubernetes has it: probed, told to end, and asked while it ends."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from served import (
    INPUTS,
    ServerProcess,
    is_alive,
    nothing_left_of,
    predictions,
    queries,
    until,
    write_linear_bundle,
)

pytestmark = pytest.mark.slow

ROWS = queries(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


def infer(client: httpx.Client) -> httpx.Response:
    tensor = {"name": "input", "shape": [1, INPUTS], "datatype": "FP32", "data": ROWS.tolist()}
    response = client.post("/v2/models/model/infer", json={"inputs": [tensor]})
    if response.is_success:
        answer = response.json()["outputs"][0]["data"]
        np.testing.assert_allclose(answer, predictions(ROWS)[0], rtol=1e-4, atol=1e-5)
    return response


def is_ready(client: httpx.Client) -> bool:
    return client.get("/v2/health/ready").status_code == 200


class Balancer:
    """Probes a server, and sends requests for as long as the last probe said that it is ready."""

    def __init__(self, url: str) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.over = threading.Event()
        self._url = url
        self._ready = True
        self._threads = [threading.Thread(target=each) for each in (self._probe, self._send)]

    def _probe(self) -> None:
        while self._ready:
            with httpx.Client(base_url=self._url) as client:
                self._ready = is_ready(client)
            time.sleep(0.2)

    def _send(self) -> None:
        while self._ready:
            with httpx.Client(base_url=self._url) as client:  # a connection of its own each time
                try:
                    response = infer(client)
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                else:
                    if response.is_success:
                        self.answers += 1
                    else:
                        self.failures.append(response.text)
        self.over.set()

    def __enter__(self) -> "Balancer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ready = False
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_where_a_balancer_looks_at_readiness(bundle: Path) -> None:
    with (
        ServerProcess(str(bundle), "--shutdown-delay", "600", "--grpc-port", "0") as server,
        httpx.Client(base_url=server.url) as client,
        grpc.insecure_channel(server.grpc_address) as channel,
        Balancer(server.url) as balancer,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
        until(lambda: balancer.answers > 5, "no answers")
        with nothing_left_of(server):
            server.signal(signal.SIGTERM)
            until(lambda: not is_ready(client), "still ready")
            status = health.Check(health_pb2.HealthCheckRequest()).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert client.get("/v2/health/live").status_code == 200
            # Neither those who know better, nor those who do not yet, are turned away.
            assert infer(client).status_code == 200
            with httpx.Client(base_url=server.url) as another:
                assert infer(another).status_code == 200
            assert balancer.over.wait(60)
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            assert server.wait() == 130
    assert not balancer.failures


def test_connections_are_not_reset_while_the_server_ends(bundle: Path) -> None:
    """Clients that open a connection for each request, or keep one, and know no readiness."""
    tensor = {"name": "input", "shape": [1, INPUTS], "datatype": "FP32", "data": ROWS.tolist()}
    ended: list[tuple[float, str]] = []

    def ask(url: str, keeps: bool) -> None:
        outcome, client = "200", httpx.Client(base_url=url)
        while outcome in ("200", "503"):
            try:
                response = client.post("/v2/models/model/infer", json={"inputs": [tensor]})
                outcome = str(response.status_code)
            except httpx.TransportError as error:
                outcome = "refused" if "refused" in str(error) else repr(error)
            ended.append((time.monotonic(), outcome))
            if not keeps:
                client.close()
                client = httpx.Client(base_url=url)
        client.close()

    with ServerProcess(str(bundle), "--shutdown-delay", "2") as server:
        clients = [
            threading.Thread(target=ask, args=(server.url, number % 2 == 0)) for number in range(6)
        ]
        for client in clients:
            client.start()
        until(lambda: len(ended) > 50, "no answers")
        told = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        for client in clients:
            client.join()
    during = [outcome for when, outcome in ended if when < told + 1.9]
    assert set(during) == {"200"}
    assert not [outcome for _, outcome in ended if "reset" in outcome]


def test_a_server_without_instances_is_not_ready_until_one_is_back(bundle: Path) -> None:
    with (
        ServerProcess(str(bundle), "--policy", "none", "--instances", "1") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: not is_ready(client), "ready without an instance")
        assert client.get("/v2/health/live").status_code == 200
        assert not is_alive(worker)
        until(lambda: is_ready(client), "not ready again")
        assert infer(client).status_code == 200


def full() -> None:
    """Let what is written to standard error fail, as on a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def closed() -> None:
    """Have neither standard input nor standard error."""
    os.closerange(2, 3)
    os.closerange(0, 1)


@pytest.mark.parametrize("streams", [full, closed])
def test_a_server_serves_whatever_its_streams_are(
    bundle: Path, streams: Callable[[], None]
) -> None:
    # The bundle has no envelope, which the server notes on standard error once it is ready.
    with (
        ServerProcess(str(bundle), "--access-log", before=streams) as server,
        httpx.Client(base_url=server.url) as client,
        nothing_left_of(server),
    ):
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")
        assert infer(client).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
