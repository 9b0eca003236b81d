"""Each task reads its standard layout, and says which file is damaged and what is missing."""

from pathlib import Path

import numpy as np
import pytest

from parity_models.errors import DataError
from parity_models.tasks import TASKS, find_task
from parity_models.tasks.task import FolderTask

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("name", [each.name for each in TASKS if issubclass(each, FolderTask)])
def test_a_task_without_its_files_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put .*--data-dir or \$PARM_DATA") as caught:
        find_task(name).load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert find_task(name).find(tmp_path) is None


# CIFAR


# Tables


def test_diabetes_is_scaled_and_split_alike_every_time() -> None:
    once, again = find_task("diabetes").load(), find_task("diabetes").load()
    np.testing.assert_array_equal(once.test.inputs, again.test.inputs)
    assert (once.input_shape, once.output_shape) == ((10,), (1,))
    labels = np.concatenate([s.labels for s in (once.train, once.validation, once.test)])
    assert len(labels) == 442
    assert abs(labels.mean()) < 1e-5
    assert labels.std() == pytest.approx(1, abs=1e-5)


def test_california_is_read_from_its_table(tmp_path: Path) -> None:
    table = RANDOM.uniform(1, 100, (50, 9))
    np.savetxt(tmp_path / "cal_housing.data", table, delimiter=",")
    data = find_task("california").load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 8, 10]
    assert (data.input_shape, data.output_shape) == ((8,), (1,))


@pytest.mark.parametrize(
    "content", ["", "1,2,3\n" * 60, "a,b\n", "1,2,3,4,5,6,0,8,9\n" * 60, "nan," * 8 + "1\n"]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "cal_housing.data").write_text(content)
    with pytest.raises(DataError, match="is no table of houses"):
        find_task("california").load(tmp_path)
