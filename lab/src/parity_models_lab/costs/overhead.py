"""What the way through a server costs: an infer over HTTP beside the same call in process, or,
in front of a fleet, beside the same request straight to one of its servers.

One client, one row at a time. Rounds of both take turns, so that whatever else the machine does
hits both alike. The client is a bare socket that is kept open: its own work counts in the
served latency, and it is as little as a client can do. Then what the server carries, and for how
much processor time, beside other servers of the same model.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from tqdm import tqdm

from parity_models.errors import UserError
from parity_models.load.served import served
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.engines import EngineChoice
from parity_models.serving.remote.fleet import fleet_of, parse_upstreams
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models.serving.remote.upstream import Upstream
from parity_models.serving.server import ServeOptions
from parity_models_lab.costs.asked import Asked, generated_bundle
from parity_models_lab.costs.throughput import (
    SECONDS,
    MeasuredServer,
    Throughput,
    measure_throughput,
)
from parity_models_lab.processes import processes_at

ROUNDS, CALLS = 50, 100
WARM_UP = 300


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of one way to call the model, in milliseconds."""

    p50_ms: float
    p99_ms: float


class OverheadReport(msgspec.Struct, frozen=True):
    """Direct and served latency of one row of `tensor_bytes`; difference and ratio at p50.

    `upstream` is where direct requests go; None: to ONNX Runtime, in process. `throughput` is of
    this server first, and then of those that it is compared with, for each number of clients.
    """

    model: str
    policy: str
    upstream: str | None
    tensor_bytes: int
    calls: int
    client: str
    direct: Latency
    served: Latency
    difference_p50_ms: float
    ratio_p50: float
    throughput: tuple[Throughput, ...]


async def measure_overhead(
    bundle: Bundle | None = None,
    engine: EngineChoice | None = None,
    policy: str = NoRedundancy.name,
    *,
    instances: int = 1,
    against: Sequence[str] = (),
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> OverheadReport:
    """Serve `bundle`, or a generated MLP, on `instances` or by another `engine`, and measure.

    There are `rounds` of CALLS each way; throughput is that of `seconds` in each round of its own.
    `against`: URLs of servers of the same model, as http://HOST:PORT or http://HOST:PORT/MODEL.
    Raises UserError if no upstream of the engine remote speaks HTTP, LoadError for servers
    that do not answer.
    """
    with generated_bundle(bundle) as bundle:
        options = ServeOptions(
            policy=PolicyChoice(policy),
            instances=instances,
            port=0,
            engine=engine or EngineChoice(),
        )
        return await _measure(bundle, options, against, rounds, seconds)


async def _measure(
    bundle: Bundle, options: ServeOptions, against: Sequence[str], rounds: int, seconds: float
) -> OverheadReport:
    manifest, engine = bundle.manifest, options.engine
    assert options.policy is not None
    asked = Asked.of(bundle)
    row = asked.row
    upstream = _asked_directly(bundle, engine) if engine.name == RemoteEngine.name else None
    others = targets_of(against, asked)
    async with served(bundle.path, options) as server:
        with ExitStack() as stack:
            through = stack.enter_context(closing(asked.client(server.url)))
            if upstream is None:
                direct = partial(OnnxModel(bundle.deployed_path), row[np.newaxis])
            else:
                there = asked.of_name(upstream.models[DEPLOYED])
                straight = stack.enter_context(closing(there.client(upstream.url)))
                direct = partial(straight.infer, row)
            # Nothing else is due on this event loop, so the measurement may block it.
            times = _take_turns(rounds, direct, partial(through.infer, row))
        throughput = measure_throughput([asked.measured(server), *others], seconds=seconds)
    direct_latency, served_latency = map(_latency, times)
    return OverheadReport(
        model=manifest.deployed.network,
        policy=options.policy.name,
        upstream=None if upstream is None else upstream.url,
        tensor_bytes=row.nbytes,
        calls=len(times[0]),
        client="bare keep-alive socket",
        direct=direct_latency,
        served=served_latency,
        difference_p50_ms=served_latency.p50_ms - direct_latency.p50_ms,
        ratio_p50=served_latency.p50_ms / direct_latency.p50_ms,
        throughput=tuple(throughput),
    )


def targets_of(against: Sequence[str], asked: Asked) -> list[MeasuredServer]:
    """Servers of the same model that run already, by their URLs. Raises UserError for one that is
    not of HTTP."""
    if not against:
        return []
    targets = []
    for upstream in parse_upstreams(asked.model.name, 0, deployed=against):
        url = upstream.url
        at = urlsplit(url)
        if at.scheme != "http":
            raise UserError(f"{url} is no URL of http, over which servers are compared")
        request = asked.of_name(upstream.models[DEPLOYED]).request(url)
        here = at.hostname in ("localhost", "127.0.0.1", "::1")
        pids = processes_at(at.port or 80) if here else ()
        targets.append(MeasuredServer(url, request, frozenset(pids)))
    return targets


def _asked_directly(bundle: Bundle, engine: EngineChoice) -> Upstream:
    for upstream in fleet_of(engine.settings, bundle).upstreams:
        if upstream.url.startswith("http:") and DEPLOYED in upstream.models:
            return upstream
    raise UserError("no server of the deployed model has a URL of http, over which it is measured")


def _take_turns(rounds: int, *calls: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each call of each of `calls`, which take turns round by round."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(WARM_UP):
            call()
    gc.freeze()
    for _ in tqdm(range(rounds), desc="overhead", unit="round"):
        for call, taken in zip(calls, times, strict=True):
            for _ in range(CALLS):
                start = perf_counter()
                call()
                taken.append(perf_counter() - start)
    return times


def _latency(seconds: list[float]) -> Latency:
    p50, p99 = (np.quantile(seconds, [0.5, 0.99]) * 1e3).tolist()
    return Latency(p50, p99)
