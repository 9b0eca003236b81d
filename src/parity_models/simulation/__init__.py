"""Discrete-event simulation of the scheduler that serves, with simulated instances."""

from parity_models.simulation.simulator import FAILED as FAILED
from parity_models.simulation.simulator import SOURCES as SOURCES
from parity_models.simulation.simulator import Driver as Driver
from parity_models.simulation.simulator import Simulation as Simulation
from parity_models.simulation.simulator import SimulationResult as SimulationResult
from parity_models.simulation.simulator import simulate as simulate
