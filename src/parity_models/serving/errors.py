"""What a request can end with instead of an answer. Each error carries its HTTP status."""

from typing import ClassVar

from parity_models.errors import ParityModelsError, UserError


class RequestError(ParityModelsError):
    """A request that gets no answer."""

    status: ClassVar[int]


class InvalidRequestError(RequestError, UserError):
    """A request that does not follow the protocol or does not fit the model."""

    status = 400


class NotFoundError(RequestError, UserError):
    """A model, a version or a path that is not here."""

    status = 404


class NotAcceptableError(RequestError, UserError):
    """An answer that cannot be written in the form that was asked for."""

    status = 406


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


class OverloadedError(RequestError):
    """A server with so many queries waiting that it takes no more for now."""

    status = 503


class DeadlineError(RequestError):
    """A query whose deadline came before its answer."""

    status = 504
