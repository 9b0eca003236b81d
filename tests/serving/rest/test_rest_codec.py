"""Tensors survive the Open Inference Protocol's REST bodies; what does not fit is refused."""

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import RefusedError, RequestError, TooLargeError
from parity_models.serving.inference import InferRequest
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.rest_codec import read_request, write_response
from parity_models.tensors.signature import DATATYPES, Signature, TensorSpec
from rest_bodies import done, model_of, request


def asking(array: NDArray[Any], binary: bool) -> InferRequest:
    return read_request(*request(array, parameters={"binary_data_output": binary}), model_of(array))


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.sampled_from([None, "a"]))))
def test_json_read_before_is_read_the_same(asked: list[tuple[int, bool, str | None]]) -> None:
    shared = model_of(np.zeros((1, 3), np.float32))
    for number, (count, alone, id) in enumerate(asked):
        rows = np.full((count, 3), number, np.float32)
        more: dict[str, Any] = {} if id is None else {"id": id}
        body, length = request(rows, parameters={"binary_data_output": True}, **more)
        sources = [Source.MODEL if alone else Source.RECONSTRUCTION] * count
        answers = []
        for model in (shared, model_of(rows)):
            read = read_request(body, length, model)
            found = done(read.read_rows()) if read.rows is None else read.rows
            np.testing.assert_array_equal(found, rows)
            head, data = done(write_response(read, Result(rows, sources)))
            answers.append((head, b"".join(data), read.answer_size or read.measure_answer()))
        assert answers[0] == answers[1]


def test_the_json_objects_that_a_model_knows_are_bounded() -> None:
    rows = np.zeros((1, 3), np.float32)
    model = model_of(rows)
    for timeout in range(1, 1000):
        read_request(*request(rows, parameters={"timeout": timeout}), model)
        binary = {"timeout": timeout, "binary_data_output": True}
        assert read_request(*request(rows, parameters=binary), model).timeout == timeout / 1e6
        assert 1 <= len(model.known) <= 100


def test_binary_inputs_are_views_of_the_body() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    body, length = request(array)
    rows = done(read_request(body, length, model_of(array)).read_rows())
    assert np.shares_memory(rows, np.frombuffer(body, np.uint8))


