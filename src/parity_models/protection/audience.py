"""Who is told how it goes."""

from collections.abc import Callable
from dataclasses import dataclass

from parity_models.training.search import Searching


def _nobody(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Audience:
    """Told of the rows that the model has predicted, of the search several times a second, that
    the search is over, and sentences."""

    predicted: Callable[[int], None] = _nobody
    searching: Callable[[Searching], None] = _nobody
    searched: Callable[[], None] = _nobody
    say: Callable[[str], None] = _nobody
