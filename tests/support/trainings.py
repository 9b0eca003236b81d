"""Trainings on the digits, for tests."""

from collections.abc import Callable

from parity_models.training import Outcome, Progress

Train = Callable[..., Outcome]
"""Trains a parity model on the digits into a bundle of the test's folder (fixture `train`)."""


def fail_at(share: float, error: BaseException) -> Callable[[Progress], None]:
    """A report that breaks a training off when `share` of its budget is spent."""

    def report(progress: Progress) -> None:
        if progress.spent >= share:
            raise error

    return report


def weights(outcome: Outcome) -> list[str]:
    return [model.sha256 for model in outcome.bundle.manifest.parity]
