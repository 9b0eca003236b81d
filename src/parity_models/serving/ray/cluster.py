"""`parm serve --engine ray`: connect to a cluster or start one, deploy, and take it all back."""

import logging
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, RLock

import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.api import RunTarget, run_many
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from ray.serve.exceptions import RayServeException

from parity_models.errors import OptionError, ServingError, UserError
from parity_models.models.bundle import Bundle
from parity_models.serving.http.listening import listen
from parity_models.serving.options import ServeOptions
from parity_models.serving.ray.app import application, pools_of
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.ray.grpc import add_inference

APP = "parity-models"
"""The application's name on the cluster."""

CONNECT_TIMEOUT = 5.0
"""Seconds a cluster's address has for a connection."""

LATE = 1.0
"""Seconds after the server's deadline at which Ray's proxies end a request themselves: the frontend
that it was passed to hangs, or is gone, and another is not there yet."""

SERVE_API = RLock()
"""Held while Serve is called from one of several threads: how it describes deployments changes a
setting of the process for a moment, and fails where another thread does so, too (Ray 2.60)."""

LOOK_AGAIN = 0.1
"""Seconds between two looks at what starts or ends; Serve itself looks once a second."""

START_TIMEOUT = 300.0
"""Seconds all replicas have to start: images and models may have to reach new nodes."""

STOP_TIMEOUT = 60.0
"""Seconds all replicas have to stop."""


@contextmanager
def served_on_ray(
    bundle: Bundle, options: ServeOptions, cluster: ClusterOptions, *, traces: bool = False
) -> Iterator[str]:
    """Serve a bundle on the cluster at its address, or on a new one on this machine, for as long as
    the context lasts; gives the URL, or both if there is gRPC. With `traces` it sends spans.

    Whatever was started is stopped at the end: the application; Serve, unless it ran before or
    others use it; the cluster, if it is a new one. Raises UserError for a cluster that cannot be
    reached, is too small, serves such an application already or runs Serve without proxies, and
    ServingError if replicas do not start.
    """
    if options.port is None:
        raise UserError("Ray Serve's proxies listen on a port; give one")
    address, cpus = cluster.address, _cpus(bundle, options, cluster)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    connect(address, cpus)
    try:
        ran_before = _check_room(address, cpus)
        if ran_before and options.grpc_port is not None:
            raise OptionError(
                lambda spell: (
                    "Serve runs on the cluster already, and takes no port for gRPC any more; leave "
                    f"{spell('grpc_port')} out, or start Serve with "
                    "parity_models.serving.ray.grpc.add_inference among its grpc_servicer_functions"
                )
            )
        port = options.port if ran_before else _free_port(options.host, options.port)
        grpc = _grpc_options(options)
        if not ran_before:
            where = ProxyLocation.HeadOnly if address is None else ProxyLocation.EveryNode
            http = HTTPOptions(
                host=options.host, port=port, request_timeout_s=options.deadline + LATE
            )
            serve.start(where, http, grpc_options=grpc)
        try:
            host = "127.0.0.1" if options.host == "0.0.0.0" else options.host
            address_of = f"[{host}]" if ":" in host else host
            url = f"http://{address_of}:{port}"
            deploy(application(bundle, options, cluster, traces=traces), APP, "/")
            wait_for(APP, Event())
            _check_answers(url)
            yield url if grpc is None else f"{url} and grpc://{address_of}:{grpc.port}"
        finally:
            delete(APP)
            if not ran_before:
                stop_serve()
    finally:
        ray.shutdown()


def _cpus(bundle: Bundle, options: ServeOptions, cluster: ClusterOptions) -> float:
    """What replicas reserve to begin with."""
    instances = sum(pool.least for pool in pools_of(bundle, options, cluster))
    return instances * cluster.cpus_per_instance + cluster.frontends * cluster.cpus_per_frontend


def connect(address: str | None, cpus: float) -> None:
    """Have the cluster at this address, or a new one on this machine, which counts so many CPUs or
    one for each that it has. Raises UserError for one that cannot be reached."""
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # CPUs are only what Ray counts; as many instances as asked for may run on this machine.
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return
    unreachable = f"no Ray cluster can be reached at {address}"
    if "://" in address:
        raise OptionError(
            lambda spell: (
                f"{spell('address')} {address} is of a remote driver; run this on a node of the "
                f"cluster with {spell('address')} auto, or deploy a config file with `serve "
                "deploy` (docs/how-to/on-ray.md)"
            )
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"{unreachable} ({error}); give HOST:PORT of its head node, or auto"
            ) from error
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = str(error).strip().split("\n")[0]
        raise OptionError(
            lambda spell: (
                f"{unreachable}: {text} Start it with `ray start --head`, or leave "
                f"{spell('address')} out"
            )
        ) from error


