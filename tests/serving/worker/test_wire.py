"""A message is read or refused, whatever its frames."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from parity_models.emulation import Constant, FaultPlan
from parity_models.models.signature import Signature, TensorSpec
from parity_models.serving.worker.wire import (
    CONTROL,
    REPORT,
    WORK,
    Cancel,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    InjectFaults,
    Kind,
    MessageError,
    Unit,
    encode,
    read,
)

pytestmark = pytest.mark.slow

ROLES = st.sampled_from(["deployed", "parity-0"]) | st.text()
UNITS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)
SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(["FP32", "INT64", "BOOL"]),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
)
PLAN = FaultPlan(service_time=Constant(3600.0))

MESSAGES: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Unit, UNITS, ROLES, st.lists(UNITS, max_size=3).map(tuple)),
    st.builds(Cancel, UNITS),
    st.builds(InjectFaults, st.just(PLAN), st.integers(-5, 5), st.floats()),
    st.builds(Hello, st.dictionaries(ROLES, st.builds(Signature.of, SPECS, SPECS), max_size=2)),
    st.builds(Heartbeat),
    st.builds(Finished, UNITS, st.floats(0, 9)),
    st.builds(Failed, UNITS, st.text(max_size=20)),
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A message, as it is or damaged, or noise."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    message = bytearray(encode(draw(MESSAGES)))
    damage = draw(st.sampled_from(["none", "none", "flip", "cut", "twice", "deep"]))
    if damage == "flip":
        for _ in range(draw(st.integers(1, 3))):
            message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    elif damage == "cut":
        del message[draw(st.integers(0, len(message))) :]
    elif damage == "twice":
        message *= 2
    elif damage == "deep":
        message[:0] = b"\x91" * draw(st.integers(1, 2000))
    return bytes(message)


@given(headers(), st.lists(st.binary(max_size=40), max_size=4))
@fuzz(200)
def test_a_message_is_read_or_refused(header: bytes, tensors: list[bytes]) -> None:
    kinds: tuple[Kind[Any], ...] = (WORK, CONTROL, REPORT)
    for kind in kinds:
        with suppress(MessageError):
            read(kind, [header, *tensors])


@given(MESSAGES)
@fuzz(50)
def test_a_message_is_read_as_it_was_written(message: msgspec.Struct) -> None:
    tensors = [b"row"] if isinstance(message, Unit | Finished) else []
    kind: Kind[Any] = REPORT
    if isinstance(message, Unit | InjectFaults):
        kind = WORK
    elif isinstance(message, Cancel):
        kind = CONTROL
    assert encode(read(kind, [encode(message), *tensors])[0]) == encode(message)
