"""Spoken words, one second each, as spectrograms.

`SpeechCommands` reads the layout of Google's dataset (P. Warden: Speech Commands, 2018): a folder
of WAV files for each word, and lists of the files of the speakers for validation and for test.
`MadeSpeech` stands in for it where it cannot be had.
"""

import os
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.task import Dataset, FolderTask, Split, Task

RATE = 16_000
"""Samples in a second."""
WINDOW, STEP = 320, 160
"""Samples in a window of the spectrogram, and between windows: 20 and 10 ms."""
MEL_BANDS = 40


class SpeechCommands(FolderTask):
    """Words as log spectrograms of 161 frequencies by 101 times, as in the paper."""

    name = "speech-commands"
    metric = "top-1"
    mark = "validation_list.txt"
    places = ("speech_commands", "speech_commands_v0.02", "speech_commands_v0.01", "")
    needs = (
        "a folder speech_commands there with validation_list.txt, testing_list.txt and one folder "
        "of WAV files for each word (from "
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz)"
    )

    def read(self, folder: Path) -> Dataset:
        found = sorted(folder.glob("[!_]*/*.wav"))  # _background_noise_ holds no words
        words = tuple(sorted({file.parent.name for file in found}))
        lists = [
            (folder / f"{part}_list.txt").read_text().split() for part in ("validation", "testing")
        ]
        part_of = {folder / name: part for part, names in enumerate(lists, 1) for name in names}
        splits = []
        for part in range(3):
            files = [file for file in found if part_of.get(file, 0) == part]
            inputs = np.empty((len(files), 1, WINDOW // 2 + 1, RATE // STEP + 1), np.float32)
            for row, file in enumerate(files):
                inputs[row] = as_queries(read_second(file)[None])
            splits.append(
                Split(inputs, np.array([words.index(file.parent.name) for file in files]))
            )
        train, validation, test = splits
        return Dataset(train, validation, test, words)


def as_queries(seconds: NDArray[np.int16], *, small: bool = False) -> NDArray[np.float32]:
    """Return log spectrograms (n, 1, frequencies, times) of sounds (n, 16000), each with mean 0 and
    deviation 1; `small`: 40 mel bands by 50 times."""
    padded = np.pad(seconds.astype(np.float32), ((0, 0), (WINDOW // 2, WINDOW // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::STEP]
    spectra = np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32), axis=-1)
    powers = (np.square(np.abs(spectra)) / WINDOW).astype(np.float32).transpose(0, 2, 1)
    if small:
        bands = mel_filters() @ powers
        even = bands[..., : bands.shape[-1] // 2 * 2]
        powers = even.reshape(*even.shape[:2], -1, 2).mean(axis=-1)
    logs = np.log(powers + np.float32(1))[:, None]  # samples go to 32,768
    logs -= logs.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(logs.std(axis=(1, 2, 3), keepdims=True), 1e-3)
    return np.asarray(logs / deviation)


def mel_filters() -> NDArray[np.float32]:
    """Return weights (40, 161) of frequencies in triangular bands, evenly spaced in mel."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    weights = np.maximum(np.minimum(rising, falling), 0)
    # The lowest bands are narrower than the distance between frequencies.
    empty = weights.sum(axis=1) == 0
    nearest = np.abs(frequencies - centre).argmin(axis=1)
    weights[empty, nearest[empty]] = 1
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def read_second(path: Path) -> NDArray[np.int16]:
    """Return the first second in `path`, (16000,), padded with silence if it is shorter.

    Raises DataError for a file that is not a WAV file of this kind.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            samples = np.frombuffer(file.readframes(RATE), "<i2")
            if form != (1, 2, RATE) or len(samples) < min(RATE, max(1, file.getnframes())):
                raise ValueError(f"{form[0]} of {8 * form[1]} bits at {form[2]} Hz, or cut off")
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is no WAV file of one channel of 16 bits at {RATE} Hz ({error}); fetch it "
            "again or take it out"
        ) from error
    return np.pad(samples, (0, RATE - len(samples)))


PROGRAM = "espeak-ng"

WORDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
)
"""The thirty words of the dataset's first version."""

ACCENTS = (
    *("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "en-029",
)
VOICES = (
    *(f"m{i}" for i in range(1, 9)),
    *(f"f{i}" for i in range(1, 6)),
    *("Alex", "Andy", "Annie", "belinda", "benjamin", "david", "ed", "Gene", "linda", "max"),
    *("Michael", "Mike", "paul", "quincy", "rob", "robert", "steph", "zac", "grandma", "grandpa"),
)
PITCHES = (25, 75)
"""On espeak-ng's scale from 0 to 99."""
PACES = (120, 200)
"""Words a minute."""
SIGNAL_TO_NOISE = (5.0, 30.0)
"""In decibels."""
SPEAKERS, TAKES = 150, 2
"""Speakers, and how often each says a word."""


class MadeSpeech(Task):
    """Words by espeak-ng, as small spectrograms.

    A speaker is an accent, a voice, a pitch and a pace; every take of a word varies pace and pitch
    a little, begins at another moment and has noise of its own. Of ten speakers one is for
    validation and one for test. The same espeak-ng makes the same data.
    """

    name = "made-speech"
    metric = "top-1"

    def load(self, folder: Path | None = None) -> Dataset:
        splits, cast = [], range(SPEAKERS)
        for part in ([s for s in cast if s % 10 > 1], cast[1::10], cast[::10]):
            every = [(s, w, take) for s in part for w in range(len(WORDS)) for take in range(TAKES)]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                seconds = list(pool.map(_say, every))
            labels = np.array([word for _, word, _ in every])
            splits.append(Split(as_queries(np.stack(seconds), small=True), labels))
        train, validation, test = splits
        return Dataset(train, validation, test, WORDS)


def _say(utterance: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a second (16000,) of a speaker's take of a word, all by their numbers."""
    speaker, word, _ = utterance
    own, random = (np.random.default_rng(seed) for seed in ((0, speaker), (1, *utterance)))
    voice = f"{own.choice(ACCENTS)}+{own.choice(VOICES)}"
    pitch = round(own.uniform(*PITCHES) + random.uniform(-5, 5))
    pace = round(own.uniform(*PACES) * random.uniform(0.9, 1.1))
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
    rate = int.from_bytes(said[24:28], "little")
    return _place(_resample(samples[loud[0] : loud[-1] + 1], rate), random)


def _resample(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    wanted = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)[: wanted // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, wanted) * (wanted / len(samples)))


def _place(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int16]:
    """Return a second with the sound somewhere in it, at some loudness, in noise between white and
    brown."""
    sound = sound[:RATE]
    start = random.integers(RATE - len(sound) + 1)
    spectrum = np.fft.rfft(random.standard_normal(RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** random.uniform(0, 1)
    spectrum[0] = 0
    second = np.fft.irfft(spectrum, RATE)
    loudness = np.sqrt(np.square(sound).mean()) / 10 ** (random.uniform(*SIGNAL_TO_NOISE) / 20)
    second *= loudness / second.std()
    second[start : start + len(sound)] += sound
    second *= random.uniform(0.2, 0.9) * np.iinfo(np.int16).max / np.abs(second).max()
    return np.asarray(second, np.int16)
