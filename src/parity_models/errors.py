"""The project's errors. Every message says what was wrong and what to do about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def install(extra: str) -> str:
    """How to install an `extra`, as messages say it: the package is on no index yet."""
    return f"in a clone of the repository, pip install '.[{extra}]'"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import modules of an extra inside. Raises UserError, which calls their use `what`, where they
    are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {error.name}; {install(extra)}") from error


class ParityModelsError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(ParityModelsError):
    """The caller's mistake: exit code 2 on the command line, 4xx over the network."""

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with the names of options as `spell` writes them."""
        return str(self)


class OptionError(UserError):
    """Options that cannot be as they are given: `say` makes the message, of how to spell their
    names. As a text it has the names of the fields."""

    def __init__(self, say: Callable[[Callable[[str], str]], str]) -> None:
        super().__init__(say(str))
        self._say = say

    def spelled(self, spell: Callable[[str], str]) -> str:
        return self._say(spell)

    def __reduce__(self) -> tuple[Any, ...]:
        return UserError, self.args  # other processes need not know how to spell


class CodeError(UserError):
    """A code that cannot be built or cannot take these arrays."""


class UndecodableError(ParityModelsError):
    """A reconstruction was asked for that the available outputs do not determine."""


class ModelError(UserError):
    """A model file that cannot be run, or is not a model with one input and one output."""


class BundleError(UserError):
    """A bundle that is missing, damaged, tampered with or made by a newer version."""


class DataError(UserError):
    """A dataset or input file that is missing or does not have the promised layout."""


class TrainingError(UserError):
    """Training options that cannot work together or a run that cannot be resumed."""


class ServingError(ParityModelsError):
    """An engine or server that cannot start; one that `passes` may start later, unchanged."""

    @property
    def passes(self) -> bool:
        return False


class FaultPlanError(UserError):
    """A plan of faults to inject that cannot be read or does not fit what it is injected into."""


class LoadError(UserError):
    """A load that cannot be offered: no such server or model, or inputs that do not fit it."""


class ContentionError(UserError):
    """Contention that cannot be made on this machine, or a description of it that is none."""
