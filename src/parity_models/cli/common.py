"""The options that several commands have, and what commands do with files and signals."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from parity_models.cli.flags import argument
from parity_models.errors import UserError
from parity_models.options import Option
from parity_models.writable import why_not_writable

OWN = "or your own as package.module:Class"

BundleFolder = Annotated[Path, argument("The bundle's folder.", "BUNDLE")]

AllowCode = Annotated[
    list[str] | None,
    Option(
        "An encoder or decoder of your own, package.module:Class, that the bundle names and that "
        "may be imported; can be given several times. By default nothing is imported.",
        metavar="CLASS",
    ),
]
Json = Annotated[Path | None, Option("Write the numbers to this file, too.", metavar="FILE")]


def write_json(path: Path | None, report: object) -> None:
    """Write `report`, anything that msgspec encodes, to `path`, if there is one.

    Raises UserError where that fails.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_file(*paths: Path | None) -> None:
    """Raise UserError unless a result can be written to each of the `paths`.

    Their folders are made.
    """
    for path in filter(None, paths):
        why = "it is a folder" if path.is_dir() else why_not_writable(path.parent)
        if why:
            raise UserError(f"cannot write {path}: {why}")


@contextmanager
def on_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call it at each SIGINT and SIGTERM, and at the first SIGHUP unless that is ignored (nohup).

    On the running loop, for as long as the block takes. A terminal that closes may send SIGHUP
    twice, itself and by its shell. Afterwards all have their default effect again; a loop of uvloop
    that is closed would leave them without any.
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
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        callbacks[signal.SIGHUP] = on_hangup
    for number, each in callbacks.items():
        loop.add_signal_handler(number, each)
    try:
        yield
    finally:
        for number in callbacks:
            loop.remove_signal_handler(number)
