"""A child process of the benchmarks says when it is ready, whatever it starts says besides."""

import asyncio
import sys

import pytest

from parity_models.load.child import child

pytestmark = pytest.mark.slow

NOISY = """
import subprocess, sys
from parity_models.load.child import keep_output
tell = keep_output()
print("noise")
subprocess.run(["echo", "noise"])
left_behind = subprocess.Popen(["sleep", "90"])
tell("ready")
sys.stdin.read()
"""


async def test_only_the_child_itself_is_heard_and_only_it_is_waited_for() -> None:
    async with asyncio.timeout(60):
        async with child((sys.executable, "-c", NOISY)) as process:
            assert process.message == "ready"
            process.end_input()
            assert [line async for line in process.lines()] == []
            assert await process.wait() == 0
