"""The options that several commands have, and what commands do with files and signals."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from parity_models.documents import why_not_writable
from parity_models.errors import UserError
from parity_models.options import Option

OWN = "or your own as package.module:Class"

BundleFolder = Annotated[Path, Option("The bundle's folder.", argument=True)]

AllowCode = Annotated[
    list[str] | None,
    Option(
        "Your own encoder or decoder that the bundle may import, package.module:Class; repeatable.",
        metavar="CLASS",
    ),
]
Json = Annotated[Path | None, Option("Write the numbers to this file, too.", metavar="FILE")]


def write_json(path: Path | None, report: object) -> None:
    """Write `report`, anything that msgspec encodes, to `path`, if there is one.

    Raises UserError if that fails.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_file(path: Path | None) -> None:
    """Raise UserError unless a result can be written to `path`. Its folder is made."""
    if path is not None:
        why = "it is a folder" if path.is_dir() else why_not_writable(path.parent)
        if why:
            raise UserError(f"cannot write {path}: {why}")


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield an event that is set at the first SIGINT, SIGTERM or SIGHUP (unless nohup has made the
    process ignore it); another signal cancels this task.

    A terminal that closes may send SIGHUP twice, itself and by its shell: one counts. Afterwards
    all have their default effect again, which closing a uvloop would not restore.
    """
    loop, this, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    heard = set()

    def on_signal(number: int) -> None:
        if number == signal.SIGHUP and number in heard:
            return
        heard.add(number)
        if stop.is_set() and this is not None:
            this.cancel()
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
