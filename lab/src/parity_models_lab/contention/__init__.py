"""Contention, for real: shuffles on shaped links, busy cores, stopped workers, another tenant."""
