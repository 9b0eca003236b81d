"""How right answers are when some of the predictions are unavailable."""

from parity_models.evaluation.accuracy import FRACTIONS, evaluate
from parity_models.evaluation.tables import accuracy_table

__all__ = ["FRACTIONS", "accuracy_table", "evaluate"]
