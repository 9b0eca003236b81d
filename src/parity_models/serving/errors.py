"""What a request can end with instead of an answer. Each error carries its HTTP status."""

from collections.abc import Mapping
from typing import ClassVar

from parity_models.errors import ParityModelsError, UserError
from parity_models.scheduling import Reason


class RequestError(ParityModelsError):
    """A request that gets no answer.

    `retry_after`: seconds after which it can be expected to be served, if it is worth trying again.
    """

    status: ClassVar[int]

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequestError(RequestError, UserError):
    """A request that does not follow the protocol or does not fit the model."""

    status = 400


class UnauthorizedError(RequestError, UserError):
    """A request without a token that the server takes. Nobody is told what is wrong with it."""

    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized")


class ForbiddenError(RequestError, UserError):
    """A request that changes something, and that a web page has sent."""

    status = 403


class NotFoundError(RequestError, UserError):
    """A model, a version or a path that is not here."""

    status = 404


class NotAcceptableError(RequestError, UserError):
    """An answer that cannot be written in the form that was asked for."""

    status = 406


class LateRequestError(RequestError, UserError):
    """A request that did not come whole in time."""

    status = 408


class TooLargeError(RequestError, UserError):
    """A request with more bytes or rows than the server takes at once."""

    status = 413


class EncodingError(RequestError, UserError):
    """A body in a content encoding that the server does not read."""

    status = 415


class InferenceError(RequestError):
    """A query that every instance it was tried on failed to run."""

    status = 500


class UnavailableError(RequestError):
    """A server that is starting or stopping and takes no queries."""

    status = 503


class InternalError(RequestError):
    """A query that the server itself failed to handle."""

    status = 500


class PoisonError(RequestError):
    """A query whose runs end the instances that they are tried on."""

    status = 500


class AbandonedError(RequestError):
    """A query whose client has given up; nobody hears of it."""

    status = 499


class OverloadedError(RequestError):
    """A server that has so much to do or to hold that it takes no more for now."""

    status = 503


class DeadlineError(RequestError):
    """A query whose deadline came before its answer."""

    status = 504


ERRORS: Mapping[Reason, type[RequestError]] = {
    Reason.OVERLOADED: OverloadedError,
    Reason.NO_INSTANCES: UnavailableError,
    Reason.DEADLINE_EXCEEDED: DeadlineError,
    Reason.INSTANCES_FAILED: InferenceError,
    Reason.POISON: PoisonError,
    Reason.ABANDONED: AbandonedError,
    Reason.INTERNAL: InternalError,
}
"""The error of a query that the scheduler lets fail, by the reason."""
