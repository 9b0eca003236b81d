"""What is no HTTP ends its connection, and nothing else."""

import socket
from contextlib import suppress

import httpx
import pytest

from http_served import get
from rest_requests import assert_served
from served import ServerProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff\x16\x03\x01 not HTTP at all\r\n\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/\xff\xfe/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        get("/v2/models/model/infer", "Transfer-Encoding: chunked\r\n", "POST") + b"zz\r\n",
        b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    ],
)
def test_malformed_http_ends_its_connection_only(
    http: httpx.Client, server: ServerProcess, text: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert not answer or b" 400 " in answer.split(b"\r\n")[0]
    assert_served(http)


def test_endless_headers_are_cut_off(http: httpx.Client, server: ServerProcess) -> None:
    for endless in (b"x" * 1000, b"X-More: and more\r\n" * 50):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-First: ")
            sent = 0
            with suppress(ConnectionError):
                while sent < 100 * 2**20:
                    connection.sendall(endless)
                    sent += len(endless)
            assert sent < 100 * 2**20
    assert_served(http)


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request % b"/v2/health/live" + request % b"/v2/models/model" + last)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    places = [answer.find(text) for text in (b'"live"', b'"platform"', b'"extensions"')]
    assert -1 < places[0] < places[1] < places[2]
