"""The scheduler, sans-I/O: events in, actions out, time an argument.

`Scheduler` is driven by the real frontend, by the simulator and by property-based tests alike;
it knows ids and times, never arrays, sockets or clocks.
"""

from parity_models.scheduling.actions import BACKUP as BACKUP
from parity_models.scheduling.actions import DEPLOYED as DEPLOYED
from parity_models.scheduling.actions import Action as Action
from parity_models.scheduling.actions import Answer as Answer
from parity_models.scheduling.actions import Cancel as Cancel
from parity_models.scheduling.actions import Compare as Compare
from parity_models.scheduling.actions import Decode as Decode
from parity_models.scheduling.actions import Encode as Encode
from parity_models.scheduling.actions import Fail as Fail
from parity_models.scheduling.actions import ForgetGroup as ForgetGroup
from parity_models.scheduling.actions import ForgetQueries as ForgetQueries
from parity_models.scheduling.actions import Reason as Reason
from parity_models.scheduling.actions import Recycle as Recycle
from parity_models.scheduling.actions import RecycleReason as RecycleReason
from parity_models.scheduling.actions import Run as Run
from parity_models.scheduling.actions import Source as Source
from parity_models.scheduling.actions import Verify as Verify
from parity_models.scheduling.actions import WakeAt as WakeAt
from parity_models.scheduling.actions import parity_role as parity_role
from parity_models.scheduling.actions import source_of as source_of
from parity_models.scheduling.core import Scheduler as Scheduler
from parity_models.scheduling.front_door import Redundancy as Redundancy
from parity_models.scheduling.policies import EqualResources as EqualResources
from parity_models.scheduling.policies import NoRedundancy as NoRedundancy
from parity_models.scheduling.policies import Parity as Parity
from parity_models.scheduling.policies import Policy as Policy
from parity_models.scheduling.work import SchedulerConfig as SchedulerConfig
