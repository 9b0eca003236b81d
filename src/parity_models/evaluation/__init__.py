"""Accuracy of answers when some of the predictions are unavailable, and calibration of gates."""

from parity_models.evaluation.accuracy import FRACTIONS, evaluate
from parity_models.evaluation.calibration import LEVELS, calibrate
from parity_models.evaluation.gates import GateResult, evaluate_gates
from parity_models.evaluation.tables import (
    accuracy_table,
    calibration_table,
    gate_table,
)

__all__ = [
    "FRACTIONS",
    "LEVELS",
    "GateResult",
    "accuracy_table",
    "calibrate",
    "calibration_table",
    "evaluate",
    "evaluate_gates",
    "gate_table",
]
