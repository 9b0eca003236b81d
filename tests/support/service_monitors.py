"""What the Prometheus operator takes, by its own schema."""

from typing import Any

from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor


def check_service_monitor(manifest: dict[str, Any]) -> None:
    """It is read without a remainder: a key that the operator does not know would be left out."""
    read = ServiceMonitor.model_validate(manifest)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
