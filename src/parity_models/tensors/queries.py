"""Batches of queries: an array (n, ...) for each named input of a model.

    inputs.npz   ids (n, 128) int64, mask (n, 128) int64

Rows of a batch are padded to one size along dynamic axes. A row's real size ends at the last place
where an input with that axis holds something other than its padding value.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import DataError
from parity_models.tensors.signature import Array, Axis, Batch, Named, Signature, Sizes, Tensor, pad
from parity_models.tensors.texts import as_texts

Integers = NDArray[np.int64]

LABELS = "labels"
"""The array of an .npz file that holds labels."""

SHARES = (0.5, 0.75, 0.95, 1.0)
"""The shares of queries that fit into the buckets that are chosen."""

STEP = 8
"""Buckets are multiples of this, except for the bound of an axis."""

LARGEST = 1 << 34
"""The most bytes that are read from all files together."""


def rows_in(batch: Batch) -> int:
    """Return the number of queries in a batch."""
    return len(next(iter(batch.values())))


def take(batch: Batch, which: slice | Array) -> Named:
    """Return the queries at these rows."""
    return {name: array[which] for name, array in batch.items()}


def renamed(batch: Batch, signature: Signature) -> Named:
    """Return a batch under the names of the signature's inputs, in their order: the inputs of
    stand-ins may have other names than the deployed model's."""
    names = [each.name for each in signature.inputs]
    return dict(zip(names, batch.values(), strict=True))


def as_batch(
    inputs: ArrayLike | Mapping[str, ArrayLike], signature: Signature, what: str = "inputs"
) -> Named:
    """Return `inputs` as a batch for a model, in the order and datatypes of its inputs.

    They are an array (n, ...) for each input by name, the array of a model's only input, or a
    structured array with a field for each input; errors call them `what`. Numbers are converted if
    that changes none of them. If a row is one text, texts may be (n,). Raises DataError if names,
    datatypes, ranks or sizes do not fit.
    """
    try:
        if not isinstance(inputs, Mapping):
            array = np.asarray(inputs)
            fields = array.dtype.names
            inputs = {"inputs": array} if fields is None else {name: array[name] for name in fields}
        named = {name: np.asarray(each) for name, each in inputs.items()}
    except ValueError as error:
        raise DataError(f"{what} has rows of unequal shapes ({error})") from error
    fitting = fit_tensors(named, signature.inputs, what)
    for axis, sizes in sizes_in(fitting, signature.inputs).items():
        most, bound = sizes.max(initial=0), signature.axes[axis].bound
        if most > bound:
            raise DataError(
                f"{what} holds a query of {most} along {axis!r}; the model takes {bound} at most"
            )
    return fitting


