"""Emulated faults and arrivals, and the simulation of the scheduler that serves."""
