"""Tensors survive the Open Inference Protocol's gRPC messages; what does not fit is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import parity_models.serving.grpc
from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.grpc.codec import FIELDS as CONTENTS
from parity_models.serving.grpc.codec import decode, read_request, write_response
from parity_models.serving.grpc.protos import ModelInferRequest, ModelInferResponse
from parity_models.serving.inference import InferRequest
from parity_models.serving.models import Result, ServedModel
from parity_models.tensors.signature import Signature, Tensor, TensorSpec
from rest_bodies import datatype_of, done, model_of


def request(array: NDArray[Any], raw: bool = True) -> ModelInferRequest:
    message = ModelInferRequest(model_name="model", id="7")
    tensor = message.inputs.add(name="x", datatype=datatype_of(array), shape=array.shape)
    if raw:
        message.raw_input_contents.append(array.tobytes())
    else:
        getattr(tensor.contents, CONTENTS[datatype_of(array)]).extend(array.ravel().tolist())
    return message


def read(message: ModelInferRequest, model: ServedModel) -> InferRequest:
    return read_request(message, list(message.raw_input_contents), model)


def test_half_precision_goes_raw_whatever_the_request_is_like() -> None:
    spec = TensorSpec("x", "INT64", (2,))
    half = np.array([[1, 2]], np.float16)
    model = ServedModel("model", Signature.of(spec, TensorSpec("y", "FP16", (2,))), max_rows=9)
    asked = read(request(np.array([[1, 2]]), raw=False), model)
    response = ModelInferResponse.FromString(
        done(write_response(asked, Result(half, [Source.MODEL])))
    )
    assert list(response.raw_output_contents) == [half.tobytes()]
    message = request(half)
    message.ClearField("raw_input_contents")
    with pytest.raises(InvalidRequestError, match="FP16, which has no typed contents"):
        done(read(message, model_of(half)).read_rows())


RAW = b"\x80\xf1\x04" + bytes(80_000)
"""The length of raw contents, and these."""
FIELDS = [
    ModelInferRequest(model_name="model").SerializeToString(),
    *(
        ModelInferRequest(
            inputs=[{"name": name, "datatype": "UINT8", "shape": (1, 80_000)}]
        ).SerializeToString()
        for name in "xy"
    ),
    *(b"\x3a" + RAW, b"\x3a" + RAW[:-1] + b"\x01"),
    *(b"\x7a\x03\x3a\x01\x07", b"\x78\x80\x07"),  # unknown
]


@given(st.permutations(range(len(FIELDS))))
def test_large_raw_contents_are_those_that_protobuf_would_read(order: list[int]) -> None:
    x, y = (Tensor(name, "UINT8", (80_000,)) for name in "xy")
    model = ServedModel("model", Signature((x, y), (x,)), max_rows=9)
    data = b"".join(FIELDS[each] for each in order)
    expected = read(ModelInferRequest.FromString(data), model)
    asked = read_request(*decode(data, model, 2**20), model)
    for name, tensor in expected.tensors.items():
        assert (cast(Any, asked.tensors[name]) == tensor).all()


def field(number: int, content: bytes) -> bytes:
    """A field of a length, which protobuf itself would write only so long as it has a name."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


MANY = 2**17
BESIDES = {
    "inputs": b"\x2a\x00" * MANY,
    "outputs": b"\x32\x00" * MANY,
    "parameters": b"\x22\x00" * MANY,
    "raw contents": b"\x3a\x00" * MANY,
    "a shape": field(5, field(3, b"\x01" * MANY)),
    "a shape, number by number": field(5, b"\x18\x01" * MANY),
    "parameters of an input": field(5, b"\x22\x00" * MANY),
    "a name": field(1, b"m" * MANY),
    "contents of too many inputs": field(5, field(5, bytes(2000))) * 100,
    "contents without an input": field(15, field(5, b"m" * MANY)),
}


@pytest.mark.parametrize("what", BESIDES)
def test_metadata_is_bounded(what: str) -> None:
    """Millions of anything take seconds to read, and a hundred times their bytes."""
    model = ServedModel("model", model_of(ARRAY).signature, max_rows=2**20)
    with pytest.raises(TooLargeError, match="besides its tensors it has at most 65536"):
        decode(BESIDES[what], model, 2**20)


