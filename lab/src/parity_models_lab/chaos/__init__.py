"""Chaos: a real server under load and faults, and every query accounted for."""
