"""A child process of the benchmarks says when it is ready, and ends with its standard input."""

import asyncio
import sys

import pytest

from parity_models.load.child import child

pytestmark = pytest.mark.slow

READY = """
import sys
from parity_models.load.child import tell
tell("ready")
sys.stdin.read()
"""


async def test_a_child_is_heard_and_waited_for() -> None:
    async with asyncio.timeout(60):
        async with child((sys.executable, "-c", READY)) as process:
            assert process.message == "ready"
            process.end_input()
            assert [line async for line in process.lines()] == []
            assert await process.wait() == 0
