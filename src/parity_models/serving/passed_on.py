"""What other servers are told of the requests that a unit is for: their ids, and their trace."""

from collections.abc import Iterable, Mapping

from parity_models.scheduling import Run
from parity_models.serving.observer import Observer
from parity_models.serving.request_log import MAX_ID, REQUEST_ID, TRACEPARENT, RequestLog
from parity_models.serving.tensors import Tensors


def headers_of(unit: Run, tensors: Tensors, observer: Observer) -> Mapping[str, str]:
    """The headers, or metadata, of a request that has another server run the unit.

    What an observer has to say (a span of its own) goes before what clients said.
    """
    return {**headers_for(tensors.requests_of(unit)), **observer.headers(unit)}


def headers_for(requests: Iterable[RequestLog]) -> dict[str, str]:
    """The headers of a request to another server on behalf of these.

    It has the ids of as many of them as an id may be long, separated by commas, and the trace of
    the first that has one: there can be no other.
    """
    headers: dict[str, str] = {}
    for request in dict.fromkeys(requests):
        ids = f"{headers[REQUEST_ID]},{request.id}" if REQUEST_ID in headers else request.id
        if len(ids) <= MAX_ID:
            headers[REQUEST_ID] = ids
        if TRACEPARENT not in headers:
            headers |= request.trace_headers
    return headers
