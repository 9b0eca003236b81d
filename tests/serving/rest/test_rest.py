"""Clients of the Open Inference Protocol work unchanged."""

import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from parity_models import __version__
from served import INFER, INPUTS, OUTPUTS, infer, infer_message, predictions, queries
from triton_requests import http_input


def test_tritonclient_sees_a_live_and_ready_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("model", "2")


def test_tritonclient_reads_the_metadata(client: triton.InferenceServerClient) -> None:
    about = client.get_server_metadata()
    assert about["version"] == __version__
    assert "binary_tensor_data" in about["extensions"]
    for version in ("", "1"):
        model = client.get_model_metadata("model", version)
        assert model.pop("bundle_digest") == about["bundle_digest"]
        assert model.pop("model_sha256") == about["model_sha256"]
        assert model.pop("differ") == 0.001
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
        "model", [http_input(batch, binary_in)], outputs=outputs, request_id="request 7"
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


COMPRESSED = [
    {"request_compression_algorithm": each, "response_compression_algorithm": each}
    for each in ("gzip", "deflate")
]
OF_OTHER_SERVERS = {"sequence_id": 5, "priority": 2, "parameters": {"anything": 1}}


@pytest.mark.parametrize("options", [*COMPRESSED, OF_OTHER_SERVERS, {"timeout": 5_000_000}])
def test_tritonclient_may_compress_and_give_any_parameters(
    client: triton.InferenceServerClient, options: dict[str, Any]
) -> None:
    batch = queries(3)
    result = client.infer("model", [http_input(batch)], model_version="1", **options)
    np.testing.assert_allclose(result.as_numpy("output"), predictions(batch), rtol=1e-4, atol=1e-6)


def test_null_for_what_is_left_out_is_understood(http: httpx.Client) -> None:
    message = {**infer_message(queries(1)), "id": None, "parameters": None, "outputs": None}
    message["inputs"][0]["parameters"] = None
    assert http.post(INFER, json=message).status_code == 200


# Refusals say what was wrong, and are not fatal


MAX_BODY = 2**20


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/models/other/infer", 404, "no model is called 'other'"),
        ("POST", "/v2/models/model/versions/2/infer", 404, "no version '2'; it has version '1'"),
        ("GET", "/v2/models/model/config", 404, "nothing is at /v2/models/model/config"),
        ("GET", "/v2/models/%2e%2e%2f%00/infer", 404, "nothing is at"),
        ("GET", "/", 404, "begin with /v2"),
        ("GET", INFER, 405, "does not take the method GET"),
        ("POST", "/v2/health/ready", 405, "does not take the method POST"),
    ],
)
def test_missing_path_is_named(
    http: httpx.Client, method: str, path: str, status: int, reason: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert reason in response.json()["error"]


def test_bodies_beyond_the_limit_get_413_however_they_come(http: httpx.Client) -> None:
    bomb = gzip.compress(bytes(100 * MAX_BODY))
    for content, headers in ((bytes(MAX_BODY + 1), {}), (bomb, {"Content-Encoding": "gzip"})):
        response = http.post(INFER, content=content, headers=headers)
        assert response.status_code == 413
        assert f"larger than the {MAX_BODY} bytes" in response.json()["error"]
    assert infer(http, queries(1)).is_success


def test_bodies_in_other_encodings_are_refused(http: httpx.Client) -> None:
    text = json.dumps(infer_message(queries(1))).encode()
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
