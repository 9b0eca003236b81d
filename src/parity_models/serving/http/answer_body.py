"""Bodies of other servers' answers over aiohttp, read up to a limit."""

import aiohttp


class TooLongError(aiohttp.ClientPayloadError):
    """An answer is longer than it can be; the message says, than how many bytes."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, of `limit` bytes at most. Raises TooLongError for a longer one, read no further."""
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise TooLongError(f"more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
