"""What costs the server far more than its client is refused before it costs anything."""

import pytest

from http_served import INFER, body, eventually, get, post, serving
from parity_models.models.signature import Signature, TensorSpec
from parity_models.serving.errors import TooLargeError
from parity_models.serving.models import ServedModel
from parity_models.serving.protocol import read_request
from parity_models.serving.v1 import read_predict

X = TensorSpec("x", "FP32", (64,))
MODEL = ServedModel("model", Signature.of(X, TensorSpec("y", "FP32", (2,))), max_rows=1000)
MANY = 2**19
"""More values than a request to the model has, in fewer bytes than it may have."""


def infer(**changes: bytes) -> bytes:
    """A request whose JSON has these texts in place of its own."""
    tensor = {"name": b'"x"', "datatype": b'"FP32"', "shape": b"[1000,64]", "data": b"[0]"}
    tensor |= {key: value for key, value in changes.items() if key in tensor}
    # A shape that comes first says how much may follow, wherever it is.
    message = {"anything": b'{"shape":[1000]}'}
    message |= {key: value for key, value in changes.items() if key not in tensor}
    message["inputs"] = b"[" + _object(tensor) + b"]"
    return _object(message)


def _object(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (k.encode(), v) for k, v in fields.items()) + b"}"


def _list(value: bytes, times: int = MANY) -> bytes:
    return b"[" + b",".join([value] * times) + b"]"


@pytest.mark.parametrize(
    "changes",
    [
        {"data": _list(b"0")},
        {"shape": _list(b"1")},
        {"outputs": _list(b"{}")},
        {"parameters": b'{"tenant":' + _list(b"0") + b"}"},
        {"parameters": b'{"anything":' + _list(b"0") + b"}"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_json_of_more_values_than_a_request_has_is_refused_unread(
    changes: dict[str, bytes],
) -> None:
    with pytest.raises(TooLargeError, match=r"the request has \d+ values in its JSON; 1000 rows"):
        read_request(infer(**changes), None, MODEL)
    with pytest.raises(TooLargeError, match=r"values in its JSON"):
        read_predict(infer(**changes), MODEL)


async def test_what_was_only_declared_keeps_nobody_out() -> None:
    async with serving(max_body=900, max_in_flight=1000) as served:
        idle = [await served.connect() for _ in range(20)]
        for each in idle:
            each.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{{".encode())
        await eventually(lambda: served.budget.held == 20, "they do not arrive")
        client = await served.connect()
        client.send(post(body()))
        assert (await client.answer())[0] == 200
        idle[0].send(b" " * 400)
        await eventually(lambda: served.budget.held == 420, "it does not arrive")
        client.send(post(b" " * 900))  # there is no room for as much
        status, _, content = await client.answer()
        assert (status, b"900 more would exceed the 1000" in content) == (503, True)
        # Nor is there for all that those send that have begun.
        for each in idle:
            each.send(b" " * 200)
        refused = "parm_requests_total"
        await eventually(lambda: served.counted(refused, code="503") > 5, "nobody is refused")
        assert served.budget.held <= 1000
        for each in idle:
            each.close()


@pytest.mark.parametrize("version", ["1.x", "nothing", "9" * 5000, "1.0.0.\xe9"])
async def test_metrics_are_told_whatever_version_is_accepted(version: str) -> None:
    async with serving() as served:
        client = await served.connect()
        for kind in ("text/plain", "application/openmetrics-text"):
            accept = f"Accept: {kind}; version={version}\r\n"
            client.send(get("/metrics", accept))
            status, _, content = await client.answer()
            assert status == 200
            assert b"parm_requests" in content
        client.close()


async def test_web_pages_load_and_unload_no_models() -> None:
    async with serving() as served:
        client = await served.connect()
        for what in ("load", "unload"):
            path = f"/v2/repository/models/model/{what}"
            for more, status in ("Origin: http://evil.example\r\n", 403), ("Origin: null\r\n", 403):
                client.send(post(b"{}", more, path))
                found, _, content = await client.answer()
                assert (found, b"web pages" in content) == (status, True)
            client.send(post(b"{}", path=path))
            assert (await client.answer())[0] == 400  # as the server has no repository
        client.send(post(b" " * 2**17, path="/v2/repository/models/model/load"))
        assert (await client.answer())[0] == 413
        client.close()
