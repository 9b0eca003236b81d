"""Each of the paper's datasets is read from its standard layout; damaged files are named."""

import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from idx_files import write_dataset
from parity_models.errors import DataError
from parity_models_lab.tasks import (
    Cifar10,
    Localization,
    MadeBoxes,
    MadeSpeech,
    SpeechCommands,
)
from parity_models_lab.tasks.cifar import DEVIATION, MEAN
from parity_models_lab.tasks.speech import (
    PROGRAM,
    RATE,
    WORDS,
    part_of,
    read_second,
)

RANDOM = np.random.default_rng(0)


def write_cifar(folder: Path, files: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    for file, count in files.items():
        records = RANDOM.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / file).write_bytes(records.tobytes())


CIFAR10 = {f"data_batch_{i}.bin": 20 for i in range(1, 6)} | {"test_batch.bin": 15}


def test_cifar_10_is_read_from_its_binary_version(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, CIFAR10)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "batches.meta.txt").write_text("\n".join(names.split()) + "\n\n")
    data = Cifar10().load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [90, 10, 15]
    assert (data.input_shape, data.classes) == ((3, 32, 32), tuple(names.split()))
    np.testing.assert_array_equal(data.test.labels, np.arange(15) % 10)
    raw = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(15, -1)
    mean, deviation = (np.reshape(v, (3, 1, 1)) for v in (MEAN, DEVIATION))
    pixels = (data.test.inputs * deviation + mean) * 255
    np.testing.assert_allclose(pixels.reshape(15, -1), raw[:, 1:], atol=1e-3)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test_batch.bin", b"", "does not hold records"),
        ("test_batch.bin", b"\0" * 3072, "does not hold records"),
        ("data_batch_3.bin", b"\x0a" + b"\0" * 3072, "has a label 10"),
        ("batches.meta.txt", b"cat dog", "names 2 classes"),
    ],
)
def test_damaged_cifar_files_are_refused(
    tmp_path: Path, file: str, content: bytes, reason: str
) -> None:
    write_cifar(tmp_path / "d", CIFAR10)
    (tmp_path / "d" / "batches.meta.txt").write_text(" ".join("abcdefghij"))
    (tmp_path / "d" / file).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        Cifar10().load(tmp_path / "d")


def write_picture(path: Path, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def write_birds(folder: Path) -> None:
    for number in range(1, 13):
        write_picture(folder / "images" / "001.Bird" / f"{number}.png", (40, 20))
    numbers = range(1, 13)
    files: dict[str, Callable[[int], str]] = {
        "images.txt": lambda n: f"{n} 001.Bird/{n}.png",
        "bounding_boxes.txt": lambda n: f"{n} 10.0 5.0 20.0 10.0",
        "train_test_split.txt": lambda n: f"{n} {int(n > 2)}",
    }
    for file, line in files.items():
        (folder / file).write_text("".join(f"{line(n)}\n" for n in numbers))


def test_boxes_are_read_from_the_layout_of_cub_as_shares_of_the_image(tmp_path: Path) -> None:
    write_birds(tmp_path / "CUB_200_2011")
    data = Localization(Localization.Options(side=16)).load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [9, 1, 2]
    assert (data.input_shape, data.output_shape) == ((3, 16, 16), (4,))
    np.testing.assert_allclose(data.test.labels, [[0.25, 0.25, 0.75, 0.75]] * 2)


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("bounding_boxes.txt", "1 10.0 5.0 20.0", "a line without 4 fields"),
        ("bounding_boxes.txt", "1 10.0 5.0 0.0 10.0", "a box that is not in its image"),
        ("bounding_boxes.txt", "1 10.0 5.0 nan 10.0", "a box that is not in its image"),
        ("bounding_boxes.txt", "1 a b c d", "a box that is not in its image"),
        ("bounding_boxes.txt", "77 10.0 5.0 20.0 10.0", "do not number the same images"),
        ("bounding_boxes.txt", "1 10.0 5.0 5000.0 10.0", "a box that is not in its image of 40x20"),
        ("bounding_boxes.txt", "1 40.5 5.0 1.0 10.0", "a box that is not in its image of 40x20"),
        ("images.txt", "1 001.Bird/missing.png", r"missing\.png cannot be read as an image"),
        ("images.txt", "1 001.Bird/damaged.png", r"damaged\.png cannot be read as an image"),
    ],
)
def test_unsound_lists_of_boxes_are_refused(
    tmp_path: Path, file: str, line: str, reason: str
) -> None:
    write_birds(tmp_path)
    (tmp_path / "images" / "001.Bird" / "damaged.png").write_bytes(b"\xff\xd8 and nothing")
    rest = (tmp_path / file).read_text().splitlines()[1:]
    (tmp_path / file).write_text("\n".join([line, *rest]))
    with pytest.raises(DataError, match=reason):
        Localization().load(tmp_path)


