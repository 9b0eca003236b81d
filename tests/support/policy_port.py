"""Ports for policies that a test tells something by hand."""

from collections.abc import Iterable

from parity_models.scheduling import Scheduler
from parity_models.scheduling.dispatch import SingleQueue
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.port import Port
from scheduling_world import ORIGINALS


def port_at(now: float, policy: Policy, up: Iterable[str] = ()) -> Port:
    """A port on which nothing has happened, for a policy that is told something by hand."""
    dispatch = SingleQueue()
    for instance in up:
        dispatch.join(instance, ORIGINALS, None)
    port = Scheduler(policy, dispatch=dispatch)
    port.now = now
    return port
