"""Stand-ins that read texts: linear models of hashed features (see `tensors.features`).

A minute on one core is enough for ten thousand texts. What is learned is a table with a row of
weights for each bucket; the most frequent buckets are kept.
"""

import hashlib
import time
from collections.abc import Sequence
from math import inf
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import softmax

from parity_models.bundle.bundle import NewModel, Training
from parity_models.bundle.onnx_model import TEXT_FEATURES
from parity_models.errors import TrainingError
from parity_models.progress import Callbacks, OnProgress, Progress
from parity_models.tasks.metrics import USUAL, OutputKind, recognise
from parity_models.tensors.features import HASHED_TEXT, TextFeatures
from parity_models.tensors.signature import Array, Batch, Named, TensorSpec
from parity_models.tensors.texts import write_texts
from parity_models.training.candidates import Exported
from parity_models.training.teacher import Teacher, TrainingOptions

Floats = NDArray[np.float32]

MAX_WEIGHTS = 2**22
"""The most weights: 8 MiB in a bundle."""

FEWEST = 2
"""The fewest texts that a bucket is kept for."""

STEPS = 40
PENALTY = 0.05
"""Weight of the squared weights, relative to the loss of a text."""


def fit_texts(
    teacher: Teacher,
    queries: Batch,
    targets: Floats,
    options: TrainingOptions,
    callbacks: Callbacks,
) -> Exported:
    """Train a backup on texts, the only input, and the model's outputs (n, values) for them, for at
    most `options.seconds`."""
    began, (taken, *others) = time.monotonic(), teacher.signature.inputs
    if others or taken.shape not in ((), (1,)) or targets.ndim != 2:
        raise TrainingError(
            "a stand-in for texts needs a model that takes one text and gives a row of numbers, "
            f"not {teacher.signature}"
        )
    texts = [str(each) for each in queries[taken.name].ravel()]
    features = TextFeatures(taken.name, taken.shape)
    ids = [features.ids(text) for text in texts]
    seen = np.bincount(np.concatenate([np.unique(x) for x in ids]), minlength=features.buckets)
    rarity = (np.log((1 + len(ids)) / (1 + seen)) + 1).astype(np.float32)
    kept = np.argsort(-seen, kind="stable")[: MAX_WEIGHTS // targets.shape[1]]
    kept = kept[seen[kept] >= FEWEST]
    inputs = _normalised(ids, rarity, features.buckets)[:, kept]
    kind = recognise(targets, options.metric)
    of_classes = kind in ("logits", "probabilities")
    center, scale = np.zeros(targets.shape[1], np.float32), 1.0
    if kind == "logits":
        targets = softmax(targets, axis=1)
    elif not of_classes:
        center, scale = targets.mean(axis=0), max(float(targets.std(axis=0).max()), 1e-6)
        targets = (targets - center) / scale
    end = began + (options.seconds or inf)
    weights, bias = _minimise(inputs, targets, of_classes, end, callbacks.on_progress)
    rows = np.zeros(features.buckets, np.int32)
    rows[kept] = np.arange(1, len(kept) + 1)
    table = np.vstack([np.zeros_like(bias), weights * rarity[kept, np.newaxis]])
    constants: Named = {"rarity": rarity, "rows": rows, "table": table.astype(np.float16)}
    constants |= {"scale": np.array(scale, np.float32), "bias": bias * scale + center}
    model = _network(kind, teacher.output, constants)
    model.metadata_props.add(key=TEXT_FEATURES, value=msgspec.json.encode(features).decode())
    training = Training(
        task="own",
        inputs=len(texts),
        inputs_sha256=hashlib.sha256(write_texts(queries[taken.name])).hexdigest(),
        seed=options.seed,
        epochs=1,
        seconds=round(time.monotonic() - began, 2),
        device="cpu",
        recipe={
            "network": HASHED_TEXT,
            "metric": options.metric or USUAL[kind],
            "output_kind": kind,
        },
    )
    content, signature = model.SerializeToString(), teacher.stand_in()
    return Exported(
        backup=NewModel(content, HASHED_TEXT, signature=signature), backup_training=training
    )


def _normalised(ids: Sequence[Array], rarity: Floats, buckets: int) -> csr_matrix:
    """Return the texts' counts of features, weighted by rarity, as rows of about length 1."""
    ends = np.cumsum([0, *map(len, ids)])
    each = np.concatenate(ids)
    weights = rarity[each]
    lengths = np.sqrt(np.add.reduceat(weights * weights, ends[:-1]))
    rows = csr_matrix(
        (weights / np.repeat(lengths, np.diff(ends)), each, ends), (len(ids), buckets)
    )
    rows.sum_duplicates()
    return rows


def _minimise(
    inputs: csr_matrix, targets: Floats, of_classes: bool, end: float, on_progress: OnProgress
) -> tuple[Floats, Floats]:
    """Return weights and bias with the least cross-entropy, or squared error, and penalty."""
    (count, width), values, transposed = inputs.shape, targets.shape[1], inputs.T.tocsr()
    steps = 0

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = flat.astype(np.float32).reshape(width + 1, values)
        weights = parameters[:-1]
        outputs = inputs @ weights + parameters[-1]
        if of_classes:
            shares = softmax(outputs, axis=1)
            error = -float((targets * np.log(np.maximum(shares, 1e-30))).sum())
            off = shares - targets
        else:
            off = outputs - targets
            error = float(np.square(off).sum()) / 2
        slope = np.vstack([transposed @ off + PENALTY * weights, off.sum(axis=0)]) / count
        penalised = error + PENALTY * float(np.square(weights).sum()) / 2
        return penalised / count, slope.ravel().astype(np.float64)

    def step(_: NDArray[np.float64]) -> None:
        nonlocal steps
        steps += 1
        on_progress(Progress("training", steps, STEPS))
        if time.monotonic() > end:
            raise StopIteration

    start = np.zeros((width + 1) * values)
    limits = {"maxiter": STEPS, "maxcor": 5}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=limits, callback=step)
    parameters = found.x.astype(np.float32).reshape(width + 1, values)
    return parameters[:-1], parameters[-1]


