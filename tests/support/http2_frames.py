"""Frames of HTTP/2 (RFC 9113, section 6) as bytes, for clients that gRPC's own library is too
honest to be."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
END_HEADERS = 4
CANCEL = struct.pack(">I", 8)
"""The payload of RST_STREAM from a client that wants no answer any more."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
    return head + payload


def call_headers(address: str, method: str) -> bytes:
    """The headers of a gRPC call of `method`, none of them indexed (RFC 7541, section 6.2.2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    texts = (each.encode() for pair in headers.items() for each in pair)
    literal = [bytes([len(each)]) + each for each in texts]
    pairs = zip(*[iter(literal)] * 2, strict=True)
    return b"".join(b"\0" + name + value for name, value in pairs)
