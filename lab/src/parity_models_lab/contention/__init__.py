"""Contention, for real: shuffles on shaped links, and a slower processor."""
