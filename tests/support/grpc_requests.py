"""Requests over gRPC by Triton's client, to the model of `served`."""

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from served import queries


def triton_input(rows: NDArray[np.float32]) -> triton.InferInput:
    return triton.InferInput("input", list(rows.shape), "FP32").set_data_from_numpy(rows)


def infer(address: str, seed: int, rows: int = 1, **more: Any) -> triton.InferResult:
    with triton.InferenceServerClient(address) as client:
        return client.infer("model", [triton_input(queries(rows, seed))], **more)


def code_of(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")
