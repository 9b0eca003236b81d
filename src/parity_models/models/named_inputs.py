"""Queries in files, whatever a model takes: an array for each named input, a row for each query.

    inputs.npz   ids (n, 128) int64, mask (n, 128) int64

Of inputs with dynamic axes all rows are padded to one size. How long a row really is, is told by
where its padding begins: behind the last place at which any input with that axis holds something
else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.models.signature import Axis, Signature, Tensor

Array = NDArray[Any]
Named = dict[str, Array]
"""Arrays (n, ...) by the name of their input; all have the same n."""

LABELS = "labels"
"""What an .npz file may hold beside inputs."""

SHARES = (0.5, 0.75, 0.95, 1.0)
"""The shares of queries that fit into the buckets that are chosen."""

STEP = 8
"""Buckets are multiples of this, but for the bound of an axis."""


def read_named(path: Path) -> Named:
    """The arrays of an .npz file but its labels, or the array of an .npy file as "inputs".

    Raises DataError for a file that is none, that holds objects, or arrays of unequal length.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"inputs": loaded}
        else:
            with loaded as archive:
                arrays = {name: archive[name] for name in archive.files if name != LABELS}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} is neither an .npz file of arrays nor an .npy file: {error}"
        ) from error
    if not arrays:
        raise DataError(f"{path} holds no inputs; save one array for each input of the model")
    rows = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise DataError(f"{path} holds inputs of unequal numbers of rows ({said})")
    if 0 in rows.values():
        raise DataError(f"{path} holds no rows of inputs")
    return arrays


def fit_inputs(arrays: Mapping[str, Array], inputs: Sequence[Tensor], what: str) -> Named:
    """The arrays for these inputs, in their order and datatypes.

    An array for the only input of a model may have any name. Numbers are converted where that
    changes none of them. Raises DataError, which calls the arrays `what`, for names, datatypes,
    ranks and sizes that do not fit; not for sizes of dynamic axes.
    """
    if len(inputs) == len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    names = [each.name for each in inputs]
    if sorted(names) != sorted(arrays):
        raise DataError(
            f"{what} holds {', '.join(sorted(arrays))}; the model takes {', '.join(names)}: give "
            "an .npz file with an array for each"
        )
    fitting = {each.name: _fit(arrays[each.name], each, what) for each in inputs}
    _check_axes(fitting, inputs, what)
    return fitting


def load_named(path: Path, signature: Signature, least: int = 1) -> Array:
    """The queries in a file, `least` or more, as rows of one kind: those of unequal length are
    padded to the longest one's bucket.

    Raises DataError for files and queries that do not fit the signature.
    """
    arrays = fit_inputs(read_named(path), signature.inputs, str(path))
    sizes = sizes_in(arrays, signature.inputs)
    largest = {axis: int(each.max()) for axis, each in sizes.items()}
    for axis, size in largest.items():
        if size > signature.axes[axis].bound:
            raise DataError(
                f"{path} holds a query of {size} along {axis!r}; the bundle's model takes "
                f"{signature.axes[axis].bound} at most"
            )
    rows = padded(arrays, signature, [largest[axis] for axis in signature.axes])
    if len(rows) < least:
        raise DataError(f"there are {len(rows)} queries in {path}; give {least} or more")
    return rows


def sizes_in(arrays: Mapping[str, Array], inputs: Sequence[Tensor]) -> dict[str, NDArray[np.int64]]:
    """How large each dynamic axis of `inputs` really is in each row: by axis, (n,), 1 or more."""
    found: dict[str, NDArray[np.int64]] = {}
    for tensor in inputs:
        array = arrays[tensor.name]
        for axis, at in tensor.axes.items():
            others = tuple(i for i in range(1, array.ndim) if i != at + 1)
            used = (array != np.asarray(tensor.padding, array.dtype)).any(axis=others)
            last = array.shape[at + 1] - used[:, ::-1].argmax(axis=1)
            size = np.where(used.any(axis=1), last, 1)
            found[axis] = np.maximum(found.get(axis, 1), size)
    return found


def sizes_along(arrays: Mapping[str, Array], signature: Signature) -> list[int]:
    """How large the signature's dynamic axes are in fitting `arrays` (n, ...), by their order."""
    sizes = {
        axis: arrays[tensor.name].shape[at + 1]
        for tensor in signature.inputs
        for axis, at in tensor.axes.items()
    }
    return [sizes[axis] for axis in signature.axes]


