"""Batches of queries: an array (n, ...) for each named input, whatever a model takes.

    inputs.npz   ids (n, 128) int64, mask (n, 128) int64

Rows of a batch are padded to one size along dynamic axes. The real size of a row ends behind the
last place at which an input with that axis holds something other than its padding value.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import DataError
from parity_models.models.signature import Axis, Signature, Sizes, Tensor

Array = NDArray[Any]
Batch = Mapping[str, Array]
"""A batch of n queries: an array (n, ...) for each input by name, in the signature's order."""

Named = dict[str, Array]

LABELS = "labels"
"""The array of an .npz file that is no input."""

SHARES = (0.5, 0.75, 0.95, 1.0)
"""The shares of queries that fit into the buckets that are chosen."""

STEP = 8
"""Buckets are multiples of this, except for the bound of an axis."""

LARGEST = 1 << 34
"""Bytes of values that are read from all files together: larger data are given in part."""

FLOAT32 = 4
"""Bytes of a value, whatever it is stored as."""

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for pixels of so many channels."""

CHECKED = 4096
"""Rows that are checked together."""


# Batches


def rows_in(batch: Batch) -> int:
    """Return the number of queries in a batch."""
    return len(next(iter(batch.values())))


def take(batch: Batch, which: slice | Array) -> Named:
    """Return the queries at these rows."""
    return {name: array[which] for name, array in batch.items()}


def renamed(batch: Batch, signature: Signature) -> Named:
    """Return a batch by the names of the signature's inputs, in their order: the inputs of
    stand-ins may be called otherwise than the deployed model's."""
    names = [each.name for each in signature.inputs]
    return dict(zip(names, batch.values(), strict=True))


def as_batch(
    inputs: ArrayLike | Mapping[str, ArrayLike], signature: Signature, what: str = "inputs"
) -> Named:
    """Return `inputs` as a batch for a model.

    Args:
        inputs: an array (n, ...) for each input by name, or the array of a model's only input; or
            a structured array with a field for each input.
        signature: the model's.
        what: the name of the inputs in errors.

    Raises:
        DataError: names, datatypes, ranks or sizes do not fit.

    """
    if not isinstance(inputs, Mapping):
        inputs = np.asarray(inputs)
        if inputs.dtype.names is not None:
            return as_batch({name: inputs[name] for name in inputs.dtype.names}, signature, what)
        inputs = {signature.inputs[0].name if len(signature.inputs) == 1 else "inputs": inputs}
    return fit_inputs({name: np.asarray(each) for name, each in inputs.items()}, signature, what)


def fit_inputs(arrays: Batch, signature: Signature, what: str) -> Named:
    """Return the arrays in the order and datatypes of the signature's inputs.

    An array for the only input may have any name. Numbers are converted where that changes none of
    them. Raises DataError as `as_batch`, also for sizes beyond the bound of an axis.
    """
    fitting = fit_tensors(arrays, signature.inputs, what)
    for axis, sizes in sizes_in(fitting, signature.inputs).items():
        bound = signature.axes[axis].bound
        if sizes.max(initial=0) > bound:
            raise DataError(
                f"{what} holds a query of {sizes.max()} along {axis!r}; the model takes {bound} at "
                "most"
            )
    return fitting


def fit_tensors(arrays: Batch, inputs: Sequence[Tensor], what: str) -> Named:
    """Return the arrays for these inputs as `fit_inputs` does, however long dynamic axes are."""
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
        said = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{what} holds inputs of unequal numbers of rows ({said})")
    _check_axes(fitting, inputs, what)
    return fitting


def check_queries(batch: Batch, what: str, least: int = 1) -> None:
    """Raise DataError unless there are `least` queries, all finite, and several differ."""
    rows = rows_in(batch)
    if rows < least:
        raise DataError(f"there are {rows} {what}, too few: give {least} or more")
    for start in range(0, rows, CHECKED):
        for array in batch.values():
            if array.dtype.kind != "f":
                continue
            some = array[start : start + CHECKED]
            sound = np.isfinite(some).reshape(len(some), -1).all(axis=1)
            if not sound.all():
                raise DataError(
                    f"the {what} hold NaN or infinite values, first in row "
                    f"{start + int(sound.argmin())}; leave such rows out"
                )
    if rows > 1 and all((array == array[:1]).all() for array in batch.values()):
        raise DataError(
            f"all {what} are the same, so they teach and tell nothing; give queries that differ, "
            "as the deployed model gets them"
        )


