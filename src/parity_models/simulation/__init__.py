"""Discrete-event simulation of the scheduler that serves, with imagined instances."""

from parity_models.simulation.cores import Cores, Hog
from parity_models.simulation.scenario import Links, Simulation, SimulationResult
from parity_models.simulation.simulator import simulate

__all__ = ["Cores", "Hog", "Links", "Simulation", "SimulationResult", "simulate"]
