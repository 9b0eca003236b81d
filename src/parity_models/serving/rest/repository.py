"""The model-repository extension over HTTP: what is there, load it, unload it.

https://github.com/triton-inference-server/server, docs/protocol/extension_model_repository.md.
"""

from typing import Any

import msgspec
from msgspec import Struct

from parity_models.serving.errors import ForbiddenError, TooLargeError
from parity_models.serving.models import Models
from parity_models.serving.rest.json_tensors import JSON_OBJECT, read_json
from parity_models.serving.rest.messages import Request, Response, json_response


class _IndexRequest(Struct):
    ready: bool = False


class _LoadRequest(Struct):
    parameters: dict[str, Any] = {}


_INDEX = msgspec.json.Decoder(_IndexRequest)
_LOAD = msgspec.json.Decoder(_LoadRequest)


def refuse_pages(request: Request) -> None:
    """Raises ForbiddenError for a request of a web page's: somebody else's page reaches this server
    as well, from whichever machine it is looked at, and asks nobody whether it may."""
    if "origin" in request.headers:
        raise ForbiddenError(
            "web pages load and unload no models here; a request of your own has no header Origin"
        )


async def index(models: Models, request: Request, body: bytes | bytearray) -> Response:
    """The versions that are known, or those that are ready if the body asks for them alone."""
    asked = _read(_INDEX, body)
    return json_response(
        [each for each in models.index() if each.state == "READY" or not asked.ready]
    )


async def load(models: Models, request: Request, body: bytes | bytearray) -> Response:
    """Load the model that the request names."""
    await models.load(request.model, _read(_LOAD, body).parameters)
    return json_response({})


def _read(decoder: msgspec.json.Decoder[Any], body: bytes | bytearray) -> Any:
    if len(body) > JSON_OBJECT:
        raise TooLargeError(
            f"the request has {len(body)} bytes; without a tensor it has at most {JSON_OBJECT}"
        )
    return read_json(decoder, memoryview(body or b"{}"), "the request")
