"""Chosen answers, for the tests of programs that use Late."""

from collections.abc import Iterator
from contextlib import contextmanager

from parity_models.roles import Source

_chosen: list[list[Source]] = []


@contextmanager
def testing(*sources: str) -> Iterator[None]:
    """Let each Late give answers of these sources, in this order; the last one repeats.

    There is no race, and no thread, clock, budget or gate decides: "model" is the answer or error
    of the call; "backup" is the stand-in's answer, and the call is made only if the form of answers
    is unknown; "copy" is the answer of the second call of two.
    """
    _chosen.append([Source(each) for each in sources])
    try:
        yield
    finally:
        _chosen.pop()


def is_testing() -> bool:
    """Return whether answers are chosen."""
    return bool(_chosen)


def next_source() -> Source:
    """Return the source of the next answer."""
    sources = _chosen[-1]
    return sources.pop(0) if len(sources) > 1 else sources[0]
