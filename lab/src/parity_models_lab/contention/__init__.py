"""Contention, for real: shuffles on shaped links, busy cores, stopped workers, another tenant."""

from parity_models.errors import UserError


class ContentionError(UserError):
    """Contention that cannot be made on this machine, or an invalid description of it."""
