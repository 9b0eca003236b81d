"""Reliability of real servers: chaos, overload, and an attack on other clients' answers."""