def _network(kind: OutputKind, output: TensorSpec, constants: Named) -> onnx.ModelProto:
    """Return the network from the buckets of one text, (features,), to its `output`."""
    datatype = helper.np_dtype_to_tensor_dtype(output.dtype)
    last = {"probabilities": "Softmax", "embeddings": "LpNormalization"}.get(kind, "Identity")
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Gather", ["rarity", "ids"], "weights", {}),
        ("ReduceL2", ["weights"], "length", {"keepdims": 0}),
        ("Gather", ["rows", "ids"], "places", {}),
        ("Gather", ["table", "places"], "halves", {}),
        ("Cast", ["halves"], "found", {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["found", "first"], "sum", {"keepdims": 1}),
        ("Div", ["sum", "length"], "mean", {}),
        ("Mul", ["mean", "scale"], "scaled", {}),
        ("Add", ["scaled", "bias"], "scores", {}),
        (last, ["scores"], "valid", {} if last == "Identity" else {"axis": -1}),
    ]
    made = [
        helper.make_node(op, [f"_{each}" for each in taken], [f"_{given}"], **more)
        for op, taken, given, more in nodes
    ]
    made.append(helper.make_node("Cast", ["_valid"], [output.name], to=datatype))
    constants = {**constants, "first": np.array([0])}
    graph = helper.make_graph(
        made,
        HASHED_TEXT,
        [helper.make_tensor_value_info("_ids", TensorProto.INT64, ["features"])],
        [helper.make_tensor_value_info(output.name, datatype, [1, *output.shape])],
        [numpy_helper.from_array(array, f"_{name}") for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
