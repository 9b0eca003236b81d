"""What Ctrl-C, SIGTERM and a terminal that closes do while a command has an event loop."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call it at each SIGINT and SIGTERM, and at the first SIGHUP unless that is ignored (nohup),
    on the loop that runs, for as long as the block takes.

    A terminal that closes may send SIGHUP twice, itself and by its shell. Afterwards all do what
    they do by default; a loop of uvloop that is closed would leave them without effect.
    """
    loop = asyncio.get_running_loop()
    hung_up = False

    def on_hangup() -> None:
        nonlocal hung_up
        if not hung_up:
            hung_up = True
            callback()

    callbacks: dict[signal.Signals, Callable[[], None]]
    callbacks = dict.fromkeys((signal.SIGINT, signal.SIGTERM), callback)
    if hangups_count():
        callbacks[signal.SIGHUP] = on_hangup
    for number, each in callbacks.items():
        loop.add_signal_handler(number, each)
    try:
        yield
    finally:
        for number in callbacks:
            loop.remove_signal_handler(number)


def hangups_count() -> bool:
    """Is SIGHUP to end this process, as it was not started to outlive its terminal?"""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
