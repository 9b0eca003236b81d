"""MNIST and its kin come from the standard files; damaged files are refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from idx_files import IMAGES, idx, labels_of, write_dataset
from parity_models.errors import DataError
from parity_models_lab.tasks import FashionMnist, find_task
from parity_models_lab.tasks.mnist import TEST, TRAIN, read_idx

LABELS = labels_of(IMAGES)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$PARM_DATA, empty."""
    monkeypatch.setenv("PARM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_task_without_its_files_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put .*by the variable PARM_DATA") as caught:
        find_task(name).load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "zipped"), [("", True), ("fashion-mnist", False), ("FashionMNIST/raw", True)]
)
def test_fashion_mnist_is_read_from_the_named_folder_gzipped_or_not(
    tmp_path: Path, layout: str, zipped: bool
) -> None:
    write_dataset(tmp_path / layout, zipped=zipped)
    data = find_task("fashion-mnist").load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [22, 2, 24]
    pixels = data.test.inputs * FashionMnist.deviation + FashionMnist.mean
    np.testing.assert_allclose(pixels[:, 0] * 255, IMAGES, atol=1e-3)
    np.testing.assert_array_equal(data.test.labels, LABELS)
    as_they_are = find_task("fashion-mnist-pixels").load(tmp_path).test.inputs
    np.testing.assert_allclose(as_they_are[:, 0] * 255, IMAGES, atol=1e-3)


def test_fashion_mnist_is_found_in_parm_data_before_the_installed_package(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_dataset(data.parent / "installed" / "fashion-mnist", zipped=True)
    darker = write_dataset(data / "fashion-mnist", zipped=True, images=IMAGES // 2)

    class Installed(FashionMnist):
        installed = (package.parent,)

    task = Installed()
    np.testing.assert_array_equal(task.load(None).test.inputs, task.load(darker).test.inputs)
    monkeypatch.delenv("PARM_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "cache"))
    np.testing.assert_array_equal(task.load(None).test.inputs, task.load(package).test.inputs)


ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a whole IDX file"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "not a whole IDX file of unsigned bytes"),
        (idx(ARRAY)[:9], "not a whole IDX file"),
        (b"\0\0\x08\3" + b"\xff" * 12, "not a whole IDX file"),
        (idx(ARRAY)[:-1], "not a whole IDX file"),
        (idx(ARRAY) + b"\0", "not a whole IDX file"),
    ],
)
def test_damaged_idx_files_are_refused_with_file_and_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "some-idx2-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    zipped = tmp_path / "some-idx2-ubyte.gz"
    zipped.write_bytes(gzip.compress(idx(ARRAY), mtime=0)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(zipped)


@pytest.mark.parametrize(
    ("file", "array", "reason"),
    [
        (TEST[0], IMAGES[:-1], "do not belong together"),
        (TEST[0], LABELS, "do not belong together"),
        (TRAIN[1], LABELS + 1, "labels up to 10"),
        (TRAIN[0], IMAGES[:, :20, :20], "does not hold fashion-mnist"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, file: str, array: np.ndarray, reason: str
) -> None:
    write_dataset(tmp_path, zipped=False)
    (tmp_path / file).write_bytes(idx(array))
    with pytest.raises(DataError, match=reason):
        find_task("fashion-mnist").load(tmp_path)


def test_diabetes_data_are_normalised_and_split() -> None:
    data = find_task("diabetes").load()
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [284, 70, 88]
    everything = np.concatenate([split.inputs for split in splits])
    np.testing.assert_allclose(everything.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(everything.std(axis=0), 1, atol=1e-5)
