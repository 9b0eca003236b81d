"""Discrete-event simulation of the scheduler that serves, with simulated instances."""

from parity_models.simulation.simulator import (
    FAILED,
    SOURCES,
    Driver,
    Simulation,
    SimulationResult,
    simulate,
)

__all__ = ["FAILED", "SOURCES", "Driver", "Simulation", "SimulationResult", "simulate"]
