"""Discrete-event simulation of the scheduler that serves, with simulated instances."""

from parity_models.simulation.cores import Antagonist, Cores
from parity_models.simulation.simulator import (
    FAILED,
    SOURCES,
    Links,
    Simulation,
    SimulationResult,
    simulate,
)

__all__ = [
    "FAILED",
    "SOURCES",
    "Antagonist",
    "Cores",
    "Links",
    "Simulation",
    "SimulationResult",
    "simulate",
]
