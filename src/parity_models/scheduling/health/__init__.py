"""Instances that fail, hang or lie, and queries that end them: see docs/explanation/health.md."""

from parity_models.scheduling.health.health import Health
from parity_models.scheduling.health.members import SHORT_REST, State
from parity_models.scheduling.health.poison import Poison

__all__ = ["SHORT_REST", "Health", "Poison", "State"]
