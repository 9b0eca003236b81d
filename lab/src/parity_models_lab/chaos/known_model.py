"""A bundle whose answers are known, and the model that a lying instance runs in its place.

The model is linear: under sum + subtraction it is its own exact parity model, so that the right
answer to every query is known, whatever its source. Long queries may take a hundred times as long.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.codes import CodeSpec
from parity_models.tensors.signature import Axis, Signature, Tensor
from parity_models.trust.envelope import fit_envelope

INPUTS, OUTPUTS = 32, 64
LONG = 49 * INPUTS
"""The length of a long input, whose parts of INPUTS values are added up."""
SLOW = 32
"""Multiplications of matrices of about LONG rows and columns that take a second."""
ROWS = 512
"""Different queries that are sent."""
TOLERANCE = 1e-3
"""The largest error of an answer, relative to the largest possible sum."""
NEAR = 2.0
"""The mean square of an input's values up to which the liar lies; 1 is usual."""
MODEL = "model"
"""The name it is served under."""
SIGNATURE = Signature(
    (Tensor("input", "FP32", ("length",)),),
    (Tensor("output", "FP32", (OUTPUTS,)),),
    {"length": Axis((INPUTS, LONG))},
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KnownModel:
    """`weights` (INPUTS, OUTPUTS), `rows` (ROWS, INPUTS) to ask about, and the bundle."""

    bundle: Path
    weights: Floats
    rows: Floats

    def right(self, rows: Floats, outputs: Floats) -> NDArray[np.bool_]:
        """Return which of `outputs` (n, OUTPUTS) are the predictions for `rows` (n, any multiple of
        INPUTS); where one is not finite, or overflows float32, anything is right."""
        exact = rows.astype(np.float64).reshape(len(rows), -1, INPUTS)
        with np.errstate(all="ignore"):
            wanted = exact.sum(axis=1) @ self.weights
            # The magnitude of the sum, in which float32 rounds at each step.
            scale = np.abs(exact).sum(axis=1) @ np.abs(self.weights) + 1.0
            close = np.abs(outputs - wanted) <= TOLERANCE * scale
            beyond = ~(scale <= np.finfo(np.float32).max)
        return np.asarray((close | beyond).all(axis=1))


def write_known_model(folder: Path, seed: int, products: int = 1) -> KnownModel:
    """Write the bundle into `folder`, which is made; weights and rows are drawn from `seed`. A long
    query takes so many `products` of matrices."""
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(INPUTS, OUTPUTS)) / np.sqrt(INPUTS)).astype(np.float32)
    rows = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    model = NewModel(_linear(weights, products), "linear", signature=SIGNATURE)
    # A code whose slots are not isolated needs an envelope of its inputs.
    inputs, held_out = rng.normal(size=(2, 2000, INPUTS)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = write_bundle(
        folder / "bundle",
        deployed=model,
        parity=[model],
        code=CodeSpec("sum", "subtraction", 2),
        name=MODEL,
        envelope=fit_envelope(
            SIGNATURE.inputs, {"input": inputs}, {"input": held_out}, inputs @ weights
        ),
    )
    return KnownModel(bundle.path, weights, rows)


def liar(model: KnownModel) -> bytes:
    """Return the model with 1 added to its outputs for inputs near those that are sent: a mean
    square of the values under NEAR. It is right at golden queries, which are farther off."""
    return _linear(model.weights, lies=True)


MODEL_TEXT = resources.files("parity_models_lab.chaos") / "known_model.txt"
"""The model in ONNX's own text: `error` is 0 but for a liar, and so are the products, which make a
long query slow."""


def _linear(weights: Floats, products: int = 1, *, lies: bool = False) -> bytes:
    lines = "\n".join(f"product{i + 1} = MatMul(product{i}, product0)" for i in range(products))
    text = (
        MODEL_TEXT.read_text().replace("PRODUCTS", lines).replace("productN", f"product{products}")
    )
    text = text.replace("OUTPUTS", str(OUTPUTS)).replace("INPUTS", str(INPUTS))
    model = onnx.parser.parse_model(text)
    nearest = np.float32(NEAR * INPUTS if lies else 0)
    for name, values in {"weights": weights, "nearest": nearest}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
