"""Clients of the Open Inference Protocol work unchanged; whatever is wrong is told, not fatal."""

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from parity_models import __version__
from served import INPUTS, OUTPUTS, ServerProcess, predictions, queries, write_linear_bundle

INFER = "/v2/models/model/infer"
MAX_BODY = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_linear_bundle(tmp_path_factory.mktemp("bundle"))
    with ServerProcess(str(bundle), "--max-body", "1", "--max-queue", "300") as process:
        yield process
        assert process.process.poll() is None
        assert process.metric("parm_instance_restarts_total") == 0


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def triton_input(rows: NDArray[np.float32], binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("input", list(rows.shape), "FP32")
    return tensor.set_data_from_numpy(rows, binary_data=binary)


def binary_request(rows: NDArray[np.float32], **more: Any) -> dict[str, Any]:
    """Body and headers of a request with binary data both ways."""
    parameters = {"binary_data_size": rows.nbytes}
    tensor = {"name": "input", "shape": rows.shape, "datatype": "FP32", "parameters": parameters}
    message = {"inputs": [tensor], "parameters": {"binary_data_output": True, **more}}
    header = json.dumps(message).encode()
    return {
        "content": header + rows.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(header))},
    }


def json_request(data: object, shape: list[int], **more: object) -> dict[str, Any]:
    tensor = {"name": "input", "shape": shape, "datatype": "FP32", "data": data}
    return {"inputs": [tensor], **more}


def assert_served(http: httpx.Client) -> None:
    """The server answers, and rightly."""
    rows = queries(1, seed=99)
    response = http.post(INFER, json=json_request(rows.tolist(), [1, INPUTS]))
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(
        response.json()["outputs"][0]["data"], predictions(rows)[0], rtol=1e-4, atol=1e-6
    )


# What clients ask


def test_tritonclient_sees_a_live_and_ready_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("model", "2")


def test_tritonclient_lists_the_models(client: triton.InferenceServerClient) -> None:
    assert client.get_model_repository_index() == [
        {"name": "model", "version": "1", "state": "READY"}
    ]


def test_tritonclient_reads_the_metadata(client: triton.InferenceServerClient) -> None:
    about = client.get_server_metadata()
    assert about["version"] == __version__
    assert "binary_tensor_data" in about["extensions"]
    for version in ("", "1"):
        model = client.get_model_metadata("model", version)
        assert model.pop("bundle_digest") == about["bundle_digest"]
        assert model.pop("model_sha256") == about["model_sha256"]
        assert model == {
            "name": "model",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, INPUTS]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, OUTPUTS]}],
        }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("rows", [1, 7])
