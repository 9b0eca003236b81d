"""A user's ONNX model made ready to be served: in one piece, with a complete signature.

Bounds of dynamic axes are given, or read off queries; the shapes of outputs are found by running
the model. Needs the package onnx, which serving does without: bundles hold models that went through
here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper

from parity_models.bundle.bundle import Bundle, NewModel, check_replaceable, write_bundle
from parity_models.bundle.onnx_model import (
    MAX_MODEL_BYTES,
    Declared,
    OnnxModel,
    declared,
    fixed_batch,
    open_session,
    read_model,
    why_it_fails,
)
from parity_models.errors import ModelError, UserError, spell
from parity_models.tensors.queries import (
    axis_for,
    fit_tensors,
    read_arrays,
    rows_in,
    sizes_in,
    take,
)
from parity_models.tensors.signature import Axis, Batch, Layout, Signature, Tensor, pad

OWN = "own"
"""The network's name, in manifests, of a model that this package did not build."""

TRIED = 4
"""Rows that are predicted together and one by one."""

NEAR = 0.05
"""The largest difference between the two, as a share of the largest value. It is generous, as the
random rows used without queries magnify rounding errors."""

PARTS = (4, 2, 1)
"""Without queries, the buckets of an axis are these parts of its bound."""

_SEED = 5


def make_bundle(
    model: Path | str,
    /,
    *,
    out: Path | str,
    inputs: Path | str | Batch | None = None,
    axes: Mapping[str, Axis | int] | None = None,
    padding: Mapping[str, float] | None = None,
    backup: Path | str | None = None,
    output: str | None = None,
) -> Bundle:
    """Make a bundle of an ONNX model with any named inputs and outputs, of numbers or texts.

    All axes except the first may be dynamic: bound them with `axes`, or with queries. Calibrate a
    backup of your own afterwards.

    Args:
        model: The ONNX file.
        out: The folder of the bundle to write.
        inputs: Queries that show how large dynamic axes become: an .npz file, or an array (n, ...)
            for each input by name.
        axes: The sizes that dynamic axes are padded to, or their bounds, by name.
        padding: The values that fill up shorter rows, by input; 0 by default.
        backup: The ONNX file of a cheaper model with the same inputs and one output.
        output: The output that the backup imitates, of several; by default the only one that it
            can imitate.

    Returns:
        The bundle.

    Raises:
        ModelError: A model cannot be served, or an axis has no bound.
        DataError: The queries do not fit the model.
        UserError: The model does not have the output.
        BundleError: The models do not fit each other, or `out` cannot hold a bundle.
    """
    check_replaceable(Path(out).resolve())
    queries = read_arrays(Path(inputs)) if isinstance(inputs, str | Path) else inputs
    content, signature = read_servable(Path(model), axes, padding, queries)
    outputs = [each.name for each in signature.outputs]
    if output is not None and output not in outputs:
        raise UserError(f"the model has no output {output!r}; it has {', '.join(outputs)}")
    new = None
    if backup is not None:
        cheaper, its = read_servable(Path(backup), signature.axes, padding)
        new = NewModel(cheaper, OWN, signature=its)
    deployed = NewModel(content, OWN, signature=signature)
    return write_bundle(out, deployed=deployed, backup=new, imitated=output)


def read_servable(
    model: Path | bytes,
    axes: Mapping[str, Axis | int] | None = None,
    padding: Mapping[str, float] | None = None,
    queries: Batch | None = None,
) -> tuple[bytes, Signature]:
    """Return the content of an ONNX file, and the model's signature.

    Weights may be in further files next to a file. `axes` are buckets of dynamic axes by name, or
    their bounds; others are read off `queries`, arrays (n, ...) by input. Axes of images (inputs of
    three axes or more) are fixed to their sizes in `queries`. `padding` are the values that fill up
    shorter rows of inputs, 0 by default. Raises ModelError for a model that cannot be served, and
    for an axis without a bound; DataError for queries that do not fit.
    """
    path = Path("the module") if isinstance(model, bytes) else model
    content = model if isinstance(model, bytes) else _with_weights(path, read_model(path))
    try:
        session = open_session(content)
        inputs, outputs = declared(session)
        batch = fixed_batch(inputs)
        tensors = _input_tensors(inputs, dict(axes or {}), dict(padding or {}), queries)
        found = _axes(tensors, dict(axes or {}), queries)
        shapes = _output_shapes(session, outputs, tensors, found, batch or 2)
        signature = Signature(tuple(tensors), tuple(shapes), found, batch)
        _check_rows_apart(OnnxModel(content, signature=signature), queries, str(path))
    except ModelError as error:
        raise ModelError(f"{path}: it {error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: it has tensors that cannot be served: {error}") from error
    return content, signature


