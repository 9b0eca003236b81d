"""What must be there."""

from typing import TypeVar

T = TypeVar("T")


def some(value: T | None) -> T:
    """Return the value, which is not None."""
    assert value is not None
    return value
