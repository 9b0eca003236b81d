"""The scheduler, sans-I/O: events in, actions out, time an argument.

`Scheduler` is driven by the real frontend, by the simulator and by property-based tests alike;
it knows ids and times, never arrays, sockets or clocks.
"""

from parity_models.scheduling.actions import (
    BACKUP,
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Reason,
    Recycle,
    RecycleReason,
    Run,
    Source,
    Verify,
    WakeAt,
    parity_role,
    source_of,
)
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.front_door import Redundancy
from parity_models.scheduling.policies import EqualResources, NoRedundancy, Parity, Policy
from parity_models.scheduling.work import SchedulerConfig

__all__ = [
    "BACKUP",
    "DEPLOYED",
    "Action",
    "Answer",
    "Cancel",
    "Compare",
    "Decode",
    "Encode",
    "EqualResources",
    "Fail",
    "ForgetGroup",
    "ForgetQueries",
    "NoRedundancy",
    "Parity",
    "Policy",
    "Reason",
    "Recycle",
    "RecycleReason",
    "Redundancy",
    "Run",
    "Scheduler",
    "SchedulerConfig",
    "Source",
    "Verify",
    "WakeAt",
    "parity_role",
    "source_of",
]
