"""A real model and its queries in a folder, as the programs in examples/real/ write them.

model.onnx     the deployed model
inputs.npz     queries to learn from: an array for each input, a row for each query
test.npz       other queries, to judge by
labels.npy     what is right for those, if it is known
about.json     what it is, and which networks stand in for it
backup*.onnx   stand-ins that were made elsewhere, if there are any
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.evaluation.judged_queries import load_rows
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.named_inputs import read_named
from parity_models.models.servable import read_servable
from parity_models.models.signature import Signature
from parity_models.tasks.user_data import load_labels
from parity_models_lab.real.results import digest

Array = NDArray[Any]

HELD_OUT = 10
"""One of so many queries is not learned from: the gate is calibrated with them."""


class Trained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network to train, and for how long: as a backup, or, with a `k` from 2, as the parity model
    of so many queries."""

    network: str
    seconds: Annotated[float, Meta(gt=0, le=1e5)]
    k: Annotated[int, Meta(ge=1, le=8)] = 1

    @property
    def name(self) -> str:
        return self.network if self.k == 1 else f"{self.network}, k = {self.k}"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prepared model is: its `name` among the targets, a title, a sentence about model and
    data, and the networks that stand in for it."""

    name: str
    title: str
    about: str
    networks: tuple[Trained, ...] = ()


class Prepared:
    """A folder with a model and queries. Raises DataError where something of it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.about = msgspec.json.decode((folder / "about.json").read_bytes(), type=About)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder} is no prepared model: {error}; a program in examples/real writes one"
            ) from error
        for name in ("model.onnx", "inputs.npz", "test.npz"):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing; prepare the model again")

    @property
    def own(self) -> list[Path]:
        """Stand-ins that were made elsewhere."""
        return sorted(self.folder.glob("backup*.onnx"))

    @property
    def key(self) -> str:
        """Names all that its results depend on."""
        files = sorted(each for each in self.folder.iterdir() if each.is_file())
        return digest(*(part for file in files for part in (file.name, file.read_bytes())))

    @contextmanager
    def bundle(self, backup: Path | None = None) -> Iterator[Bundle]:
        """A bundle of the model, with one of its `own` stand-ins, for as long as it is needed."""
        queries = read_named(self.folder / "inputs.npz")
        content, signature = read_servable(self.folder / "model.onnx", queries=queries)
        stand_ins = []
        if backup is not None:
            its = read_servable(backup, signature.axes)
            stand_ins = [NewModel(its[0], backup.stem, signature=its[1])]
        with TemporaryDirectory() as folder:
            deployed = NewModel(content, self.about.name, signature=signature)
            yield write_bundle(Path(folder) / "bundle", deployed=deployed, backups=stand_ins)

    def rows(self, bundle: Bundle) -> tuple[Array, Array]:
        """Queries to learn from, and those held out."""
        rows = load_rows(self.folder / "inputs.npz", bundle, least=HELD_OUT)
        learned, held_out = np.split(rows, [len(rows) - len(rows) // HELD_OUT])
        return learned, held_out

    def test(self, bundle: Bundle) -> Array:
        return load_rows(self.folder / "test.npz", bundle)

    def labels(self, metric: str, rows: int, signature: Signature) -> Array | None:
        """What is right for the test queries, or None where nobody knows."""
        file = self.folder / "labels.npy"
        shape = signature.outputs[0].shape
        fixed = tuple(size for size in shape if isinstance(size, int))
        return load_labels(file, metric, rows, fixed) if file.exists() else None
