"""Settings of fuzzers, and mutations of bytes.

In the test run they are short. PARM_FUZZ=long makes each try a hundred times as much.
"""

import os
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

LONG = os.environ.get("PARM_FUZZ") == "long"
NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"4294967296", b"1e999", b"NaN", b"99999999999999")
"""Replacements for a number in a text."""


def fuzz(examples: int) -> settings:
    """Settings for so many examples in the test run."""
    return settings(
        max_examples=100 * examples if LONG else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def leave_constants_out() -> None:
    """Let Hypothesis take no inputs from the source of imported modules in derandomized runs: these
    modules depend on the tests that the process has run."""
    found, none = providers._get_local_constants, Constants()
    providers._get_local_constants = lambda: none if settings().derandomize else found()


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """One of `originals` with one to eight mutations; now and then something else altogether."""
    content = bytearray(draw(originals))
    if draw(st.integers(0, 29)) == 0:
        return draw(st.binary(max_size=400))
    rng = Random(draw(st.integers(0, 2**32 - 1)))
    for _ in range(rng.randint(1, 8) if rng.random() < 0.5 else 1):
        _mutate(content, rng)
    return bytes(content)


def _mutate(content: bytearray, rng: Random) -> None:
    at = rng.randrange(len(content) + 1)
    upto = min(len(content), at + rng.choice((1, 1, 2, 4, 16, 64)))
    match rng.randrange(7):
        case 0:  # flip a bit
            if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
        case 1:
            del content[at:upto]
        case 2:
            content[at:at] = rng.randbytes(upto - at)
        case 3:  # say it twice
            content[at:at] = content[at:upto]
        case 4:
            del content[at:]
        case 5:  # another number
            digits = [i for i, byte in enumerate(content) if 0x30 <= byte <= 0x39]
            if digits:
                begin = end = rng.choice(digits)
                while end < len(content) and 0x30 <= content[end] <= 0x39:
                    end += 1
                content[begin:end] = rng.choice(NUMBERS)
        case 6:  # a line elsewhere
            lines = bytes(content).split(b"\r\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            content[:] = b"\r\n".join(lines)
