"""Training stand-ins, parity models and backups, from a deployed model's predictions."""

from parity_models.progress import Callbacks, Progress, progress_bars
from parity_models.training.fit import Fitted
from parity_models.training.teacher import Queries, TrainingOptions, open_teacher, teacher_of
from parity_models.training.train import Trained, backup, parity, train

__all__ = [
    "Callbacks",
    "Fitted",
    "Progress",
    "Queries",
    "Trained",
    "TrainingOptions",
    "backup",
    "open_teacher",
    "parity",
    "progress_bars",
    "teacher_of",
    "train",
]