def _with_weights(path: Path, content: bytes) -> bytes:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX file, or is incomplete; export it again"
        ) from error
    if not any(map(external_data_helper.uses_external_data, model.graph.initializer)):
        return content
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        whole: bytes = model.SerializeToString()
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"the weights of {path} are in another file that cannot be read ({why}); copy that "
            "file next to it, or export with torch.onnx.export(..., external_data=False)"
        ) from error
    except EncodeError as error:
        raise ModelError(
            f"{path} has more weights than one file holds; {MAX_MODEL_BYTES} bytes are the most"
        ) from error
    return whole


def _row_of(tensor: Declared) -> tuple[int | str, ...]:
    """Return the shape of a row, with a name of its own for each free axis: some exporters call an
    axis "?", or several by one name."""
    row: list[int | str] = []
    for i, size in enumerate(tensor.shape[1:], 1):
        unnamed = size in (None, "?") or (isinstance(size, str) and size in row)
        row.append(f"{tensor.name}.{i}" if size is None or unnamed else size)
    return tuple(row)


def _input_tensors(
    inputs: Sequence[Declared],
    given: Mapping[str, Any],
    padding: dict[str, float],
    queries: Batch | None,
) -> list[Tensor]:
    """Return the inputs. Free axes of images have the size that the queries have: padding would
    become part of an image."""
    batch, arrays, tensors = {each.shape[0] for each in inputs}, queries or {}, []
    for each in inputs:
        shape = _row_of(each)
        free = {axis for axis in shape if isinstance(axis, str)}
        if batch & free:
            raise ModelError(f"has {each}, with the batch axis twice; export it with one in front")
        array = arrays.get(each.name, next(iter(arrays.values())) if len(arrays) == 1 else None)
        if len(shape) >= 3 and not free & given.keys() and array is not None:
            shape = array.shape[1:] if array.ndim == 1 + len(shape) and free else shape
        tensors.append(Tensor(each.name, each.datatype, shape, padding.pop(each.name, 0.0)))
    if padding:
        raise ModelError(f"has no input {min(padding)!r} to be padded")
    return tensors


