"""Signals while a command has an event loop, and afterwards."""

import asyncio
import signal

import pytest
import uvloop

from parity_models.cli.common import stop_on_signals


def test_a_signal_stops_a_command_a_second_ends_it_and_then_they_do_what_they_did() -> None:
    stopped = False

    async def command() -> None:
        nonlocal stopped
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            await stop.wait()
            signal.raise_signal(signal.SIGHUP)  # a terminal that closes may say so twice
            for _ in range(3):
                await asyncio.sleep(0.01)
            stopped = True
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(asyncio.CancelledError):
            uvloop.run(command())
        assert stopped
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
