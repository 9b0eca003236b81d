"""Dispatch: which instance runs which task next. Each rule works with every policy."""

from parity_models.registry import Registry
from parity_models.scheduling.dispatch.dispatch import Dispatch
from parity_models.scheduling.dispatch.instance_queues import PowerOfTwoChoices, RoundRobin
from parity_models.scheduling.dispatch.single_queue import LatencyAware, SingleQueue

RULES = Registry[Dispatch](
    "dispatch rule", Dispatch, SingleQueue, RoundRobin, PowerOfTwoChoices, LatencyAware
)
"""The dispatch rules."""

__all__ = [
    "RULES",
    "Dispatch",
    "LatencyAware",
    "PowerOfTwoChoices",
    "RoundRobin",
    "SingleQueue",
]