def _check_room(address: str | None, cpus: float) -> bool:
    """Is there room for the application? Returns whether Serve runs already."""
    running = serve.status()
    if APP in running.applications:
        raise UserError(
            f"the cluster serves an application {APP!r} already; stop the `parm serve` that did "
            f"so, or delete it with serve.delete({APP!r})"
        )
    free = ray.available_resources().get("CPU", 0.0)
    if free < cpus:
        raise OptionError(
            lambda spell: (
                f"the replicas reserve {cpus:g} CPUs and the cluster at {address} has {free:g} "
                f"free; add nodes, or lower {spell('instances')}, {spell('frontends')} or "
                f"{spell('cpus_per_instance')}"
            )
        )
    runs = serve_runs()
    if runs and not running.proxies:
        raise UserError(
            "Serve runs on the cluster without proxies, which a bundle needs: `parm serve "
            "--repository` started it so. Serve the bundle as a model of that repository, or end "
            "that server, start Serve with `serve start`, and then both"
        )
    return runs


def serve_runs() -> bool:
    """Does Serve run on the cluster? Its proxies would not tell: a repository starts it without."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def stop_serve() -> None:
    """Stop Serve, unless others have applications there, or have stopped it."""
    if serve_runs() and not serve.status().applications:
        serve.shutdown()


def _grpc_options(options: ServeOptions) -> gRPCOptions | None:
    if options.grpc_port is None:
        return None
    return gRPCOptions(
        port=_free_port(options.host, options.grpc_port),
        grpc_servicer_functions=[f"{add_inference.__module__}.{add_inference.__name__}"],
        request_timeout_s=options.deadline + LATE,
        enable_reflection=False,
    )


def _free_port(host: str, port: int) -> int:
    """The port, or one that is free for 0; Ray itself would only log that it cannot have it."""
    with listen(host, port) as reserved:
        return int(reserved.getsockname()[1])


def deploy(app: Application, name: str, route: str | None) -> None:
    """Deploy an application by this name, at this route of Serve's proxies or at none.

    Raises UserError if the cluster does not take it.
    """
    target = RunTarget(target=app, name=name, route_prefix=route)
    try:
        with SERVE_API:
            run_many([target], wait_for_applications_running=False)
    except RayServeException as error:
        raise UserError(f"the cluster does not take the application: {error}") from error


def wait_for(name: str, ended: Event) -> None:
    """Returns once all replicas of an application run.

    Raises ServingError if they do not start, or once its start is `ended`.
    """
    end = time.monotonic() + START_TIMEOUT
    while True:
        with SERVE_API:
            status = serve.status().applications[name]
        if status.status == "RUNNING":
            return
        failed = status.status in ("DEPLOY_FAILED", "UNHEALTHY")
        if failed or time.monotonic() > end:
            # The last line is the error itself, where there is a traceback.
            why = [
                f"{name}: {each.message.strip().splitlines()[-1]}"
                for name, each in status.deployments.items()
                if each.message.strip() and each.status != "HEALTHY"
            ]
            problem = "cannot start" if failed else f"did not start within {START_TIMEOUT:g} s"
            raise ServingError(f"replicas {problem}: {'; '.join(why) or status.message}")
        if ended.wait(LOOK_AGAIN):
            raise ServingError("its start was ended")


def delete(name: str) -> None:
    """Delete an application; returns once its replicas have stopped.

    Raises ServingError if they do not.
    """
    with SERVE_API:
        serve.delete(name, _blocking=False)
    end = time.monotonic() + STOP_TIMEOUT
    while True:
        with SERVE_API:
            if name not in serve.status().applications:
                return
        if time.monotonic() > end:
            raise ServingError(f"replicas of {name} did not stop within {STOP_TIMEOUT:g} s")
        time.sleep(LOOK_AGAIN)


def _check_answers(url: str) -> None:
    """Serve listens where it was told to when it was started, which may be another place."""
    with suppress(OSError, ValueError):
        for _ in range(50):
            with urllib.request.urlopen(f"{url}/v2", timeout=CONNECT_TIMEOUT) as answer:
                if b"parity-models" in answer.read(1000):
                    return
            time.sleep(0.1)
    raise OptionError(
        lambda spell: (
            f"Serve ran on the cluster before and does not listen at {url}; give the "
            f"{spell('host')} and {spell('port')} that it was started with"
        )
    )