def test_a_box_that_reaches_a_little_beyond_its_image_ends_there(tmp_path: Path) -> None:
    write_birds(tmp_path)
    boxes = tmp_path / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("1 10.0 5.0 20.0", "1 10.0 5.0 31.0", 1))
    data = Localization(Localization.Options(side=16)).load(tmp_path)
    np.testing.assert_allclose(data.test.labels[0], [0.25, 0.25, 1, 0.75])


# Speech


def speakers() -> dict[str, str]:
    """A name that falls into each split."""
    found: dict[str, str] = {}
    number = 0
    while len(found) < 3:
        found.setdefault(part_of(f"{number:08x}_nohash_0.wav"), f"{number:08x}")
        number += 1
    return found


def write_wav(path: Path, samples: NDArray[np.int16], channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def write_words(folder: Path, cast: dict[str, str]) -> None:
    for tone, word in ((440, "no"), (1760, "yes"), (1, "_background_noise_")):
        (folder / word).mkdir(parents=True)
        samples = 8000 * np.sin(2 * np.pi * tone * np.arange(RATE) / RATE)
        for speaker in cast.values():
            for take in range(2):
                write_wav(folder / word / f"{speaker}_nohash_{take}.wav", samples.astype(np.int16))


def test_words_are_split_by_speaker_and_become_spectrograms(tmp_path: Path) -> None:
    write_words(tmp_path / "speech_commands", speakers())
    data = SpeechCommands().load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 4, 4]
    assert (data.input_shape, data.classes) == ((1, 161, 101), ("no", "yes"))
    np.testing.assert_allclose(data.train.inputs.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    # The higher tone lies in higher frequencies.
    peaks = data.train.inputs[:, 0].mean(axis=2).argmax(axis=1)
    low, high = (peaks[data.train.labels == word] for word in (0, 1))
    assert low.max() < high.min()


def test_a_speaker_for_every_split_is_needed(tmp_path: Path) -> None:
    cast = speakers()
    del cast["test"]
    write_words(tmp_path, cast)
    with pytest.raises(DataError, match="falls into the test split"):
        SpeechCommands().load(tmp_path)


def test_short_sounds_are_padded_and_other_files_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "short.wav", np.full(100, 7, np.int16))
    second = read_second(tmp_path / "short.wav")
    assert (len(second), second[:100].min(), second[100:].max()) == (RATE, 7, 0)
    write_wav(tmp_path / "stereo.wav", np.zeros(200, np.int16), channels=2)
    with pytest.raises(DataError, match="2 channels of 16 bits at 16000 Hz"):
        read_second(tmp_path / "stereo.wav")
    whole = (tmp_path / "short.wav").read_bytes()
    for content in (b"", b"RIFF", b"ID3 and more of it", whole[:-100], whole[:-99], whole[:44]):
        (tmp_path / "damaged.wav").write_bytes(content)
        with pytest.raises(DataError, match=r"damaged\.wav cannot be read as a WAV file"):
            read_second(tmp_path / "damaged.wav")


# Made data


@pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"speech is made by the package {PROGRAM}"
)
@pytest.mark.slow
def test_made_speech_has_speakers_apart() -> None:
    data = MadeSpeech(MadeSpeech.Options(speakers=10, takes=1)).load()
    words = len(WORDS)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        8 * words,
        words,
        words,
    ]
    assert (data.input_shape, data.output_shape) == ((1, 40, 50), (words,))


def test_speech_without_espeak_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=f"apt install {PROGRAM}"):
        MadeSpeech().load()


@pytest.mark.slow
def test_made_boxes_hold_the_garment_and_are_the_same_every_time(tmp_path: Path) -> None:
    garments = np.zeros((24, 28, 28), np.uint8)
    garments[:, 4:20, 6:22] = 200
    write_dataset(tmp_path / "fashion-mnist", zipped=False, images=garments)
    data, again = (MadeBoxes(MadeBoxes.Options(images=40)).load(tmp_path) for _ in range(2))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [29, 3, 8]
    left, top, right, bottom = data.train.labels.T
    longer = 64 * np.maximum(right - left, bottom - top)
    assert ((longer > 19) & (longer < 49)).all()
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)
