"""Clients that behave as no sane client would do no harm to others of a real server."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from ngh2 import ErrorCode

from http2_client import END_HEADERS, HEADERS, RST_STREAM, SETTINGS, block, fields_of, frame
from served import ServerProcess, infer, predictions, queries, until
from triton_requests import grpc_infer, http_input

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    with ServerProcess(str(bundle), "--grpc-port", "0") as process:
        yield process
        assert process.metric("parm_instance_restarts_total") == 0
        until(lambda: process.metric("parm_bytes_in_flight") == 0, "something is held for ever")


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def assert_answers(server: ServerProcess, http: httpx.Client) -> None:
    assert infer(http, queries(1, 99)).is_success
    result = grpc_infer(server.grpc_address, seed=1).as_numpy("output")
    np.testing.assert_allclose(result, predictions(queries(1, 1)), rtol=1e-4, atol=1e-6)


def test_rows_that_are_no_numbers_leave_those_beside_them_right(server: ServerProcess) -> None:
    rows = queries(9, seed=5)
    rows[[1, 4, 7]] = np.array([[np.nan], [np.inf], [-3e38]], np.float32)
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        outputs = client.infer("model", [http_input(rows)]).as_numpy("output")
    good = [0, 2, 3, 5, 6, 8]
    np.testing.assert_allclose(outputs[good], predictions(rows[good]), rtol=1e-4, atol=1e-6)


def test_rapid_resets_keep_nobody_waiting(server: ServerProcess, http: httpx.Client) -> None:
    """Rapid reset, CVE-2023-44487. All of them arrive at once, before a good client's call."""
    host, port = server.grpc_address.rsplit(":", 1)
    cancel = int(ErrorCode.CANCEL).to_bytes(4, "big")
    opened = [
        frame(HEADERS, END_HEADERS, stream, block(fields_of()))
        + frame(RST_STREAM, 0, stream, cancel)
        for stream in range(1, 2001, 2)
    ]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        server.signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + b"".join(opened))
            calls = [pool.submit(grpc_infer, server.grpc_address, 1) for _ in range(5)]
        finally:
            server.signal(signal.SIGCONT)
        for call in calls:
            call.result()
    assert_answers(server, http)
    assert server.metric('parm_refused_total{why="invalid"}') == 0


def test_a_server_that_stood_still_goes_on(server: ServerProcess, http: httpx.Client) -> None:
    with server.under_load() as clients:
        clients.more()
        server.process.send_signal(signal.SIGSTOP)
        Event().wait(3.0)
        server.process.send_signal(signal.SIGCONT)
        clients.more()
    assert server.metric("parm_query_failures_total") == 0
    assert_answers(server, http)
