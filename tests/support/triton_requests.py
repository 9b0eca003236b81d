"""Requests by Triton's clients, over REST and gRPC, to the model of `served`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from served import ServerProcess, queries

Rows = NDArray[np.float32]


def http_input(rows: Rows, binary: bool = True) -> tritonclient.http.InferInput:
    tensor = tritonclient.http.InferInput("input", list(rows.shape), "FP32")
    return tensor.set_data_from_numpy(rows, binary_data=binary)


def grpc_input(rows: Rows) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput("input", list(rows.shape), "FP32")
    return tensor.set_data_from_numpy(rows)


def grpc_infer(address: str, seed: int, **options: Any) -> tritonclient.grpc.InferResult:
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return client.infer("model", [grpc_input(queries(1, seed))], **options)


@contextmanager
def triton_client(server: ServerProcess, protocol: str) -> Iterator[Any]:
    """Triton's client of a server, over "http" or "grpc"."""
    if protocol == "http":
        with tritonclient.http.InferenceServerClient(server.url.partition("//")[2]) as client:
            yield client
    else:
        with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
            yield client


def triton_inputs(client: Any, queries: Mapping[str, NDArray[Any]], **options: Any) -> list[Any]:
    """The inputs of a request by this client."""
    over_http = isinstance(client, tritonclient.http.InferenceServerClient)
    module, made = tritonclient.http if over_http else tritonclient.grpc, []
    for name, array in queries.items():
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.append(tensor.set_data_from_numpy(array, **options))
    return made


def code_of(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")
