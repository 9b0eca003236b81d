"""The project's errors. Every message says what was wrong and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "aiohttp": "remote",
    "grpc": "grpc",
    "onnx": "train",
    "opentelemetry": "otel",
    "onnxscript": "train",
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
