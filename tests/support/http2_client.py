"""A client of HTTP/2 that writes the frames that a test wants, and collects what comes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import ngh2

from grpc_served import INFER
from http_served import eventually

DATA, HEADERS, RST_STREAM, CONTINUATION = 0, 1, 3, 9
END_STREAM, END_HEADERS = 1, 4
Fields = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def block(fields: Fields) -> bytes:
    """A header block of HPACK: literals that are not indexed."""
    texts = ((len(text).to_bytes(1, "big") + text) for field in fields for text in field)
    return b"".join(b"\0" + name + value for name, value in zip(texts, texts, strict=True))


def fields_of(path: str = INFER, *more: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return (
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())),
        *((b":authority", b"here"), (b"content-type", b"application/grpc"), (b"te", b"trailers")),
        *more,
    )


def prefixed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


class Http2Client:
    """`statuses` and `data` of the answers by stream; `events` are all that came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = ngh2.Connection(
            ngh2.Role.CLIENT, ngh2.Configuration(peer_max_concurrent_streams=10_000)
        )
        self.events: list[ngh2.Event] = []
        self.statuses: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self.data: dict[int, bytes] = defaultdict(bytes)
        self.closed = False
        self._reader, self._writer = reader, writer

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    async def write(self, *frames: bytes) -> None:
        """Write frames past the library."""
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    def ask(self, message: bytes | None, *more: tuple[bytes, bytes], path: str = INFER) -> int:
        """Ask in a stream, which is returned; with None, the message is still to come."""
        stream = self.h2.send_request(fields_of(path, *more))
        if message is not None:
            self.h2.send_data(stream, prefixed(message), end_stream=True)
        self.flush()
        return stream

    async def status(self, stream: int) -> tuple[int, str]:
        """Return the status of a stream, when it has come."""
        await eventually(lambda: b"grpc-status" in self.statuses[stream])
        said = self.statuses[stream]
        return int(said[b"grpc-status"]), said.get(b"grpc-message", b"").decode()

    async def read(self) -> None:
        try:
            while data := await self._reader.read(2**16):
                self.h2.receive_data(data)
                for event in self.h2.events():
                    self.events.append(event)
                    if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                        self.statuses[event.stream_id] |= dict(event.headers)
                    elif isinstance(event, ngh2.DataReceived):
                        self.data[event.stream_id] += event.data
                self.flush()
        except (OSError, ngh2.NGH2Error):
            pass
        self.closed = True


@asynccontextmanager
async def connected(
    address: str, settings: dict[ngh2.Setting, int] | None = None, *, reads: bool = True
) -> AsyncIterator[Http2Client]:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    client = Http2Client(reader, writer)
    client.h2.initiate_connection(settings or {})
    client.flush()
    reading = asyncio.ensure_future(client.read()) if reads else None
    try:
        yield client
    finally:
        if reading is not None:
            reading.cancel()
        writer.transport.abort()