def test_tritonclient_infers_with_json_and_binary_either_way(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None, rows: int
) -> None:
    batch = queries(rows)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("output", binary_data=binary_out)]
    result = client.infer(
        "model", [triton_input(batch, binary_in)], outputs=outputs, request_id="request 7"
    )
    output = result.as_numpy("output")
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, predictions(batch), rtol=1e-4, atol=1e-6)
    response = result.get_response()
    assert response["id"] == "request 7"
    assert response["model_name"] == "model"
    assert response["model_version"] == "1"
    sources = response["parameters"]["source"].split(",")
    assert len(sources) == rows
    assert set(sources) <= {"model", "reconstruction"}


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_may_compress(client: triton.InferenceServerClient, algorithm: str) -> None:
    batch = queries(3)
    result = client.infer(
        "model",
        [triton_input(batch)],
        model_version="1",
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(result.as_numpy("output"), predictions(batch), rtol=1e-4, atol=1e-6)


def test_parameters_of_other_servers_are_ignored(client: triton.InferenceServerClient) -> None:
    batch = queries(1)
    result = client.infer(
        "model",
        [triton_input(batch)],
        sequence_id=5,
        sequence_start=True,
        priority=2,
        timeout=5_000_000,
        parameters={"anything": 1},
    )
    np.testing.assert_allclose(result.as_numpy("output"), predictions(batch), rtol=1e-4, atol=1e-6)


def test_a_body_in_many_pieces_is_put_together(http: httpx.Client) -> None:
    rows = queries(300)
    request = binary_request(rows)
    content: bytes = request.pop("content")
    pieces = (content[start : start + 10_000] for start in range(0, len(content), 10_000))
    for body in (content, pieces):
        response = http.post(INFER, content=body, **request)
        assert response.status_code == 200
        start = int(response.headers["Inference-Header-Content-Length"])
        outputs = np.frombuffer(response.content[start:], np.float32).reshape(300, OUTPUTS)
        np.testing.assert_allclose(outputs, predictions(rows), rtol=1e-4, atol=1e-5)


def test_clients_that_write_null_for_what_they_leave_out_are_understood(
    http: httpx.Client,
) -> None:
    message = json_request([0.0] * INPUTS, [1, INPUTS], id=None, parameters=None, outputs=None)
    message["inputs"][0]["parameters"] = None
    assert http.post(INFER, json=message).status_code == 200


# What is wrong with requests

NESTED = [[0.0] * INPUTS]


def changed(**changes: object) -> dict[str, Any]:
    message = json_request(NESTED, [1, INPUTS])
    message["inputs"][0].update(changes)
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (changed(name="image"), "no input 'image'; its input is 'input'"),
        (changed(datatype="FP64"), "has datatype FP32, got 'FP64'"),
        (changed(shape=[1, 28, 28]), "got [1, 28, 28]"),
        (changed(shape=[INPUTS]), "got [784]"),
        (changed(shape=[0, INPUTS], data=[]), "one row or more"),
        (changed(data=[0.0] * 5), "must be flat, with 784 elements, or nested as [1, 784]"),
        (changed(data=[[0.0], [0.0, 1.0]]), "ragged"),
        (changed(data=[["a"] * INPUTS]), "Expected `float`, got `str`"),
        ({"inputs": []}, "'input' is missing"),
        ({"inputs": changed()["inputs"] * 2}, "given 2 times"),
        ({**changed(), "outputs": [{"name": "logits"}]}, "no output 'logits'"),
        ({"input": 1}, "missing required field `inputs`"),
        ([1, 2], "Expected `object`, got `array`"),
    ],
)
def test_requests_that_do_not_fit_the_model_get_400_with_the_reason(
    http: httpx.Client, content: object, reason: str
) -> None:
    response = http.post(INFER, json=content)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert reason in response.json()["error"]
    assert_served(http)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e39", "1" + "0" * 400]
)
def test_numbers_that_are_not_finite_get_400_in_json_and_are_served_exact_in_binary(
    http: httpx.Client, number: str
) -> None:
    text = json.dumps(changed(data=[0.5] * INPUTS)).replace("0.5", number, 1)
    response = http.post(INFER, content=text)
    assert response.status_code == 400
    assert "data of input" in response.json()["error"] or "the request" in response.json()["error"]
    rows = queries(1)
    rows[0, 5] = float(number) if "e" not in number and len(number) < 20 else np.inf
    response = http.post(INFER, **binary_request(rows))
    assert response.status_code == 200
    assert b'"source":"model"' in response.content
    assert_served(http)


