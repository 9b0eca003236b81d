"""Signals while a command has an event loop, and afterwards."""

import asyncio
import signal

import pytest
import uvloop

from parity_models.cli.common import on_signals


def test_signals_are_heard_while_a_command_runs_and_do_what_they_did_afterwards() -> None:
    heard = []

    async def command() -> None:
        with on_signals(lambda: heard.append(1)):
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
                await asyncio.sleep(0.01)
            while len(heard) < 3:
                await asyncio.sleep(0.01)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        uvloop.run(command())
        assert len(heard) == 3, "a terminal that closes may say so twice"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
