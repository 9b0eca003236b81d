"""The paper's datasets are read from their standard layouts, and a task of one's own is checked."""

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import Here
from idx_files import IMAGES, idx, labels_of, write_dataset
from parity_models.errors import DataError, UserError
from parity_models.models.bundle import open_bundle
from parity_models_lab.tasks import (
    Cifar10,
    FashionMnist,
    MadeBoxes,
    MadeSpeech,
    find_task,
    load_dataset,
    made,
)
from parity_models_lab.tasks.datasets import TEST, TRAIN
from parity_models_lab.tasks.made import PROGRAM, WORDS
from parity_models_lab.tasks.task import Dataset

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "extend-learning.md"
RANDOM = np.random.default_rng(0)
LABELS = labels_of(IMAGES)


def sizes(data: Dataset) -> list[int]:
    return [len(split) for split in (data.train, data.validation, data.test)]


# Images


def test_a_task_without_its_files_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put .*by the variable PARM_DATA") as caught:
        find_task("mnist").load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "zipped"), [("", True), ("fashion-mnist", False), ("FashionMNIST/raw", True)]
)
def test_fashion_mnist_is_read_gzipped_or_not(tmp_path: Path, layout: str, zipped: bool) -> None:
    write_dataset(tmp_path / layout, zipped=zipped)
    data = find_task("fashion-mnist").load(tmp_path)
    assert sizes(data) == [22, 2, 24]
    pixels = data.test.inputs * FashionMnist.deviation + FashionMnist.mean
    np.testing.assert_allclose(pixels[:, 0] * 255, IMAGES, atol=1e-3)
    np.testing.assert_array_equal(data.test.labels, LABELS)
    as_they_are = find_task("fashion-mnist-pixels").load(tmp_path).test.inputs
    np.testing.assert_allclose(as_they_are[:, 0] * 255, IMAGES, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (TEST[0], b"", "not a whole IDX file"),
        (TEST[0], idx(IMAGES) + b"\0", "not a whole IDX file"),
        (f"{TEST[0]}.gz", gzip.compress(idx(IMAGES), mtime=0)[:-9], "not a whole IDX file"),
        (TEST[0], idx(IMAGES[:-1]), "does not hold fashion-mnist"),
        (TRAIN[0], idx(IMAGES[:, :20, :20]), "does not hold fashion-mnist"),
        (TRAIN[1], idx(LABELS + 1), "labels are 1 to 10"),
    ],
)
def test_damaged_idx_files_are_refused_with_file_and_reason(
    tmp_path: Path, file: str, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARM_DATA", str(tmp_path))
    write_dataset(tmp_path, zipped=False)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load_dataset(find_task("fashion-mnist"))


def test_diabetes_data_are_normalised_and_split() -> None:
    data = find_task("diabetes").load()
    assert sizes(data) == [284, 70, 88]
    everything = np.concatenate([s.inputs for s in (data.train, data.validation, data.test)])
    np.testing.assert_allclose(everything.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(everything.std(axis=0), 1, atol=1e-5)


def test_cifar_10_is_read_from_its_binary_version(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        count = 15 if file == "test_batch.bin" else 20
        records = RANDOM.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / file).write_bytes(records.tobytes())
    names = tuple(f"class{i}" for i in range(10))
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    data = Cifar10().load(tmp_path)
    assert sizes(data) == [90, 10, 15]
    assert (data.input_shape, data.classes) == ((3, 32, 32), names)
    np.testing.assert_array_equal(data.test.labels, np.arange(15) % 10)
    raw = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(15, -1)
    mean, deviation = (np.reshape(v, (3, 1, 1)) for v in (Cifar10.mean, Cifar10.deviation))
    pixels = (data.test.inputs * deviation + mean) * 255
    np.testing.assert_allclose(pixels.reshape(15, -1), raw[:, 1:], atol=1e-3)
    (folder / "test_batch.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(DataError, match=r"cannot reshape .*; fetch the data again"):
        Cifar10().load(tmp_path)


@pytest.mark.slow
def test_made_boxes_hold_the_garment_and_are_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garments = np.zeros((24, 28, 28), np.uint8)
    garments[:, 4:20, 6:22] = 200
    write_dataset(tmp_path / "fashion-mnist", zipped=False, images=garments)
    monkeypatch.setattr(made, "IMAGES", 40)
    data, again = (MadeBoxes().load(tmp_path) for _ in range(2))
    assert sizes(data) == [29, 3, 8]
    left, top, right, bottom = data.train.labels.T
    longer = 64 * np.maximum(right - left, bottom - top)
    assert ((longer > 19) & (longer < 49)).all()
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)


@pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"speech is made by the package {PROGRAM}"
)
@pytest.mark.slow
def test_made_speech_has_speakers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "SPEAKERS", 10)
    monkeypatch.setattr(made, "TAKES", 1)
    data = MadeSpeech().load()
    assert sizes(data) == [8 * len(WORDS), len(WORDS), len(WORDS)]
    assert (data.input_shape, data.output_shape) == ((1, 40, 50), (len(WORDS),))


