"""Discrete-event simulation of the scheduler that serves, with imagined instances."""

from parity_models.simulation.scenario import Links, Simulation, SimulationResult
from parity_models.simulation.simulator import simulate

__all__ = ["Links", "Simulation", "SimulationResult", "simulate"]
