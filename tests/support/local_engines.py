"""Local engines over models that take as long as a test wants."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine_conformance import DEPLOYED, Events, Joined
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.serving.engine import Parts
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.metrics import Metrics

FOREVER = 1e15
"""Steps of the moody model that never end."""


def parts(models: Mapping[str, PinnedModel], **options: Any) -> Parts:
    """Parts of an engine of these models; a busy machine does not exceed the timeout."""
    of: dict[str, Any] = {
        "bundle": None,
        "models": models,
        "metrics": Metrics(),
        "max_batch": 8,
        "unit_timeout": 60.0,
    }
    return Parts(**of | options)


def local_engine(
    models: Mapping[str, PinnedModel], *, heartbeat_timeout: float = 30.0, **options: Any
) -> LocalEngine:
    engine = LocalEngine(None, parts(models, **options))
    engine.heartbeat_timeout = heartbeat_timeout
    return engine


@asynccontextmanager
async def running(
    model: Path, roles: list[frozenset[str]] | None = None, **options: Any
) -> AsyncIterator[tuple[LocalEngine, Events]]:
    """An engine with this model for every work; by default one instance of it."""
    models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))
    engine = local_engine(models, **options)
    events = Events()
    roles = roles or [DEPLOYED]
    await engine.start(roles, events)
    try:
        joined = [await events.next() for _ in roles]
        assert sorted(joined, key=repr) == [Joined(str(i), each) for i, each in enumerate(roles)]
        yield engine, events
    finally:
        await engine.stop()
