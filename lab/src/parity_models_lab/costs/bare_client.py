"""The least that a client can be: a bare socket that is kept open, with headers written once.

Its own work counts in whatever latency is measured with it; a client library's would be more.
"""

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.load.wire import HEADER_LENGTH, ModelMetadata, RequestWriter, read_answers

TIMEOUT = 10.0
"""Seconds a server has for each part of an answer."""


class BareConnection:
    """One connection that POSTs to one URL, with the same headers each time."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        at = urlsplit(url)
        self._socket = socket.create_connection((at.hostname, at.port), timeout=TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [f"POST {at.path} HTTP/1.1", f"Host: {at.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode()

    def post(self, body: bytes) -> tuple[dict[str, str], bytes]:
        """The answer: headers (names in lower case) and content.

        Raises LoadError if the server refuses, breaks the connection or takes too long.
        """
        try:
            return self._post(body)
        except OSError as error:
            raise LoadError(f"the connection broke: {error}") from error

    def _post(self, body: bytes) -> tuple[dict[str, str], bytes]:
        self._socket.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        received = b""
        while b"\r\n\r\n" not in received:
            received = self._receive(received)
        head, _, content = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(content) < int(headers["content-length"]):
            content = self._receive(content)
        if " 200 " not in status:
            raise LoadError(f"the server answered {status}: {content[:200]!r}")
        return headers, content

    def _receive(self, so_far: bytes) -> bytes:
        received = self._socket.recv(1 << 16)
        if not received:
            raise LoadError("the server closed the connection")
        return so_far + received

    def close(self) -> None:
        self._socket.close()


class BareClient:
    """One connection that infers one row at a time over the Open Inference Protocol."""

    def __init__(self, url: str, model: ModelMetadata) -> None:
        self._model = model
        self._writer = RequestWriter(model)
        (tensor,) = model.inputs
        _, headers = self._writer.rows(np.zeros((1, *tensor.shape), tensor.dtype))
        self._connection = BareConnection(url + model.path, headers)

    def infer(self, row: NDArray[Any]) -> NDArray[Any]:
        """The model's output for one row. Raises LoadError if there is none."""
        body, _ = self._writer.rows(row[np.newaxis])
        headers, content = self._connection.post(body)
        answers = read_answers(self._model, 1, content, headers[HEADER_LENGTH.lower()])
        output: NDArray[Any] = answers.outputs[0]
        return output

    def close(self) -> None:
        self._connection.close()
