"""What coded serving on Ray costs and carries, on a new cluster of this machine.

Beside a plain Serve application (an ingress and a model, the same ONNX file on as many replicas as
there are instances) it is asked by the same clients, in turns: one, for the latency, and then many,
each of which sends its next request when it has the answer to the last. The plain application gets
the bare values of a tensor and answers likewise, so that it has nothing to do but infer.

Two frontends beside one: each with instances of its own, which take a drawn time for a unit in
which they hold no core, as accelerators do. What is compared is then the frontends and how they
share instances, not how many processes this machine's cores can run.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from tqdm import tqdm

from parity_models.faults import FaultPlan, LogNormal, Slowdowns
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Parity
from parity_models.serving.http.listening import listen
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.serving.ray.app import application
from parity_models.serving.ray.cluster import delete
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models_lab.costs.asked import Asked, generated_bundle
from parity_models_lab.costs.bare_client import BareConnection
from parity_models_lab.costs.ray_clients import Clients, Effort, latencies, rates

SERVICE_TIME = 0.05
"""Median seconds of an emulated accelerator for a unit."""
CLIENTS_EACH = 4
"""Clients for each emulated accelerator: enough that none is idle."""
RESERVED = 0.01
"""CPUs that replicas reserve: Ray is to place all of them on this machine."""


class Carried(msgspec.Struct, frozen=True):
    """What an application does: latencies of a single client, and many clients' rate."""

    p50_ms: float
    p99_ms: float
    requests_per_second: float


class RayReport(msgspec.Struct, frozen=True):
    """The measurement; ratios are coded to plain, and two frontends to one."""

    model: str
    policy: str
    instances: int
    clients: int
    ray: str
    cores: int
    plain: Carried
    coded: Carried
    ratio_p50: float
    ratio_requests: float
    service_time_ms: float
    one_frontend_requests_per_second: float
    two_frontends_requests_per_second: float
    ratio_frontends: float


def measure_ray(bundle: Bundle | None, instances: int, effort: Effort) -> RayReport:
    """Serve `bundle`, or a generated MLP with parity, and measure.

    There are `instances` of the deployed model and what parity adds, and as many for each of
    the frontends.
    """
    with generated_bundle(bundle) as bundle:
        return _measure(bundle, instances, effort)


def _measure(bundle: Bundle, instances: int, effort: Effort) -> RayReport:
    # Parity for every group, whether anything is slow or not: that is what it costs at most.
    parity = None if bundle.manifest.code is None else PolicyChoice(Parity.name)
    options = ServeOptions(instances=instances, policy=parity)
    with _cluster() as url, tqdm(total=3 * effort.rounds, desc="rounds") as progress:
        plain, coded = _beside_plain(url, bundle, options, effort, progress)
        one, two = _one_and_two_frontends(url, bundle, options, effort, progress)
    return RayReport(
        model=bundle.manifest.deployed.network,
        policy=Plan(bundle, options).choice.name,
        instances=len(Plan(bundle, options).roles),
        clients=effort.clients,
        ray=ray.__version__,
        cores=len(os.sched_getaffinity(0)),
        plain=plain,
        coded=coded,
        ratio_p50=coded.p50_ms / plain.p50_ms,
        ratio_requests=coded.requests_per_second / plain.requests_per_second,
        service_time_ms=SERVICE_TIME * 1e3,
        one_frontend_requests_per_second=one,
        two_frontends_requests_per_second=two,
        ratio_frontends=two / one,
    )


