"""The layers of an ONNX model by the tensors that it computes for some rows.

Names and operators of a graph differ with what exported it. So layers are found by what they
compute: whether some numbers come of others by a standardisation, a gain and a shift, by least
squares.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]

TOLERANCE = 2e-3
"""By how much what a layer is taken to compute may differ from what the model computes, as a share
of its deviation."""

EPSILONS = (1e-6, 1e-5, 1e-12, 1e-3)
"""What models add to variances before they divide by their roots."""


class OtherLayersError(Exception):
    """The model has other layers than are looked for."""


class Watched:
    """A model's graph, and what it has `computed` for some rows of its inputs, by name (n, ...).

    That is each float32 tensor (n, ...), or those that are called `only` so. `rows` are those of
    the first input. Raises OtherLayersError for a model that does not run.
    """

    def __init__(
        self,
        content: bytes,
        inputs: Mapping[str, NDArray[Any]],
        only: Collection[str] | None = None,
    ) -> None:
        model = onnx.load_model_from_string(content)
        self.rows = next(iter(inputs.values()))
        self.nodes = list(model.graph.node)
        self.outputs = [each.name for each in model.graph.output]
        self.constants = {
            each.name: numpy_helper.to_array(each) for each in model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Transpose" and node.input[0] in self.constants:
                turn = list(node.attribute[0].ints) if node.attribute else None
                turned = self.constants[node.input[0]].transpose(turn)
                self.constants[node.output[0]] = turned
        self.made = {output: node for node in self.nodes for output in node.output if output}
        asked = self.made if only is None else only
        watched = [each for each in asked if each not in self.outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=each) for each in watched)
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            names = [*self.outputs, *watched]
            found = session.run(names, dict(inputs))
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise OtherLayersError from error
        self.computed: dict[str, Any] = {
            each: array
            for each, array in zip(names, found, strict=True)
            if isinstance(array, np.ndarray)
            and array.dtype == np.float32
            and array.shape[:1] == (len(self.rows),)
        }

    def before(self, name: str) -> Iterator[str]:
        """`name` and the tensors that it is computed from, the nearest first."""
        waiting, known = [name], {name}
        while waiting:
            name = waiting.pop(0)
            yield name
            node = self.made.get(name)
            for each in node.input if node else ():
                if each not in known:
                    known.add(each)
                    waiting.append(each)

    def behind(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that compute from the tensor `name`, in their order."""
        reached = {name}
        for node in self.nodes:
            if reached.intersection(node.input):
                reached.update(node.output)
                yield node


def standardising(
    values: Floats, results: Floats, axis: int
) -> tuple[float, Floats, Floats] | None:
    """The epsilon, and the gain and the shift of each place along `axis`, that make `values`,
    standardised along it, to `results`."""
    fits = [_line(standardised(values, axis, each), results, axis) for each in EPSILONS]
    at = int(np.argmin([fit[0] for fit in fits]))
    least, gain, shift = fits[at]
    return (EPSILONS[at], gain, shift) if least <= TOLERANCE else None


def standardised(values: Floats, axis: int, epsilon: float) -> Floats:
    """`values` with mean 0 and variance 1 along `axis`."""
    mean, variance = values.mean(axis, keepdims=True), values.var(axis, keepdims=True)
    return np.asarray((values - mean) / np.sqrt(variance + epsilon), np.float32)


def _line(values: Floats, results: Floats, axis: int) -> tuple[float, Floats, Floats]:
    """The gain and the shift of each place along `axis` that bring `values` nearest to `results`,
    and how far apart they are then."""
    one = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    other = np.moveaxis(results, axis, 0).reshape(one.shape).astype(np.float64)
    mean, wanted = one.mean(1, keepdims=True), other.mean(1, keepdims=True)
    spread = np.square(one - mean).mean(1, keepdims=True)
    gain = ((one - mean) * (other - wanted)).mean(1, keepdims=True) / np.maximum(spread, 1e-12)
    shift = wanted - gain * mean
    least = apart(gain * one + shift, other)
    return least, np.asarray(gain.ravel(), np.float32), np.asarray(shift.ravel(), np.float32)


def alike(one: NDArray[Any], other: NDArray[Any], tolerance: float = TOLERANCE) -> bool:
    """Do they differ by next to nothing?"""
    return apart(one, other) <= tolerance


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """By how much they differ, as a share of the deviation of the `other`."""
    root = np.sqrt(np.square(one - other, dtype=np.float64).mean())
    return float(root / max(float(other.std()), 1e-6))


def predicts(said: Floats, predictions: Any) -> bool:
    """Are `said` the predictions, or logits of these?"""
    if predictions is None or predictions.shape != said.shape:
        return False
    powers = np.exp(said - said.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return alike(said, predictions) or alike(shares, predictions, 0.05)