def test_a_small_row_does_not_keep_a_large_body_alive() -> None:
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    header = request(array)[0][: -array.nbytes] + b" " * 60_000
    for body in (header + array.tobytes(), bytearray(header + array.tobytes())):
        rows = done(read_request(body, str(len(header)), model_of(array)).read_rows())
        np.testing.assert_array_equal(rows, array)
        assert not rows.flags.writeable
        assert not np.shares_memory(rows, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_json_cannot_say_are_refused_and_binary_is_named(value: float) -> None:
    outputs = np.array([[value, 1]], np.float32)
    with pytest.raises(RefusedError, match="binary_data_output"):
        done(write_response(asking(outputs, False), Result(outputs, [Source.MODEL])))
    _, data = done(write_response(asking(outputs, True), Result(outputs, [Source.MODEL])))
    assert b"".join(data) == outputs.tobytes()


def test_an_output_s_own_parameter_goes_before_the_request_s() -> None:
    array = np.zeros((1, 2), np.float32)
    outputs = [{"name": "x", "parameters": {"binary_data": False}}]
    body = request(array, parameters={"binary_data_output": True}, outputs=outputs)
    (asked,) = read_request(*body, model_of(array)).outputs
    assert not asked.binary


def test_parameters_are_those_of_the_protocol_and_two_of_our_own() -> None:
    array = np.zeros((1, 2), np.float32)
    for parameters, timeout, exact, tenant in [
        ({"priority": 1, "sequence_id": 3}, None, False, None),
        ({"timeout": 0, "redundancy": None, "tenant": None}, None, False, None),
        ({"timeout": 1500, "redundancy": "any"}, 0.0015, False, None),
        ({"redundancy": "exact", "tenant": "é" * 128}, None, True, "é" * 128),
    ]:
        asked = read_request(*request(array, parameters=parameters), model_of(array))
        assert (asked.timeout, asked.exact, asked.tenant) == (timeout, exact, tenant)


# What does not fit


def read(body: bytes, length: str | None, model: ServedModel) -> None:
    done(read_request(body, length, model).read_rows())


def test_a_json_object_before_binary_data_has_a_limit() -> None:
    array = np.zeros((1, 4), np.float32)
    body, _ = request(array)
    header = body[: -array.nbytes] + b" " * 2**16
    with pytest.raises(TooLargeError, match="it may have 65536"):
        read(header + array.tobytes(), str(len(header)), model_of(array))


X = {"name": "x", "shape": [2, 3], "datatype": "FP32"}
DATA = [1, 2, 3, 4, 5, 6]


def bad(**changes: object) -> dict[str, object]:
    return {"inputs": [{**X, "data": DATA, **changes}]}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([], "Expected `object`"),
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "input 'x' is missing"),
        ({"inputs": [{**X, "data": DATA}] * 2}, "given 2 times"),
        (bad(name="y"), "no input 'y'; its input is 'x', FP32 [-1, 3]"),
        (bad(datatype="FP64"), "has datatype FP32, got 'FP64'"),
        (bad(shape=[]), "one row or more, got []"),
        (bad(shape=[2, 3, 1]), "got [2, 3, 1]"),
        (bad(shape=[0, 3], data=[]), "one row or more, got [0, 3]"),
        (bad(shape=[2.0, 3]), "Expected `int`"),
        (bad(shape=[10**30, 3]), "takes up to 5 at once"),
        (bad(shape=[6, 3]), "takes up to 5 at once"),
        (bad(data=DATA[1:]), "must be flat, with 6 elements"),
        (bad(data=[DATA]), "nested as [2, 3]"),
        (bad(data=[[1, 2, 3], [4, 5]]), "ragged"),
        (bad(data=[[1, 2, 3], 4]), "ragged"),
        (bad(data=["1", 2, 3, 4, 5, 6]), "or not only numbers"),
        (bad(data=[1e39, 2, 3, 4, 5, 6]), "numbers beyond FP32"),
        (bad(data="AAAA"), "or not only numbers"),
        ({"inputs": [X]}, "either data, or a binary_data_size of 24 bytes"),
        (bad(parameters={"binary_data_size": 24}), "either data, or a binary_data_size"),
        (bad(parameters={"binary_data_size": "24"}), "Expected `int | null`"),
        (bad(parameters={"shared_memory_region": "r"}), "shared memory"),
        ({**bad(), "outputs": [{"name": "z"}]}, "no output 'z'; its output is 'y'"),
        ({**bad(), "outputs": [{"name": "y"}] * 2}, "output 'y' is given 2 times"),
        ({**bad(), "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classific"),
        ({**bad(), "parameters": {"timeout": -1}}, "Expected `int` >= 0"),
        ({**bad(), "parameters": {"timeout": 10**400}}, "Expected `int` <= 9223372036854775807"),
        ({**bad(), "parameters": {"redundancy": "none"}}, "'any' or 'exact', got 'none'"),
        ({**bad(), "parameters": {"redundancy": True}}, "Expected `str | null`, got `bool`"),
        ({**bad(), "parameters": {"redundancy": ["exact"] * 999}}, "null`, got `array`"),
        ({**bad(), "parameters": {"tenant": ""}}, "1 to 128 characters, got ''"),
        ({**bad(), "parameters": {"tenant": 7}}, "Expected `str | null`, got `int`"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(message: object, reason: str) -> None:
    model = ServedModel(
        "model",
        Signature.of(TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", (2,))),
        max_rows=5,
    )
    with pytest.raises(RequestError) as refusal:
        read(msgspec.json.encode(message), None, model)
    assert reason in str(refusal.value)
    assert 400 <= refusal.value.status < 500


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b'{"inputs": [1, 2,]}',
        b'{"inputs": "\xff"}',
        b'{"id": "\\ud800"}',
        b'{"inputs":' + b"[" * 100_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[Infinity,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1e999,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1'
        + b"0" * 400
        + b",1]}]}",
    ],
)
def test_invalid_json_is_refused(text: bytes) -> None:
    model = model_of(np.zeros((1, 2), np.float32))
    with pytest.raises(RequestError, match="cannot be read"):
        read(text, None, model)


@pytest.mark.parametrize(
    ("datatype", "value", "reason"),
    [
        ("INT8", 128, "beyond INT8"),
        ("INT8", -129, "beyond INT8"),
        ("UINT8", -1, "beyond UINT8"),
        ("UINT8", 1.5, "Expected `int`"),
        ("INT64", 2**63, "beyond INT64"),
        ("INT64", -(2**80), "beyond INT64"),
        ("UINT64", 2**64, "beyond UINT64"),
        ("UINT64", -1, "beyond UINT64"),
        ("FP16", 65520, "beyond FP16"),
        ("BOOL", 1, "Expected `bool`"),
    ],
)
def test_numbers_beyond_the_datatype_are_refused(datatype: str, value: float, reason: str) -> None:
    array = np.zeros((1, 1), DATATYPES[datatype])
    with pytest.raises(RequestError, match=re.escape(reason)):
        read(*request(array, [value]), model_of(array))


def test_binary_bodies_of_the_wrong_size_are_refused() -> None:
    array = np.zeros((2, 3), np.float32)
    model = model_of(array)
    body, length = request(array)
    assert length is not None
    short = msgspec.json.encode({"inputs": [{**X, "parameters": {"binary_data_size": 20}}]})
    both = msgspec.json.encode({"inputs": [{**X, "data": DATA}]})
    for text, header_length, reason in [
        (body, None, "cannot be read"),
        (body[: int(length)], None, "the header Inference-Header"),
        (body[:-1], length, "23 bytes follow the JSON object; inputs with a"),
        (body + b"\0", length, "25 bytes follow"),
        (body, "9999", "but the body has"),
        (body, "-1", "not a length"),
        (body, "1e2", "not a length"),
        (body, "", "not a length"),
        (body, "²", "not a length"),
        (body, "9" * 5000, "not a length"),
        (body, str(int(length) - 1), "cannot be read"),
        (body, "0", "cannot be read"),
        (short + bytes(20), str(len(short)), "of 24 bytes"),
        (both + bytes(24), str(len(both)), "a binary_data_size take 0"),
    ]:
        with pytest.raises(RequestError, match=re.escape(reason)):
            read(text, header_length, model)


def test_binary_booleans_are_zeros_and_ones() -> None:
    array = np.zeros((1, 3), np.bool_)
    body, length = request(array)
    with pytest.raises(RequestError, match="other than 0, 1"):
        read(body[:-1] + b"\2", length, model_of(array))


@given(st.binary(), st.one_of(st.none(), st.text(max_size=5), st.integers(0, 40).map(str)))
def test_arbitrary_bytes_are_refused_with_a_reason(body: bytes, length: str | None) -> None:
    with pytest.raises(RequestError):
        read(body, length, model_of(np.zeros((1, 2), np.float32)))
