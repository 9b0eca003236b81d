"""Training stand-ins, parity models and backups, from a deployed model's predictions."""

from parity_models.training.fit import Fitted
from parity_models.training.teacher import Queries, TrainingOptions, open_teacher, teacher_of
from parity_models.training.train import Trained, train, train_backup, train_parity

__all__ = [
    "Fitted",
    "Queries",
    "Trained",
    "TrainingOptions",
    "open_teacher",
    "teacher_of",
    "train",
    "train_backup",
    "train_parity",
]
