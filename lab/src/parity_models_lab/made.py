"""Data made here, in place of two of the paper's data sets that may not be had.

`boxes` stands for CUB-200-2011 (C. Wah et al., 2011): find the one object in an image. `speech`
stands for Speech Commands (P. Warden, 2018): spoken words as spectrograms.
"""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError

# Boxes

SIDE = 64
"""Height and width of an image."""

IMAGES, TEST = 10_000, 5
"""Images, of which one in TEST is for tests."""


def boxes(
    training: NDArray[np.float32], testing: NDArray[np.float32]
) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Return images (n, 3, 64, 64) and the box (n, 4) of a garment in each, to learn and to test.

    Each image holds one whole garment, tinted and of some size, over shapes and scraps of other
    garments. Garments are pixels (n, 28, 28) from 0 to 1, for training and for tests.
    """
    made: tuple[list[Any], list[Any]] = ([], [])
    for number in range(IMAGES):
        random, is_test = np.random.default_rng((0, number)), number % TEST == 0
        garment = _draw(testing if is_test else training, random)
        canvas = _clutter(training, random)
        box = _paste(canvas, garment, random, longer=random.integers(20, 48))
        made[is_test].append(((canvas * 255).astype(np.uint8).transpose(2, 0, 1), box / SIDE))
    parts = [[np.stack(arrays) for arrays in zip(*pairs, strict=True)] for pairs in made]
    return [(pixels, edges.astype(np.float32)) for pixels, edges in parts]


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


def speech(speakers: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return words of these speakers by espeak-ng, as small spectrograms, and the words' numbers.

    A speaker is an accent, a voice, a pitch and a pace; every take of a word varies pace and pitch,
    begins at another moment and has noise of its own. The same espeak-ng makes the same data.
    """
    every = [
        (s, word, take) for s in speakers for word in range(len(WORDS)) for take in range(TAKES)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = list(pool.map(_say, every))
    return _spectrograms(np.stack(seconds)), np.array([word for _, word, _ in every])


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
