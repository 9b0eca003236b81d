"""Codes with parity models beside what answers without them, for the same k and r or for less."""

from collections.abc import Iterator

from parity_models.evaluation.approaches import Approach
from parity_models_lab.accuracy.matrix import FreeCell
from parity_models_lab.accuracy.results import CodeResult, ModelResults

DEFAULT = "default prediction"


def berrut_of(model: ModelResults, code: CodeResult) -> Approach | None:
    """Berrut coding of the same k and r, if it was measured."""
    return _find(model, str(FreeCell(code="berrut", k=code.cell.k, r=code.cell.r)))


def behind(model: ModelResults, code: CodeResult) -> Iterator[str]:
    """Where a code does not beat Berrut coding and the default prediction, in sentences."""
    ours = code.accuracy.degraded_by_unavailable
    for other in (berrut_of(model, code), _find(model, DEFAULT)):
        if other is None:
            continue
        theirs = other.degraded * len(ours) if other.name == DEFAULT else other.degraded
        for unavailable, (one, another) in enumerate(zip(ours, theirs, strict=False), 1):
            if one <= another:
                yield (
                    f"{code.cell} does not beat {other.name} with {unavailable} unavailable: "
                    f"{one:.2%} against {another:.2%}."
                )


def _find(model: ModelResults, name: str) -> Approach | None:
    return next((one for one in model.approaches if one.name == name), None)