def _axes(
    inputs: Sequence[Tensor], given: dict[str, Axis | int], queries: Batch | None
) -> dict[str, Axis]:
    sizes = {}
    if queries is not None:
        sizes = sizes_in(fit_tensors(queries, inputs, "the file of queries"), inputs)
    found: dict[str, Axis] = {}
    for tensor in inputs:
        for axis in tensor.axes:
            bound = given.get(axis)
            if isinstance(bound, Axis):
                found[axis] = bound
            elif axis in sizes:
                found[axis] = axis_for(sizes[axis], bound)
            elif bound is not None:
                found[axis] = Axis(tuple(sorted({max(1, bound // part) for part in PARTS})))
            else:
                raise ModelError(
                    f"has an axis {axis!r} of no fixed size, in input {tensor}; bound it, as "
                    f"parm bundle --axis {axis}=SIZE does, or with queries ({spell('inputs')})"
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
    """Return the outputs, with the sizes of their axes as found by running this many rows."""

    def shapes_at(sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        layout = Layout(tuple(each.at(sizes) for each in inputs))
        drawn = layout.draw(np.random.default_rng(_SEED), rows)
        try:
            return [each.shape for each in session.run([o.name for o in outputs], drawn)]
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            names = " or ".join(map(repr, axes))
            instead = f"if the model takes no rows of that size, give a smaller bound of {names}"
            why = f"fails on {rows} rows of {layout}: {why_it_fails(error)}"
            raise ModelError(f"{why}; {instead}" if names else why) from error

    bounds = {name: axis.bound for name, axis in axes.items()}
    largest = shapes_at(bounds)
    found: list[list[int | str]] = [list(shape) for shape in largest]
    for name, bound in bounds.items():
        if bound == 1:
            continue
        smaller = shapes_at({**bounds, name: bound // 2})
        for output, shape, one, other in zip(outputs, found, largest, smaller, strict=True):
            for i, (size, less) in enumerate(zip(one, other, strict=False)):
                if size == less:
                    continue
                if (size, less) != (bound, bound // 2):
                    raise ModelError(
                        f"has {output}, whose axis {i} is {less} where {name!r} is {bound // 2}, "
                        f"and {size} where it is {bound}; only an axis as large as an input's can "
                        "be cut back"
                    )
                shape[i] = name
    for output, one in zip(outputs, largest, strict=True):
        if not one or one[0] != rows:
            raise ModelError(
                f"has {output}, of shape {list(one)} for {rows} rows; the first axis of every "
                "output must be the batch axis"
            )
    return [
        Tensor(output.name, output.datatype, tuple(shape[1:]))
        for output, shape in zip(outputs, found, strict=True)
    ]


def _check_rows_apart(model: OnnxModel, queries: Batch | None, what: str) -> None:
    """Raise ModelError if the prediction for a row depends on the rest of its batch: for the first
    `queries`, or for rows that are drawn. Raises DataError for queries that it cannot run."""
    signature = model.signature
    rows: Batch = signature.smallest.input.draw(np.random.default_rng(_SEED), TRIED)
    if queries is not None:
        rows = take(fit_tensors(queries, signature.inputs, what), slice(TRIED))
        sizes = sizes_in(rows, signature.inputs)
        rows = pad(rows, signature, [int(sizes[axis].max()) for axis in signature.axes])
    together = model.predict(rows)
    alone = [model(take(rows, slice(i, i + 1))) for i in range(rows_in(rows))]
    for name, whole in together.items():
        one_by_one = np.concatenate([each[name] for each in alone])
        if whole.dtype.kind == "O":
            whole, one_by_one = whole == one_by_one, np.ones(one_by_one.shape)
        one_by_one = one_by_one.astype(np.float64)
        finite = np.isfinite(one_by_one)
        allowed = NEAR * np.abs(one_by_one[finite]).max(initial=0.0)
        if whole.shape != one_by_one.shape or not np.allclose(
            whole[finite], one_by_one[finite], rtol=0, atol=allowed
        ):
            raise ModelError(
                f"has an output {name!r} that depends on the other rows of the batch, so that "
                "serving could not batch queries; export it in evaluation mode (module.eval())"
            )


# Outputs for each token


def with_mean(
    content: bytes, signature: Signature, output: str | None = None
) -> tuple[bytes, Signature, str]:
    """Give a model one more output: the mean of an output [sequence, width], scaled to length 1.

    Tokens count if the input with "mask" in its name marks them or, without one, if they are not
    padding. Returns the content, the signature, and the name of the new output. Raises ModelError
    if there is no such output, or no input of the same sequence.
    """
    found = [
        each
        for each in signature.outputs
        if len(each.shape) == 2 and list(each.axes.values()) == [0] and each.dtype.kind == "f"
        if output in (None, each.name)
    ]
    tokens = [each for each in signature.inputs if found and each.shape == found[0].shape[:1]]
    if len(found) != 1 or not tokens:
        raise ModelError(
            f"{spell('pool')} needs an output of shape [sequence, width] along an axis that an "
            f"input has too; the model gives {', '.join(map(str, signature.outputs))}: name one "
            f"such output, or leave out {spell('pool')}"
        )
    mask = next((each for each in tokens if "mask" in each.name), tokens[0])
    model, name, float32 = onnx.load_model_from_string(content), f"{found[0].name}.mean", 1
    sums = {"equation": "nl,nlw->nw"}
    padding = onnx.helper.make_tensor(f"{name}.padding", float32, [], [mask.padding])
    model.graph.initializer.append(padding)
    for operator, taken, given, more in (
        ("Cast", [mask.name], f"{name}.ids", {"to": float32}),
        ("Equal", [f"{name}.ids", padding.name], f"{name}.padded", {}),
        ("Not", [f"{name}.padded"], f"{name}.content", {}),
        ("Cast", [f"{name}.content"], f"{name}.counted", {"to": float32}),
        ("Cast", [found[0].name], f"{name}.tokens", {"to": float32}),
        ("Einsum", [f"{name}.counted", f"{name}.tokens"], f"{name}.sum", sums),
        ("LpNormalization", [f"{name}.sum"], name, {"axis": -1, "p": 2}),
    ):
        model.graph.node.append(onnx.helper.make_node(operator, taken, [given], **more))
    width = found[0].shape[1:]
    value = onnx.helper.make_tensor_value_info(name, float32, ["batch", *width])
    model.graph.output.append(value)
    outputs = (*signature.outputs, Tensor(name, "FP32", width))
    content = model.SerializeToString()
    open_session(content)
    return content, msgspec.structs.replace(signature, outputs=outputs), name
