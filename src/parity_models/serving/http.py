"""The HTTP server: uvicorn, for one application on one socket."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept for the client's next request."""

GRACE = 5
"""Seconds that a stopping server gives clients to send or fetch the rest of a message."""

MAX_HEAD = 64 * 2**10
"""Bytes that a request's line and headers may have, about."""


class HttpServer(uvicorn.Server):
    """Serves `app` until `should_exit` is set; then responses that are under way are finished."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the application logs its failures, the rest is clients'
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the business of who runs the process


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on what it keeps of a request before the application sees it."""

    _head = 0

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The request's headers are longer than {MAX_HEAD} bytes.")

    def on_headers_complete(self) -> None:
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def url_of(listening: socket.socket) -> str:
    """The base URL, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
