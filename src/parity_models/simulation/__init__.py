"""Discrete-event simulation of the scheduler that serves, with imagined instances."""

from parity_models.simulation.simulator import Simulation, SimulationResult, simulate

__all__ = ["Simulation", "SimulationResult", "simulate"]
