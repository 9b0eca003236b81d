"""Queries and labels in users' files are read as they stand, or refused with the reason."""

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from parity_models.errors import DataError, UserError
from parity_models.models.queries import LARGEST, read_batch
from parity_models.models.signature import Signature, Tensor
from parity_models.tasks.labels import load_labels
from parity_models.tasks.metrics import choose_metric, labels_from

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 5)
QUERIES = RNG.normal(size=(7, *SHAPE)).astype(np.float32)
PIXELS = RNG.integers(0, 256, size=(7, *SHAPE), dtype=np.uint8)


def load_inputs(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """The queries of a model with one float32 input."""
    output = Tensor("output", "FP32", (1,))
    return read_batch(path, Signature((Tensor("input", "FP32", shape),), (output,)))["input"]


def saved(folder: Path, array: NDArray[Any], name: str = "inputs.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


# What is read


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
        lambda shape: arrays.arrays(
            np.float32, shape, elements=st.floats(-1e6, 1e6, width=32, allow_nan=False)
        )
    )
)
def test_floats_are_taken_as_they_are(tmp_path: Path, array: NDArray[np.float32]) -> None:
    assume(len(array) == 1 or (array != array[0]).any())
    read = load_inputs(saved(tmp_path, array), array.shape[1:])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array)


def test_other_floats_become_float32_and_bytes_become_shares(tmp_path: Path) -> None:
    cases: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (QUERIES.astype(np.float64), QUERIES),
        (np.asfortranarray(QUERIES), QUERIES),
        (QUERIES.astype(">f4"), QUERIES),
        (PIXELS, PIXELS / np.float32(255)),
    ]
    for array, expected in cases:
        read = load_inputs(saved(tmp_path, array), SHAPE)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected)


def test_an_archive_holds_one_array_or_one_that_is_called_inputs(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, anything=QUERIES)
    np.testing.assert_array_equal(load_inputs(path, SHAPE), QUERIES)
    np.savez_compressed(path, inputs=QUERIES, labels=np.arange(7))
    np.testing.assert_array_equal(load_inputs(path, SHAPE), QUERIES)
    np.testing.assert_array_equal(load_labels(path, "top-1", 7, (10,)), np.arange(7))
    np.savez(path, x=QUERIES, y=QUERIES)
    with pytest.raises(DataError, match="holds x, y; call the array to be read 'inputs'"):
        load_inputs(path, SHAPE)


def test_a_folder_is_read_in_the_order_of_names_whatever_it_holds(tmp_path: Path) -> None:
    saved(tmp_path, QUERIES, "a.npy")
    saved(tmp_path, QUERIES[0], "c.npy")
    (tmp_path / "b").mkdir()
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(tmp_path / "b" / "one.png")
    (tmp_path / "README").write_text("not a query")
    read = load_inputs(tmp_path, SHAPE)
    np.testing.assert_array_equal(
        read, np.concatenate([QUERIES, PIXELS[:1] / np.float32(255), QUERIES[:1]])
    )


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_get_the_channels_that_the_model_takes(
    tmp_path: Path, channels: int, mode: str
) -> None:
    image = Image.fromarray(PIXELS[0].transpose(1, 2, 0))
    image.save(tmp_path / "image.png")
    expected = np.asarray(image.convert(mode)).reshape(4, 5, channels).transpose(2, 0, 1)
    read = load_inputs(tmp_path, (channels, 4, 5))
    np.testing.assert_array_equal(read[0], expected / np.float32(255))


def test_labels_are_classes_or_what_a_model_should_put_out(tmp_path: Path) -> None:
    classes = load_labels(saved(tmp_path, np.arange(7, dtype=np.uint8)), "top-5", 7, (7,))
    assert classes.dtype == np.int64
    values = load_labels(saved(tmp_path, QUERIES.astype(float)), "r2", 7, SHAPE)
    np.testing.assert_array_equal(values, QUERIES)


# What is refused


