"""A message that would be far larger parsed than its bytes is refused before it is parsed."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.models.signature import Signature
from parity_models.models.tensor import TensorSpec
from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.grpc.expected_size import MAX_BESIDE, SMALL, check_size
from parity_models.serving.grpc.inference_pb2 import InferParameter, ModelInferRequest
from parity_models.serving.served_model import ServedModel

WIDTH = 1000
FIELDS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}


def model(datatype: str = "INT64", max_rows: int = 30) -> ServedModel:
    spec = TensorSpec("x", datatype, (WIDTH,))
    return ServedModel("model", Signature.of(spec, spec), max_rows)


def request(datatype: str, rows: int, value: Any, *, raw: bool = False) -> bytes:
    message = ModelInferRequest(model_name="model", id="7")
    message.parameters["timeout"].int64_param = 5
    tensor = message.inputs.add(name="x", datatype=datatype, shape=(rows, WIDTH))
    message.outputs.add(name="x").parameters["a"].string_param = "b"
    if raw:
        message.raw_input_contents.append(bytes(8 * rows * WIDTH))
    else:
        getattr(tensor.contents, FIELDS[datatype]).extend([value] * (rows * WIDTH))
    return message.SerializeToString()


@pytest.mark.parametrize("datatype", FIELDS)
@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1])
def test_what_fits_the_model_passes_and_one_row_more_does_not(datatype: str, value: int) -> None:
    unsigned = datatype.startswith("UINT") or datatype == "BOOL"
    value = abs(value) if unsigned else value
    value = bool(value) if datatype == "BOOL" else value
    value = int(np.clip(value, -128, 127)) if datatype == "INT8" else value
    check_size(request(datatype, 30, value), model(datatype))
    with pytest.raises(TooLargeError, match="more than the 30000 values"):
        check_size(request(datatype, 31, value), model(datatype))


def test_raw_contents_are_not_looked_at() -> None:
    check_size(request("INT64", 30, 0, raw=True), model())


BLOWN_UP = {
    "empty inputs": b"\x2a\x00" * SMALL,
    "empty outputs": b"\x32\x00" * SMALL,
    "empty raw contents": b"\x3a\x00" * SMALL,
    "empty contents": b"\x2a\x80\x80\x01" + b"\x2a\x00" * 2**13,
    "unknown fields": b"\xf8\x07\x00" * SMALL,
    "values that are not packed": b"\x2a\x84\x80\x01\x2a\x80\x80\x01" + b"\x18\x00" * 2**13,
}


@pytest.mark.parametrize("name", BLOWN_UP)
def test_many_small_fields_are_refused(name: str) -> None:
    with pytest.raises(TooLargeError, match="more than 1000 fields"):
        check_size(BLOWN_UP[name], model())


@pytest.mark.parametrize(
    "message",
    [
        ModelInferRequest(model_name="m" * 2**17),
        ModelInferRequest(inputs=[{"shape": [1] * 2**17}]),
        ModelInferRequest(parameters={"a": InferParameter(string_param="b" * 2**17)}),
    ],
)
def test_much_besides_the_values_is_refused(message: ModelInferRequest) -> None:
    with pytest.raises(TooLargeError, match=f"more than {MAX_BESIDE} bytes besides"):
        check_size(message.SerializeToString(), model())


@pytest.mark.parametrize(
    "tail", [b"\x2a", b"\x2a\x05", b"\xff" * 20, b"\x0b\x0c", b"\x08", b"\x0d\x00"]
)
def test_what_is_no_message_is_refused(tail: bytes) -> None:
    whole = request("INT64", 3, 0, raw=True)
    with pytest.raises(InvalidRequestError, match=r"no inference\.ModelInferRequest"):
        check_size(whole + tail, model())


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2**15))
def test_no_bytes_are_fatal(junk: bytes, at: int) -> None:
    whole = bytearray(request("INT64", 30, 1))
    whole[at : at + len(junk)] = junk
    with suppress(InvalidRequestError, TooLargeError):
        check_size(bytes(whole), model())
