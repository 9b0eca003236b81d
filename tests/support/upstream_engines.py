"""The remote engine over upstreams that misbehave, for its tests."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine_conformance import DEPLOYED, Events, Left
from fake_upstream import FakeUpstream
from local_engines import parts
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.remote_engine import RemoteEngine, UpstreamOptions
from parity_models.serving.remote.upstream import Upstream

WEIGHTS = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
ROW = np.arange(6, dtype=np.float32)
HEALTH_INTERVAL = 0.05
"""Upstreams are looked at often."""


def engine_for(
    model: Path, *upstreams: FakeUpstream, metrics: Metrics | None = None, **options: Any
) -> RemoteEngine:
    unit_timeout = options.pop("unit_timeout", 10.0)
    concurrency = options.pop("concurrency", 1)
    protocol = options.pop("protocol", "v2")
    each = tuple(
        Upstream(upstream.url, {"deployed": "model"}, concurrency, protocol)
        for upstream in upstreams
    )
    models, metrics = {"deployed": PinnedModel.of(model)}, metrics or Metrics()
    of = parts(models, metrics=metrics, max_batch=1, unit_timeout=unit_timeout)
    engine = RemoteEngine(UpstreamOptions(**options), of, each)
    engine.health_interval = HEALTH_INTERVAL
    return engine


@asynccontextmanager
async def using(
    model: Path, *upstreams: FakeUpstream, **options: Any
) -> AsyncIterator[tuple[RemoteEngine, Events, str]]:
    """An engine, its events, and the first instance of the first upstream."""
    count = len(upstreams) * options.get("concurrency", 1)
    engine, events = engine_for(model, *upstreams, **options), Events()
    await engine.start([DEPLOYED] * count, events)
    try:
        assert "0.0" in {(await events.arrival()).instance for _ in range(count)}
        yield engine, events, "0.0"
    finally:
        await engine.stop()


@asynccontextmanager
async def one(
    model: Path, scheme: str = "http", *, given: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[FakeUpstream, RemoteEngine, Events, str]]:
    """An upstream, made with what is `given`, its engine, events, and first instance."""
    async with (
        FakeUpstream(scheme, WEIGHTS, **given or {}) as upstream,
        using(model, upstream, **options) as (engine, events, instance),
    ):
        yield upstream, engine, events, instance


@asynccontextmanager
async def two(
    model: Path, scheme: str = "http", **options: Any
) -> AsyncIterator[tuple[FakeUpstream, RemoteEngine, Events, str]]:
    """Likewise, the first of two upstreams, so that one may be ejected for a doubt."""
    async with (
        FakeUpstream(scheme, WEIGHTS) as first,
        FakeUpstream(scheme, WEIGHTS) as other,
        using(model, first, other, **options) as (engine, events, instance),
    ):
        yield first, engine, events, instance


async def left(events: Events, count: int) -> set[str]:
    """The next so many instances that leave."""
    gone: set[str] = set()
    while len(gone) < count:
        event = await events.next()
        if isinstance(event, Left):
            gone.add(event.instance)
    return gone
