"""The Prometheus operator's own schema of a service monitor."""

from typing import Any


def check_service_monitor(manifest: dict[str, Any]) -> None:
    """Check that the operator knows every key: it would leave out any other."""
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor  # it takes seconds

    read = ServiceMonitor.model_validate(manifest)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
