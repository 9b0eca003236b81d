"""Training a deployed model, and training parity models and backups from its predictions."""

from parity_models.training.backup import train_backup
from parity_models.training.deployed import train_deployed
from parity_models.training.fit import Fitted, Progress, Report
from parity_models.training.parity import default_network, train_parity
from parity_models.training.progress import progress_bar
from parity_models.training.run import Outcome, Settings
from parity_models.training.source import open_deployed

__all__ = [
    "Fitted",
    "Outcome",
    "Progress",
    "Report",
    "Settings",
    "default_network",
    "open_deployed",
    "progress_bar",
    "train_backup",
    "train_deployed",
    "train_parity",
]
