"""Faults injected on purpose, for demonstrations and tests: slow, paused, killed and lying workers.

A plan is a small JSON document. What it does to a worker depends on nothing but the plan, the
worker's number and the time since injection began: neither on the load nor on what the worker
did before, so that whatever is compared meets the same faults, and a worker that was restarted
goes on where its predecessor would be. Times are in seconds.
"""

from parity_models.faults.distributions import (
    MAX_MEASURED,
    Constant,
    Distribution,
    Duration,
    Empirical,
    Exponential,
    LogNormal,
    Spell,
    Uniform,
)
from parity_models.faults.fault_plan import (
    FaultPlan,
    Kill,
    Lie,
    RandomKills,
    load_fault_plan,
)
from parity_models.faults.neighbours import Neighbours
from parity_models.faults.pace import ColdStart, Degradation, Factor
from parity_models.faults.shuffles import Shuffles, Transfers
from parity_models.faults.slowness import Pauses, Slowdowns
from parity_models.faults.spells import Spells
from parity_models.faults.worker import WorkerFaults

__all__ = [
    "MAX_MEASURED",
    "ColdStart",
    "Constant",
    "Degradation",
    "Distribution",
    "Duration",
    "Empirical",
    "Exponential",
    "Factor",
    "FaultPlan",
    "Kill",
    "Lie",
    "LogNormal",
    "Neighbours",
    "Pauses",
    "RandomKills",
    "Shuffles",
    "Slowdowns",
    "Spell",
    "Spells",
    "Transfers",
    "Uniform",
    "WorkerFaults",
    "load_fault_plan",
]
