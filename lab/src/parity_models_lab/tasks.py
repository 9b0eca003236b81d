"""The paper's data sets, by the names of their tasks, and data made in place of two of them.

MNIST and its kin are files in the IDX format: a header of big-endian sizes, then the values; they
may be gzipped. (Y. LeCun, C. Cortes, C. Burges: The MNIST database, 1998. H. Xiao, K. Rasul,
R. Vollgraf: Fashion-MNIST, 2017. A. Krizhevsky: Learning Multiple Layers of Features from Tiny
Images, 2009.) CIFAR-10 is read from its binary version, records of a label byte and 3,072 bytes of
pixels, as the python version is a pickle, which could run anything.

Two sets that may not be had are made here: `made-boxes` stands for CUB-200-2011 (C. Wah et al.,
2011): find the one object in an image. `made-speech` stands for Speech Commands (P. Warden, 2018):
spoken words as spectrograms.
"""

import gzip
import os
import subprocess
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, UserError
from parity_models.tasks.metrics import Labels

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every run, whatever its seed."""

INSTALLED = Path("/usr/share/datasets")
"""The folder of Debian's packages of data sets."""

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the images and labels of each split, with or without .gz behind them."""

CLASSES = 10
"""The classes of the digits, of MNIST and its kin, and of CIFAR-10."""


@dataclass(frozen=True)
class Split:
    """Queries, float32 (n, *input_shape), normalised as models get them, and their labels."""

    inputs: NDArray[np.float32]
    labels: Labels

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return the queries at `rows`, in that order."""
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on. Labels
    number that many `classes`; without classes they are of a prediction's shape."""

    train: Split
    validation: Split
    test: Split
    classes: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.classes,) if self.classes else self.train.labels.shape[1:]


@dataclass(frozen=True)
class Task:
    """A data set to learn, and the metric (of `METRICS`) that judges predictions. `flips`: training
    may mirror queries left to right. `load` raises DataError where data are missing or damaged."""

    name: str
    metric: str
    load: Callable[[], Dataset]
    flips: bool = False


def find_task(name: str) -> Task:
    """Return the task of this name. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def digits() -> Dataset:
    """Return 1,797 handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition, UCI 1998)."""
    from sklearn.datasets import load_digits  # here: not needed elsewhere

    images, labels = load_digits(return_X_y=True)
    # Pixels are from 0 to 16; their mean and deviation are those of all images.
    inputs = ((images - 4.884) / 6.017).astype(np.float32).reshape(-1, 1, 8, 8)
    rest, test = _hold_out(Split(inputs, labels.astype(np.int64)), 400)
    return Dataset(*_hold_out(rest, 197), test, CLASSES)


def idx_images(name: str, mean: float, deviation: float) -> Dataset:
    """Return 70,000 images in the layout of MNIST, from the folder of this name."""
    folder = _folder(name, TEST[0], f"{', '.join(TRAIN + TEST)}, gzipped or not,")
    splits = []
    for names in (TRAIN, TEST):
        images, labels = (read_idx(folder, each) for each in names)
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{folder} does not hold {name}: {names[0]} is of shape {images.shape} and "
                f"{names[1]} of {labels.shape}; fetch both again"
            )
        splits.append(_labelled(folder, images[:, None], labels, mean, deviation))
    rest, test = splits
    return Dataset(*_hold_out(rest, len(rest) // 12), test, CLASSES)  # 5,000 of 60,000


def cifar_10() -> Dataset:
    """Return CIFAR-10: 60,000 colour images of ten kinds of animals and vehicles."""
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    needs = f"{', '.join(files)} of the binary version (the python version is not read)"
    folder = _folder("cifar-10-batches-bin", files[-1], needs)
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    try:
        read = [np.fromfile(folder / file, np.uint8).reshape(-1, 3073) for file in files]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {error}; fetch the data again") from error
    rest, test = (
        _labelled(folder, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], mean, deviation)
        for records in (np.concatenate(read[:-1]), read[-1])
    )
    return Dataset(*_hold_out(rest, len(rest) // 10), test, CLASSES)


def made_boxes() -> Dataset:
    """Return images (n, 3, 64, 64) and the box (n, 4) of a garment in each, in shares of the image.

    Each image holds one whole garment of Fashion-MNIST, tinted and of some size, over shapes and
    scraps of other garments.
    """
    fashion = idx_images("fashion-mnist", 0.0, 1.0)
    training, testing = (part.inputs[:, 0] for part in (fashion.train, fashion.test))
    made: tuple[list[Any], list[Any]] = ([], [])
    for number in range(IMAGES):
        random, is_test = np.random.default_rng((0, number)), number % TESTED == 0
        garment = _draw(testing if is_test else training, random)
        canvas = _clutter(training, random)
        box = _paste(canvas, garment, random, longer=random.integers(20, 48))
        made[is_test].append(((canvas * 255).astype(np.uint8).transpose(2, 0, 1), box / SIDE))
    parts = ([np.stack(arrays) for arrays in zip(*pairs, strict=True)] for pairs in made)
    rest, test = (
        Split(_normalised(pixels, 0.45, 0.25), boxes.astype(np.float32)) for pixels, boxes in parts
    )
    return Dataset(*_hold_out(rest, max(1, len(rest) // 10)), test)


def made_speech() -> Dataset:
    """Return words by espeak-ng as small spectrograms; of ten speakers one is for validation and
    one for test.

    A speaker is an accent, a voice, a pitch and a pace; every take of a word varies pace and pitch,
    begins at another moment and has noise of its own. The same espeak-ng makes the same data.
    """
    cast = range(SPEAKERS)
    parts = ([s for s in cast if s % 10 > 1], cast[1::10], cast[::10])
    train, validation, test = map(_speech, parts)
    return Dataset(train, validation, test, len(WORDS))


TASKS = {
    task.name: task
    for task in (
        Task("digits", "top-1", digits),
        Task("mnist", "top-1", partial(idx_images, "mnist", 0.1307, 0.3081)),
        Task("fashion-mnist", "top-1", partial(idx_images, "fashion-mnist", 0.2860, 0.3530), True),
        # The paper's training code adds up pixels that are not normalised.
        Task("fashion-mnist-pixels", "top-1", partial(idx_images, "fashion-mnist", 0, 1), True),
        Task("cifar-10", "top-1", cifar_10, True),
        Task("made-boxes", "iou", made_boxes, True),
        Task("made-speech", "top-1", made_speech),
    )
}


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, gzipped or not. Raises DataError."""
    file, zipped = folder / name, folder / f"{name}.gz"
    try:
        is_zipped = zipped.exists()
        content = gzip.decompress(zipped.read_bytes()) if is_zipped else file.read_bytes()
        axes = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError("it begins otherwise")
        shape = np.frombuffer(content, ">u4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(
            f"{file} is not a whole IDX file of unsigned bytes ({error}); fetch it again"
        ) from error


