"""The vectors that an ONNX model looks integers up in: the embeddings of words, or of categories.

Needs the package onnx; serving does without.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Clip")
"""Operators that hand integers on as they are."""


def find_tables(content: bytes, inputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """By input the table (values, width) that its integers are looked up in, where there is one.

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
