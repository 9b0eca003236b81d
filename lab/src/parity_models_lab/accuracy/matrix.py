"""Accuracy matrices: what is trained and compared, read from a file that people can edit."""

from importlib import resources
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from parity_models.codes import CodeSpec
from parity_models.codes.code import check_spec
from parity_models.training.networks import find_network
from parity_models_lab.documents import load_toml, names_in
from parity_models_lab.published import check_published
from parity_models_lab.tasks import find_task

FILES = resources.files("parity_models_lab.accuracy") / "matrices"
PRESETS = names_in(FILES)


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training and its length; by default that of its network's recipe."""

    seconds: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    epochs: Annotated[int, Meta(ge=1, le=100_000)] | None = None


class CodeCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code to train parity models for, how, and with which network (by default F's)."""

    encoder: str
    decoder: str
    k: int = 2
    r: int = 1
    recipe: Literal["distilled", "published"] = "distilled"
    network: str | None = None

    @property
    def spec(self) -> CodeSpec:
        return CodeSpec(self.encoder, self.decoder, self.k, self.r)

    def __str__(self) -> str:
        recipe = "" if self.recipe == "distilled" else f", {self.recipe} recipe"
        network = "" if self.network is None else f", {self.network}"
        parities = f", r={self.r}" if self.r > 1 else ""
        return f"{self.encoder} + {self.decoder}{recipe}{network}, k={self.k}{parities}"


class BackupCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An approximate backup to train: its network."""

    network: str

    def __str__(self) -> str:
        return f"approximate backup, {self.network}"


class FreeCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code that needs no training."""

    code: Literal["berrut"]
    k: Annotated[int, Meta(ge=2, le=64)] = 2
    r: Annotated[int, Meta(ge=1, le=3)] = 1

    def __str__(self) -> str:
        return f"{self.code}, k={self.k}, r={self.r}"


class DeployedCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task and a network, and all that is compared for them.

    With the `recipe` "published" the deployed model, too, is trained as in the paper.
    """

    task: str
    network: str
    recipe: Literal["usual", "published"] = "usual"
    codes: tuple[CodeCell, ...] = ()
    backups: tuple[BackupCell, ...] = ()
    free: tuple[FreeCell, ...] = ()

    @property
    def compared(self) -> tuple[CodeCell | BackupCell | FreeCell, ...]:
        return (*self.codes, *self.backups, *self.free)

    @property
    def file(self) -> str:
        """The name of its results' file."""
        recipe = "" if self.recipe == "usual" else f"-{self.recipe}"
        task = self.task.rpartition(":")[2]
        return f"{task}-{self.network}{recipe}".replace(":", "-").replace("@", "-")

    def __str__(self) -> str:
        recipe = "" if self.recipe == "usual" else ", trained as published"
        return f"{self.task.rpartition(':')[2]}, {self.network}{recipe}"


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deployed models that are compared."""

    title: str
    deployed: Annotated[tuple[DeployedCell, ...], Meta(min_length=1)]

    def checked(self) -> "Matrix":
        """Return it. Raises UserError for what cannot be, before anything is trained."""
        for cell in self.deployed:
            find_task(cell.task)
            networks = [cell.network, *(backup.network for backup in cell.backups)]
            for code in cell.codes:
                check_spec(code.spec)
                if code.recipe == "published":
                    check_published(code.spec)
                networks += [] if code.network is None else [code.network]
            for network in networks:
                find_network(network)  # refuses names that there are not
        return self


def load_matrix(name: str) -> Matrix:
    """Read a matrix: one that comes with the package, by name, or any file.

    Raises UserError if there is none or it is not a matrix.
    """
    return load_toml(name, FILES, Matrix, Matrix.checked, "matrix", "lab/notes/accuracy.md")
