"""Envoy as a rival: its balancer LEAST_REQUEST, and its hedging of late requests."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from parity_models.errors import UserError
from parity_models_lab.served import ROOT, free_ports, wait_ready

ENVOY = ROOT / ".servers" / "envoy" / "envoy" / "_bin" / "envoy"
HEDGED_AFTER = "x-hedged-after"
"""The header that chooses a route, by its delay."""

_TYPE = "type.googleapis.com/envoy.extensions."


def hedging(after: float) -> dict[str, str]:
    """Return the headers of a request that Envoy copies to another server after so many seconds."""
    return {HEDGED_AFTER: f"{after:g}"}


@contextmanager
def envoy(ports: Sequence[int], delays: Sequence[float]) -> Iterator[tuple[str, int]]:
    """Run Envoy in front of these servers while the context lasts; gives its URL and process id.

    Raises UserError if it is not installed, and LoadError, with its log, if it does not start.
    """
    if not ENVOY.exists():
        raise UserError(f"there is no Envoy at {ENVOY} to compare with; run make servers there")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        file = Path(folder) / "envoy.json"
        file.write_bytes(msgspec.json.encode(_configuration(port, ports, delays)))
        command = (ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_ready("Envoy", process, port, Path(folder) / "log")
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()


def _configuration(port: int, ports: Sequence[int], delays: Sequence[float]) -> Mapping[str, Any]:
    manager = {
        "@type": f"{_TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "models",
        "http_filters": [
            _named(f"{_TYPE}filters.http.router.v3.Router", "envoy.filters.http.router")
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "models",
                    "domains": ["*"],
                    "routes": [*map(_hedged, delays), _route({"prefix": "/"}, {})],
                }
            ]
        },
    }
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    endpoints = [{"endpoint": {"address": _address(each)}} for each in ports]
    listener = {"name": "models", "address": _address(port), "filter_chains": [{"filters": [http]}]}
    cluster = {
        "name": "models",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "least_request_lb_config": {"choice_count": len(ports)},
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_retries": 100_000}]},
        "load_assignment": {"cluster_name": "models", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _hedged(after: float) -> Mapping[str, Any]:
    """Return the route of requests that are copied to another server."""
    matched = {"name": HEDGED_AFTER, "string_match": {"exact": hedging(after)[HEDGED_AFTER]}}
    others = f"{_TYPE}retry.host.previous_hosts.v3.PreviousHostsPredicate"
    hedge = {
        "hedge_policy": {"hedge_on_per_try_timeout": True},
        "retry_policy": {
            "retry_on": "5xx,reset",
            "num_retries": 1,
            "per_try_timeout": f"{after:g}s",
            "retry_host_predicate": [_named(others, "envoy.retry_host_predicates.previous_hosts")],
            "host_selection_retry_max_attempts": 3,
        },
    }
    return _route({"prefix": "/", "headers": [matched]}, hedge)


def _route(match: Mapping[str, Any], action: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"match": match, "route": {"cluster": "models", "timeout": "15s", **action}}


def _named(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": kind}}


def _address(port: int) -> Mapping[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
