"""Redundancy policies: each decides which redundant tasks are sent. One policy, one file."""

from parity_models.registry import Registry
from parity_models.scheduling.effect import Redundancy as Redundancy
from parity_models.scheduling.policies.adaptive import Adaptive as Adaptive
from parity_models.scheduling.policies.backup import ApproximateBackup as ApproximateBackup
from parity_models.scheduling.policies.hedging import Hedging as Hedging
from parity_models.scheduling.policies.none import EqualResources as EqualResources
from parity_models.scheduling.policies.none import NoRedundancy as NoRedundancy
from parity_models.scheduling.policies.parity import Parity as Parity
from parity_models.scheduling.policies.parity import Pool as Pool
from parity_models.scheduling.policies.policy import Erasures as Erasures
from parity_models.scheduling.policies.policy import Policy as Policy
from parity_models.scheduling.policies.policy import Requires as Requires
from parity_models.scheduling.policies.policy import StandIns as StandIns
from parity_models.scheduling.policies.replication import Replication as Replication

POLICIES = Registry[Policy](
    "policy",
    Policy,
    NoRedundancy,
    EqualResources,
    Replication,
    Hedging,
    ApproximateBackup,
    Parity,
    Adaptive,
)
"""The redundancy policies."""
