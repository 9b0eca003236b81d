"""Accuracy matrices: what is trained and compared, read from a file that people can edit."""

from importlib import resources
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from parity_models.codes import CodeSpec
from parity_models.codes.code import check_spec
from parity_models.errors import UserError
from parity_models.options import Value
from parity_models.training.networks import find_network
from parity_models_lab.documents import load_toml, names_in
from parity_models_lab.published import check_published
from parity_models_lab.tasks import find_task

FILES = resources.files("parity_models_lab.accuracy") / "matrices"
PRESETS = names_in(FILES)
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Epochs = Annotated[int, Meta(ge=1, le=100_000)]
K = Annotated[int, Meta(ge=2, le=64)]
R = Annotated[int, Meta(ge=1, le=3)]


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The length of a training; by default that of its network's recipe."""

    seconds: Seconds | None = None
    epochs: Epochs | None = None


class CodeCell(Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code to train parity models for, how, and with which network (by default F's).

    Options that are not given are not written, so that results keep their names.
    """

    encoder: str
    decoder: str
    encoder_options: dict[str, Value] | UnsetType = UNSET
    decoder_options: dict[str, Value] | UnsetType = UNSET
    k: K = 2
    r: R = 1
    recipe: Literal["distilled", "published"] = "distilled"
    network: str | None = None

    @property
    def spec(self) -> CodeSpec:
        return CodeSpec(
            self.encoder,
            self.decoder,
            self.k,
            self.r,
            self.encoder_options or {},
            self.decoder_options or {},
        )

    def __str__(self) -> str:
        given = {**self.spec.encoder_options, **self.spec.decoder_options}
        options = "".join(f", {name} {value}" for name, value in given.items())
        recipe = "" if self.recipe == "distilled" else f", {self.recipe} recipe"
        network = "" if self.network is None else f", {self.network}"
        parities = f", r={self.r}" if self.r > 1 else ""
        return f"{self.encoder} + {self.decoder}{options}{recipe}{network}, k={self.k}{parities}"


class BackupCell(Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An approximate backup to train: its network."""

    network: str

    def __str__(self) -> str:
        return f"approximate backup, {self.network}"


class FreeCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code that needs no training."""

    code: Literal["berrut"]
    k: K = 2
    r: R = 1

    def __str__(self) -> str:
        return f"{self.code}, k={self.k}, r={self.r}"


class DeployedCell(Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    def file(self) -> str:
        """The name of its results' file."""
        recipe = "" if self.recipe == "usual" else f"-{self.recipe}"
        task = self.task.rpartition(":")[2]
        return f"{task}-{self.network}{recipe}".replace(":", "-").replace("@", "-")

    def __str__(self) -> str:
        recipe = "" if self.recipe == "usual" else ", trained as published"
        return f"{self.task.rpartition(':')[2]}, {self.network}{recipe}"


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deployed models that one report compares."""

    title: str
    deployed: tuple[DeployedCell, ...]

    def checked(self) -> "Matrix":
        """Return it. Raises UserError for what cannot be, before anything is trained."""
        if not self.deployed:
            raise UserError("a matrix needs a deployed model at least")
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
