"""The V1 prediction protocol, as TensorFlow Serving, KServe and Vertex AI speak it."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_served import MODEL, Served, serving
from parity_models.scheduling import Source
from parity_models.serving.errors import NotAcceptableError, RequestError
from parity_models.serving.frontend import Result
from parity_models.serving.v1 import read_predict, write_predictions
from rest_bodies import done

PREDICT = "/v1/models/model:predict"
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROW = st.lists(FLOATS, min_size=4, max_size=4)
ROWS = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(max_body=20_000) as served:
        yield served


async def ask(served: Served, path: str, content: Any = None, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=served.url) as client:
        if content is None:
            return await client.get(path)
        return await client.post(path, content=content, **more)


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/model/versions/1:predict"])
@pytest.mark.parametrize("instances", [ROWS, [{"x": row} for row in ROWS]])
async def test_instances_get_predictions(served: Served, path: str, instances: list[Any]) -> None:
    body = json.dumps({"signature_name": "serving_default", "instances": instances})
    answer = await ask(served, path, body)
    assert answer.json() == {"predictions": ROWS}
    assert answer.headers["x-parm-source"] == "model"
    assert served.counted("parm_requests_total", code="200") == 1


@pytest.mark.parametrize("inputs", [ROWS, {"x": ROWS}])
async def test_inputs_are_answered_by_outputs(served: Served, inputs: Any) -> None:
    answer = await ask(served, PREDICT, json.dumps({"inputs": inputs}))
    assert answer.json() == {"outputs": ROWS}


async def test_models_say_whether_they_are_ready(served: Served) -> None:
    assert (await ask(served, "/v1/models")).json() == {"models": ["model"]}
    for path in ("/v1/models/model", "/v1/models/model/versions/1"):
        about = (await ask(served, path)).json()
        assert (about["name"], about["ready"]) == ("model", True)
        (version,) = about["model_version_status"]
        assert (version["version"], version["state"]) == ("1", "AVAILABLE")
    served.echo.ready = False
    answer = await ask(served, "/v1/models/model")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert (await ask(served, "/v1/models/other")).status_code == 404
    assert (await ask(served, "/v1/models/other:predict", b"{}")).status_code == 404
    assert (await ask(served, PREDICT)).status_code == 405


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({}, "either instances"),
        ({"instances": ROWS, "inputs": ROWS}, "either instances"),
        ({"instances": []}, "with one row or more"),
        ({"instances": 3}, "cannot be read"),
        ({"instances": [[1, 2, 3]]}, "has shape"),
        ({"instances": [[1, 2, 3, 4], [1, 2]]}, "is ragged"),
        ({"instances": [["a"]]}, "cannot be read"),
        ({"instances": [{"y": ROWS[0]}]}, "has the one input 'x'"),
        ({"instances": [{"x": ROWS[0]}, ROWS[1]]}, "cannot be read"),
        ({"inputs": {"x": ROWS, "y": ROWS}}, "has the one input 'x'"),
        ({"instances": ROWS, "parameters": {"timeout": -1}}, "cannot be read"),
    ],
)
async def test_mistakes_are_told(served: Served, message: Any, wrong: str) -> None:
    answer = await ask(served, PREDICT, json.dumps(message))
    assert answer.status_code == 400
    assert wrong in answer.json()["error"]
    assert served.counted("parm_requests_total", code="400") == 1


def test_parameters_say_what_they_say_in_the_other_protocol() -> None:
    asked = read_predict(
        json.dumps(
            {"instances": ROWS, "parameters": {"timeout": 5000, "redundancy": "exact"}}
        ).encode(),
        MODEL,
    )
    assert (asked.timeout, asked.exact) == (0.005, True)


def test_what_json_cannot_say_is_refused() -> None:
    asked = read_predict(json.dumps({"instances": ROWS}).encode(), MODEL)
    answers = Result(np.full((2, 4), np.nan), [Source.MODEL] * 2)
    with pytest.raises(NotAcceptableError, match="not finite"):
        done(write_predictions(asked, answers))


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4
        ),
        min_size=1,
    )
)
def test_rows_are_what_was_sent_in_all_forms(rows: list[list[float]]) -> None:
    for message in (
        {"instances": rows},
        {"instances": [{"x": row} for row in rows]},
        {"inputs": rows},
        {"inputs": {"x": rows}},
    ):
        asked = read_predict(json.dumps(message).encode(), MODEL)
        assert asked.by_row == ("instances" in message)
        np.testing.assert_array_equal(done(asked.read_rows()), np.array(rows, np.float32))


@given(st.binary() | st.text().map(str.encode))
def test_whatever_is_sent_is_read_or_refused(body: bytes) -> None:
    with suppress(RequestError):
        done(read_predict(body, MODEL).read_rows())
