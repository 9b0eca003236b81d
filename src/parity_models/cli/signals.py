"""What Ctrl-C and SIGTERM do while a command has an event loop."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call it at each SIGINT and SIGTERM, on the loop that runs, for as long as the block takes.

    Afterwards both do what they do by default; a loop of uvloop that is closed would leave them
    without effect.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
