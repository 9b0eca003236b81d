"""The queries of a deployed model, as networks see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from parity_models.bundle.onnx_model import open_session
from parity_models.errors import ModelError, TrainingError
from parity_models.tensors.signature import Batch, Signature, Tensor

Floats = NDArray[np.float32]
Shape = tuple[int, ...]
Grid = tuple[int, int]

PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Clip")
"""Operators that pass integers on unchanged."""


@dataclass(frozen=True, eq=False)
class QueriedInput:
    """One input of queries, as sample queries describe it.

    Its values go from `low` to `high`. `constant`: always the same. `mask`: 1 where integers of
    another input of that shape are content, 0 where they are padding. `table` (values, width) are
    the deployed model's embeddings of its integers, if they were found.
    """

    tensor: Tensor
    low: float = 0.0
    high: float = 1.0
    constant: bool = False
    mask: bool = False
    table: Floats | None = None

    @property
    def values(self) -> int:
        """The number of different values that integers from 0 may have."""
        return len(self.table) if self.table is not None else int(self.high) + 1


@dataclass(frozen=True, eq=False)
class Queried:
    """All inputs, in the deployed model's order.

    `grid` are the rows and columns of tiles in images that concatenation made: networks that
    average their last feature map do so tile by tile.
    """

    inputs: tuple[QueriedInput, ...] = ()
    grid: Grid = (1, 1)

    @classmethod
    def of(cls, shape: Shape, grid: Grid = (1, 1)) -> "Queried":
        """Return a description of float32 arrays of this shape."""
        return cls((QueriedInput(Tensor("input", "FP32", shape)),), grid=grid)

    @property
    def is_array(self) -> bool:
        """True if there is one float32 input of fixed shape."""
        tensor = self.inputs[0].tensor if len(self.inputs) == 1 else None
        return tensor is not None and tensor.datatype == "FP32" and not tensor.axes

    @property
    def shape(self) -> Shape:
        """The shape of the only input. Raises TrainingError unless `is_array`."""
        if not self.is_array:
            raise TrainingError(
                f"this network takes one float32 input of fixed shape, not {self}; choose another"
            )
        return self.inputs[0].tensor.at({}).shape

    def __str__(self) -> str:
        return ", ".join(str(each.tensor) for each in self.inputs)


def describe(queries: Batch, signature: Signature, content: bytes = b"") -> Queried:
    """Describe the inputs of a deployed model by some queries, an array (n, ...) for each, and by
    the embeddings of integers in its ONNX file's `content`."""
    tables = find_tables(content, list(queries)) if content else {}
    inputs = tuple(_describe(each, queries, signature.inputs, tables) for each in signature.inputs)
    return Queried(inputs)


def _describe(
    tensor: Tensor, queries: Batch, inputs: Sequence[Tensor], tables: Mapping[str, Floats]
) -> QueriedInput:
    array = queries[tensor.name]
    return QueriedInput(
        tensor,
        float(array.min()),
        float(array.max()),
        bool((array == (array.flat[0] if tensor.axes else array[:1])).all()),
        any(_masks(tensor, other, queries) for other in inputs),
        tables.get(tensor.name),
    )


def _masks(mask: Tensor, other: Tensor, queries: Batch) -> bool:
    """Return whether `mask` marks where `other` holds content."""
    if mask.name == other.name or mask.shape != other.shape or other.dtype.kind not in "iu":
        return False
    values, content = queries[mask.name], queries[other.name]
    if content.max() <= 1 or not ((values == 0) | (values == 1)).all() or not values.any():
        return False
    hidden = content[values == 0]
    return bool((hidden == np.asarray(other.padding).astype(content.dtype)).all())


def find_tables(content: bytes, inputs: Sequence[str]) -> dict[str, Floats]:
    """Return the embeddings (values, width) of each input whose integers the model looks up.

    They are the first constant of rank 2 that a Gather along its first axis indexes by the input.
    """
    model = onnx.load_model_from_string(content)
    made = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, Floats] = {}
    for node in model.graph.node:
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        if node.op_type != "Gather" or axis:
            continue
        source = node.input[1]
        while source not in inputs and source in made and made[source].op_type in PASSING:
            source = made[source].input[0]
        if source in inputs and source not in found:
            table = _constant(model, node.input[0])
            if table is not None and table.ndim == 2 and table.dtype.kind == "f":
                found[source] = np.array(table, np.float32)
    return found


def _constant(model: onnx.ModelProto, name: str) -> Floats | None:
    """Return the tensor called `name` if it can be computed without inputs."""
    extractor = onnx.utils.Extractor(model)
    if name in extractor.initializers:
        return numpy_helper.to_array(extractor.initializers[name])
    extractor.value_infos[name] = onnx.ValueInfoProto(name=name)
    try:
        constant = extractor.extract_model([], [name]).SerializeToString()
        (found,) = open_session(constant).run([name], {})
    except (ModelError, ValueError):  # it depends on an input
        return None
    table: Floats = found
    return table
