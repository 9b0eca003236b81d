"""What a request can end with instead of an answer. Each error carries its HTTP status."""

from typing import ClassVar

from parity_models.errors import ParityModelsError, UserError
from parity_models.serving.refusals import Refused, soon


class RequestError(ParityModelsError):
    """A request that gets no answer.

    `retry_after`: seconds after which it can be expected to be served, if it is worth trying again.
    `why` it was refused, if it was, is by default what its class says.
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

    status = 400
    refused = Refused.INVALID


class UnauthorizedError(RequestError, UserError):
    """A request without a token that the server takes. Nobody is told what is wrong with it."""

    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized")


class ForbiddenError(RequestError, UserError):
    """A request that changes something, and that a web page has sent."""

    status = 403
    refused = Refused.FORBIDDEN


class NotFoundError(RequestError, UserError):
    """A model, a version or a path that is not here."""

    status = 404
    refused = Refused.NOT_FOUND


class ConnectError(RequestError, UserError):
    """A request to a proxy, which this server is not."""

    status = 405
    refused = Refused.CONNECT


class MethodError(RequestError, UserError):
    """A request with a method that its path does not take; `allow` names those that it does."""

    status = 405
    refused = Refused.METHOD

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class NotAcceptableError(RequestError, UserError):
    """An answer that cannot be written in the form that was asked for."""

    status = 406
    refused = Refused.NOT_ACCEPTABLE


class LateRequestError(RequestError, UserError):
    """A request that did not come whole in time."""

    status = 408


class TooLargeError(RequestError, UserError):
    """A request with more bytes or rows than the server takes at once."""

    status = 413
    refused = Refused.COSTLY


class EncodingError(RequestError, UserError):
    """A body in a content encoding that the server does not read."""

    status = 415
    refused = Refused.CONTENT_ENCODING


class HeadTooLargeError(RequestError, UserError):
    """A request whose line and headers are longer than the server reads."""

    status = 431
    refused = Refused.HEAD_SIZE


class TransferCodingError(RequestError, UserError):
    """A body in a transfer coding that the server does not read."""

    status = 501
    refused = Refused.TRANSFER_CODING


class InferenceError(RequestError):
    """A query that every instance it was tried on failed to run."""

    status = 500


class UnavailableError(RequestError):
    """A server that is starting or stopping and takes no queries."""

    status = 503
    refused = Refused.UNAVAILABLE


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
    """A server that has so much to do or to hold that it takes no more for now. Unless it is known
    when that is over, it is worth trying again soon."""

    status = 503
    refused = Refused.ADMISSION

    def __init__(
        self, message: str, *, retry_after: float | None = None, why: Refused | None = None
    ) -> None:
        super().__init__(
            message, retry_after=soon() if retry_after is None else retry_after, why=why
        )


class DeadlineError(RequestError):
    """A query whose deadline came before its answer."""

    status = 504
