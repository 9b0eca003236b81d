"""What the way through a server costs: an infer over HTTP beside the same call in process, or,
in front of a fleet, beside the same request straight to one of its servers.

One client, one row at a time. Rounds of both take turns, so that whatever else the machine does
hits both alike. The client is a bare socket that is kept open: its own work counts in the
served latency, and it is as little as a client can do. Then what the server carries, and for how
much processor time, beside other servers of the same model.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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

from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.lab.costs.bare_client import BareClient
from parity_models.lab.costs.processes import processes_at, with_descendants
from parity_models.lab.costs.throughput import (
    SECONDS,
    MeasuredServer,
    Throughput,
    measure_throughput,
)
from parity_models.lab.latency.served import served
from parity_models.load.wire import ModelMetadata, RequestWriter
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.inference_time import measure_models
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.engines import EngineChoice
from parity_models.serving.remote.fleet import fleet_of, parse_upstreams
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models.serving.remote.upstream import Upstream
from parity_models.serving.server import ServeOptions

INPUT_SHAPE, OUTPUT_SHAPE = (784,), (10,)
"""The generated model's inputs: a query is 3 kB of float32, as the published MLP takes."""
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
    takes = manifest.deployed.input
    model = ModelMetadata.of(manifest.name, takes, manifest.deployed.output)
    row = np.random.default_rng(0).random(takes.shape).astype(takes.dtype)
    upstream = _asked_directly(bundle, engine) if engine.name == RemoteEngine.name else None
    others = targets_of(against, model, row)
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
            times = _take_turns(rounds, direct, partial(through.infer, row))
        this = MeasuredServer(
            server.url,
            whole_request(server.url, model, row),
            frozenset(with_descendants([server.pid])),
        )
        throughput = measure_throughput([this, *others], seconds=seconds)
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


def targets_of(
    against: Sequence[str], model: ModelMetadata, row: NDArray[Any]
) -> list[MeasuredServer]:
    """Servers of the same model that run already, by their URLs. Raises UserError for one that is
    not of HTTP."""
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
        targets.append(
            MeasuredServer(upstream.url, whole_request(upstream.url, there, row), frozenset(pids))
        )
    return targets


def whole_request(url: str, model: ModelMetadata, row: NDArray[Any]) -> bytes:
    """A whole request for this row (*input shape), head and body."""
    body, head = RequestWriter(model).rows(row[np.newaxis])
    headers = {"Host": urlsplit(url).netloc, **head, "Content-Length": str(len(body))}
    lines = [f"POST {model.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _asked_directly(bundle: Bundle, engine: EngineChoice) -> Upstream:
    for upstream in fleet_of(engine.settings, bundle).upstreams:
        if upstream.url.startswith("http:") and DEPLOYED in upstream.models:
            return upstream
    raise UserError("no server of the deployed model has a URL of http, over which it is measured")


@contextmanager
def generated_bundle(bundle: Bundle | None) -> Iterator[Bundle]:
    """`bundle`; without one, a generated MLP and a parity model of random weights, while the
    context lasts."""
    if bundle is not None:
        yield bundle
        return
    # Imported here: torch is not needed to measure a bundle.
    from parity_models.models.export import export_onnx
    from parity_models.models.networks import build_network

    deployed, parity = (
        NewModel(export_onnx(build_network("mlp", INPUT_SHAPE, OUTPUT_SHAPE), INPUT_SHAPE), "mlp")
        for _ in range(2)
    )
    code = CodeSpec("sum", "subtraction", k=2)
    with tempfile.TemporaryDirectory(prefix="parm-bench-") as folder:
        yield write_bundle(
            Path(folder, "bundle"),
            deployed=deployed,
            parity=[parity],
            code=code,
            inference_times=measure_models(deployed, [parity], None),
        )


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
