"""The paper's datasets are read from their standard layouts; networks of one's own learn them."""

import gzip
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from commands import Here
from parity_models.bundle.bundle import open_bundle
from parity_models.errors import DataError
from parity_models_lab import tasks
from parity_models_lab.tasks import TEST, TRAIN, Dataset, find_task
from trainings import DIGITS

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 28, 28), np.uint8)


def labels_of(images: np.ndarray) -> np.ndarray:
    """Classes from 0 to 9 in turns, one for each image."""
    return (np.arange(len(images)) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """The content of a file that holds an array of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_dataset(folder: Path, *, zipped: bool, images: np.ndarray = IMAGES) -> Path:
    """Write the images, to train on and to test with alike, and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_file, label_file in (TRAIN, TEST):
        for name, array in ((image_file, images), (label_file, labels_of(images))):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "extend-learning.md"
RANDOM = np.random.default_rng(0)
LABELS = labels_of(IMAGES)


def sizes(data: Dataset) -> list[int]:
    return [len(split) for split in (data.train, data.validation, data.test)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets."""
    monkeypatch.setenv("PARM_DATA", str(tmp_path))
    return tmp_path


def test_a_task_without_its_files_says_what_to_put_where(folder: Path) -> None:
    with pytest.raises(DataError, match=r"put .* PARM_DATA") as caught:
        find_task("mnist").load()
    assert str(folder / "mnist") in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_gzipped_or_not(folder: Path, zipped: bool) -> None:
    write_dataset(folder / "fashion-mnist", zipped=zipped)
    data = find_task("fashion-mnist").load()
    assert sizes(data) == [22, 2, 24]
    np.testing.assert_allclose((data.test.inputs[:, 0] * 0.353 + 0.286) * 255, IMAGES, atol=1e-3)
    np.testing.assert_array_equal(data.test.labels, LABELS)
    as_they_are = find_task("fashion-mnist-pixels").load().test.inputs
    np.testing.assert_allclose(as_they_are[:, 0] * 255, IMAGES, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (TEST[0], b"", "not a whole IDX file"),
        (TEST[0], idx(IMAGES) + b"\0", "not a whole IDX file"),
        (f"{TEST[0]}.gz", gzip.compress(idx(IMAGES), mtime=0)[:-9], "not a whole IDX file"),
        (TEST[0], idx(IMAGES[:-1]), "does not hold fashion-mnist"),
        (TRAIN[0], idx(IMAGES[:, :20, :20]), "does not hold fashion-mnist"),
        (TRAIN[1], idx(LABELS + 1), "no labels, or more than 0 to 9"),
    ],
)
def test_damaged_idx_files_are_refused_with_file_and_reason(
    folder: Path, file: str, content: bytes, reason: str
) -> None:
    where = write_dataset(folder / "fashion-mnist", zipped=False)
    (where / file).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        find_task("fashion-mnist").load()


def test_cifar_10_is_read_from_its_binary_version(folder: Path) -> None:
    where = folder / "cifar-10-batches-bin"
    where.mkdir()
    for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        count = 15 if file == "test_batch.bin" else 20
        records = RANDOM.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (where / file).write_bytes(records.tobytes())
    data = find_task("cifar-10").load()
    assert sizes(data) == [90, 10, 15]
    assert (data.input_shape, data.output_shape) == ((3, 32, 32), (10,))
    np.testing.assert_array_equal(data.test.labels, np.arange(15) % 10)
    green = (data.test.inputs[:, 1] * 0.2435 + 0.4822) * 255
    np.testing.assert_allclose(green.reshape(15, -1), records[:, 1025:2049], atol=1e-3)
    (where / "test_batch.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(DataError, match=r"cannot reshape .*; fetch the data again"):
        find_task("cifar-10").load()


@pytest.mark.slow
def test_made_boxes_hold_the_garment_and_are_the_same_every_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garments = np.zeros((24, 28, 28), np.uint8)
    garments[:, 4:20, 6:22] = 200
    write_dataset(folder / "fashion-mnist", zipped=False, images=garments)
    monkeypatch.setattr(tasks, "IMAGES", 40)
    data, again = (find_task("made-boxes").load() for _ in range(2))
    assert sizes(data) == [29, 3, 8]
    left, top, right, bottom = data.train.labels.T
    longer = 64 * np.maximum(right - left, bottom - top)
    assert ((longer > 19) & (longer < 49)).all()
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)


@pytest.mark.skipif(
    shutil.which(tasks.PROGRAM) is None, reason=f"speech is made by the package {tasks.PROGRAM}"
)
@pytest.mark.slow
def test_made_speech_has_speakers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SPEAKERS", 10)
    monkeypatch.setattr(tasks, "TAKES", 1)
    data, words = find_task("made-speech").load(), len(tasks.WORDS)
    assert sizes(data) == [8 * words, words, words]
    assert (data.input_shape, data.output_shape) == ((1, 40, 50), (words,))


@pytest.mark.slow
def test_the_documented_networks_lead_to_a_bundle(
    tmp_path: Path, parm_here: Here, lab_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options after the names are theirs, and are kept."""

    def run(*arguments: str) -> str:
        done = (lab_here if arguments[0] == "train" else parm_here)(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    example = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "documented.py").write_text("".join(example))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network, once = "documented:Sized@units=7", ("--inputs", "inputs.npy", "--epochs", "1")
    run("train", "--task", "digits", "--network", network, "--epochs", "1", "--out", "f")
    deployed = open_bundle(Path("f")).manifest
    assert deployed.deployed.network == network
    assert deployed.deployed_training is not None
    assert deployed.deployed_training.task == "digits"
    assert deployed.deployed_training.recipe["batch"] == 256
    np.save("inputs.npy", DIGITS.train.inputs)
    run("parity", "--model", "f", *once, "--network", "documented:narrow", "--out", "p")
    run("backup", "--model", "p", *once, "--network", network, "--out", "p")
    backup = open_bundle(Path("p")).manifest.backup
    assert backup is not None
    assert backup.network == network
    assert "agree" in run("evaluate", "p", "--inputs", "inputs.npy")
    wrong = ("--task", "digits", "--network", "documented:Sized@units=few", "--out", "g")
    refused = lab_here("train", *wrong)
    assert refused.returncode == 2
    assert "must be a whole number" in " ".join(refused.stderr.split())