def _fit(array: Array, tensor: Tensor, what: str) -> Array:
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        size == each or (isinstance(each, str) and size > 0)
        for size, each in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not array.ndim:
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


def _check_axes(batch: Batch, inputs: Sequence[Tensor], what: str) -> None:
    """Raise DataError unless inputs that share a dynamic axis have one size there."""
    seen: dict[str, tuple[str, int]] = {}
    for tensor in inputs:
        for axis, at in tensor.axes.items():
            size = batch[tensor.name].shape[at + 1]
            other, expected = seen.setdefault(axis, (tensor.name, size))
            if size != expected:
                raise DataError(
                    f"{tensor.name!r} and {other!r} in {what} have {size} and {expected} along "
                    f"the axis {axis!r} that they share; pad them to one size"
                )


# Sizes along dynamic axes


def sizes_in(batch: Batch, inputs: Sequence[Tensor]) -> dict[str, NDArray[np.int64]]:
    """Return the real size of each row along each dynamic axis of `inputs`: by axis, (n,), 1 or
    more."""
    found: dict[str, NDArray[np.int64]] = {}
    for tensor in inputs:
        array = batch[tensor.name]
        for axis, at in tensor.axes.items():
            others = tuple(i for i in range(1, array.ndim) if i != at + 1)
            used = (array != np.asarray(tensor.padding, array.dtype)).any(axis=others)
            last = array.shape[at + 1] - used[:, ::-1].argmax(axis=1)
            size = np.where(used.any(axis=1), last, 1)
            found[axis] = np.maximum(found.get(axis, 1), size)
    return found


def axis_for(sizes: NDArray[np.int64], bound: int | None = None) -> Axis:
    """Return an axis whose buckets suit queries of these sizes (n,), up to `bound`, or the largest.

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


def pad(batch: Batch, signature: Signature, sizes: Sequence[int]) -> Named:
    """Return a batch in the bucket that these sizes are padded to.

    The arrays have these sizes or larger ones along the signature's dynamic axes; what is beyond
    is cut off. An array that has the bucket's shape is returned as it is.
    """
    kind = signature.kind(signature.bucket(sizes))
    named = dict(zip(signature.axes, sizes, strict=True))
    full: Named = {}
    for tensor, spec in zip(signature.inputs, kind.input.tensors, strict=True):
        array = batch[tensor.name]
        if array.shape[1:] == spec.shape and all(
            named[axis] == spec.shape[at] for axis, at in tensor.axes.items()
        ):
            full[tensor.name] = array
            continue
        kept = _kept(tensor, named)
        full[tensor.name] = np.full((len(array), *spec.shape), tensor.padding, spec.dtype)
        full[tensor.name][kept] = array[kept]
    return full


def padded(batch: Batch, signature: Signature, sizes: Sequence[int]) -> Array:
    """Return the batch as `pad` does, as rows in memory (see Layout)."""
    if signature.plain is not None:
        return signature.plain.input.join(batch)
    return signature.kind(signature.bucket(sizes)).input.join(pad(batch, signature, sizes))


def cut(outputs: Array, signature: Signature, sizes: Sequence[int]) -> Named:
    """Return rows of outputs (see Layout) by name, without what padding queries of these sizes has
    added."""
    if signature.plain is not None:
        return signature.plain.output.split(outputs)
    kind = signature.kind(signature.bucket(sizes))
    named = dict(zip(signature.axes, sizes, strict=True))
    tensors = kind.output.split(outputs)
    for tensor in signature.outputs if kind.sizes != tuple(sizes) else ():
        tensors[tensor.name] = tensors[tensor.name][_kept(tensor, named)]
    return tensors


def _kept(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(sizes.get(cast(str, each))) for each in tensor.shape))


# Runs by bucket


def run_by_bucket(
    run: Callable[[Named], Mapping[str, Array]],
    batch: Batch,
    signature: Signature,
    output: str,
    most: int,
    on_rows: Callable[[int], None] | None = None,
) -> Array:
    """Run a model on queries of unequal length, those of one bucket together.

    Args:
        run: the model, which gives its outputs by name.
        batch: queries that fit the signature.
        signature: the model's.
        output: the output that is returned, which has a fixed shape.
        most: rows of a run at most.
        on_rows: called with the number of rows that are done.

    Returns:
        The output (n, *shape), in the order of the queries.

    """
    parts, places = [], []
    for rows, sizes in _buckets(batch, signature, most):
        parts.append(run(pad(take(batch, rows), signature, sizes))[output])
        places.append(rows)
        if on_rows is not None:
            on_rows(len(rows))
    joined = np.concatenate(parts)
    found = np.empty_like(joined)
    found[np.concatenate(places)] = joined
    return found


def commonest(queries: ArrayLike | Batch, signature: Signature) -> Sizes:
    """Return the buckets of the dynamic axes that most of these queries fall into."""
    kinds = _kinds(as_batch(queries, signature), signature)[1]
    each, counts = np.unique(kinds, axis=0, return_counts=True) if kinds.size else ([()], [1])
    chosen = each[int(np.argmax(counts))]
    axes = signature.axes.values()
    return tuple(axis.buckets[int(place)] for axis, place in zip(axes, chosen, strict=True))


def _kinds(batch: Batch, signature: Signature) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The size of each query along each dynamic axis, and the place of its bucket: (n, axes)."""
    named = sizes_in(batch, signature.inputs)
    sizes = np.array([named[axis] for axis in signature.axes], np.int64).T
    sizes = sizes.reshape(rows_in(batch), -1)
    kinds = sizes.copy()
    for i, axis in enumerate(signature.axes.values()):
        kinds[:, i] = np.searchsorted(axis.buckets, sizes[:, i])
    return sizes, kinds


