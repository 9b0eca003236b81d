"""A real server outlives rows that are no numbers, and a standstill."""

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import tritonclient.http as triton

from served import ServerProcess, predictions, queries, until
from triton_requests import grpc_infer, http_input

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    with ServerProcess(str(bundle), "--grpc-port", "0") as process:
        yield process
        assert process.metric("parm_instance_restarts_total") == 0
        until(lambda: process.metric("parm_bytes_in_flight") == 0, "something is held for ever")


def test_rows_that_are_no_numbers_leave_those_beside_them_right(server: ServerProcess) -> None:
    rows = queries(9, seed=5)
    rows[[1, 4, 7]] = np.array([[np.nan], [np.inf], [-3e38]], np.float32)
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        outputs = client.infer("model", [http_input(rows)]).as_numpy("output")
    good = [0, 2, 3, 5, 6, 8]
    np.testing.assert_allclose(outputs[good], predictions(rows[good]), rtol=1e-4, atol=1e-6)


def test_a_server_that_stood_still_goes_on(server: ServerProcess) -> None:
    with server.under_load() as clients:
        clients.more()
        server.process.send_signal(signal.SIGSTOP)
        Event().wait(3.0)
        server.process.send_signal(signal.SIGCONT)
        clients.more()
    assert server.metric("parm_query_failures_total") == 0
    result = grpc_infer(server.grpc_address, seed=1).as_numpy("output")
    np.testing.assert_allclose(result, predictions(queries(1, 1)), rtol=1e-4, atol=1e-6)
