"""Compressed bodies of requests: decompressed within the limits that bodies have."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable

from parity_models.serving.errors import EncodingError, InvalidRequestError
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.rest.messages import Body, Request, Response

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told which of HTTP's content encodings it reads."""

_DECOMPRESS_STEP = 2**20
"""Bytes that are decompressed, of at most as many, before the limits are asked for more."""

OfBody = Callable[[Request, bytes | bytearray], Awaitable[Response]]
"""What answers a request, given its body without its encoding."""


def encoding_of(request: Request) -> str:
    """The encoding of a request's body. Raises EncodingError for one that is not read here."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity" and encoding not in _WINDOW_BITS:
        raise EncodingError(
            f"content encoding {encoding[:40]!r} is not read here; send gzip, deflate or none"
        )
    return encoding


async def decompressed(
    request: Request, answer: OfBody, limits: Limits, budget: ByteBudget
) -> Response:
    """The answer to a request whose body may be compressed. Raises a RequestError."""
    encoding = encoding_of(request)
    if encoding == "identity":
        return await answer(request, request.body)
    plain = Body(limits.max_body, budget, None)
    try:
        await _decompress(request.body, encoding, plain)
        return await answer(request, plain.whole())
    finally:
        plain.release()


async def _decompress(body: bytes | bytearray, encoding: str, plain: Body) -> None:
    """Add to `plain` what the compressed `body` holds. Raises a RequestError."""
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    whole, at = memoryview(body), 0
    rest: bytes | memoryview = b""
    try:
        while not decompressor.eof:
            if not rest:  # in slices, as what one step leaves is copied for the next
                rest = whole[at : at + _DECOMPRESS_STEP]
                at += len(rest)
            piece = await asyncio.to_thread(decompressor.decompress, rest, _DECOMPRESS_STEP)
            rest = decompressor.unconsumed_tail
            plain.add(piece)
            if not piece and not rest and at == len(whole):
                break
    except zlib.error as error:
        raise InvalidRequestError(f"the body is not in {encoding} encoding: {error}") from error
    if not decompressor.eof or decompressor.unused_data or at < len(whole):
        raise InvalidRequestError(f"the body is not one whole stream in {encoding} encoding")
