"""Tensors survive the Open Inference Protocol's REST bodies; what does not fit is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models.serving.errors import RefusedError
from parity_models.serving.protocol import InferRequest, read_request, write_response
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
            np.testing.assert_array_equal(done(read.read_rows()), rows)
            head, data = done(write_response(read, rows, sources))
            answers.append((head, b"".join(data), read.answer_size()))
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


def test_json_with_room_to_spare_is_read() -> None:
    array = np.arange(20_000, dtype=np.float64).reshape(2, 10_000) / 7
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP64", "data": array.tolist()}
    for indent in (None, 8):
        for message in (tensor, dict(sorted(tensor.items()))):
            body = json.dumps({"inputs": [message]}, indent=indent).encode()
            rows = done(read_request(body, None, model_of(array)).read_rows())
            np.testing.assert_array_equal(rows, array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_json_cannot_say_are_refused_and_binary_is_named(value: float) -> None:
    outputs = np.array([[value, 1]], np.float32)
    with pytest.raises(RefusedError, match="binary_data_output"):
        done(write_response(asking(outputs, False), outputs, [Source.MODEL]))
    _, data = done(write_response(asking(outputs, True), outputs, [Source.MODEL]))
    assert b"".join(data) == outputs.tobytes()


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, None, False),
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": True}, [], True),
        ({"binary_data_output": True}, [{"name": "x"}], True),
        (
            {"binary_data_output": True},
            [{"name": "x", "parameters": {"binary_data": False}}],
            False,
        ),
        ({}, [{"name": "x", "parameters": {"binary_data": True}}], True),
        ({}, [{"name": "x", "parameters": None}], False),
    ],
)
def test_outputs_may_be_binary(parameters: dict[str, bool], outputs: object, binary: bool) -> None:
    array = np.zeros((1, 2), np.float32)
    body = request(array, parameters=parameters, outputs=outputs)
    (asked,) = read_request(*body, model_of(array)).outputs
    assert asked.binary is binary


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