def _buckets(
    batch: Batch, signature: Signature, most: int
) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """At most `most` rows of one bucket, and their largest sizes."""
    sizes, kinds = _kinds(batch, signature)
    for kind in np.unique(kinds, axis=0) if kinds.size else kinds[:1]:
        rows = np.flatnonzero((kinds == kind).all(axis=1))
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            yield some, sizes[some].max(axis=0).tolist()


# Files


def read_batch(path: Path, signature: Signature, least: int = 1) -> Named:
    """Read the queries in a file or a folder.

    An .npz file holds an array for each input, or several of which the only input is "inputs"; an
    .npy file that of the only input. In a folder, for one floating-point input, every .npy file
    holds a query or a batch and every image is a query, in the order of their names. Unsigned bytes
    for floating-point inputs, as the pixels of images, become 0 to 1; other integers are refused
    there, for there is no telling what the model expects.

    Raises:
        DataError: the files cannot be read or do not fit, or `check_queries` refuses the queries.

    """
    inputs = signature.inputs
    if path.is_dir():
        arrays: Named = {inputs[0].name: _read_folder(path, inputs)}
    else:
        arrays = read_arrays(path)
        if len(inputs) == 1 and len(arrays) > 1:
            if "inputs" not in arrays and inputs[0].name not in arrays:
                raise DataError(
                    f"{path} holds {', '.join(arrays)}; call the array to be read 'inputs'"
                )
            name = "inputs" if "inputs" in arrays else inputs[0].name
            arrays = {inputs[0].name: arrays[name]}
        elif len(inputs) == len(arrays) == 1:
            arrays = {inputs[0].name: next(iter(arrays.values()))}
        for each in inputs:
            if each.name in arrays and each.dtype.kind == "f":
                arrays[each.name] = _as_floats(arrays[each.name], each.dtype, path)
    batch = fit_inputs(arrays, signature, f"{path}")
    check_queries(batch, f"inputs in {path}", least)
    return batch


