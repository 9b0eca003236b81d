"""The errors that a request can end with, with their statuses, and the reasons for refusals."""

import random
from enum import StrEnum
from typing import ClassVar

from parity_models.errors import ParityModelsError, UserError

SOON = 1.0
"""Seconds until a retry is worthwhile, if nothing better is known."""


class Refused(StrEnum):
    """The reason for refusing a request or a connection: the limit that it met, or its mistake.

    The set is fixed: no text of a client becomes a label of a metric.
    """

    MAX_CONNECTIONS = "max_connections"
    DESCRIPTORS = "descriptors"
    MAX_RPCS = "max_rpcs"
    MAX_BODY = "max_body"
    MAX_IN_FLIGHT = "max_in_flight"
    MAX_QUEUE = "max_queue"
    ADMISSION = "admission"
    UNAVAILABLE = "unavailable"
    STAND_IN = "stand_in"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    HEAD_SIZE = "head_size"
    PIPELINED = "pipelined"
    COSTLY = "costly"
    HTTP = "http"
    CONNECT = "connect"
    TRANSFER_CODING = "transfer_coding"
    CONTENT_ENCODING = "content_encoding"
    NOT_FOUND = "not_found"
    METHOD = "method"
    INVALID = "invalid"
    NOT_ACCEPTABLE = "not_acceptable"
    FORBIDDEN = "forbidden"


def soon() -> float:
    """Return the seconds until a refused client may retry, if nothing better is known. They are
    jittered, so that not all clients come at once."""
    return random.uniform(SOON, 2 * SOON)


class RequestError(ParityModelsError):
    """A request that gets no answer.

    `retry_after`: seconds until a retry can be expected to succeed, if it is worth trying again.
    `why`: the reason of a refusal, by default its class's; None: it was not refused.
    """

    status = 500
    refused: ClassVar[Refused | None] = None

    def __init__(
        self, message: str, *, retry_after: float | None = None, why: Refused | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.why = why or self.refused


class InvalidRequestError(RequestError, UserError):
    """A request that does not follow the protocol or does not fit the model."""

    status, refused = 400, Refused.INVALID


class RefusedError(RequestError, UserError):
    """A request refused with an HTTP status of its own: late, too long, or in a form that is not
    read or written here."""

    def __init__(self, message: str, status: int, why: Refused) -> None:
        super().__init__(message, why=why)
        self.status = status


class UnauthorizedError(RequestError, UserError):
    """A request without a valid token. Its text does not name the fault."""

    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized")


class ForbiddenError(RequestError, UserError):
    """A request to load or unload a model, by a web page or without an administrator's token."""

    status, refused = 403, Refused.FORBIDDEN


class NotFoundError(RequestError, UserError):
    """A model, a version or a path that is not here."""

    status, refused = 404, Refused.NOT_FOUND


class MethodError(RequestError, UserError):
    """A request with a method that its path does not take; `allow` names the right ones."""

    status = 405
    refused = Refused.METHOD

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLargeError(RequestError, UserError):
    """A request with more bytes or rows than the server takes at once."""

    status, refused = 413, Refused.COSTLY


class InferenceError(RequestError):
    """A query that failed on every instance that it was tried on."""


class UnavailableError(RequestError):
    """A server that is starting or stopping and takes no queries."""

    status, refused = 503, Refused.UNAVAILABLE


class NoStandInError(UnavailableError):
    """A request that a stand-in-only server cannot answer; `reason` is a word for proxies."""

    refused = Refused.STAND_IN

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class InternalError(RequestError):
    """A query that the server itself failed to handle."""


class PoisonError(RequestError):
    """A query that ends the instances that run it."""


class AbandonedError(RequestError):
    """A query whose client has given up."""

    status = 499


class OverloadedError(RequestError):
    """An overloaded server; a retry is worthwhile soon, unless a better time is known."""

    status, refused = 503, Refused.ADMISSION

    def __init__(
        self, message: str, *, retry_after: float | None = None, why: Refused | None = None
    ) -> None:
        super().__init__(
            message, retry_after=soon() if retry_after is None else retry_after, why=why
        )


class DeadlineError(RequestError):
    """A query whose deadline came before its answer."""

    status = 504
