"""Batches of queries: read as they stand or refused with the reason, checked, padded and cut."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.tensors.queries import (
    LARGEST,
    as_batch,
    axis_for,
    check_queries,
    fit_tensors,
    read_batch,
)
from parity_models.tensors.signature import DATATYPES, Axis, Signature, Tensor, padded

IDS = Tensor("ids", "INT64", ("length",))
MASK = Tensor("mask", "INT64", ("length",))
AGE = Tensor("age", "FP32", ())
SCORES = Tensor("scores", "FP32", (3,))
TEXT = Signature((IDS, MASK), (SCORES,), {"length": Axis((4, 8))})


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"ids": [[1]]}, "holds ids; the model takes ids, mask"),
        ({"ids": [[1]], "mask": [[1.5]]}, "'mask' in data is float64"),
        ({"ids": [1], "mask": [[1]]}, r"'ids' in data has rows of shape \[\]"),
        ({"ids": [[1]], "mask": [[1, 1]]}, "along the axis 'length' that they share"),
        ({"ids": [[1]], "mask": [[1], [1]]}, "unequal numbers of rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, object], why: str) -> None:
    given = {name: np.array(each) for name, each in arrays.items()}
    with pytest.raises(DataError, match=why):
        fit_tensors(given, (IDS, MASK), "data")


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"ids": np.ones((2, 9), int), "mask": np.ones((2, 9), int)}, "9 along 'length'"),
        ({"ids": np.ones((2, 3), int), "mask": np.ones((2, 3), int)}, "are the same"),
    ],
)
def test_unsound_files_are_refused(tmp_path: Path, arrays: dict[str, object], why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_batch(save(tmp_path / "a.npz", **arrays), TEXT)


def test_a_batch_is_made_of_an_array_or_of_arrays_by_name() -> None:
    one = Signature((AGE,), (SCORES,))
    ages = np.array([1, 2], np.float32)
    for inputs in (ages, [1.0, 2.0], {"age": ages}, {"any": ages.astype(np.float64)}):
        assert as_batch(inputs, one)["age"].tolist() == [1, 2]
    with pytest.raises(DataError, match="holds inputs; the model takes ids, mask"):
        as_batch(ages, TEXT)
    with pytest.raises(DataError, match="NaN or infinite values, first in row 1"):
        check_queries({"age": np.array([1, np.nan], np.float32)}, "inputs")


def test_buckets_suit_the_data() -> None:
    sizes = np.r_[np.full(60, 5), np.full(30, 30), np.full(9, 60), 100]
    assert axis_for(sizes).buckets == (8, 32, 64, 100)
    assert axis_for(sizes, 512).buckets == (8, 32, 64, 104, 512)
    assert axis_for(np.array([3])).buckets == (3,)
    with pytest.raises(DataError, match="beyond the bound 50"):
        axis_for(sizes, 50)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.sampled_from(sorted(DATATYPES.keys() - {"BYTES"})),
    st.booleans(),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_padded_rows_hold_each_query_and_nothing_else(
    lengths: list[int], datatype: str, several: bool, data: st.DataObject
) -> None:
    tensor = Tensor("x", datatype, ("length", 2), padding=1)
    inputs = (tensor, AGE) if several else (tensor,)
    signature = Signature(inputs, (SCORES,), {"length": Axis((2, 5, 8))})
    most = max(lengths)
    x = data.draw(arrays_of.arrays(DATATYPES[datatype], (len(lengths), most, 2), fill=st.nothing()))
    if x.dtype.kind == "f":
        x = np.nan_to_num(x)
    arrays = {"x": x, "age": np.arange(len(lengths), dtype=np.float32)}
    rows = padded(arrays, signature, [most])
    kind = signature.kind_of(rows[0, ...])
    (bucket,) = kind.sizes
    assert bucket == min(each for each in signature.axes["length"].buckets if each >= most)
    split = kind.input.split(rows)
    assert (split["x"][:, :most] == x).all()
    assert (split["x"][:, most:] == np.ones((), x.dtype)).all()
    if several:
        assert (split["age"] == arrays["age"]).all()


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


# Files


def test_other_floats_become_float32_and_bytes_become_shares(tmp_path: Path) -> None:
    cases: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (QUERIES, QUERIES),
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
    np.savez(path, x=QUERIES, y=QUERIES)
    with pytest.raises(DataError, match="holds x, y; call the array to be read 'inputs'"):
        load_inputs(path, SHAPE)


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


def holed(folder: Path) -> Path:
    """A file too large for memory, without content, which takes no place on disk."""
    rows = LARGEST // QUERIES[0].nbytes + 1
    open_memmap(folder / "b.npy", "w+", QUERIES.dtype, (rows, *SHAPE))
    return folder / "b.npy"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: folder / "absent.npy", "there is no .*absent.npy"),
    (lambda folder: written(folder, "x.csv", b"1,2"), "not an .npy or .npz file"),
    (lambda folder: folder, "not an .npy or .npz file"),
    (lambda folder: written(folder, "x.npy", b"noise" * 99), "damaged or not an .npy file"),
    (lambda folder: written(folder, "x.npy", claiming((2**40, 3, 4, 5))), "damaged or not an .npy"),
    (lambda folder: saved(folder, np.array([{}, []], object)), "holds Python objects, which are"),
    (lambda folder: saved(folder, QUERIES.astype(np.int64)), "holds int64; save floating point"),
    (lambda folder: saved(folder, QUERIES[:0]), "there are 0 inputs in .*, too few"),
    (
        lambda folder: saved(folder, np.where(QUERIES[3, 1, 2, 3] == QUERIES, np.nan, QUERIES)),
        "NaN or infinite values, first in row 3",
    ),
    (lambda folder: saved(folder, np.full((2, *SHAPE), 1e300)), "first in row 0"),
    (lambda folder: holed(folder), f"{LARGEST} are read at most"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_bad_inputs_are_refused(make: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        load_inputs(make(tmp_path), SHAPE)


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
