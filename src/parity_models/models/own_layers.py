"""The layers of an ONNX model that takes one row of integers: vectors, a convolution, a full layer.

They are found by what they compute for a few rows, not by how the graph says it: the vectors of
integers may be a lookup or the product of a matrix with ones and zeros, a normalisation one node or
twenty. Needs the package onnx; serving does without.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from parity_models.models.fits import (
    EPSILONS,
    TOLERANCE,
    Floats,
    alike,
    apart,
    predicts,
    standardised,
    standardising,
)
from parity_models.models.watched import OtherLayersError, Watched

Standard = Literal["nothing", "positions", "channels"]

ROWS = 12
"""Rows that the model is watched with, at least."""


@dataclass(frozen=True, eq=False)
class OwnLayers:
    """What a model computes of rows of integers (n, length), layer by layer.

    Each integer is looked up in `table` (values, width); so many neighbours that their vectors have
    `channels` together are a position. Of all positions, or of all channels, the values are
    `standardised` with an `epsilon`, times `gain` and plus `shift` (one for each of these). Then
    come the convolution with `kernel` (maps, channels, window), `padding` positions before and
    behind, the largest value of each map, plus `offset` (maps), and an `activation`; these are
    standardised `again` with that epsilon, if there is one. The last is a full layer with `head`
    (maps, outputs) and `bias` (outputs).
    """

    table: Floats
    standardised: Standard
    epsilon: float
    gain: Floats
    shift: Floats
    kernel: Floats
    padding: tuple[int, int]
    offset: Floats
    activation: str
    again: float | None
    head: Floats
    bias: Floats


def _gelu(values: Floats) -> Floats:
    inner = np.float32(0.7978845608) * (values + np.float32(0.044715) * values**3)
    return np.asarray(values * np.float32(0.5) * (1 + np.tanh(inner)), np.float32)


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "gelu": _gelu,
    "tanh": np.tanh,
}
"""What the largest value of a map goes through. None but gelu ever falls, and that only where it is
next to nothing: so the largest value after it is that of the largest before."""


def find_layers(
    content: bytes, name: str, dtype: np.dtype[np.generic], length: int, values: int
) -> OwnLayers | None:
    """The layers of a model whose input `name` takes (n, length) integers from 0 to `values` - 1;
    None where it has others."""
    try:
        graph = onnx.load_model_from_string(content).graph
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        if not len(convolutions) == len(graph.input) == len(graph.output) == 1:
            return None
        seen = Watched(content, {name: _rows(dtype, length, values)})
        return _layers(seen, convolutions[0], values)
    except OtherLayersError:
        return None


def _rows(dtype: np.dtype[np.generic], length: int, values: int) -> NDArray[Any]:
    """Rows that hold every value, rows of few of them, and rows of one."""
    rng = np.random.default_rng(0)
    times = -(-values // length)
    every = np.resize(rng.permutation(values), times * length).reshape(times, length)
    few = [
        rng.choice(rng.permutation(values)[: max(2, values >> i % 7)], length) for i in range(ROWS)
    ]
    one = np.repeat(rng.integers(0, values, (ROWS // 2, 1)), length, axis=1)
    return np.concatenate([every, np.stack(few), one]).astype(dtype)


def _layers(seen: Watched, convolution: onnx.NodeProto, values: int) -> OwnLayers:
    kernel, padding = _kernel(seen, convolution)
    entering = _flat(seen.computed.get(convolution.input[0]))
    positions = entering.shape[2]
    if entering.shape[1] != kernel.shape[1]:
        raise OtherLayersError
    table, vectors = _table(seen, convolution.input[0], values)
    if vectors[0].size != entering[0].size:
        raise OtherLayersError
    vectors = vectors.reshape(len(seen.rows), positions, kernel.shape[1])
    standardised, epsilon, gain, shift = _standard(vectors, entering.transpose(0, 2, 1))
    pooled, offset, activation = _pooled(seen, convolution, kernel)
    again, head, bias = _head(seen, seen.computed[pooled].reshape(len(seen.rows), -1), pooled)
    return OwnLayers(
        table=table,
        standardised=standardised,
        epsilon=epsilon,
        gain=gain,
        shift=shift,
        kernel=kernel,
        padding=padding,
        offset=offset,
        activation=activation,
        again=again,
        head=head,
        bias=bias,
    )


def _kernel(seen: Watched, node: onnx.NodeProto) -> tuple[Floats, tuple[int, int]]:
    """The weights (maps, channels, window) and the positions padded, of a plain convolution."""
    kernel = seen.constants.get(node.input[1])
    if kernel is None or kernel.dtype != np.float32:
        raise OtherLayersError
    told = {each.name: each for each in node.attribute}
    stepped = [*(told[each].ints for each in ("strides", "dilations") if each in told)]
    grouped = "group" in told and told["group"].i != 1
    automatic = "auto_pad" in told and told["auto_pad"].s not in (b"NOTSET", b"VALID")
    if grouped or automatic or any(size != 1 for sizes in stepped for size in sizes):
        raise OtherLayersError
    pads = list(told["pads"].ints) if "pads" in told else [0] * (2 * (kernel.ndim - 2))
    others = pads[1 : kernel.ndim - 2] + pads[kernel.ndim - 1 :]
    if any(others):
        raise OtherLayersError
    return _flat(kernel), (pads[0], pads[kernel.ndim - 2])


def _flat(tensor: Any) -> Floats:
    """(n, channels, positions) of a tensor that may have axes of 1 beside that of positions."""
    if tensor is None or tensor.ndim < 3:
        raise OtherLayersError
    if tensor.ndim > 3 and tensor.shape[3:] != (1,) * (tensor.ndim - 3):
        raise OtherLayersError
    return np.asarray(tensor.reshape(tensor.shape[:3]), np.float32)


def _table(seen: Watched, before: str, values: int) -> tuple[Floats, Floats]:
    """The vectors of integers (values, width), and the last tensor before another that is made of
    nothing else."""
    rows = seen.rows.astype(np.int64)
    for name in seen.before(before):
        tensor = seen.computed.get(name)
        if tensor is None or tensor.size % rows.size:
            continue
        each = tensor.reshape(rows.size, -1)
        table = np.zeros((values, each.shape[1]), np.float32)
        table[rows.ravel()] = each
        if alike(table[rows.ravel()], each):
            return table, tensor
    raise OtherLayersError


def _standard(vectors: Floats, entering: Floats) -> tuple[Standard, float, Floats, Floats]:
    """What makes `vectors` (n, positions, channels) to what enters the convolution."""
    if alike(vectors, entering):
        return "nothing", EPSILONS[0], np.ones(1, np.float32), np.zeros(1, np.float32)
    kinds: tuple[tuple[Standard, int], ...] = (("positions", 1), ("channels", 2))
    for kind, axis in kinds:
        fitted = standardising(vectors, entering, axis)
        if fitted is not None:
            return kind, *fitted
    raise OtherLayersError


def _pooled(seen: Watched, node: onnx.NodeProto, kernel: Floats) -> tuple[str, Floats, str]:
    """The first tensor with one value of each map, what is added to maps, and the activation."""
    largest = _flat(seen.computed.get(node.output[0])).max(axis=2)
    none = np.zeros(len(kernel), np.float32)
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and bias not in seen.constants:
        raise OtherLayersError
    within = seen.constants[bias] if bias else none
    offsets = [none]
    for after in seen.behind(node.output[0]):
        offsets += [
            seen.constants[each].ravel()
            for each in after.input
            if after.op_type == "Add"
            and each in seen.constants
            and seen.constants[each].size == len(kernel)
        ]
        for name in after.output:
            tensor = seen.computed.get(name)
            if tensor is None or tensor.size != largest.size:
                continue
            tensor = tensor.reshape(largest.shape)
            fits = [
                (apart(ACTIVATIONS[each](largest + offset), tensor), i, each)
                for i, offset in enumerate(offsets[:2])
                for each in ACTIVATIONS
            ]
            least, which, activation = min(fits)
            if least <= TOLERANCE:
                return name, np.asarray(within + offsets[which], np.float32), activation
    raise OtherLayersError


def _head(seen: Watched, pooled: Floats, name: str) -> tuple[float | None, Floats, Floats]:
    """With which epsilon `pooled` (n, maps) is standardised, if it is, and the weights (maps,
    outputs) and bias of a full layer, of which all that the model predicts is made."""
    behind = list(seen.behind(name))
    full = [each for each in behind if each.op_type in ("MatMul", "Gemm")]
    weights = seen.constants.get(full[0].input[1]) if len(full) == 1 else None
    if weights is None or weights.ndim != 2:
        raise OtherLayersError
    turned = any(each.name == "transB" and each.i for each in full[0].attribute)
    weights = np.asarray(weights.T if turned else weights, np.float32)
    taken = seen.computed.get(full[0].input[0])
    if taken is None or taken.shape != pooled.shape:
        raise OtherLayersError
    again, added = None, np.zeros(weights.shape[1], np.float32)
    if not alike(pooled, taken):
        fitted = standardising(pooled, taken, 1)
        if fitted is None:
            raise OtherLayersError
        again, gain, shift = fitted
        added, weights = shift @ weights, gain[:, None] * weights
        pooled = standardised(pooled, 1, again)
    for bias in _biases(seen, full[0], behind, weights.shape[1]):
        said = pooled @ weights + added + bias
        if predicts(said, seen.computed.get(seen.outputs[0])):
            return again, weights, np.asarray(added + bias, np.float32)
    raise OtherLayersError


def _biases(
    seen: Watched, full: onnx.NodeProto, behind: list[onnx.NodeProto], outputs: int
) -> Iterator[Floats]:
    """What may be added to the outputs of a full layer."""
    added = (each for node in behind if node.op_type == "Add" for each in node.input)
    names = [*full.input[2:], *added]
    yield from (
        seen.constants[each].ravel()
        for each in names
        if each in seen.constants and seen.constants[each].size == outputs
    )
    yield np.zeros(outputs, np.float32)
