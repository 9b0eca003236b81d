"""How right answers are when some of the predictions are unavailable."""

from parity_models.evaluation.accuracy import FRACTIONS, evaluate
from parity_models.evaluation.approaches import (
    Approach,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.evaluation.compare import compare_approaches
from parity_models.evaluation.tables import accuracy_table, approaches_table

__all__ = [
    "FRACTIONS",
    "Approach",
    "accuracy_table",
    "approaches_table",
    "compare_approaches",
    "evaluate",
    "evaluate_default",
    "evaluate_training_free",
    "fit_nested_regression",
    "plain_approach",
]
