"""Queries and labels in files of the user's: .npy, .npz, or a folder of .npy files and images.

Of queries floats are taken as they are, as float32. Unsigned bytes, and so the pixels of images,
become 0 to 1: they are divided by 255. Other integers are refused, for there is no telling what a
model expects in their place. Labels are numbers of any kind. Nothing is unpickled.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import DataError
from parity_models.tasks.metrics import METRICS, check_boxes

Array = NDArray[Any]
Shape = tuple[int, ...]

LARGEST = 1 << 34
"""Bytes of values that are read from all files together: larger data are given in part."""

FLOAT32 = 4
"""Bytes of a value, whatever it is stored as."""

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for pixels of so many channels."""

ROWS = 4096
"""Rows that are looked at together."""


def load_inputs(path: Path, shape: Shape, least: int = 1) -> NDArray[np.float32]:
    """The queries (n, *shape) in `path`, `least` or more, sound in the sense of `check_queries`.

    An .npz file holds one array, or one called "inputs". In a folder every .npy file holds one
    query or a batch of them and every image is one query; they are taken in the order of their
    names, those in folders within it as well. Raises DataError for anything else.
    """
    if path.is_dir():
        inputs = _read_folder(path, shape)
    else:
        inputs = as_float32(_read_file(path, "inputs"), path)
    check_queries(inputs, shape, f"inputs in {path}", least)
    return inputs


def load_labels(
    given: Path | str | ArrayLike, metric: str, rows: int, output_shape: Shape
) -> Array:
    """The labels of `rows` queries: an array, or an .npy or .npz file (of one, or one "labels").

    Classes, int64 (n,), where `metric` judges classes, else float32 (n, *output_shape), which may
    be (n,) in the file where predictions are single numbers.
    Raises DataError for labels that are none.
    """
    path = f"{given}" if isinstance(given, str | Path) else "the array of labels"
    labels = (
        _read_file(Path(given), "labels") if isinstance(given, str | Path) else np.asarray(given)
    )
    if METRICS[metric].kind != "classes":
        with np.errstate(over="ignore"):  # infinities are refused afterwards
            labels = labels.astype(np.float32)  # whole numbers, too: labels are no pixels
        if labels.ndim == 1 and prod(output_shape) == 1:
            labels = labels.reshape(-1, *output_shape)
        check_queries(labels, output_shape, f"labels in {path}")
        check_boxes(metric, labels, f"labels in {path}")
    elif labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {labels.dtype} of shape {labels.shape}; the labels for {metric} are "
            "classes, integers of shape (n,)"
        )
    elif labels.size and not 0 <= labels.min() <= labels.max() < output_shape[0]:
        raise DataError(
            f"{path} holds classes from {labels.min()} to {labels.max()}; the model tells "
            f"{output_shape[0]} apart, 0 to {output_shape[0] - 1}"
        )
    else:
        labels = labels.astype(np.int64)
    if len(labels) != rows:
        raise DataError(f"{path} holds {len(labels)} labels for {rows} inputs; give one for each")
    return labels


def check_queries(inputs: Array, shape: Shape, what: str, least: int = 1) -> None:
    """Raise DataError unless `inputs` are finite float32 (n, *shape), `least` rows at least."""
    if inputs.shape[1:] != shape or inputs.ndim == 0 or inputs.dtype != np.float32:
        raise DataError(
            f"the {what} are {inputs.dtype} of shape {inputs.shape}; the model takes float32 of "
            f"shape ({', '.join(map(str, ('n', *shape)))})"
        )
    if len(inputs) < least:
        raise DataError(f"there are {len(inputs)} {what}, too few: give {least} or more")
    for start in range(0, len(inputs), ROWS):
        sound = np.isfinite(inputs[start : start + ROWS]).reshape(-1, prod(shape)).all(axis=1)
        if not sound.all():
            raise DataError(
                f"the {what} hold NaN or infinite values, first in row "
                f"{start + int(sound.argmin())}; leave such rows out"
            )


def check_varied(inputs: Array, what: str) -> None:
    """Raise DataError if several `inputs` (n, ...) are all the same."""
    if len(inputs) > 1 and (inputs == inputs[0]).all():
        raise DataError(
            f"all {what} are the same, so they teach and tell nothing; give queries that differ, "
            "as the deployed model gets them"
        )


def _read_file(path: Path, name: str) -> Array:
    try:
        if path.suffix == ".npy":
            return _read_npy(path)
        if path.suffix == ".npz":
            return _read_npz(path, name)
        if not path.exists():
            raise DataError(f"there is no {path}; give an .npy file, an .npz file or a folder")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    raise DataError(
        f"{path} is not an .npy or .npz file; save an array with numpy.save(file, array)"
    )


def _read_npy(path: Path) -> Array:
    with _damage(path, ".npy"):
        with path.open("rb") as file:
            _check_header(file, path)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_npz(path: Path, name: str) -> Array:
    with _damage(path, ".npz"), zipfile.ZipFile(path) as archive:
        held = archive.namelist()
        chosen = held[0] if len(held) == 1 else f"{name}.npy"
        if chosen not in held:
            arrays = ", ".join(member.removesuffix(".npy") for member in held) or "nothing"
            raise DataError(f"{path} holds {arrays}; call the array to be read {name!r}")
        with archive.open(chosen) as member:
            _check_header(member, path)
        with archive.open(chosen) as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    """Whatever reading a damaged file raises (NumPy's parser of headers: anything) as DataError."""
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise DataError(f"{path} is damaged or not an {kind} file ({error})") from error


def _check_header(file: IO[bytes], path: Path) -> None:
    """Refuse an array by what its header says, before memory is taken for it."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise DataError(f"{path} has format version {version}; save it with numpy.save")
    shape, _, dtype = read[version](file)
    if dtype.kind not in "fiu":
        raise DataError(f"{path} holds {dtype}, not numbers; save it as float32")
    _check_size(prod(shape) * max(dtype.itemsize, FLOAT32), path)


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise DataError(f"{path} holds {size} bytes of values; {LARGEST} are read at most")


def as_float32(array: Array, path: Path | str) -> NDArray[np.float32]:
    """Convert queries: floats to float32, unsigned bytes to 0 to 1. Raises DataError for others."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise DataError(
            f"{path} holds {array.dtype}; save floating point as the model expects it, or unsigned "
            "bytes, which become 0 to 1"
        )
    with np.errstate(over="ignore"):  # infinities are refused afterwards
        return array.astype(np.float32, order="C")


def _read_folder(folder: Path, shape: Shape) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    size = 0
    for path in _files(folder):
        part = _read_part(path, shape)
        size += part.size * FLOAT32
        _check_size(size, folder)
        parts.append(as_float32(part, path))
    if not parts:
        raise DataError(f"{folder} holds no .npy files and no images ({', '.join(IMAGES)})")
    return np.concatenate(parts)


def _read_part(path: Path, shape: Shape) -> Array:
    """What a file of a folder holds, (n, *shape) as it is stored: arrays are not in memory yet."""
    if path.suffix != ".npy":
        return _read_image(path, shape)
    part = _read_file(path, "inputs")
    part = part[None] if part.shape == shape else part
    if part.shape[1:] != shape or part.ndim == 0:
        raise DataError(f"{path} has shape {part.shape}; the model takes queries of shape {shape}")
    return part


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".npy", *IMAGES) and path.is_file():
            yield path


def _read_image(path: Path, shape: Shape) -> NDArray[np.uint8]:
    """One image as a query (1, *shape), channels first."""
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