ARRAY = np.arange(6, dtype=np.int16).reshape(2, 3)


def changed(raw: bool, **changes: Any) -> ModelInferRequest:
    message = request(ARRAY, raw)
    for path, value in changes.items():
        if path == "shape":
            message.inputs[0].shape[:] = value
        elif path == "inputs":
            message.inputs[0].parameters[value].string_param = "region"
        elif path == "outputs":
            message.outputs.add(name="x").parameters[value].int64_param = 3
        else:
            message.raw_input_contents[:] = value
    return message


def typed(field: str, values: list[Any]) -> ModelInferRequest:
    message = request(ARRAY, raw=False)
    getattr(message.inputs[0].contents, field)[:] = values
    return message


def with_parameter(name: str, **value: Any) -> ModelInferRequest:
    message = request(ARRAY)
    for key, content in value.items():
        setattr(message.parameters[name], key, content)
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ModelInferRequest(), "input 'x' is missing"),
        (changed(True, shape=[-1, 3]), r"got \[-1, 3\]"),
        (changed(True, raw_input_contents=[b"abc"]), r"3 bytes; INT16 of shape \[2, 3\] takes 12"),
        (changed(True, raw_input_contents=[b"", b""]), "has 2 raw_input_contents"),
        (changed(False, raw_input_contents=[ARRAY.tobytes()]), "or contents alone"),
        (typed("int_contents", [1]), r"has 1 int_contents; its shape \[2, 3\] takes 6"),
        (typed("int_contents", [0] * 5 + [2**15]), "numbers beyond INT16"),
        (typed("int64_contents", [0]), "1 int64_contents; INT16 goes into int_contents"),
        (changed(True, inputs="shared_memory_region"), "shared memory"),
        (changed(True, outputs="shared_memory_region"), "shared memory"),
        (changed(True, outputs="classification"), "classifications"),
        (with_parameter("timeout", int64_param=-1), "microseconds, 0 or more"),
        (with_parameter("timeout", string_param="5"), "microseconds, 0 or more"),
        (with_parameter("redundancy", string_param="no"), "'any' or 'exact', got 'no'"),
        (with_parameter("redundancy", bool_param=True), "'any' or 'exact', got True"),
        (with_parameter("redundancy", int64_param=0), "'any' or 'exact', got 0"),
        (with_parameter("tenant", string_param=""), "1 to 128 characters, got ''"),
        (with_parameter("tenant", int64_param=7), "1 to 128 characters, got 7"),
    ],
)
def test_requests_that_do_not_fit_are_refused(message: ModelInferRequest, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        done(read(message, model_of(ARRAY)).read_rows())


def test_rows_and_bytes_have_bounds() -> None:
    model = ServedModel("model", model_of(ARRAY).signature, max_rows=1)
    with pytest.raises(TooLargeError, match="2 rows"):
        read(request(ARRAY), model)
    truths = np.array([[True, False]])
    message = request(truths)
    message.raw_input_contents[0] = b"\x01\x02"
    with pytest.raises(InvalidRequestError, match="other than 0, 1"):
        read(message, model_of(truths))


def test_a_timeout_is_in_microseconds_and_zero_is_none() -> None:
    for kind, value, seconds in [
        ("int64_param", 1500, 0.0015),
        ("uint64_param", 1500, 0.0015),
        ("int64_param", 0, None),
    ]:
        asked = read(with_parameter("timeout", **{kind: value}), model_of(ARRAY))
        assert asked.timeout == seconds


def test_the_compiled_protos_are_those_of_the_sources(tmp_path: Path) -> None:
    folder = Path(parity_models.serving.grpc.__file__).parent
    made = tmp_path / "protos.binpb"
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}")
    sources = ("inference.proto", "health.proto", "reflection.proto")
    subprocess.run([*protoc, f"--descriptor_set_out={made}", *sources], check=True)
    new, old = (
        FileDescriptorSet.FromString(path.read_bytes()) for path in (made, folder / made.name)
    )
    assert new == old, "make protos"
