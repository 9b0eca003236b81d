"""Requests of the Open Inference Protocol over REST, right and wrong, to the model of `served`."""

import json
from typing import Any

import httpx
import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray

from served import INPUTS, predictions, queries

INFER = "/v2/models/model/infer"


NESTED = [[0.0] * INPUTS]


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


def changed(**changes: object) -> dict[str, Any]:
    message = json_request(NESTED, [1, INPUTS])
    message["inputs"][0].update(changes)
    return message


def assert_served(http: httpx.Client) -> None:
    """The server answers, and rightly."""
    rows = queries(1, seed=99)
    response = http.post(INFER, json=json_request(rows.tolist(), [1, INPUTS]))
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(
        response.json()["outputs"][0]["data"], predictions(rows)[0], rtol=1e-4, atol=1e-6
    )
