"""What is refused over HTTP is counted, by the limit that it met or by what is wrong with it."""

from typing import Any

import numpy as np
import pytest

from http_served import INFER, Served, binary, body, eventually, get, post, serving
from parity_models.serving.refusals import Refused

LOAD = "/v2/repository/models/model/load"
CASES = {
    Refused.HTTP: (b"nonsense\r\n\r\n", 400, "HTTP/1.1"),
    Refused.HEAD_SIZE: (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431, "65536"),
    Refused.CONNECT: (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "no proxy"),
    Refused.TRANSFER_CODING: (
        get(INFER, "Transfer-Encoding: gzip, chunked\r\n", "POST"),
        501,
        "transfer coding",
    ),
    Refused.CONTENT_ENCODING: (
        get(INFER, "Content-Encoding: br\r\nContent-Length: 1\r\n", "POST") + b".",
        415,
        "content encoding",
    ),
    Refused.NOT_FOUND: (get("/nowhere"), 404, "nothing is at /nowhere"),
    Refused.METHOD: (post(b"", path="/v2"), 405, "method POST"),
    Refused.FORBIDDEN: (
        post(b"", "Origin: http://evil\r\n", LOAD),
        403,
        "",
    ),
    Refused.INVALID: (post(b"[]"), 400, ""),
    Refused.COSTLY: (post(b" " * 900_000), 413, ""),
    Refused.MAX_BODY: (
        get(INFER, "Content-Length: 1000001\r\n", "POST"),
        413,
        "1000000 bytes this server takes at once (max_body)",
    ),
    Refused.ADMISSION: (post(body(-2, 0, 0, 0)), 503, "too much waits"),
    Refused.HEAD_TIMEOUT: (b"GET /v2 HTTP/1.1\r\nX", 408, "head_timeout of 0.4 s"),
    Refused.BODY_TIMEOUT: (
        get(INFER, "Content-Length: 9\r\n", "POST"),
        408,
        "body_timeout of 0.3 s",
    ),
}


def refused(served: Served) -> dict[str, float]:
    """What was counted, by why."""
    counts = {each.value: served.counted("parm_refused_total", why=each) for each in Refused}
    return {why: count for why, count in counts.items() if count}


@pytest.mark.parametrize(("why", "case"), CASES.items(), ids=list(CASES))
async def test_it_is_counted_once_and_told(why: Refused, case: tuple[bytes, int, str]) -> None:
    sent, status, text = case
    short: dict[Refused, dict[str, Any]] = {
        Refused.HEAD_TIMEOUT: {"head_timeout": 0.4},
        Refused.BODY_TIMEOUT: {"body_timeout": 0.3},
    }
    async with serving(max_body=10**6, **short.get(why, {})) as served:
        client = await served.connect()
        client.send(sent)
        told, _, content = await client.answer()
        assert (told, text in content.decode()) == (status, True), content
        client.close()
        assert refused(served) == {why: 1}


async def test_what_json_cannot_say_is_counted() -> None:
    async with serving() as served:
        client = await served.connect()
        nan = np.full((1, 4), np.nan, np.float32)
        client.send(
            binary(nan).replace(b'"binary_data_output": true', b'"binary_data_output": null')
        )
        status, _, content = await client.answer()
        assert (status, b"not finite" in content) == (406, True)
        assert refused(served) == {"not_acceptable": 1}


@pytest.mark.parametrize("rows", [1, 2000])
async def test_bytes_are_counted_both_ways(rows: int) -> None:
    """Small answers go out in one piece with their head, large ones in two."""
    async with serving() as served:
        client = await served.connect()
        values = np.random.default_rng(0).random((rows, 4), np.float32)
        asked = [
            binary(values).replace(b'"binary_data_output": true', b'"binary_data_output": null'),
            get("/nowhere"),
        ]
        read = []
        for each in asked:
            client.send(each)
            head = await client.reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            read.append(len(head) + len(await client.reader.readexactly(size)))
        assert (read[0] > 64 * 2**10) == (rows == 2000)
        received = sum(map(len, asked))
        await eventually(  # they are counted now and then
            lambda: served.counted("parm_received_bytes_total", protocol="http") == received,
            "not all bytes are counted",
        )
        assert served.counted("parm_sent_bytes_total", protocol="http") == sum(read)
