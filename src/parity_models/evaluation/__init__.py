"""How right answers are when some of the predictions are unavailable."""

from parity_models.evaluation.accuracy import FRACTIONS, evaluate
from parity_models.evaluation.approaches import (
    Approach,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.evaluation.calibration import LEVELS, calibrate
from parity_models.evaluation.compare import compare_approaches
from parity_models.evaluation.gates import GateResult, evaluate_gates
from parity_models.evaluation.tables import (
    accuracy_table,
    approaches_table,
    calibration_table,
    gate_table,
)

__all__ = [
    "FRACTIONS",
    "LEVELS",
    "Approach",
    "GateResult",
    "accuracy_table",
    "approaches_table",
    "calibrate",
    "calibration_table",
    "compare_approaches",
    "evaluate",
    "evaluate_default",
    "evaluate_gates",
    "evaluate_training_free",
    "fit_nested_regression",
    "gate_table",
    "plain_approach",
]
