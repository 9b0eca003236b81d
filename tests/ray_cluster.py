"""Ray for tests: quiet, offline, gone at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # else a token is written to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from parity_models.serving.http import listen

SMALL = 0.01
"""CPUs that replicas reserve in tests: next to none."""


@contextmanager
def local_ray() -> Iterator[str]:
    """Serve on a new cluster of this machine; gives the URL where it listens."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        yield start_serve()
    finally:
        serve.shutdown()
        ray.shutdown()


def start_serve(where: ProxyLocation = ProxyLocation.HeadOnly) -> str:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(where, HTTPOptions(host="127.0.0.1", port=port))
    return f"http://127.0.0.1:{port}"


def kill_replica(deployment: str, unique_id: str) -> None:
    """kill -9 a replica's process."""
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["name"].endswith(f"#{deployment}#{unique_id}"):
            ray.kill(ray.get_actor(each["name"], each["namespace"]))
            return
    raise AssertionError(f"there is no replica {unique_id} of {deployment}")


def replicas(app: str, deployment: str) -> dict[str, Any]:
    """How many replicas a deployment has, by state."""
    return dict(serve.status().applications[app].deployments[deployment].replica_states)
