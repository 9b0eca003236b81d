"""Redundancy policies: what is sent besides the originals. One policy, one file."""

from parity_models.registry import Registry
from parity_models.scheduling.policies.adaptive import Adaptive
from parity_models.scheduling.policies.backup import ApproximateBackup
from parity_models.scheduling.policies.cascade import Cascade
from parity_models.scheduling.policies.hedging import Hedging
from parity_models.scheduling.policies.none import EqualResources, NoRedundancy
from parity_models.scheduling.policies.parity import Parity, Pool
from parity_models.scheduling.policies.policy import Erasures, Policy, StandIns
from parity_models.scheduling.policies.replication import Replication

POLICIES = Registry[Policy](
    "policy",
    Policy,
    NoRedundancy,
    EqualResources,
    Replication,
    Hedging,
    ApproximateBackup,
    Cascade,
    Parity,
    Adaptive,
)
"""The redundancy policies."""

__all__ = [
    "POLICIES",
    "Adaptive",
    "ApproximateBackup",
    "Cascade",
    "EqualResources",
    "Erasures",
    "Hedging",
    "NoRedundancy",
    "Parity",
    "Policy",
    "Pool",
    "Replication",
    "StandIns",
]
