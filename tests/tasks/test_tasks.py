"""Tasks come from the standard files, always split alike, and damaged files are refused."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score
from torchvision import datasets

from idx_files import IMAGES, idx, labels_of, write_dataset
from parity_models.errors import DataError, UserError
from parity_models.tasks import METRICS, TASKS, agreement, find_task, score
from parity_models.tasks.datasets import TEST, TRAIN, FashionMnist, read_idx
from parity_models.tasks.task import FolderTask

LABELS = labels_of(IMAGES)


class NotInstalled(FashionMnist):
    """Fashion-MNIST that no package has installed: it is downloaded, from `mirror`."""

    installed = ()

    def __init__(self, mirror: str, **known: Any) -> None:
        super().__init__()
        known["mirrors"] = [mirror]
        self._source = type("FashionMNIST", (datasets.FashionMNIST,), known)

    def source(self) -> Any:
        return self._source


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$PARM_DATA, empty."""
    monkeypatch.setenv("PARM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[NotInstalled]:
    """A task whose files are on a web server."""
    folder = write_dataset(tmp_path / "mirror", zipped=True)
    resources = [
        (file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in folder.iterdir()
    ]
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield NotInstalled(f"http://127.0.0.1:{server.server_port}/", resources=resources)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "rows", "shapes"),
    [("digits", [1200, 197, 400], ((1, 8, 8), (10,))), ("diabetes", [284, 70, 88], ((10,), (1,)))],
)
def test_built_in_data_are_normalised_and_split_alike_every_time(
    name: str, rows: list[int], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    once, again = find_task(name).load(), find_task(name).load()
    splits = (once.train, once.validation, once.test)
    assert [len(split) for split in splits] == rows
    np.testing.assert_array_equal(once.test.inputs, again.test.inputs)
    assert (once.input_shape, once.output_shape) == shapes
    everything = np.concatenate([split.inputs for split in splits]).reshape(sum(rows), -1)
    assert everything.dtype == np.float32
    assert abs(everything.mean()) < 0.01
    assert abs(everything.std() - 1) < 0.01
    assert len(np.unique(everything, axis=0)) == sum(rows), "no query is in two splits"


@pytest.mark.parametrize("name", [each.name for each in TASKS if issubclass(each, FolderTask)])
def test_a_task_without_its_files_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put .*--data-dir or \$PARM_DATA") as caught:
        find_task(name).load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert find_task(name).find(tmp_path) is None


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


def test_fashion_mnist_is_downloaded_where_it_is_nowhere_else(
    data: Path, mirrored: NotInstalled
) -> None:
    np.testing.assert_array_equal(mirrored.load(None).test.labels, LABELS)
    assert (data / "FashionMNIST" / "raw").is_dir()


def test_a_failed_download_says_what_was_looked_for_and_how_to_get_it(data: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist") as caught:
        NotInstalled("http://127.0.0.1:9/").load(None)
    assert str(data) in str(caught.value)
    assert "--data-dir" in str(caught.value)


ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG and more", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "not an IDX file of unsigned bytes"),
        (idx(ARRAY)[:9], "damaged header"),
        (b"\0\0\x08\3" + b"\xff" * 12, "damaged header"),
        (b"\0\0\x08\1\0\0\0\0", "damaged header"),
        (idx(ARRAY)[:-1], "fewer values"),
        (idx(ARRAY) + b"\0", "more values"),
        (gzip.compress(idx(ARRAY), mtime=0)[:-9], "damaged or truncated"),
        (b"\x1f\x8b and nothing gzipped", "damaged or truncated"),
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


def test_classes_are_scored_by_the_largest_outputs() -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert score("top-1", outputs, np.array([1, 0, 0, 0])) == 0.75
    outputs = np.tile(np.arange(8.0), (3, 1))
    assert score("top-5", outputs, np.array([7, 3, 2])) == pytest.approx(2 / 3)


def test_iou_is_the_area_in_common_over_that_of_both() -> None:
    label = np.array([[0.0, 0.0, 1.0, 0.5]])
    for box, expected in [
        ([0.0, 0.0, 1.0, 0.5], 1.0),
        ([0.0, 0.0, 0.5, 0.5], 0.5),
        ([0.5, 0.0, 1.5, 0.5], 1 / 3),
        ([0.0, 0.6, 1.0, 0.9], 0.0),
        ([1.0, 0.5, 0.0, 0.0], 0.0),
    ]:
        assert score("iou", np.array([box]), label) == pytest.approx(expected)
    assert score("iou", np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_r2_is_scikit_learns_and_may_be_negative() -> None:
    random = np.random.default_rng(0)
    labels = random.normal(size=(50, 3)).astype(np.float32)
    for noise in (0.0, 0.5, 3.0):
        outputs = (labels + noise * random.normal(size=labels.shape)).astype(np.float32)
        expected = r2_score(labels, outputs)
        assert score("r2", outputs, labels) == pytest.approx(expected, abs=1e-5)
    assert expected < 0
    assert np.isnan(METRICS["r2"](outputs[:1], labels[:1]))
    with pytest.raises(DataError, match="has no meaning"):
        score("r2", outputs[:1], labels[:1])


def test_r2_is_of_the_numbers_that_vary() -> None:
    random = np.random.default_rng(0)
    varied = random.normal(size=(50, 2)).astype(np.float32)
    outputs = varied + random.normal(size=varied.shape).astype(np.float32)
    constant = np.full((50, 1), 0.1, np.float32)
    labels = np.concatenate([varied, constant], axis=1)
    guessed = np.concatenate([outputs, constant + 1], axis=1)
    assert score("r2", guessed, labels) == pytest.approx(score("r2", outputs, varied))
    with pytest.raises(DataError, match="has no meaning"):
        score("r2", constant + 1, constant)


def test_r2_of_maps_is_of_all_their_numbers_together() -> None:
    """Where they hardly vary, a small error is many times the variance."""
    random = np.random.default_rng(0)
    labels = random.normal(size=(50, 1, 4, 5)).astype(np.float32)
    labels[:, :, :, 0] *= 1e-5
    outputs = (labels + 0.1 * random.normal(size=labels.shape)).astype(np.float32)
    flat = [each.reshape(50, -1) for each in (labels, outputs)]
    assert score("r2", *flat[::-1]) < -1e6
    expected = r2_score(*flat, multioutput="variance_weighted")
    assert score("r2", outputs, labels) == pytest.approx(expected, abs=1e-5)
    assert expected > 0.9


@pytest.mark.parametrize(
    ("metric", "outputs", "labels"),
    [
        ("top-1", (4, 3), np.zeros((4, 1), np.int64)),
        ("top-1", (4, 3), np.zeros(4, np.float32)),
        ("iou", (4, 4), np.zeros(4, np.int64)),
        ("r2", (4, 1), np.zeros(4, np.float32)),
    ],
)
def test_labels_that_do_not_fit_outputs_are_refused(
    metric: str, outputs: tuple[int, ...], labels: np.ndarray
) -> None:
    with pytest.raises(DataError, match="takes labels"):
        score(metric, np.zeros(outputs, np.float32), labels)


def test_agreement_is_with_the_models_classes_or_else_its_predictions() -> None:
    ours, theirs = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[3.0, 9.0], [1.0, 2.0]])
    assert agreement("top-1", ours, theirs) == agreement("top-5", ours, theirs) == 0.5
    assert agreement("r2", theirs, theirs) == 1


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=", ".join(TASKS.names)):
        find_task("imagenet")
