"""Decorated functions and clients of httpx give what they gave before, sooner."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

import parity_models as pm
from late_targets import MODEL, ROWS, SAID, CalmLate, HttpTarget, RefusedError, labelled
from parity_models.bundle.backup import GatedBackup
from parity_models.bundle.bundle import Bundle
from served import INFER, infer_message, predictions, queries


@dataclass
class Verdict:
    """What a function returns that asks a large model."""

    label: str
    tokens: int = 0


FORM = pm.Form(lambda verdict: verdict.label, Verdict)


async def test_a_decorated_function_returns_its_own_kind_of_result(bundle: Bundle) -> None:
    async with CalmLate(labelled(bundle), differ=0.01) as late:

        @late.answers(lambda rows, *, fails: rows, form=FORM)
        async def ask(rows: Any, *, fails: bool) -> Verdict:
            """Ask a large model."""
            if fails:
                raise RefusedError("no")
            return Verdict(SAID, 12)

        @late.answers(lambda rows, fails=False: rows)
        def label(rows: Any, fails: bool = False) -> str:
            if fails:
                raise RefusedError("no")
            return SAID

        assert (ask.__name__, ask.__doc__) == ("ask", "Ask a large model.")
        assert await ask(ROWS, fails=False) == Verdict(SAID, 12)
        assert await ask(ROWS, fails=True) == Verdict(SAID, 0)
        assert label(ROWS) == label(ROWS, fails=True) == SAID
        assert (late.counts["model"], late.counts["backup"]) == (2, 2)
        with pytest.raises(RefusedError):
            await ask(ROWS[:, :5], fails=True)


async def test_a_function_is_called_with_the_server_and_a_text_is_rows(bundle: Bundle) -> None:
    given: list[Any] = []

    class Backup(GatedBackup):
        def read(self, inputs: Any) -> Any:
            given.append(inputs)
            return super().read(ROWS)

    async with CalmLate(Backup(bundle, budgeted=True), servers=["a", "b"]) as late:

        @late.answers(lambda text: text)
        async def ask(server: str, text: str = "") -> Any:
            assert (server in "ab", text) == (True, "hello")
            return MODEL

        with pm.testing("backup"):
            await ask("hello")
    (array,) = given
    assert (array.dtype, array.tolist()) == (object, ["hello"])


# httpx


def scores(response: httpx.Response) -> Any:
    (output,) = response.raise_for_status().json()["outputs"]
    return np.reshape(output["data"], output["shape"])


def check_answers(first: httpx.Response, second: httpx.Response) -> None:
    """The first is the model's, the second a stand-in's."""
    for response, times, source, least in ((first, 1, "model", 1.0), (second, 2, "backup", 0.8)):
        np.testing.assert_allclose(
            scores(response), times * predictions(queries(2)), rtol=1e-3, atol=1e-5
        )
        assert response.headers["x-parm-source"] == source
        assert least <= float(response.headers["x-parm-agreement"]) <= 1
        assert response.elapsed.total_seconds() > 0
        assert response.request.url.path == INFER


MESSAGE = infer_message(queries(2))


async def test_an_async_httpx_client_gets_responses_with_headers(bundle: Bundle) -> None:
    target = HttpTarget()
    late = CalmLate(bundle, differ=0.1)
    transport = pm.LateTransport(late, "model", target)
    async with late, httpx.AsyncClient(base_url="http://a", transport=transport) as client:
        first = await client.post(INFER, json=MESSAGE)
        target.fails = True
        message = {**MESSAGE, "id": "7", "outputs": [{"name": "output"}]}
        second = await client.post(INFER, json=message)
        check_answers(first, second)
        assert second.json()["id"] == "7"
        async with client.stream("POST", INFER, json=MESSAGE) as streamed:
            assert await streamed.aread()
        with pytest.raises(httpx.ConnectError):
            await client.post(INFER, json=infer_message(queries(2)[:, :5]))


def test_an_httpx_client_gets_responses_with_headers(bundle: Bundle) -> None:
    target = HttpTarget()
    with CalmLate(bundle, differ=0.1) as late:
        transport = pm.LateTransport(late, "model", target)
        with httpx.Client(base_url="http://a", transport=transport) as client:
            first = client.post(INFER, json=MESSAGE)
            target.fails = True
            check_answers(first, client.post(INFER, json=MESSAGE))


async def test_headers_of_a_server_that_names_its_sources_are_kept(bundle: Bundle) -> None:
    target = HttpTarget()
    target.headers = {"x-parm-source": "reconstruction", "x-parm-agreement": "0.97"}
    async with CalmLate(bundle) as late:
        transport = pm.LateTransport(late, "model", target)
        async with httpx.AsyncClient(base_url="http://a", transport=transport) as client:
            headers = (await client.post(INFER, json=MESSAGE)).headers
    assert (headers["x-parm-source"], headers["x-parm-agreement"]) == ("reconstruction", "0.97")


OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"url": "/v2/models/other/infer"},
    "another path": {"url": "/v2/models/model/ready", "method": "GET", "json": None},
    "parameters": {"json": infer_message(queries(2), redundancy="exact")},
    "a tensor's parameters": {
        "json": {"inputs": [{**MESSAGE["inputs"][0], "parameters": {"binary_data_size": 4}}]}
    },
    "another output": {"json": {**MESSAGE, "outputs": [{"name": "hidden"}]}},
    "an output's parameters": {
        "json": {**MESSAGE, "outputs": [{"name": "output", "parameters": {"classification": 3}}]}
    },
    "binary tensors": {"json": None, "content": json.dumps(MESSAGE).encode() + b"\0\0\0\0"},
    "other JSON": {"json": [1]},
    "no JSON": {"json": None, "content": b"\xff"},
}


@pytest.mark.parametrize("request_", OTHERS.values(), ids=OTHERS)
async def test_other_requests_pass_untouched(bundle: Bundle, request_: dict[str, Any]) -> None:
    target = HttpTarget()
    async with CalmLate(bundle) as late:
        given = {"method": "POST", "url": INFER, "json": MESSAGE, **request_}
        for kind in (httpx.Client, httpx.AsyncClient):
            client = kind(base_url="http://a", transport=pm.LateTransport(late, "model", target))
            request = client.build_request(**given)
            sent = client.send(request)
            response = sent if isinstance(sent, httpx.Response) else await sent
            assert target.requests.pop() is request
            assert "x-parm-source" not in response.headers
        assert not late.counts["calls"]


def test_a_streamed_request_passes_unread(bundle: Bundle) -> None:
    target = HttpTarget()
    with CalmLate(bundle) as late:
        with httpx.Client(transport=pm.LateTransport(late, "model", target)) as client:
            client.post(f"http://a{INFER}", content=iter([json.dumps(MESSAGE).encode()]))
        assert (len(target.requests), late.counts["calls"]) == (1, 0)
