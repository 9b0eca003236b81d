"""A request's id, and its line in the access log, whichever protocol it came by."""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from parity_models.serving.logs import ACCESS

if TYPE_CHECKING:
    from parity_models.serving.metrics import Metrics

REQUEST_ID = "x-request-id"
"""The header, and the gRPC metadata key, of a request's id, both ways."""

TRACEPARENT = "traceparent"
"""Likewise, of the trace that a request is part of (W3C Trace Context)."""

TRACESTATE = "tracestate"
"""Likewise, of what tracing systems add to the trace."""

MAX_ID = 128
"""Characters that an id may have."""

_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID}}}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PREFIX = secrets.token_hex(4)
_numbers = itertools.count(1)

_PATH = 200
"""Characters of a path that a line repeats."""

ACCESS_LOG = logging.getLogger(ACCESS)


class RequestLog:
    """A request, from the time its head came. `id` is from its headers, or made here.

    `id_in_body` takes the protocol's own id, which is used if there is no header. Once the request
    is answered, `sources` are those of its rows, and `model` and `version` those that answered;
    `metrics` are the model's, if it has its own. `span` is the request's OpenTelemetry span, if it
    is sampled; `trace_id` is its trace (W3C Trace Context), in hex, if any.
    """

    __slots__ = (
        *("_began", "_is_given", "_trace", "id", "method", "metrics", "model", "path", "sources"),
        *("span", "trace_id", "version"),
    )

    def __init__(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        given, traceparent = headers.get(REQUEST_ID), headers.get(TRACEPARENT)
        self.method = method
        self.path = path.partition("?")[0][:_PATH]
        self._is_given = given is not None and _ID.fullmatch(given) is not None
        self.id = given if given and self._is_given else f"{_PREFIX}-{next(_numbers):x}"
        self._began = time.monotonic()
        self.sources: Sequence[str] = ()
        self.model = self.version = ""
        self.metrics: Metrics | None = None
        self.span: Any = None
        found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        self.trace_id = "" if found is None else found[1]
        self._trace = (traceparent, headers.get(TRACESTATE)) if found else (None, None)

    def id_in_body(self, id: str) -> None:
        """Take the id in the body, unless the request had a header with one."""
        if not self._is_given and _ID.fullmatch(id):
            self.id, self._is_given = id, True

    @property
    def trace_headers(self) -> dict[str, str]:
        """The client's trace headers, to be passed on unchanged."""
        traceparent, tracestate = self._trace
        if traceparent is None:
            return {}
        if tracestate is None or _TRACESTATE.fullmatch(tracestate) is None:
            return {TRACEPARENT: traceparent}
        return {TRACEPARENT: traceparent, TRACESTATE: tracestate}

    def ended(self, status: int | str) -> None:
        """Write its line: how it ended, and the time since its head came."""
        if not ACCESS_LOG.isEnabledFor(logging.INFO):
            return
        seconds = time.monotonic() - self._began
        fields: dict[str, Any] = {
            "method": self.method,
            "path": self.path,
            "status": status,
            "seconds": round(seconds, 6),
            "request_id": self.id,
            "sources": list(self.sources),
        }
        text = f"{self.method} {self.path} {status} {seconds * 1e3:.1f} ms id={self.id}"
        if self.sources:
            text += f" sources={','.join(self.sources)}"
        if self.trace_id:
            text += f" trace={self.trace_id}"
            fields["trace_id"] = self.trace_id
        ACCESS_LOG.info("%s", text, extra={"fields": fields})


CURRENT: ContextVar[RequestLog | None] = ContextVar("CURRENT", default=None)
"""The request that is being answered, by the task that answers it."""


def request_id() -> str:
    """Return the id of the request that is being answered; "" if there is none."""
    current = CURRENT.get()
    return "" if current is None else current.id


def headers_for(requests: Iterable[RequestLog]) -> dict[str, str]:
    """Return the headers, or metadata, of a request to another server for these.

    Their ids are joined by commas, as many as MAX_ID allows. The trace is that of the first request
    that has one.
    """
    headers: dict[str, str] = {}
    for request in dict.fromkeys(requests):
        ids = f"{headers[REQUEST_ID]},{request.id}" if REQUEST_ID in headers else request.id
        if len(ids) <= MAX_ID:
            headers[REQUEST_ID] = ids
        if TRACEPARENT not in headers:
            headers |= request.trace_headers
    return headers
