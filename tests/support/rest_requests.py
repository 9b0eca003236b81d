"""Requests of the Open Inference Protocol over REST, right and wrong, to the model of `served`."""

import json
from typing import Any

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray


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
