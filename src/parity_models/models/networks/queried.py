"""The queries of a deployed model as networks see them, and the vectors that it looks ids up in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from parity_models.models.queries import Batch
from parity_models.models.signature import Signature, Tensor

Floats = NDArray[np.float32]

LEAST_DEVIATION = 1e-6
"""Numbers that vary less do not vary."""


@dataclass(frozen=True, eq=False)
class QueriedInput:
    """One input of queries, described by the queries.

    They hold values from `low` to `high`. `constant`: always the same. `mask`: 1 where integers of
    another input of that shape are content, 0 where they are padding. `mean`, `deviation` and
    `highest`, of the shape of a row, are there where no axis is dynamic. `table` (values, width)
    are the vectors that the deployed model looks its integers up in, where they were found.
    """

    tensor: Tensor
    low: float
    high: float
    constant: bool
    mask: bool
    mean: Floats | None = None
    deviation: Floats | None = None
    highest: Floats | None = None
    table: Floats | None = None

    @property
    def whole(self) -> bool:
        """Whether its values are integers."""
        return self.tensor.dtype.kind in "iub"

    @property
    def values(self) -> int:
        """The number of different values that integers from 0 may have."""
        return len(self.table) if self.table is not None else int(self.high) + 1


@dataclass(frozen=True, eq=False)
class Queried:
    """All inputs, in the deployed model's order: a sequence of QueriedInput.

    `content` is the model's ONNX file and `output` its output that stand-ins imitate, for networks
    that look into the model.
    """

    inputs: tuple[QueriedInput, ...] = ()
    signature: Signature | None = None
    content: bytes = b""
    output: str = ""

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[QueriedInput]:
        return iter(self.inputs)

    def __getitem__(self, at: int) -> QueriedInput:
        return self.inputs[at]

    def __str__(self) -> str:
        return ", ".join(str(each.tensor) for each in self)


NO_QUERIES = Queried()


def describe(
    queries: Batch, signature: Signature, content: bytes = b"", output: str = ""
) -> Queried:
    """Describe the inputs of a deployed model, of this `signature`, by some queries.

    Args:
        queries: an array (n, ...) for each input.
        signature: the deployed model's.
        content: its ONNX file, which says more.
        output: the output that stand-ins imitate.

    """
    tables = find_tables(content, list(queries)) if content else {}
    inputs = tuple(_describe(each, queries, signature.inputs, tables) for each in signature.inputs)
    return Queried(inputs, signature, content, output)


def _describe(
    tensor: Tensor, queries: Batch, inputs: Sequence[Tensor], tables: Mapping[str, Floats]
) -> QueriedInput:
    array = queries[tensor.name]
    mean = deviation = highest = None
    if not tensor.axes:
        highest = np.asarray(array.max(axis=0), np.float32)
        mean = np.asarray(array.mean(axis=0, dtype=np.float64), np.float32)
        spread = np.asarray(array.std(axis=0, dtype=np.float64), np.float32)
        varies = spread > LEAST_DEVIATION * (1 + np.abs(mean))
        deviation = np.where(varies, spread, 1).astype(np.float32)
    return QueriedInput(
        tensor,
        float(array.min()),
        float(array.max()),
        bool((array == (array.flat[0] if tensor.axes else array[:1])).all()),
        any(_masks(tensor, other, queries) for other in inputs),
        mean,
        deviation,
        highest,
        tables.get(tensor.name),
    )


def _masks(mask: Tensor, other: Tensor, queries: Batch) -> bool:
    """Whether `mask` says where `other` holds content."""
    if mask.name == other.name or mask.shape != other.shape or other.dtype.kind not in "iu":
        return False
    values, content = queries[mask.name], queries[other.name]
    if content.max() <= 1 or not ((values == 0) | (values == 1)).all() or not values.any():
        return False
    hidden = content[values == 0]
    return bool((hidden == np.asarray(other.padding).astype(content.dtype)).all())


# Vectors of ids

PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Clip")
"""Operators that hand integers on unchanged."""


def find_tables(content: bytes, inputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return by input the table (values, width) that its integers are looked up in, if any.

    It is the first constant of rank 2 that a Gather along its first axis looks the input up in.
    Weights are taken as they are, or as a DequantizeLinear makes them floating point.
    """
    graph = onnx.load_model_from_string(content).graph
    constants = {each.name: each for each in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    made = {output: node for node in graph.node for output in node.output}
    found: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        if node.op_type != "Gather" or any(
            each.i for each in node.attribute if each.name == "axis"
        ):
            continue
        asked = next((each for each in _behind(node.input[1], made) if each in inputs), None)
        if asked is None or asked in found:
            continue
        table = _table(node.input[0], constants, made)
        if table is not None and table.ndim == 2:
            found[asked] = np.array(table, np.float32)
    return found


def _behind(name: str, made: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """`name` and the tensors that its integers come from."""
    while True:
        yield name
        node = made.get(name)
        if node is None or node.op_type not in PASSING:
            return
        name = node.input[0]


def _table(
    name: str, constants: dict[str, onnx.TensorProto], made: dict[str, onnx.NodeProto]
) -> NDArray[np.float32] | None:
    constant = constants.get(name)
    if constant is not None:
        array = numpy_helper.to_array(constant)
        return array if array.dtype.kind == "f" else None
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    parts = [constants.get(each) for each in node.input]
    if any(each is None for each in parts):
        return None
    values, scale, *zero = (numpy_helper.to_array(each) for each in parts if each is not None)
    shift = zero[0].astype(np.float32) if zero else np.float32(0)
    if scale.size > 1 or values.ndim != 2:
        return None
    table: NDArray[np.float32] = (values.astype(np.float32) - shift) * scale.reshape(())
    return table