# One's own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the module of the documentation's example in it."""
    text = DOCS.read_text()
    example = "".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    # Modules are imported once in a process, so every test has its own.
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


@pytest.mark.slow
def test_the_documented_task_and_networks_lead_to_a_bundle(
    here: Path, parm_here: Here, lab_here: Here
) -> None:
    """Options after the names are theirs, and are kept."""

    def run(*arguments: str) -> str:
        done = (lab_here if arguments[0] == "train" else parm_here)(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    task, network = f"{here.name}:Waves@noise=0.5", f"{here.name}:Sized@units=7"
    once = ("--inputs", "inputs.npy", "--epochs", "1")
    run("train", "--task", task, "--network", network, "--epochs", "1", "--out", "f")
    deployed = open_bundle(Path("f")).manifest
    assert (deployed.deployed.network, deployed.deployed.signature.output.shape) == (network, (1,))
    assert deployed.accuracy is not None
    assert deployed.accuracy.metric == "r2"
    assert deployed.deployed_training is not None
    assert deployed.deployed_training.task == task
    assert deployed.deployed_training.recipe["batch"] == 256
    np.save("inputs.npy", find_task(task).load(None).train.inputs)
    run("parity", "--model", "f", *once, "--network", f"{here.name}:Narrow", "--out", "p")
    run("backup", "--model", "p", *once, "--network", network, "--out", "p")
    backup = open_bundle(Path("p")).manifest.backup
    assert backup is not None
    assert backup.network == network
    assert "agree" in run("evaluate", "p", "--inputs", "inputs.npy")
    for wrong, reason in [
        (("--task", f"{here.name}:Waves@noise=-1"), "noise of .* must be 0 or more"),
        (("--task", f"{here.name}:Waves@nois=1"), "did you mean noise"),
        (("--task", task, "--network", f"{here.name}:Sized@units=few"), "must be a whole number"),
    ]:
        refused = lab_here("train", *wrong, "--out", "g")
        assert refused.returncode == 2
        assert re.search(reason, " ".join(refused.stderr.split()))


OWN = """
import numpy as np
from parity_models_lab.tasks import Dataset, Split
from parity_models_lab.tasks import Task as T

class Task(T):
    metric = "top-1"
    def load(self, folder=None):
        def split(rows, labels=(0, 1), width=3):
            return Split(np.random.rand(rows, width).astype("f"), np.resize(labels, rows))
        {body}
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Task: pass", "must be a subclass of"),
        (OWN.replace("top-1", "beauty").format(body="..."), "has the metric 'beauty'"),
        ("from parity_models_lab.tasks import Task", "cannot be made"),
        *(
            (OWN.format(body=body), reason)
            for body, reason in {
                "raise FileNotFoundError('no birds')": "load failed: FileNotFoundError: no birds",
                "raise SystemExit(3)": "load failed: SystemExit: 3",
                "return 3": "it is int, not a Dataset",
                "return Dataset(split(9), split(5), split(5))": "the Dataset names none",
                "return Dataset(split(9), split(5), split(5, (0, 2)), ('a', 'b'))": "0 to 2; there",
                "return Dataset(split(9), split(5), split(5, 'ab'), ('a', 'b'))": "of numbers",
                "return Dataset(split(9), split(5, width=4), split(5), 'ab')": "validation inputs",
            }.items()
        ),
    ],
)
def test_a_task_and_what_it_loads_are_checked(here: Path, source: str, reason: str) -> None:
    here.with_suffix(".py").write_text(source)
    with pytest.raises(UserError, match=reason):
        load_dataset(find_task(f"{here.name}:Task"))
