"""How large the frames of ZeroMQ's messages are that frontends and workers send each other."""

from collections.abc import Iterable

from parity_models.models.tensor import Layout, TensorSpec

MAX_HEADER = 2**16
"""Bytes that a frame may have where tensors are small."""

CURVE_OVERHEAD = 64
"""Bytes that CurveZMQ adds to a frame, about (ZeroMQ RFC 26: 33 in the MESSAGE command)."""


def largest_frame(specs: Iterable[TensorSpec | Layout], rows: int = 1) -> int:
    """Bytes that a frame has at most that is a header, or so many rows of one of these."""
    return CURVE_OVERHEAD + max(MAX_HEADER, *(spec.zeros(1).nbytes * rows for spec in specs))
