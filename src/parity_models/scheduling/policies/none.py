"""No redundancy: only originals run."""

from parity_models.roles import DEPLOYED
from parity_models.scheduling.policies.policy import Policy


class NoRedundancy(Policy):
    """Send only originals, on the deployed model's own instances."""

    name = "none"

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED})] * instances


class EqualResources(Policy):
    """Send only originals, on as many instances as the redundant policies have.

    The baseline of Kosaian et al., SOSP 2019, section 5.1: the m/k extra instances run the
    deployed model as well.
    """

    name = "equal-resources"
