"""Slow and paused workers, as a plan says."""

from typing import Annotated

import msgspec

from parity_models.faults.distributions import Distribution, Duration, Spell
from parity_models.faults.pace import Factor

Nodes = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
"""How many nodes workers share; 0 where each has one to itself."""


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells in which every unit takes a drawn `delay` longer, as beside a noisy neighbour.

    There it takes `factor` times as long besides. Spells and the times between them are
    exponential; `mean_between` 0 is always slow. `workers` None: all of them, each at its own
    times, or, where there are `nodes`, those of one node (by their number modulo that) together.
    """

    mean_between: Duration
    mean_length: Spell
    delay: Distribution
    workers: tuple[int, ...] | None = None
    factor: Factor = 1.0
    nodes: Nodes = 0


class Pauses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells of a drawn `length` in which the worker gets nowhere, as in a garbage collection.

    The times between them are exponential. `workers` None: all of them, each at its own times, or,
    where there are `nodes`, those of one node (by their number modulo that) together.
    """

    mean_between: Spell
    length: Distribution
    workers: tuple[int, ...] | None = None
    nodes: Nodes = 0


def course_of(kind: Slowdowns | Pauses, worker: int) -> str:
    """Names whose course of spells the worker has: its own, or that of all on its node."""
    return f"node {worker % kind.nodes}" if kind.nodes else str(worker)