def _folder(name: str, file: str, needs: str) -> Path:
    """Return the folder of this name with `file`, gzipped or not, in a folder of data sets."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"
    own = Path(os.environ.get("PARM_DATA") or cache)
    for folder in (own / name, INSTALLED / name):
        if (folder / file).exists() or (folder / f"{file}.gz").exists():
            return folder
    raise DataError(
        f"the data are not in {own / name}: put {needs} there; the variable PARM_DATA names the "
        "folder of data sets"
    )


def _hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))


def _labelled(
    folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8], mean: Any, deviation: Any
) -> Split:
    if not len(labels) or labels.max() >= CLASSES:
        raise DataError(f"{folder} has no labels, or more than 0 to 9; fetch the data again")
    return Split(_normalised(pixels, mean, deviation), labels.astype(np.int64))


def _normalised(pixels: NDArray[np.uint8], mean: Any, deviation: Any) -> NDArray[np.float32]:
    """Return pixels (n, channels, height, width) of 0 to 255 as 0 to 1, less `mean` and over
    `deviation`, numbers or one for each channel."""
    inputs = pixels.astype(np.float32)
    inputs /= 255
    inputs -= np.reshape(mean, (-1, 1, 1))
    inputs /= np.reshape(deviation, (-1, 1, 1))
    return inputs


# Boxes

SIDE = 64
"""Height and width of an image."""

IMAGES, TESTED = 10_000, 5
"""Images, of which one in TESTED is for tests."""


def _draw(garments: NDArray[np.float32], random: np.random.Generator) -> NDArray[Any]:
    """Return a garment's pixels, cropped."""
    pixels = garments[random.integers(len(garments))]
    rows, columns = (np.flatnonzero((pixels > 0.1).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return _draw(garments, random)
    return np.asarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _clutter(garments: NDArray[np.float32], random: np.random.Generator) -> NDArray[Any]:
    """Return a canvas (SIDE, SIDE, 3) from 0 to 1 with shapes and scraps on a shaded ground."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    slope = random.uniform(-0.5, 0.5, (2, 1, 1, 3))
    canvas = random.uniform(0.1, 0.8, 3) + slope[0] * x[..., None] + slope[1] * y[..., None]
    for _ in range(random.integers(4, 10)):
        cx, cy = random.uniform(0, 1, 2)
        w, h = random.uniform(0.05, 0.35, 2)
        dx, dy = np.abs(x - cx) / w, np.abs(y - cy) / h
        inside = np.maximum(dx, dy) < 1 if random.random() < 0.5 else dx**2 + dy**2 < 1
        canvas[inside] = 0.4 * canvas[inside] + 0.6 * random.uniform(0, 1, 3)
    for _ in range(random.integers(2, 6)):
        garment = _draw(garments, random)
        height, width = (max(1, length // 2) for length in garment.shape)
        top, left = random.integers(0, np.subtract(garment.shape, (height, width)) + 1)
        scrap = garment[top : top + height, left : left + width]
        _paste(canvas, scrap, random, longer=random.integers(8, 20))
    canvas += random.normal(0, 0.03, canvas.shape)
    return np.asarray(np.clip(canvas, 0, 1))


def _paste(
    canvas: NDArray[Any], garment: NDArray[Any], random: np.random.Generator, longer: np.int64
) -> NDArray[np.int64]:
    """Put a tinted garment on the canvas, anywhere, its `longer` side of so many pixels; return its
    left, top, right and bottom."""
    height, width = (max(2, round(n * longer / max(garment.shape))) for n in garment.shape)
    rows = np.arange(height) * garment.shape[0] // height
    columns = np.arange(width) * garment.shape[1] // width
    larger = garment[np.ix_(rows, columns)][..., None]
    top, left = random.integers(0, (SIDE - height + 1, SIDE - width + 1))
    under = canvas[top : top + height, left : left + width]
    tinted = larger * random.uniform(0.5, 1, 3) + random.uniform(0, 0.2)
    under[...] = np.where(larger > 0.1, tinted.clip(0, 1), under)
    return np.array([left, top, left + width, top + height])


# Speech

RATE = 16_000
"""Samples in a second."""
WINDOW, STEP = 320, 160
"""Samples in a window of the spectrogram, and between windows: 20 and 10 ms."""
MEL_BANDS = 40


def _spectrograms(seconds: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return log spectrograms (n, 1, 40 mel bands, 50 times) of sounds (n, 16000), each with mean 0
    and deviation 1."""
    padded = np.pad(seconds.astype(np.float32), ((0, 0), (WINDOW // 2, WINDOW // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::STEP]
    spectra = np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32), axis=-1)
    powers = (np.square(np.abs(spectra)) / WINDOW).astype(np.float32).transpose(0, 2, 1)
    bands = _mel_filters() @ powers
    halved = bands[..., : bands.shape[-1] // 2 * 2].reshape(*bands.shape[:2], -1, 2).mean(axis=-1)
    logs = np.log(halved + np.float32(1))[:, None]  # samples go to 32,768
    logs -= logs.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(logs / np.maximum(logs.std(axis=(1, 2, 3), keepdims=True), 1e-3))


def _mel_filters() -> NDArray[np.float32]:
    """Return weights (40, 161) of frequencies in triangular bands, evenly spaced in mel."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    weights = np.maximum(np.minimum(rising, falling), 0)
    # The lowest bands are narrower than the distance between frequencies.
    empty = np.flatnonzero(weights.sum(axis=1) == 0)
    weights[empty, np.abs(frequencies - centre[empty]).argmin(axis=1)] = 1
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


PROGRAM = "espeak-ng"

TABLES = msgspec.toml.decode((resources.files("parity_models_lab") / "speech.toml").read_bytes())
WORDS, ACCENTS, VOICES = (TABLES[name] for name in ("words", "accents", "voices"))
SPEAKERS, TAKES = 150, 2
"""Speakers, and how often each says a word."""


def _speech(speakers: Sequence[int]) -> Split:
    every = [
        (s, word, take) for s in speakers for word in range(len(WORDS)) for take in range(TAKES)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = list(pool.map(_say, every))
    return Split(_spectrograms(np.stack(seconds)), np.array([word for _, word, _ in every]))


def _say(utterance: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a second (16000,) of a speaker's take of a word, all by their numbers."""
    speaker, word, _ = utterance
    own, random = (np.random.default_rng(seed) for seed in ((0, speaker), (1, *utterance)))
    voice = f"{own.choice(ACCENTS)}+{own.choice(VOICES)}"
    pitch = round(own.uniform(25, 75) + random.uniform(-5, 5))  # from 0 to 99
    pace = round(own.uniform(120, 200) * random.uniform(0.9, 1.1))  # words a minute
    command = f"{PROGRAM} -D --stdout -v {voice} -p {pitch} -s {pace} {WORDS[word]}".split()
    try:
        said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    except FileNotFoundError as error:
        raise DataError(f"{PROGRAM} is not installed; apt install {PROGRAM}") from error
    except subprocess.SubprocessError as error:
        raise DataError(f"{' '.join(command)} failed: {error}") from error
    samples = np.frombuffer(said[44:], "<i2").astype(np.float64)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=0))
    if not len(loud):
        raise DataError(f"{' '.join(command)} says nothing")
    samples = samples[loud[0] : loud[-1] + 1]
    resampled = round(len(samples) * RATE / int.from_bytes(said[24:28], "little"))
    spectrum = np.fft.rfft(samples)[: resampled // 2 + 1]
    return _place(np.fft.irfft(spectrum, resampled) * (resampled / len(samples)), random)


def _place(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int16]:
    """Return a second with the sound somewhere in it, at some loudness, in noise between white and
    brown."""
    sound = sound[:RATE]
    start = random.integers(RATE - len(sound) + 1)
    spectrum = np.fft.rfft(random.standard_normal(RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** random.uniform(0, 1)
    spectrum[0] = 0
    second = np.fft.irfft(spectrum, RATE)
    loudness = np.sqrt(np.square(sound).mean()) / 10 ** (random.uniform(5, 30) / 20)  # 5 to 30 dB
    second *= loudness / second.std()
    second[start : start + len(sound)] += sound
    second *= random.uniform(0.2, 0.9) * np.iinfo(np.int16).max / np.abs(second).max()
    return np.asarray(second, np.int16)