def read_arrays(path: Path, *, labels: bool = False) -> Named:
    """Read the arrays of an .npz file, or the array of an .npy file as "inputs".

    An array called "labels" is left out beside others, unless `labels` is set. Nothing is
    unpickled. Raises DataError for a file that cannot be read, holds objects, or more
    values than LARGEST bytes.
    """
    if path.suffix == ".npy":
        with _readable(path, "an .npy"):
            with path.open("rb") as file:
                _check_header(file, path)
            return {"inputs": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix != ".npz":
        if not path.exists():
            raise DataError(f"there is no {path}; give an .npy file, an .npz file or a folder")
        raise DataError(
            f"{path} is not an .npy or .npz file; save an array with numpy.save(file, array)"
        )
    arrays: Named = {}
    with _readable(path, "an .npz"), zipfile.ZipFile(path) as archive:
        size = 0
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            if name == LABELS and not labels and len(archive.namelist()) > 1:
                continue
            with archive.open(member) as file:
                size += _check_header(file, path)
            _check_size(size, path)
            with archive.open(member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    if not arrays:
        raise DataError(f"{path} holds no inputs; save one array for each input of the model")
    return arrays


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Raise DataError for whatever reading a damaged file raises (NumPy's parser: anything)."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"there is no {path}; give an .npy file, an .npz file or a folder"
        ) from error
    except PermissionError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path} is damaged or not {kind} file ({error})") from error


def _check_header(file: IO[bytes], path: Path) -> int:
    """Refuse an array by its header, before memory is taken for it. Return its bytes."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise DataError(f"{path} has format version {version}; save it with numpy.save")
    shape, _, dtype = read[version](file)
    if dtype.kind not in "fiub":
        raise DataError(f"{path} holds {dtype}, not numbers; save it as float32")
    size = prod(shape) * max(dtype.itemsize, FLOAT32)
    _check_size(size, path)
    return size


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise DataError(f"{path} holds {size} bytes of values; {LARGEST} are read at most")


def _as_floats(array: Array, dtype: np.dtype[Any], path: Path) -> Array:
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


def _read_folder(folder: Path, inputs: Sequence[Tensor]) -> Array:
    spec = inputs[0].fixed
    if len(inputs) > 1 or spec is None or spec.dtype.kind != "f":
        raise DataError(
            f"{folder} is a folder; the model takes {', '.join(map(str, inputs))}: give an .npz "
            "file with an array for each"
        )
    parts: list[Array] = []
    size = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".npy", *IMAGES) or not path.is_file():
            continue
        part = _read_part(path, spec.shape)
        size += part.size * FLOAT32
        _check_size(size, folder)
        parts.append(_as_floats(part, spec.dtype, path))
    if not parts:
        raise DataError(f"{folder} holds no .npy files and no images ({', '.join(IMAGES)})")
    return np.concatenate(parts)


def _read_part(path: Path, shape: tuple[int, ...]) -> Array:
    """Return what a file of a folder holds, (n, *shape): arrays are not in memory yet."""
    if path.suffix != ".npy":
        return _read_image(path, shape)
    part = read_arrays(path)["inputs"]
    part = part[None] if part.shape == shape else part
    if part.shape[1:] != shape or part.ndim == 0:
        raise DataError(f"{path} has shape {part.shape}; the model takes queries of shape {shape}")
    return part


def _read_image(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return one image as a query (1, *shape), channels first."""
    from PIL import Image, UnidentifiedImageError  # here: arrays do without it

    if len(shape) != 3 or shape[0] not in MODES:
        raise DataError(
            f"{path} is an image, but the model takes queries of shape {shape}, not of "
            f"{', '.join(map(str, MODES))} channels, height and width; save them as .npy files"
        )
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            if image.size != (width, height):
                raise DataError(
                    f"{path} has {image.size[0]}x{image.size[1]} pixels, the model takes "
                    f"{width}x{height}; resize it, for example with: "
                    f"mogrify -resize {width}x{height}! FILES"
                )
            pixels = np.asarray(image.convert(MODES[channels]), np.uint8)
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise DataError(f"{path} is damaged or not an image ({error})") from error
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]
