"""Any ONNX model of a user's, made ready to be served: whole, with a signature that is complete.

What the file leaves open is found out: bounds of dynamic axes are given, or read off queries; how
outputs follow from inputs is tried. Needs the package onnx; serving does without.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parity_models.errors import ModelError
from parity_models.models.named_inputs import Named, axis_for, fit_inputs, rows_of, sizes_in
from parity_models.models.onnx_file import free_batch, with_weights
from parity_models.models.onnx_model import (
    OnnxModel,
    open_session,
    read_model,
    why_it_fails,
)
from parity_models.models.onnx_signature import Declared, declared, make_signature
from parity_models.models.signature import Axis, Signature, Tensor
from parity_models.models.tensor import Layout, tensors_in

Array = NDArray[Any]

TRIED = 4
"""Rows that are predicted together and one by one."""

NEAR = 0.05
"""How far the two may be apart, as a share of the largest value: rows that no client would send, as
are drawn where there are no queries, magnify rounding errors."""

PARTS = (4, 2, 1)
"""Without queries, the buckets of an axis are these parts of its bound."""

_SEED = 5


def read_servable(
    path: Path,
    axes: Mapping[str, Axis | int] | None = None,
    padding: Mapping[str, float] | None = None,
    queries: Named | None = None,
) -> tuple[bytes, Signature]:
    """The content of the ONNX file at `path` and the model's signature.

    `axes` are the buckets of dynamic axes by name, or their bounds; others are read off `queries`.
    `padding` is what shorter rows of an input are filled up with, 0 where it is not said. Raises
    ModelError for a model that cannot be served, or of which too little is said, and DataError for
    queries that do not fit it.
    """
    content = with_weights(path, read_model(path))
    try:
        session = open_session(content)
        inputs, outputs = declared(session)
        batch = _batch_of(inputs)
        tensors = _input_tensors(inputs, dict(padding or {}))
        found = _axes(tensors, dict(axes or {}), queries)
        shapes = _output_shapes(session, outputs, tensors, found, batch or 2)
        signature = make_signature(tensors, shapes, axes=found, batch=batch)
        if batch == 1:
            freed = free_batch(content, signature)
            if freed is not None:
                content, signature = freed, msgspec.structs.replace(signature, batch=0)
        _check_rows_apart(OnnxModel(content, signature=signature), queries, str(path))
    except ModelError as error:
        raise ModelError(f"{path}: it {error}") from error
    return content, signature


def _batch_of(inputs: Sequence[Declared]) -> int:
    """How many rows the model takes at once; 0: any."""
    if not inputs:
        raise ModelError("has no inputs; export it with one or more")
    firsts = {each.shape[0] if each.shape else 1 for each in inputs}
    fixed = {first for first in firsts if isinstance(first, int)}
    if not fixed and all(each.shape for each in inputs):
        return 0
    if len(fixed) == 1 and len(fixed) == len(firsts) and all(each.shape for each in inputs):
        return fixed.pop()
    said = ", ".join(map(str, inputs))
    raise ModelError(
        f"has {said}; the first axis of every input must be the batch axis, free or of one size"
    )


def _input_tensors(inputs: Sequence[Declared], padding: dict[str, float]) -> list[Tensor]:
    batch = {each.shape[0] for each in inputs}
    tensors = []
    for each in inputs:
        shape = tuple(
            f"{each.name}.{i}" if size is None else size for i, size in enumerate(each.shape[1:], 1)
        )
        if batch.intersection(name for name in shape if isinstance(name, str)):
            raise ModelError(f"has {each}, with the batch axis twice; export it with one in front")
        try:
            tensors.append(Tensor(each.name, each.datatype, shape, padding.pop(each.name, 0.0)))
        except ValueError as error:
            raise ModelError(f"has {each} that cannot be served: {error}") from error
    if padding:
        raise ModelError(f"has no input {min(padding)!r} to be padded")
    return tensors


def _axes(
    inputs: Sequence[Tensor], given: dict[str, Axis | int], queries: Named | None
) -> dict[str, Axis]:
    sizes = {}
    if queries is not None:
        sizes = sizes_in(fit_inputs(queries, inputs, "the file of queries"), inputs)
    found: dict[str, Axis] = {}
    for tensor in inputs:
        for axis in tensor.axes:
            said = given.get(axis)
            if isinstance(said, Axis):
                found[axis] = said
            elif axis in sizes:
                found[axis] = axis_for(sizes[axis], said)
            elif said is not None:
                found[axis] = Axis(tuple(sorted({max(1, said // part) for part in PARTS})))
            else:
                raise ModelError(
                    f"has an axis {axis!r} of no fixed size, in input {tensor}; bound it, with "
                    f"--axis {axis}=SIZE or with queries (--inputs)"
                )
    unknown = given.keys() - found.keys()
    if unknown:
        dynamic = ", ".join(found) or "none"
        raise ModelError(f"has no dynamic axis {min(unknown)!r}; it has {dynamic}")
    return found


def _output_shapes(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[Declared],
    inputs: Sequence[Tensor],
    axes: Mapping[str, Axis],
    rows: int,
) -> list[Tensor]:
    """The outputs, with the sizes of their axes as trying batches of so many rows shows."""

    def shapes_at(sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        try:
            layout = Layout(tuple(each.at(sizes) for each in inputs))
        except ValueError as error:
            raise ModelError(f"cannot be served with axes of that size: {error}") from error
        drawn = layout.split(layout.draw(np.random.default_rng(_SEED), rows))
        feeds = {name: np.ascontiguousarray(each) for name, each in drawn.items()}
        try:
            return [each.shape for each in session.run([o.name for o in outputs], feeds)]
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            flags = " or ".join(f"--axis {name}=SIZE" for name in axes)
            instead = f"if that is longer than it takes, give a smaller bound, {flags}"
            why = f"fails on {rows} rows of {layout}: {why_it_fails(error)}"
            raise ModelError(f"{why}; {instead}" if flags else why) from error

    bounds = {name: axis.bound for name, axis in axes.items()}
    largest = shapes_at(bounds)
    found: list[list[int | str]] = [list(shape) for shape in largest]
    for name, bound in bounds.items():
        if bound == 1:
            continue
        smaller = shapes_at({**bounds, name: bound // 2})
        for output, shape, one, other in zip(outputs, found, largest, smaller, strict=True):
            for i, (size, less) in enumerate(zip(one, other, strict=False)):
                if size != less:
                    if (size, less) != (bound, bound // 2):
                        raise ModelError(
                            f"has {output}, whose axis {i} is {less} where {name!r} is "
                            f"{bound // 2}, and {size} where it is {bound}; only an axis as large "
                            "as an input's can be cut back"
                        )
                    shape[i] = name
    for output, one in zip(outputs, largest, strict=True):
        if not one or one[0] != rows:
            raise ModelError(
                f"has {output}, of shape {list(one)} for {rows} rows; the first axis of every "
                "output must be the batch axis"
            )
    try:
        return [
            Tensor(output.name, output.datatype, tuple(shape[1:]))
            for output, shape in zip(outputs, found, strict=True)
        ]
    except ValueError as error:
        raise ModelError(f"has an output that cannot be served: {error}") from error


def _check_rows_apart(model: OnnxModel, queries: Named | None, what: str) -> None:
    """Raise ModelError if what the model predicts for a row depends on the rest of its batch: for
    the first `queries`, or for rows that are drawn. Raises DataError for queries that it cannot
    run."""
    kind = model.signature.smallest
    rows = kind.input.draw(np.random.default_rng(_SEED), TRIED)
    if queries is not None:
        fitting = fit_inputs(queries, model.signature.inputs, what)
        count = min(TRIED, len(next(iter(fitting.values()))))
        rows = rows_of(fitting, model.signature, range(count))
        kind = model.signature.kind_of(rows[0, ...])
    together = tensors_in(model.predict(rows))
    alone = [tensors_in(model.predict(rows[i : i + 1])) for i in range(len(rows))]
    for spec, whole, *parts in zip(kind.output.tensors, together, *alone, strict=True):
        one_by_one = np.concatenate(parts).astype(np.float64)
        finite = np.isfinite(one_by_one)
        allowed = NEAR * np.abs(one_by_one[finite]).max(initial=0.0)
        off = np.abs(whole.astype(np.float64) - one_by_one)[finite].max(initial=0.0)
        if not off <= allowed:
            raise ModelError(
                f"has an output {spec.name!r} that depends on the other rows of the batch, so that "
                "serving could not batch queries; export it in evaluation mode (module.eval())"
            )
