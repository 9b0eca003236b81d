"""Golden queries are rows that a model answers always alike."""

from pathlib import Path

import numpy as np
import pytest

from onnx_models import linear_model, moody_model
from parity_models.models.golden import GOLDEN, golden_queries
from parity_models.models.onnx_model import OnnxModel


def test_the_outputs_are_the_model_s(tmp_path: Path) -> None:
    linear_model(tmp_path / "m.onnx", (3, 4), (5,))
    model = OnnxModel(tmp_path / "m.onnx")
    golden = golden_queries(model)
    assert golden is not None
    rows, outputs = golden
    assert rows.shape == (GOLDEN, 3, 4)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(outputs, model(rows), rtol=1e-6)
    again = golden_queries(model)
    assert again is not None
    np.testing.assert_array_equal(rows, again[0])


def test_other_weights_give_other_outputs(tmp_path: Path) -> None:
    weights = linear_model(tmp_path / "a.onnx", (12,), (5,))
    weights[7, 3] *= -2
    linear_model(tmp_path / "b.onnx", (12,), (5,), weights)
    a, b = (golden_queries(OnnxModel(tmp_path / f"{name}.onnx")) for name in "ab")
    assert a is not None
    assert b is not None
    assert (np.abs(a[1] - b[1]).max(axis=1) > 1e-3 * np.abs(a[1]).max()).sum() >= GOLDEN // 2


def test_rows_that_the_model_cannot_run_are_left_out(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")  # its first value is an index, which must be a whole number
    golden = golden_queries(OnnxModel(tmp_path / "m.onnx"))
    assert golden is not None
    np.testing.assert_array_equal(*golden)


def test_a_model_that_gives_no_finite_output_has_none(tmp_path: Path) -> None:
    linear_model(tmp_path / "m.onnx", (2,), (2,), np.full((2, 2), np.inf, np.float32))
    assert golden_queries(OnnxModel(tmp_path / "m.onnx")) is None


@pytest.mark.parametrize("count", [1, 3])
def test_there_are_as_many_as_are_asked_for(tmp_path: Path, count: int) -> None:
    linear_model(tmp_path / "m.onnx", (2,), (2,))
    golden = golden_queries(OnnxModel(tmp_path / "m.onnx"), count)
    assert golden is not None
    assert [len(each) for each in golden] == [count, count]
