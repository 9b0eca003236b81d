"""What the way through a server costs: an infer over HTTP beside the same call in process, or,
in front of a fleet, beside the same request straight to one of its servers.

One client, one row at a time. Rounds of both take turns, so that whatever else the machine does
hits both alike. The client is a bare socket that is kept open: its own work counts in the
served latency, and it is as little as a client can do. Then what the server carries, and for how
much processor time, beside other servers of the same model.
"""

import gc
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.errors import UserError
from parity_models.lab.costs.bare_client import BareClient
from parity_models.lab.costs.processes import processes_at, with_descendants
from parity_models.lab.costs.throughput import Target, Throughput, measure_throughput
from parity_models.lab.latency.served import served
from parity_models.load.wire import ModelMetadata, RequestWriter
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.remote.upstream import Fleet, Upstream, parse_upstreams
from parity_models.serving.server import ServeOptions

INPUT_SHAPE, OUTPUT_SHAPE = (784,), (10,)
"""Of the generated model: a 3 kB query of float32, as the published MLP takes."""
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
    fleet: Fleet | None = None,
    policy: str = NoRedundancy.name,
    *,
    instances: int = 1,
    against: Sequence[str] = (),
) -> OverheadReport:
    """Serve `bundle`, or a generated MLP, on `instances` or in front of a `fleet`, and measure.

    `against`: URLs of servers of the same model, as http://HOST:PORT or http://HOST:PORT/MODEL.
    Raises UserError if no server of the fleet's deployed model speaks HTTP, LoadError for servers
    that do not answer.
    """
    if bundle is not None:
        return await _measure(bundle, fleet, policy, instances, against)
    with tempfile.TemporaryDirectory(prefix="parm-bench-") as folder:
        return await _measure(_generate(Path(folder)), fleet, policy, instances, against)


async def _measure(
    bundle: Bundle,
    fleet: Fleet | None,
    policy: str,
    instances: int,
    against: Sequence[str],
) -> OverheadReport:
    manifest = bundle.manifest
    model = ModelMetadata(manifest.name, manifest.deployed.input, manifest.deployed.output)
    row = np.random.default_rng(0).random(model.input.shape).astype(model.input.dtype)
    upstream = None if fleet is None else _asked_directly(fleet)
    options = ServeOptions(policy=PolicyChoice(policy), instances=instances, port=0, fleet=fleet)
    others = _others(against, model, row)
    async with served(bundle.path, options) as server:
        with ExitStack() as stack:
            through = stack.enter_context(closing(BareClient(server.url, model)))
            if upstream is None:
                direct = partial(OnnxModel(bundle.deployed_path), row[np.newaxis])
            else:
                there = replace(model, name=upstream.models[DEPLOYED])
                straight = stack.enter_context(closing(BareClient(upstream.url, there)))
                direct = partial(straight.infer, row)
            # Nothing else is due on this event loop, so the measurement may block it.
            times = _take_turns(direct, partial(through.infer, row))
        this = Target(
            server.url, _request(server.url, model, row), frozenset(with_descendants([server.pid]))
        )
        throughput = measure_throughput([this, *others])
    direct_latency, served_latency = map(_latency, times)
    return OverheadReport(
        model=manifest.deployed.network,
        policy=policy,
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


def _others(against: Sequence[str], model: ModelMetadata, row: NDArray[Any]) -> list[Target]:
    if not against:
        return []
    targets = []
    for upstream in parse_upstreams(model.name, 0, deployed=against):
        at = urlsplit(upstream.url)
        if at.scheme != "http":
            raise UserError(f"{upstream.url} is no URL of http, over which servers are compared")
        there = replace(model, name=upstream.models[DEPLOYED])
        here = at.hostname in ("localhost", "127.0.0.1", "::1")
        pids = processes_at(at.port or 80) if here else ()
        targets.append(Target(upstream.url, _request(upstream.url, there, row), frozenset(pids)))
    return targets


def _request(url: str, model: ModelMetadata, row: NDArray[Any]) -> bytes:
    """A whole request for this row, head and body."""
    writer = RequestWriter(model)
    body = writer.body(row[np.newaxis])
    headers = {"Host": urlsplit(url).netloc, **writer.headers, "Content-Length": str(len(body))}
    lines = [f"POST {model.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _asked_directly(fleet: Fleet) -> Upstream:
    for upstream in fleet.upstreams:
        if upstream.url.startswith("http:") and DEPLOYED in upstream.models:
            return upstream
    raise UserError("no server of the deployed model has a URL of http, over which it is measured")


def _generate(folder: Path) -> Bundle:
    # Imported here: torch is not needed to measure a bundle.
    from parity_models.models.export import export_onnx
    from parity_models.models.networks import build_network

    onnx = export_onnx(build_network("mlp", INPUT_SHAPE, OUTPUT_SHAPE), INPUT_SHAPE)
    return write_bundle(folder / "bundle", deployed=NewModel(onnx, "mlp"))


def _take_turns(*calls: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each call of each of `calls`, which take turns round by round."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(WARM_UP):
            call()
    gc.freeze()
    for _ in tqdm(range(ROUNDS), desc="overhead", unit="round"):
        for call, taken in zip(calls, times, strict=True):
            for _ in range(CALLS):
                start = perf_counter()
                call()
                taken.append(perf_counter() - start)
    return times


def _latency(seconds: list[float]) -> Latency:
    p50, p99 = (np.quantile(seconds, [0.5, 0.99]) * 1e3).tolist()
    return Latency(p50, p99)
