"""To arbitrary bytes at its HTTP port the server answers with a clear error or hangs up, and
goes on: real sockets, a real process."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from http_served import binary, get, post
from parity_models.training.export import floats
from parity_models.trust.envelope import fit_envelope
from served import (
    INFER,
    INPUTS,
    ServerProcess,
    infer,
    infer_message,
    predictions,
    queries,
    write_linear_bundle,
)

pytestmark = pytest.mark.slow

PATIENCE = 0.05
"""Seconds for an answer, where the request may have no end."""
ALLOWED = {200, 400, 404, 405, 406, 408, 411, 413, 414, 415, 417, 426, 431, 501, 503, 504, 505}
"""505: of HTTP versions, and 426 of upgrades; never 500."""
ROW = queries(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # What mutated requests carry would spoil reconstructions of others without an envelope.
    learned = queries(2000, seed=1)
    envelope = fit_envelope(
        [floats((INPUTS,))],
        {"input": learned},
        {"input": queries(500, seed=2)},
        predictions(learned),
    )
    bundle = write_linear_bundle(tmp_path_factory.mktemp("bundle"), envelope=envelope)
    with ServerProcess(str(bundle), "--max-body", "1", "--deadline", "5") as process:
        yield process
        assert process.process.poll() is None
        assert process.metric("parm_instance_restarts_total") == 0


HALVES = np.full((1, INPUTS), 0.5, np.float32)
JSON_BODY = json.dumps(infer_message(HALVES)).encode()
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (JSON_BODY[:100], JSON_BODY[100:], b""))
REQUESTS = st.sampled_from(
    [
        post(JSON_BODY, "Content-Type: application/json\r\n"),
        post(json.dumps(infer_message(HALVES.repeat(2, axis=0))).encode()),
        binary(ROW, "input"),
        get(INFER, "Transfer-Encoding: chunked\r\n", "POST") + CHUNKS,
        post(b"\x1f\x8b\x08" + bytes(20), "Content-Encoding: gzip\r\n"),
        get("/v2/health/ready"),
        get("/metrics", "Accept: text/plain\r\n"),
        post(b"{}", path="/v2/repository/index"),
        b"GET /v2/models/model/versions/1/ready HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
)


def answers(server: ServerProcess, *parts: bytes) -> list[int]:
    """The statuses of all that comes back on one connection."""
    received = b""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    with connection as client, suppress(ConnectionError, TimeoutError):
        for part in parts:
            client.sendall(part)
        client.settimeout(PATIENCE)
        while more := client.recv(1 << 16):
            received += more
    assert not received or received.startswith(b"HTTP/1."), received[:200]
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", received, re.M)]


@fuzz(150)
@given(mutated(REQUESTS), st.integers(0, 2000))
def test_mutated_requests_get_a_clear_error_or_none(
    server: ServerProcess, http: httpx.Client, content: bytes, cut: int
) -> None:
    statuses = answers(server, content[:cut], content[cut:])
    assert set(statuses) <= ALLOWED, content
    assert infer(http, ROW).is_success


@fuzz(60)
@given(st.lists(mutated(REQUESTS) | REQUESTS, min_size=2, max_size=5))
def test_pipelines_of_good_and_mutated_requests_do_not_confuse_the_server(
    server: ServerProcess, http: httpx.Client, requests: list[bytes]
) -> None:
    statuses = answers(server, b"".join(requests))
    assert set(statuses) <= ALLOWED, requests
    assert infer(http, ROW).is_success


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner)
)
SHAPES = st.lists(st.integers(-2, 3) | st.sampled_from([INPUTS, 2**31, 2**63, 10**30]), max_size=4)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "redundancy", "tenant", "binary_data_size", "binary_data_output", "x"]
    ),
    JSON | st.sampled_from(["exact", 1, 10**6, True]),
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["input", "", "other"]) | JSON,
        "datatype": st.sampled_from(["FP32", "FP64", "BYTES", ""]) | JSON,
        "shape": st.just([1, INPUTS]) | SHAPES | JSON,
        "data": st.just([0.5] * INPUTS) | st.lists(SCALARS, max_size=5) | JSON,
        "parameters": PARAMETERS | JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | JSON,
        "inputs": st.lists(TENSORS, max_size=3) | JSON,
        "outputs": st.lists(TENSORS, max_size=2) | JSON,
        "parameters": PARAMETERS | JSON,
    },
)


@fuzz(150)
@given(MESSAGES)
def test_json_that_is_wrong_gets_its_reason(http: httpx.Client, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode(errors="surrogatepass")
    answer = http.post(INFER, content=body)
    if answer.status_code != 200:
        assert answer.status_code in ALLOWED, body
        assert answer.json()["error"], body
