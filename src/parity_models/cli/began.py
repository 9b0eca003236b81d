"""When a command began: before what it needs was imported, which takes seconds where it trains."""

import time
from typing import Any

_KEY = "parity_models.began"


def begin(context: Any) -> None:
    """Note in a context of the command line that it is now, by time.monotonic()."""
    context.meta[_KEY] = time.monotonic()


def began(context: Any) -> float:
    """When that was."""
    return float(context.meta.get(_KEY, time.monotonic()))
