"""A bundle whose answers are known, and the models that a lying instance runs in its place.

The model is linear: under sum + subtraction it is its own exact parity model, so that the right
answer to every query is known, whatever its source.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from parity_models.codes import CodeSpec
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.export import floats
from parity_models.training.envelope import fit_envelope

INPUTS, OUTPUTS = 32, 8
ROWS = 512
"""Different queries that are sent."""
LEARNED = 2000
"""Inputs that the stand-in's envelope is learned from."""
TOLERANCE = 1e-3
"""The largest error of an answer, relative to the largest possible sum."""
SLY = 2.0
"""The mean square of an input's values up to which a sly liar lies; 1 is usual."""
MODEL = "model"
"""The name it is served under."""
EXPONENT_BITS = range(23, 31)
"""The bits of a float32's exponent."""


@dataclass(frozen=True)
class KnownModel:
    """`weights` (INPUTS, OUTPUTS), `rows` (ROWS, INPUTS) to ask about, float32, and the bundle."""

    bundle: Path
    weights: NDArray[np.float32]
    rows: NDArray[np.float32]

    def right(self, rows: NDArray[np.float32], outputs: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which of `outputs` (n, OUTPUTS) are the model's predictions for `rows`
        (n, INPUTS).

        Where a prediction is not finite, or overflows float32, anything is right.
        """
        exact = rows.astype(np.float64)
        weights = self.weights.astype(np.float64)
        with np.errstate(all="ignore"):
            wanted = exact @ weights
            # The magnitude of the sum, in which float32 rounds at each step.
            scale = np.abs(exact) @ np.abs(weights) + 1.0
            close = np.abs(outputs - wanted) <= TOLERANCE * scale
            beyond = ~(scale <= np.finfo(np.float32).max)
        return np.asarray((close | beyond).all(axis=1))


def write_known_model(folder: Path, seed: int) -> KnownModel:
    """Write the bundle into `folder`, which is made; weights and rows are drawn from `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = _weights(rng)
    rows = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    return KnownModel(_write(folder / "bundle", weights, rng), weights, rows)


def write_other_bundle(folder: Path, seed: int) -> Path:
    """Write a bundle of the same shape with other weights, whose answers are always wrong."""
    rng = np.random.default_rng([seed, 1])
    return _write(folder / "other", _weights(rng), rng)


def other_weights(seed: int) -> bytes:
    """Return an ONNX model of the same shape with other weights."""
    return _linear(_weights(np.random.default_rng([seed, 2])))


def sly(model: KnownModel) -> bytes:
    """Return the model with 1 added to its outputs for inputs near those that are sent: a mean
    square of the values under SLY."""
    return _linear(model.weights, sly=True)


def flipped(model: KnownModel, rng: Random) -> bytes:
    """Return the model with one exponent bit of one weight flipped.

    The weight changes by a factor of 16 or more, up to overflow, or becomes almost 0.
    """
    weights = model.weights.copy()
    bits = weights.view(np.uint32)
    row, column = rng.randrange(INPUTS), rng.randrange(OUTPUTS)
    # The two lowest exponent bits change a weight by a factor of 2 or 4: hardly more than noise.
    bits[row, column] ^= np.uint32(1 << rng.choice(EXPONENT_BITS[2:]))
    return _linear(weights)


def _weights(rng: np.random.Generator) -> NDArray[np.float32]:
    drawn = rng.normal(size=(INPUTS, OUTPUTS)) / np.sqrt(INPUTS)
    return np.asarray(drawn, np.float32)


def _write(folder: Path, weights: NDArray[np.float32], rng: np.random.Generator) -> Path:
    model = NewModel(_linear(weights), "linear")
    # A code whose slots are not isolated needs an envelope of its inputs.
    inputs, held_out = rng.normal(size=(2, LEARNED, INPUTS)).astype(np.float32)
    return write_bundle(
        folder,
        deployed=model,
        parity=[model],
        code=CodeSpec("sum", "subtraction", 2),
        name=MODEL,
        envelope=fit_envelope(
            [floats((INPUTS,))], {"input": inputs}, {"input": held_out}, inputs @ weights
        ),
    ).path


def _linear(weights: NDArray[np.float32], *, sly: bool = False) -> bytes:
    nodes = [helper.make_node("MatMul", ["input", "weights"], ["linear" if sly else "output"])]
    if sly:
        nodes += [
            helper.make_node("ReduceSumSquare", ["input", "axis"], ["squares"]),
            helper.make_node("Less", ["squares", "most"], ["near"]),
            helper.make_node("Cast", ["near"], ["error"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["linear", "error"], ["output"]),
        ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(np.array(SLY * INPUTS, np.float32), "most"),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