def fit_tensors(arrays: Batch, inputs: Sequence[Tensor], what: str) -> Named:
    """Return the arrays for these inputs as `as_batch` does, however long dynamic axes are.

    An array for the only input may have any name.
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
    counts = {name: len(array) for name, array in fitting.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{what} holds inputs of unequal numbers of rows ({found})")
    seen: dict[str, tuple[str, int]] = {}
    for tensor in inputs:
        for axis, at in tensor.axes.items():
            size = fitting[tensor.name].shape[at + 1]
            other, expected = seen.setdefault(axis, (tensor.name, size))
            if size != expected:
                raise DataError(
                    f"{tensor.name!r} and {other!r} in {what} have {size} and {expected} along "
                    f"the axis {axis!r} that they share; pad them to one size"
                )
    return fitting


def _fit(array: Array, tensor: Tensor, what: str) -> Array:
    if tensor.is_text and tensor.shape == (1,) and array.ndim == 1:
        array = array[:, np.newaxis]  # a list of texts
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        size == each or (isinstance(each, str) and size > 0)
        for size, each in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not array.ndim:
        raise DataError(
            f"{tensor.name!r} in {what} has rows of shape {list(shape)}; the model takes {tensor}"
        )
    if tensor.is_text:
        try:
            return as_texts(array)
        except ValueError as error:
            raise DataError(f"{tensor.name!r} in {what} {error}") from error
    if array.dtype == tensor.dtype:
        return array
    numbers = array.dtype.kind in "biuf" and (tensor.dtype.kind == "b") == (array.dtype.kind == "b")
    with np.errstate(all="ignore"):
        converted = array.astype(tensor.dtype) if numbers else array
    exact = np.array_equal(converted, array) or (array.dtype.kind == tensor.dtype.kind == "f")
    if not numbers or not exact:
        raise DataError(f"{tensor.name!r} in {what} is {array.dtype}; the model takes {tensor}")
    return converted


def check_queries(batch: Batch, what: str, least: int = 1) -> None:
    """Raise DataError unless there are `least` queries, all finite, and several differ."""
    rows = rows_in(batch)
    if rows < least:
        raise DataError(f"there are {rows} {what}, too few: give {least} or more")
    for array in batch.values():
        if array.dtype.kind == "O":
            continue
        sound = np.isfinite(array).reshape(rows, -1).all(axis=1)
        if not sound.all():
            first = int(sound.argmin())
            raise DataError(
                f"the {what} hold NaN or infinite values, first in row {first}; leave such rows out"
            )
    if rows > 1 and all((array == array[:1]).all() for array in batch.values()):
        raise DataError(
            f"all {what} are the same, so nothing can be learned from them; give queries that "
            "differ, as the deployed model gets them"
        )


# Sizes along dynamic axes


def sizes_in(batch: Batch, inputs: Sequence[Tensor]) -> dict[str, Integers]:
    """Return the real size of each row along each dynamic axis of `inputs`: (n,), 1 or more."""
    found: dict[str, Integers] = {}
    for tensor in inputs:
        array = batch[tensor.name]
        for axis, at in tensor.axes.items():
            others = tuple(i for i in range(1, array.ndim) if i != at + 1)
            used = (array != tensor.fill).any(axis=others)
            last = array.shape[at + 1] - used[:, ::-1].argmax(axis=1)
            size = np.where(used.any(axis=1), last, 1)
            found[axis] = np.maximum(found.get(axis, 1), size)
    return found


def axis_for(sizes: Integers, bound: int | None = None) -> Axis:
    """Return an axis whose buckets suit queries of these sizes (n,), up to `bound`, or the largest.
    Raises DataError for a size beyond the bound."""
    most = int(sizes.max())
    bound = most if bound is None else bound
    if most > bound:
        raise DataError(f"a query has size {most}, beyond the bound {bound}; raise the bound")
    quantiles = np.quantile(sizes, SHARES, method="higher").tolist()
    chosen = {bound, *(min(bound, -(-int(size) // STEP) * STEP) for size in quantiles)}
    return Axis(tuple(sorted(chosen)))


def by_bucket(batch: Batch, signature: Signature, most: int) -> Iterator[tuple[Integers, Named]]:
    """Yield all queries of a batch, bucket by bucket, `most` at a time: their places (n,), and a
    batch of them, padded to the bucket."""
    for alike, sizes in _alike(batch, signature):
        for start in range(0, len(alike), most):
            rows, some = alike[start : start + most], sizes[start : start + most]
            yield rows, pad(take(batch, rows), signature, some.max(axis=0).tolist())


def commonest(queries: ArrayLike | Batch, signature: Signature) -> Sizes:
    """Return the buckets of the dynamic axes that most of these queries fall into."""
    buckets = _alike(as_batch(queries, signature), signature)
    _, sizes = max(buckets, key=lambda each: len(each[0]))
    return signature.bucket(sizes.max(axis=0).tolist())


def _alike(batch: Batch, signature: Signature) -> Iterator[tuple[Integers, Integers]]:
    """Yield the rows of each bucket that queries fall into, and their sizes (rows, axes)."""
    named = sizes_in(batch, signature.inputs)
    sizes = np.array([named[axis] for axis in signature.axes], np.int64).T
    sizes = sizes.reshape(rows_in(batch), -1)
    kinds = sizes.copy()
    for i, axis in enumerate(signature.axes.values()):
        kinds[:, i] = np.searchsorted(axis.buckets, sizes[:, i])
    for kind in np.unique(kinds, axis=0) if kinds.size else kinds[:1]:
        rows = np.flatnonzero((kinds == kind).all(axis=1))
        yield rows, sizes[rows]


# Files


def read_batch(path: Path, signature: Signature, least: int = 1) -> Named:
    """Read the queries in a file.

    An .npz file holds an array for each input; if there is only one, it may be called "inputs". An
    .npy file holds the array of a model's only input, and a .txt file a text per line. Unsigned
    bytes for floating-point inputs, as the pixels of images, become 0 to 1; other integers are
    refused there, as the scale that the model expects is unknown. Raises DataError if the file
    cannot be read or does not fit, or `check_queries` refuses the queries.
    """
    inputs = signature.inputs
    arrays = read_arrays(path)
    if len(inputs) == 1:
        names = ("inputs", inputs[0].name) if len(arrays) > 1 else tuple(arrays)
        chosen = next((name for name in names if name in arrays), None)
        if chosen is None:
            raise DataError(f"{path} holds {', '.join(arrays)}; call the array to be read 'inputs'")
        arrays = {inputs[0].name: arrays[chosen]}
    for each in inputs:
        if each.name in arrays and each.dtype.kind == "f":
            arrays[each.name] = _as_floats(arrays[each.name], each.dtype, path)
    batch = as_batch(arrays, signature, f"{path}")
    check_queries(batch, f"inputs in {path}", least)
    return batch


def read_arrays(path: Path, *, labels: bool = False) -> Named:
    """Read the arrays of an .npz file, or the array of an .npy file or the lines of a .txt file as
    "inputs".

    An array called "labels" next to others is left out, unless `labels` is set. Nothing is
    unpickled. Raises DataError for a file that cannot be read, does not hold numbers or texts, or
    is larger than LARGEST.
    """
    if not path.exists():
        raise DataError(f"there is no {path}; give an .npy or an .npz file")
    if path.suffix not in (".npy", ".npz", ".txt"):
        raise DataError(
            f"{path} is not an .npy or .npz file; save an array with numpy.save(file, array), or "
            "texts in a .txt file, one per line"
        )
    try:
        if path.suffix == ".txt":
            _check_size(path.stat().st_size, path)
            lines = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
            return {"inputs": np.array(lines, object)}
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npy":
            arrays: Named = {"inputs": loaded}
        else:
            with loaded:
                _check_size(sum(each.file_size for each in loaded.zip.infolist()), path)
                left_out = {LABELS} if len(loaded.files) > 1 and not labels else set()
                arrays = {name: loaded[name] for name in loaded.files if name not in left_out}
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # NumPy's parser raises anything
        if any(sign in str(error) for sign in ("Object arrays", "Python objects")):
            raise DataError(
                f"{path} holds Python objects, which are not unpickled; save texts with "
                "numpy.save(file, texts.astype(str))"
            ) from error
        raise DataError(f"{path} is damaged or not an {path.suffix} file ({error})") from error
    for array in arrays.values():
        if array.dtype.kind not in "fiubU":
            raise DataError(
                f"{path} holds {array.dtype}, not numbers or texts; save numbers as float32, and "
                "texts as str"
            )
    if not arrays:
        raise DataError(f"{path} holds no inputs; save one array for each input of the model")
    return arrays


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise DataError(f"{path} holds {size} bytes of values; {LARGEST} are read at most")


def _as_floats(array: Array, dtype: np.dtype[Any], path: Path) -> Array:
    _check_size(array.nbytes, path)
    if array.dtype == np.uint8:
        pixels: Array = array.astype(dtype) / dtype.type(255)
        return pixels
    if array.dtype.kind != "f":
        raise DataError(
            f"{path} holds {array.dtype}; save floating point as the model expects it, or unsigned "
            "bytes, which become 0 to 1"
        )
    with np.errstate(over="ignore"):  # infinities are refused afterwards
        floats: Array = array.astype(dtype, order="C")
    return floats
