"""Tiny ONNX models for tests: free batch dimension, tensors named "input" and "output"."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from parity_models.bundle.onnx_model import OnnxModel
from parity_models.tensors.queries import as_batch


def linear_model(
    path: Path,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    weights: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Write flatten(X) @ weights, reshaped to `out_shape`; returns the weights.

    `weights` has shape (prod(in_shape), prod(out_shape)); drawn at random if it is not given.
    """
    if weights is None:
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(prod(in_shape), prod(out_shape))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["output"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "weights": weights,
        "shape": np.array([-1, *out_shape], np.int64),
    }
    _write(path, nodes, constants, in_shape, out_shape)
    return weights


def moody_model(path: Path) -> None:
    """Write a model that does what its input row (command, argument) says.

    Both outputs are the row itself, after the largest `argument` of the batch has been counted
    to in a loop (some two million a second; a termination request ends it); a command other
    than 0 makes the runtime fail.
    """
    tensor = helper.make_tensor_value_info
    count = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Identity", ["carried"], ["still_carried"]),
        ],
        "count",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("going", TensorProto.BOOL, []),
            tensor("carried", TensorProto.FLOAT, [1]),
        ],
        [
            tensor("still_going", TensorProto.BOOL, []),
            tensor("still_carried", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("Split", ["input"], ["command", "argument"], axis=1, num_outputs=2),
        helper.make_node("ReduceMax", ["argument"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["steps"], to=TensorProto.INT64),
        helper.make_node("Loop", ["steps", "true", "zero"], ["counted"], body=count),
        helper.make_node("Cast", ["command"], ["indices"], to=TensorProto.INT64),
        helper.make_node("Gather", ["counted", "indices"], ["zeros"]),
        helper.make_node("Add", ["input", "zeros"], ["output"]),
    ]
    constants: dict[str, NDArray[Any]] = {"true": np.array(True), "zero": np.zeros(1, np.float32)}
    _write(path, nodes, constants, (2,), (2,))


def shrinking_model(path: Path) -> None:
    """Write a model that breaks its promise: rows whose first value is negative are left out."""
    nodes = [
        helper.make_node("Split", ["input"], ["first", "second"], axis=1, num_outputs=2),
        helper.make_node("Squeeze", ["first", "axis"], ["firsts"]),
        helper.make_node("GreaterOrEqual", ["firsts", "zero"], ["kept"]),
        helper.make_node("Compress", ["input", "kept"], ["output"], axis=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "zero": np.zeros((), np.float32),
    }
    _write(path, nodes, constants, (2,), (2,))


Described = tuple[int, list[Any]]
"""Data type and shape of a tensor; free axes have names."""


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Described],
    outputs: Mapping[str, Described],
    constants: Mapping[str, object] | None = None,
    opsets: Mapping[str, int] | None = None,
) -> bytes:
    """Return a model of these nodes, sound or not."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info(name, *each) for name, each in outputs.items()],
        [numpy_helper.from_array(np.array(each), name) for name, each in (constants or {}).items()],
    )
    imports = [helper.make_opsetid(*each) for each in {"": 18, **(opsets or {})}.items()]
    content: bytes = helper.make_model(
        graph, ir_version=10, opset_imports=imports
    ).SerializeToString()
    return content


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    in_shape: Sequence[int],
    out_shape: Sequence[int],
) -> None:
    batch = {
        name: (TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("input", in_shape), ("output", out_shape))
    }
    content = graph_model(nodes, {"input": batch["input"]}, {"output": batch["output"]}, constants)
    onnx.checker.check_model(content)
    path.write_bytes(content)


def output_of(model: OnnxModel, queries: NDArray[Any] | Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Run a model on a batch, or on the rows of its only input; returns its first output."""
    batch = as_batch(queries, model.signature)
    return model(batch)[model.signature.outputs[0].name]
