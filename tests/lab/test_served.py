"""A bundle served from a process of its own, for as long as it is wanted."""

import asyncio
from pathlib import Path

import psutil
import pytest

from parity_models.serving.server import ServeOptions
from parity_models_lab.served import served
from served import write_linear_bundle

pytestmark = pytest.mark.slow


async def test_a_server_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    before = psutil.Process().children()
    up = asyncio.Event()

    async def serve() -> None:
        async with served(bundle, ServeOptions(port=0)):
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await up.wait()
    assert psutil.Process().children() != before
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert psutil.Process().children() == before
