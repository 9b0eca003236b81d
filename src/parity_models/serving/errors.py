"""The errors that a request can end with. Each carries its HTTP status."""

from typing import ClassVar

from parity_models.errors import ParityModelsError, UserError
from parity_models.serving.refusals import Refused, soon


class RequestError(ParityModelsError):
    """A request that gets no answer.

    `retry_after`: seconds after which it can be expected to be served, if it is worth trying again.
    `why` it was refused, if it was, is by default that of its class.
    """

    status: ClassVar[int]
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


class UnauthorizedError(RequestError, UserError):
    """A request without a valid token. Its text does not say what is wrong with it."""

    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized")


class ForbiddenError(RequestError, UserError):
    """A request to change something, by a web page, or by a client who is no administrator."""

    status, refused = 403, Refused.FORBIDDEN


class NotFoundError(RequestError, UserError):
    """A model, a version or a path that is not here."""

    status, refused = 404, Refused.NOT_FOUND


class ConnectError(RequestError, UserError):
    """A request to a proxy, which this server is not."""

    status, refused = 405, Refused.CONNECT


class MethodError(RequestError, UserError):
    """A request with a method that its path does not take; `allow` names those that it does."""

    status = 405
    refused = Refused.METHOD

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class NotAcceptableError(RequestError, UserError):
    """An answer that cannot be written in the requested form."""

    status, refused = 406, Refused.NOT_ACCEPTABLE


class LateRequestError(RequestError, UserError):
    """A request that was not complete in time."""

    status = 408


class TooLargeError(RequestError, UserError):
    """A request with more bytes or rows than the server takes at once."""

    status, refused = 413, Refused.COSTLY


class EncodingError(RequestError, UserError):
    """A body in a content encoding that the server does not read."""

    status, refused = 415, Refused.CONTENT_ENCODING


class HeadTooLargeError(RequestError, UserError):
    """A request whose line and headers are longer than the server reads."""

    status, refused = 431, Refused.HEAD_SIZE


class TransferCodingError(RequestError, UserError):
    """A body in a transfer coding that the server does not read."""

    status, refused = 501, Refused.TRANSFER_CODING


class InferenceError(RequestError):
    """A query that failed on every instance that it was tried on."""

    status = 500


class UnavailableError(RequestError):
    """A server that is starting or stopping and takes no queries."""

    status, refused = 503, Refused.UNAVAILABLE


class NoStandInError(UnavailableError):
    """A request that a server of stand-ins alone cannot answer; `reason` is a word for proxies."""

    refused = Refused.STAND_IN

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class InternalError(RequestError):
    """A query that the server itself failed to handle."""

    status = 500


class PoisonError(RequestError):
    """A query that ends the instances that run it."""

    status = 500


class AbandonedError(RequestError):
    """A query whose client has given up."""

    status = 499


class OverloadedError(RequestError):
    """An overloaded server. Unless it is known when that is over, it is worth trying again soon."""

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