def _beside_plain(
    url: str, bundle: Bundle, options: ServeOptions, effort: Effort, progress: "tqdm[Any]"
) -> tuple[Carried, Carried]:
    """What a plain application and ours carry, on the Serve that listens at `url`."""
    replicas, asked, many = len(Plan(bundle, options).roles), Asked.of(bundle), effort.clients
    onnx = bundle.deployed_path.read_bytes()
    with (
        _deployed("plain", _plain_app(onnx, bundle.manifest.deployed.input, replicas)),
        _deployed("coded", _coded_app(bundle, options, frontends=1)),
        Clients(partial(_PlainClient, f"{url}/plain"), asked.row, many) as straight,
        Clients(partial(asked.client, f"{url}/coded"), asked.row, many) as through,
    ):
        carried = rates([straight, through], effort, progress)
        took = latencies([straight, through], effort, progress)
    plain, coded = (Carried(p50, p99, rate) for (p50, p99), rate in zip(took, carried, strict=True))
    return plain, coded


def _one_and_two_frontends(
    url: str, bundle: Bundle, options: ServeOptions, effort: Effort, progress: "tqdm[Any]"
) -> tuple[float, float]:
    """Requests a second of one frontend and of two, each with instances as in `options`."""
    slow = Slowdowns(mean_between=0, mean_length=1, delay=LogNormal(SERVICE_TIME, 0.05))
    one = replace(options, faults=FaultPlan(slowdowns=slow))
    two = replace(one, instances=2 * one.instances)
    clients, asked = CLIENTS_EACH * len(Plan(bundle, one).roles), Asked.of(bundle)
    with (
        _deployed("one", _coded_app(bundle, one, frontends=1)),
        _deployed("two", _coded_app(bundle, two, frontends=2)),
        Clients(partial(asked.client, f"{url}/one"), asked.row, clients) as few,
        Clients(partial(asked.client, f"{url}/two"), asked.row, 2 * clients) as many,
    ):
        rate_of_one, rate_of_two = rates([few, many], effort, progress)
    return rate_of_one, rate_of_two


# Applications


class _PlainModel:
    """Runs the model: (n, *input shape) to (n, *output shape)."""

    def __init__(self, onnx: bytes) -> None:
        self._model = OnnxModel(onnx)

    def __call__(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._model(rows)


class _PlainIngress:
    """Takes and gives a row's values as they lie in memory."""

    def __init__(self, model: DeploymentHandle[Any], row: TensorSpec) -> None:
        self._model = model
        self._row = row

    async def __call__(self, request: Request) -> Response:
        values = np.frombuffer(await request.body(), self._row.dtype)
        outputs = await self._model.remote(values.reshape(1, *self._row.shape))
        return Response(outputs.tobytes())


def _plain_app(onnx: bytes, row: TensorSpec, replicas: int) -> Application:
    options: dict[str, Any] = {
        "max_ongoing_requests": 100,  # more than come, or Ray's router holds them back
        "ray_actor_options": {"num_cpus": RESERVED},
        "logging_config": {"enable_access_log": False},
    }
    model = serve.deployment(name="model", num_replicas=replicas, **options)(_PlainModel)
    ingress = serve.deployment(name="ingress", **options)(_PlainIngress)
    return ingress.bind(model.bind(onnx), row)


def _coded_app(bundle: Bundle, options: ServeOptions, frontends: int) -> Application:
    cluster = ClusterOptions(
        frontends=frontends, cpus_per_instance=RESERVED, cpus_per_frontend=RESERVED
    )
    return application(bundle, options, cluster)


@contextmanager
def _cluster() -> Iterator[str]:
    """A new cluster of this machine, on which Serve listens at the URL given."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it leaves a token in the home folder
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        serve.start(ProxyLocation.HeadOnly, HTTPOptions(host="127.0.0.1", port=port))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def _deployed(name: str, app: Application) -> Iterator[None]:
    """The application at /name, up while the context lasts."""
    serve.run(app, name=name, route_prefix=f"/{name}")
    try:
        yield
    finally:
        delete(name)


# Clients


class _PlainClient:
    """One connection that infers one row at a time at a plain application."""

    def __init__(self, url: str) -> None:
        self._connection = BareConnection(url, {"Content-Type": "application/octet-stream"})

    def infer(self, row: NDArray[Any]) -> bytes:
        return self._connection.post(row.tobytes())[1]

    def close(self) -> None:
        self._connection.close()