def cut(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


def with_value(value: float) -> NDArray[np.float32]:
    array = QUERIES.copy()
    array[3, 1, 2, 3] = value
    return array


def image(folder: Path, width: int, height: int) -> Path:
    Image.new("RGB", (width, height)).save(folder / "image.png")
    return folder


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def claiming(shape: tuple[int, ...]) -> bytes:
    """An .npy file that says it holds far more than it does."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def zipped(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("inputs.npy", content)
    return folder / "data.npz"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: folder / "absent.npy", "there is no .*absent.npy"),
    (lambda folder: folder / "absent", "there is no .*absent; give an .npy file"),
    (lambda folder: written(folder, "x.csv", b"1,2"), "not an .npy or .npz file"),
    (lambda folder: folder, "holds no .npy files and no images"),
    (lambda folder: written(folder, "x.npy", b""), "damaged or not an .npy file"),
    (lambda folder: written(folder, "x.npy", b"noise" * 99), "damaged or not an .npy file"),
    (lambda folder: written(folder, "x.npz", b"noise" * 99), "damaged or not an .npz file"),
    (lambda folder: cut(saved(folder, QUERIES), 600), "damaged or not an .npy file"),
    (lambda folder: written(folder, "x.npy", claiming((2**40, 3, 4, 5))), "are read at most"),
    (lambda folder: zipped(folder, claiming((2**40, 3, 4, 5))), "are read at most"),
    (lambda folder: zipped(folder, claiming((9, 3, 4, 5))), "damaged or not an .npz file"),
    (lambda folder: saved(folder, np.array([{}, []], object)), "holds object, not numbers"),
    (lambda folder: saved(folder, np.array(["a"])), "not numbers"),
    (lambda folder: saved(folder, QUERIES + 1j), "holds complex64, not numbers"),
    (lambda folder: saved(folder, QUERIES.astype(np.int64)), "holds int64; save floating point"),
    (lambda folder: saved(folder, QUERIES[:0]), "there are 0 inputs in .*, too few"),
    (
        lambda folder: saved(folder, QUERIES[:, :2]),
        "rows of shape .*; the model takes",
    ),
    (lambda folder: saved(folder, QUERIES[0]), "rows of shape .*; the model takes"),
    (
        lambda folder: saved(folder, np.zeros((), "f4")),
        "rows of shape .*; the model takes",
    ),
    (lambda folder: saved(folder, with_value(np.nan)), "NaN or infinite values, first in row 3"),
    (lambda folder: saved(folder, with_value(-np.inf)), "NaN or infinite values, first in row 3"),
    (lambda folder: saved(folder, np.full((2, *SHAPE), 1e300)), "first in row 0"),
    (lambda folder: saved(folder, QUERIES[:, :2]).parent, r"queries of shape \(3, 4, 5\)"),
    (lambda folder: image(folder, 6, 4), "has 6x4 pixels, the model takes 5x4; resize it"),
    (lambda folder: cut(image(folder, 5, 4) / "image.png", 40).parent, "damaged or not an image"),
    (lambda folder: written(folder, "x.jpg", b"noise").parent, "damaged or not an image"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_inputs_that_cannot_be_are_refused(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        load_inputs(make(tmp_path), SHAPE)


def test_images_are_refused_where_the_model_takes_none(tmp_path: Path) -> None:
    image(tmp_path, 5, 4)
    for shape in [(20,), (2, 4, 5), (4, 5)]:
        with pytest.raises(DataError, match="is an image, but the model takes queries of shape"):
            load_inputs(tmp_path, shape)


def test_a_folder_that_is_too_large_is_refused_before_memory_is_taken_for_it(
    tmp_path: Path,
) -> None:
    saved(tmp_path, QUERIES, "a.npy")
    rows = LARGEST // QUERIES[0].nbytes
    hole = open_memmap(tmp_path / "b.npy", "w+", QUERIES.dtype, (rows, *SHAPE))
    del hole  # a file without content, which takes no place on disk
    with pytest.raises(DataError, match=f"{tmp_path} holds .* {LARGEST} are read at most"):
        load_inputs(tmp_path, SHAPE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
@pytest.mark.slow
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / data.draw(st.sampled_from(["x.npy", "x.npz"]))
    np.save(path, QUERIES) if path.suffix == ".npy" else np.savez(path, QUERIES)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, 200), max_size=4)):
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(DataError):
        assert load_inputs(path, SHAPE).shape[1:] == SHAPE


@pytest.mark.parametrize(
    ("labels", "metric", "reason"),
    [
        (np.arange(6), "top-1", "holds 6 labels for 7 inputs"),
        (np.arange(7.0), "top-1", "classes, integers of shape"),
        (np.eye(7, dtype=int), "top-1", "classes, integers of shape"),
        (np.arange(7) + 1, "top-1", "classes from 1 to 7; the model tells 7 apart, 0 to 6"),
        (np.arange(7) - 1, "top-5", "classes from -1 to 5"),
        (np.ones((7, 3)), "r2", r"takes float32 of shape \(n, 7\)"),
        (np.full((7, 7), np.nan), "r2", "NaN"),
        (np.arange(28.0)[::-1].reshape(7, 4), "iou", "are no boxes"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    labels: NDArray[Any], metric: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        load_labels(saved(tmp_path, labels), metric, 7, (4,) if metric == "iou" else (7,))


# Without labels


def test_the_metric_follows_from_the_shape_of_predictions_unless_it_is_named() -> None:
    assert choose_metric(None, (10,)) == "top-1"
    for shape in [(), (1,), (3, 10)]:
        assert choose_metric(None, shape) == "r2"
    assert choose_metric("iou", (4,)) == "iou"
    for metric, shape in [("top-1", (1,)), ("top-5", ()), ("top-1", (3, 10)), ("iou", (5,))]:
        with pytest.raises(UserError, match="use --metric r2"):
            choose_metric(metric, shape)
    with pytest.raises(UserError, match="no metric is called 'magic'; there are top-1"):
        choose_metric("magic", (10,))


def test_a_model_labels_with_its_classes_or_its_predictions() -> None:
    predictions = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    np.testing.assert_array_equal(labels_from(predictions, "top-1"), [2, 0, 1])
    np.testing.assert_array_equal(labels_from(predictions, "r2"), predictions)
    boxes = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(labels_from(boxes, "iou"), boxes)
    with pytest.raises(DataError, match="are no boxes, which iou judges"):
        labels_from(boxes[:, ::-1], "iou")