def test_wrong_binary_sizes_get_400(http: httpx.Client) -> None:
    request = binary_request(queries(1))
    whole, length = request["content"], request["headers"]["Inference-Header-Content-Length"]
    for content, header, reason in [
        (whole[:-4], length, "3132 bytes follow the JSON object; input 'input' takes 3136"),
        (whole + b"1234", length, "3140 bytes follow"),
        (whole, "99999", "but the body has"),
        (whole, "abc", "not a length"),
        (whole, "-5", "not a length"),
        (whole, str(int(length) - 2), "cannot be read"),
        (whole[: int(length)], None, "needs the header"),
        (whole.replace(b"3136", b"3132"), length, "takes 3136 bytes"),
        (b"", None, "cannot be read"),
        (b"", "0", "cannot be read"),
    ]:
        headers = {} if header is None else {"Inference-Header-Content-Length": header}
        response = http.post(INFER, content=content, headers=headers)
        assert response.status_code == 400
        assert reason in response.json()["error"]
    assert_served(http)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/models/other/infer", 404, "no model is called 'other'"),
        ("POST", "/v2/models/model/versions/2/infer", 404, "no version '2'; it has version '1'"),
        ("GET", "/v2/models/other", 404, "this server has 'model'"),
        ("GET", "/v2/models/model/versions/x", 404, "no version 'x'"),
        ("GET", "/v2/models/other/ready", 404, "no model"),
        ("GET", "/v2/models/model/config", 404, "nothing is at /v2/models/model/config"),
        ("GET", "/v2/models/%2e%2e%2f%00/infer", 404, "nothing is at"),
        ("GET", "/v2/", 404, "nothing is at /v2/"),
        ("GET", "/", 404, "begin with /v2"),
        ("GET", INFER, 405, "does not take the method GET"),
        ("DELETE", "/v2/models/model", 405, "does not take the method DELETE"),
        ("POST", "/v2/health/ready", 405, "does not take the method POST"),
    ],
)
def test_what_is_not_there_is_named(
    http: httpx.Client, method: str, path: str, status: int, reason: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert reason in response.json()["error"]


def test_tritonclient_tells_the_reason(client: triton.InferenceServerClient) -> None:
    shared = triton.InferInput("input", [1, INPUTS], "FP32")
    shared.set_shared_memory("region", INPUTS * 4)
    classes = triton.InferRequestedOutput("output", class_count=3)
    for model, tensor, outputs, reason in [
        ("resnet", triton_input(queries(1)), None, "no model is called 'resnet'"),
        ("model", shared, None, "shared memory"),
        ("model", triton_input(queries(1)), [classes], "classifications"),
    ]:
        with pytest.raises(InferenceServerException, match=reason):
            client.infer(model, [tensor], outputs=outputs)


def test_bodies_beyond_the_limit_get_413_however_they_come(http: httpx.Client) -> None:
    zeros = bytes(MAX_BODY + 1)
    cases: list[tuple[Any, dict[str, str]]] = [
        (zeros, {}),
        (iter([zeros[: MAX_BODY // 2]] * 3), {}),
        (gzip.compress(bytes(100 * MAX_BODY)), {"Content-Encoding": "gzip"}),
    ]
    for content, headers in cases:
        response = http.post(INFER, content=content, headers=headers)
        assert response.status_code == 413
        assert f"larger than the {MAX_BODY} bytes" in response.json()["error"]
    assert_served(http)


def test_more_rows_than_may_wait_get_413(http: httpx.Client) -> None:
    response = http.post(INFER, **binary_request(queries(301)))
    assert response.status_code == 413
    assert "301 rows, this server takes up to 300" in response.json()["error"]


def test_bodies_in_other_encodings_are_refused(http: httpx.Client) -> None:
    text = json.dumps(changed()).encode()
    for content, encoding, status, reason in [
        (text, "br", 415, "send gzip, deflate or none"),
        (text, "gzip", 400, "not in gzip encoding"),
        (gzip.compress(text)[:-9], "gzip", 400, "not one whole stream"),
        (zlib.compress(text) + b"more", "deflate", 400, "not one whole stream"),
    ]:
        response = http.post(INFER, content=content, headers={"Content-Encoding": encoding})
        assert response.status_code == status
        assert reason in response.json()["error"]
    assert http.post(INFER, content=text, headers={"Content-Encoding": "identity"}).is_success


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff\x16\x03\x01 not HTTP at all\r\n\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/\xff\xfe/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    ],
)
def test_malformed_http_ends_its_connection_only(
    http: httpx.Client, server: ServerProcess, text: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert not answer or b" 400 " in answer.split(b"\r\n")[0]
    assert_served(http)


def test_endless_headers_are_cut_off(http: httpx.Client, server: ServerProcess) -> None:
    for endless in (b"x" * 1000, b"X-More: and more\r\n" * 50):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nX-First: ")
            sent = 0
            with suppress(ConnectionError):
                while sent < 100 * 2**20:
                    connection.sendall(endless)
                    sent += len(endless)
            assert sent < 100 * 2**20
    assert_served(http)


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request % b"/v2/health/live" + request % b"/v2/models/model" + last)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    places = [answer.find(text) for text in (b'"live"', b'"platform"', b'"extensions"')]
    assert -1 < places[0] < places[1] < places[2]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    length=st.none() | st.integers(-5, 400).map(str) | st.sampled_from(["", "1e3", "0x10"]),
    encoding=st.none() | st.sampled_from(["gzip", "deflate", "br", "identity"]),
    path=st.sampled_from([INFER, "/v2/models/model/versions/1/infer"]),
)
def test_arbitrary_bodies_are_the_client_s_mistake(
    http: httpx.Client, body: bytes, length: str | None, encoding: str | None, path: str
) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    response = http.post(path, content=body, headers=headers)
    assert 400 <= response.status_code < 500
    assert response.json()["error"]


def test_the_metrics_tell_what_happened(server: ServerProcess, http: httpx.Client) -> None:
    names = ("parm_query_latency_seconds_count", 'parm_requests_total{code="200"}')
    before = server.metric(names[0])
    assert http.post(INFER, **binary_request(queries(5))).is_success
    assert server.metric(names[0]) == before + 5
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for line in [
        'parm_requests_total{code="200"}',
        'parm_requests_total{code="400"}',
        'parm_query_failures_total{reason="overloaded"} 0.0',
        'parm_query_latency_seconds_bucket{le="0.001",source="model"}',
        'parm_query_latency_seconds_count{source="reconstruction"}',
        "parm_reconstructions_total",
        "parm_group_wait_seconds_count",
        "parm_encode_seconds_sum",
        "parm_decode_seconds_sum",
        'parm_queue_depth{work="deployed"} 0.0',
        'parm_instances_up{work="deployed"} 3.0',
        'parm_instances_up{work="parity-0"} 3.0',
        'parm_units_in_flight{work="parity-0"}',
        "parm_instance_restarts_total 0.0",
        'parm_build_info{bundle_digest="',
    ]:
        assert f"\n{line}" in response.text
