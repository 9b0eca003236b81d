"""Training stand-ins, parity models and backups, from a deployed model's predictions."""

from parity_models.training.fit import Fitted
from parity_models.training.teacher import Queries, TrainingOptions, open_teacher, teacher_of
from parity_models.training.train import Trained, backup, parity, train

__all__ = [
    "Fitted",
    "Queries",
    "Trained",
    "TrainingOptions",
    "backup",
    "open_teacher",
    "parity",
    "teacher_of",
    "train",
]
