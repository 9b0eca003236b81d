"""Local engines over models that take as long as a test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine_conformance import DEPLOYED, Events, Joined
from parity_models.models.onnx_model import PinnedModel
from parity_models.serving.local.local_engine import LocalEngine

FOREVER = 1e15
"""Steps of the moody model that never end."""
PATIENT: dict[str, Any] = {"heartbeat_timeout": 30.0, "unit_timeout": 60.0}
"""Timeouts that a busy machine does not exceed."""


@asynccontextmanager
async def running(
    model: Path, roles: list[frozenset[str]] | None = None, **options: Any
) -> AsyncIterator[tuple[LocalEngine, Events]]:
    """An engine with this model for every work; by default one instance of it."""
    engine = LocalEngine(
        dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model)), **PATIENT | options
    )
    events = Events()
    roles = roles or [DEPLOYED]
    await engine.start(roles, events)
    try:
        joined = [await events.next() for _ in roles]
        assert sorted(joined, key=repr) == [Joined(str(i), each) for i, each in enumerate(roles)]
        yield engine, events
    finally:
        await engine.stop()