def axis_for(sizes: NDArray[np.int64], bound: int | None = None) -> Axis:
    """An axis whose buckets suit queries of these sizes (n,), up to `bound`, or the largest.

    Raises DataError if a size is beyond the bound.
    """
    most = int(sizes.max())
    bound = most if bound is None else bound
    if most > bound:
        raise DataError(f"a query has size {most}, beyond the bound {bound}; raise the bound")
    chosen = {bound}
    for share in SHARES:
        size = int(np.quantile(sizes, share, method="higher"))
        chosen.add(min(bound, -(-size // STEP) * STEP))
    return Axis(tuple(sorted(chosen)))


def rows_of(arrays: Mapping[str, Array], signature: Signature, at: Sequence[int]) -> Array:
    """The queries at these places of fitting `arrays`, cut to the largest of them, then padded to
    its bucket: rows of one kind (see Signature)."""
    chosen = {each.name: arrays[each.name][list(at)] for each in signature.inputs}
    found = sizes_in(chosen, signature.inputs)
    return padded(chosen, signature, [int(found[axis].max()) for axis in signature.axes])


def padded(arrays: Mapping[str, Array], signature: Signature, sizes: Sequence[int]) -> Array:
    """Rows of the kind of query that these sizes are padded to: of one tensor of that very shape,
    the array itself.

    `arrays` (n, ...) have these sizes or larger ones along the signature's dynamic axes; what is
    beyond is left out.
    """
    kind = signature.kind(signature.bucket(sizes))
    named = dict(zip(signature.axes, sizes, strict=True))
    full: Named = {}
    for tensor, spec in zip(signature.inputs, kind.input.tensors, strict=True):
        array = arrays[tensor.name]
        if array.shape[1:] == spec.shape and all(
            named[axis] == spec.shape[at] for axis, at in tensor.axes.items()
        ):
            full[tensor.name] = array
            continue
        kept = (slice(None), *(slice(named.get(cast(str, each))) for each in tensor.shape))
        full[tensor.name] = np.full((len(array), *spec.shape), tensor.padding, spec.dtype)
        full[tensor.name][kept] = array[kept]
    return kind.input.join(full)


def cut(outputs: Array, signature: Signature, sizes: Sequence[int]) -> Named:
    """The outputs (n, ...) by name, without what padding queries of these sizes has added."""
    kind = signature.kind(signature.bucket(sizes))
    named = dict(zip(signature.axes, sizes, strict=True))
    tensors = kind.output.split(outputs)
    for tensor in signature.outputs if kind.sizes != tuple(sizes) else ():
        kept = (slice(None), *(slice(named.get(cast(str, each))) for each in tensor.shape))
        tensors[tensor.name] = tensors[tensor.name][kept]
    return tensors


def _fit(array: Array, tensor: Tensor, what: str) -> Array:
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        size == each or (isinstance(each, str) and size > 0)
        for size, each in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{tensor.name!r} in {what} has rows of shape {list(shape)}; the model takes {tensor}"
        )
    if array.dtype == tensor.dtype:
        return array
    numbers = array.dtype.kind in "biuf" and (tensor.dtype.kind == "b") == (array.dtype.kind == "b")
    with np.errstate(all="ignore"):
        converted = array.astype(tensor.dtype) if numbers else array
    exact = np.array_equal(converted, array) or (array.dtype.kind == tensor.dtype.kind == "f")
    if not numbers or not exact:
        raise DataError(f"{tensor.name!r} in {what} is {array.dtype}; the model takes {tensor}")
    return converted


def _check_axes(arrays: Named, inputs: Sequence[Tensor], what: str) -> None:
    """Raise DataError unless inputs that share a dynamic axis have one size there."""
    seen: dict[str, tuple[str, int]] = {}
    for tensor in inputs:
        for axis, at in tensor.axes.items():
            size = arrays[tensor.name].shape[at + 1]
            other, expected = seen.setdefault(axis, (tensor.name, size))
            if size != expected:
                raise DataError(
                    f"{tensor.name!r} and {other!r} in {what} have {size} and {expected} along "
                    f"the axis {axis!r} that they share; pad them to one size"
                )
