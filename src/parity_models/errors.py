"""The project's errors. Every message says what was wrong and what to do about it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

EXTRAS = {
    "aiohttp": "remote",
    "array_api_compat": "train",
    "grpc": "remote",
    "ngh2": "grpc",
    "onnx": "train",
    "opentelemetry": "otel",
    "onnxscript": "train",
    "pyarrow": "train",
    "ray": "ray",
    "safetensors": "train",
    "sklearn": "train",
    "torch": "train",
    "torchvision": "train",
}
"""The extra of this distribution that installs a module."""


def install(extra: str) -> str:
    """Return how to install an `extra`; the package is on no index yet."""
    return f"in a clone of the repository, pip install '.[{extra}]'"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import modules of an extra in this context. Raises UserError, which says that `what` needs
    them, if they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {error.name}; {install(extra)}") from error


def missing(error: Exception) -> str | None:
    """Return the message for a module that an extra installs; None for any other error."""
    module = error.name if isinstance(error, ModuleNotFoundError) else None
    extra = EXTRAS.get((module or "").partition(".")[0])
    return None if extra is None else f"{error}; {install(extra)}"


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a question for a message: which of the names a wrong one may stand for, if any."""
    near = get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def as_argument(name: str, value: Any = None) -> str:
    """Return how a program gives an option."""
    return f"{name}={'' if value is None else repr(value)}"


def as_flag(name: str, value: Any = None) -> str:
    """Return how a user of the command line gives an option."""
    flag = f"--{name.replace('_', '-')}"
    value = " ".join(value) if isinstance(value, list) else value
    return flag if value is None or value is True else f"{flag} {value}"


_spell: Callable[[str, Any], str] = as_argument


def spell(name: str, value: Any = None) -> str:
    """Return an option, with a value if one is given, for a message to the user of this process:
    `differ=0.1` in a program, and `--differ 0.1` on the command line."""
    return _spell(name, value)


@contextmanager
def options_as_flags() -> Iterator[None]:
    """Spell the options in messages as flags in this context."""
    global _spell
    before, _spell = _spell, as_flag
    try:
        yield
    finally:
        _spell = before


class ParityModelsError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(ParityModelsError):
    """The caller's mistake: exit code 2 on the command line, 4xx over the network."""


class CodeError(UserError):
    """A code that cannot be built or cannot take these arrays."""


class UndecodableError(ParityModelsError):
    """Available outputs that do not determine a reconstruction."""


class ModelError(UserError):
    """A model file that cannot be run, or a model of a form that is not supported."""


class BundleError(UserError):
    """A bundle that is missing, damaged, tampered with or made by a newer version."""


class DataError(UserError):
    """A dataset or input file that is missing or does not have the promised layout."""


class TrainingError(UserError):
    """Training options that cannot work together or a run that cannot be resumed."""


class ServingError(ParityModelsError):
    """An engine or server that cannot start."""


class FaultPlanError(UserError):
    """A fault plan that cannot be read or does not fit the instances."""


class LoadError(UserError):
    """A load that cannot be offered: no such server or model, or inputs that do not fit it."""
