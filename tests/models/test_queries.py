"""Batches of queries: read, checked, padded and cut."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from parity_models.errors import DataError
from parity_models.models.queries import (
    as_batch,
    axis_for,
    check_queries,
    fit_tensors,
    pad,
    padded,
    read_arrays,
    read_batch,
    sizes_in,
)
from parity_models.models.signature import DATATYPES, Axis, Signature, Tensor

IDS = Tensor("ids", "INT64", ("length",))
MASK = Tensor("mask", "INT64", ("length",))
AGE = Tensor("age", "FP32", ())
SCORES = Tensor("scores", "FP32", (3,))
TEXT = Signature((IDS, MASK), (SCORES,), {"length": Axis((4, 8))})


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # allow_pickle is a keyword, too
    return path


def test_an_npz_file_holds_an_array_for_each_input(tmp_path: Path) -> None:
    ids = np.arange(6).reshape(2, 3)
    path = save(tmp_path / "a.npz", ids=ids, age=np.array([1, 2], np.float32), labels=np.arange(2))
    fitting = fit_tensors(read_arrays(path), (AGE, IDS), str(path))
    assert list(fitting) == ["age", "ids"]
    assert (fitting["ids"] == ids).all()


def test_the_only_input_may_have_any_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2]], np.int32))
    fitting = fit_tensors(read_arrays(tmp_path / "a.npy"), (IDS,), "a")
    assert fitting["ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"ids": [[1]]}, "holds ids; the model takes ids, mask"),
        ({"ids": [[1]], "mask": [[1.5]]}, "'mask' in data is float64"),
        ({"ids": [1], "mask": [[1]]}, r"'ids' in data has rows of shape \[\]"),
        ({"ids": [[1]], "mask": [[1, 1]]}, "along the axis 'length' that they share"),
        ({"ids": [[1]], "mask": [[1], [1]]}, "unequal numbers of rows"),
        ({"ids": [["a"]], "mask": [[1]]}, "'ids' in data is <U1"),
        ({"ids": [[True]], "mask": [[1]]}, "'ids' in data is bool"),
    ],
)
def test_what_does_not_fit_is_refused(arrays: dict[str, object], why: str) -> None:
    given = {name: np.array(each) for name, each in arrays.items()}
    with pytest.raises(DataError, match=why):
        fit_tensors(given, (IDS, MASK), "data")


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"ids": np.zeros((2, 1)), "mask": np.zeros((3, 1))}, "is float64|unequal numbers"),
        ({"ids": np.zeros((0, 1), int), "mask": np.zeros((0, 1), int)}, "too few: give 1 or more"),
        ({"ids": np.ones((2, 9), int), "mask": np.ones((2, 9), int)}, "9 along 'length'"),
        ({"ids": np.ones((2, 3), int), "mask": np.ones((2, 3), int)}, "are the same"),
        ({"ids": np.array([None])}, "holds object, not numbers"),
    ],
)
def test_a_file_without_sound_inputs_is_refused(
    tmp_path: Path, arrays: dict[str, object], why: str
) -> None:
    with pytest.raises(DataError, match=why):
        read_batch(save(tmp_path / "a.npz", **arrays), TEXT)
    with pytest.raises(DataError, match="there is no"):
        read_batch(tmp_path / "none.npz", TEXT)


def test_a_batch_is_made_of_an_array_or_of_arrays_by_name() -> None:
    one = Signature((AGE,), (SCORES,))
    ages = np.array([1, 2], np.float32)
    for inputs in (ages, [1.0, 2.0], {"age": ages}, {"any": ages.astype(np.float64)}):
        assert as_batch(inputs, one)["age"].tolist() == [1, 2]
    with pytest.raises(DataError, match="holds inputs; the model takes ids, mask"):
        as_batch(ages, TEXT)
    with pytest.raises(DataError, match="NaN or infinite values, first in row 1"):
        check_queries({"age": np.array([1, np.nan], np.float32)}, "inputs")


def test_padding_tells_how_long_a_row_is() -> None:
    ids = np.array([[5, 0, 6, 0], [0, 0, 0, 0], [0, 0, 0, 7]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    assert sizes_in({"ids": ids, "mask": mask}, (IDS, MASK))["length"].tolist() == [3, 2, 4]


def test_buckets_suit_the_data() -> None:
    sizes = np.r_[np.full(60, 5), np.full(30, 30), np.full(9, 60), 100]
    assert axis_for(sizes).buckets == (8, 32, 64, 100)
    assert axis_for(sizes, 512).buckets == (8, 32, 64, 104, 512)
    assert axis_for(np.array([3])).buckets == (3,)
    with pytest.raises(DataError, match="beyond the bound 50"):
        axis_for(sizes, 50)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.sampled_from(sorted(DATATYPES)),
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


def test_a_row_of_the_buckets_size_is_not_copied() -> None:
    x = np.ones((3, 8), np.int64)
    assert pad({"ids": x}, Signature((IDS,), (SCORES,), TEXT.axes), [8])["ids"] is x
