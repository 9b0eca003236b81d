"""Paths that name a model, of the Open Inference Protocol, its repository extension, and V1."""

from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from parity_models.serving.errors import InvalidRequestError

_V2, _V1, _REPOSITORY = "/v2/models/", "/v1/models/", "/v2/repository/models/"
_PREDICT = ":predict"


class Asks(Enum):
    """What a path asks of a model."""

    METADATA = auto()
    READY = auto()
    INFER = auto()
    V1_STATUS = auto()
    V1_PREDICT = auto()
    LOAD = auto()
    UNLOAD = auto()


_V2_ENDS: dict[tuple[str, ...], Asks] = {
    (): Asks.METADATA,
    ("ready",): Asks.READY,
    ("infer",): Asks.INFER,
}
_REPOSITORY_ENDS: dict[tuple[str, ...], Asks] = {("load",): Asks.LOAD, ("unload",): Asks.UNLOAD}


class ModelPath(NamedTuple):
    """A path that asks something of a model, in this version, or whichever the server takes."""

    name: str
    version: str | None
    asks: Asks


def path_of(target: str) -> str:
    """The path of a request's target, which is a path (with a query) or a whole URL."""
    if target.startswith("/"):
        return unquote(target.partition("?")[0])
    try:
        return unquote(urlsplit(target).path)
    except ValueError as error:
        raise InvalidRequestError(f"the request's target is not a URL: {error}") from error


def model_path(path: str) -> ModelPath | None:
    """What a path asks of which model; None if it names none."""
    if path.startswith(_V2):
        name, version, ends = _parts(path.removeprefix(_V2))
        asks = _V2_ENDS.get(ends)
    elif path.startswith(_V1):
        predicts = path.endswith(_PREDICT)
        name, version, ends = _parts(path.removeprefix(_V1).removesuffix(_PREDICT))
        asks = None if ends else Asks.V1_PREDICT if predicts else Asks.V1_STATUS
    elif path.startswith(_REPOSITORY):
        name, *more = path.removeprefix(_REPOSITORY).split("/")
        version, asks = None, _REPOSITORY_ENDS.get(tuple(more))
    else:
        return None
    return ModelPath(name, version, asks) if name and version != "" and asks else None


def _parts(rest: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The model's name, its version if one is named, and what comes after."""
    name, *parts = rest.split("/")
    if parts[:1] == ["versions"] and len(parts) > 1:
        return name, parts[1], tuple(parts[2:])
    return name, None, tuple(parts)
