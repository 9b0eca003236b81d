"""What the way through a server costs: an infer over HTTP beside the same call in process, or,
in front of a fleet, beside the same request straight to one of its servers.

One client, one row at a time. Rounds of both take turns, so that whatever else the machine does
hits both alike. The client is a bare socket that is kept open: its own work counts in the
served latency, and it is as little as a client can do.
"""

import gc
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from parity_models.bench.bare_client import BareClient
from parity_models.bench.served import served
from parity_models.bench.wire import ModelMetadata
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.spec import PolicyName, PolicySpec
from parity_models.serving.remote.upstream import Fleet, Upstream
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

    `upstream` is where direct requests go; None: to ONNX Runtime, in process.
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


async def measure_overhead(
    bundle: Bundle | None = None,
    fleet: Fleet | None = None,
    policy: PolicyName = PolicyName.NONE,
) -> OverheadReport:
    """Serve `bundle`, or a generated MLP, with one instance or in front of a `fleet`, and measure.

    Raises UserError if no server of the fleet's deployed model speaks HTTP.
    """
    if bundle is not None:
        return await _measure(bundle, fleet, policy)
    with tempfile.TemporaryDirectory(prefix="parm-bench-") as folder:
        return await _measure(_generate(Path(folder)), fleet, policy)


async def _measure(bundle: Bundle, fleet: Fleet | None, policy: PolicyName) -> OverheadReport:
    manifest = bundle.manifest
    model = ModelMetadata(manifest.name, manifest.deployed.input, manifest.deployed.output)
    row = np.random.default_rng(0).random(model.input.shape).astype(model.input.dtype)
    upstream = None if fleet is None else _asked_directly(fleet)
    options = ServeOptions(policy=PolicySpec(name=policy), instances=1, port=0, fleet=fleet)
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
    )


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
