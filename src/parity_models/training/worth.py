"""What a stand-in is worth, judged by what it says of queries that are held out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.gate import confidences, suited
from parity_models.tasks.agreeing import agreement_for

Array = NDArray[Any]


def coverage(metric: str, answers: Array, predictions: Array, level: float) -> float:
    """The largest share of the surest `answers` (n, ...) of which `level` agree with F's.

    This is as it looks: the gate's calibration promises it. Where nothing tells how sure an answer
    is, it is the share of those that agree.
    """
    agreed = agreement_for(metric, predictions)
    same = agreed(answers, predictions)
    confidence = suited(agreed.kind, answers)
    if confidence == "none":
        return float(same.mean())
    order = np.argsort(-confidences(confidence, answers), kind="stable")
    right = np.cumsum(same[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(right >= level)
    return float((enough[-1] + 1) / len(order)) if len(enough) else 0.0


def worth(covered: float, share: float) -> float:
    """How much sooner late queries are answered than by a copy, in F's times, on average.

    A stand-in takes `share` of F's time and answers a share `covered` of the queries.
    """
    return covered * max(0.0, 1 - share)
