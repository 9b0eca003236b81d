"""Spoken words, one second each, as spectrograms.

`SpeechCommands` reads the layout of Google's dataset (P. Warden: Speech Commands, 2018): a folder
of WAV files for each word, called SPEAKER_nohash_N.wav, where a hash of the speaker says which
split they are in, so that no speaker is in two of them. `MadeSpeech` stands in for it where it
cannot be had.
"""

import hashlib
import os
import shutil
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.options import Option
from parity_models_lab.tasks.folder import FolderTask
from parity_models_lab.tasks.task import Dataset, Split, Task

RATE = 16_000
"""Samples in a second."""

WINDOW, STEP = 320, 160
"""Samples in a window of the spectrogram, and between windows: 20 and 10 ms."""

BINS, FRAMES = WINDOW // 2 + 1, RATE // STEP + 1
MEL_BANDS = 40
SILENT = 1.0
"""Added to powers before their logarithm is taken; samples go to 32,768."""

NOISE = "_background_noise_"
"""The folder that holds no words."""

PARTS = ("train", "validation", "test")
TEST, VALIDATION = 10, 10
"""Per cent of speakers."""

CHUNK = 256


class SpeechCommands(FolderTask):
    """Words as log spectrograms of 161 frequencies by 101 times, as in the paper."""

    name = "speech-commands"
    metric = "top-1"
    mark = "*/*.wav"
    places = ("speech_commands", "speech_commands_v0.02", "speech_commands_v0.01", "")
    needs = (
        "a folder speech_commands there with one folder of WAV files for each word (from "
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz)"
    )

    def read(self, folder: Path) -> Dataset:
        words = _words(folder)
        files: dict[str, list[Path]] = {part: [] for part in PARTS}
        for word in words:
            for file in sorted((folder / word).glob("*.wav")):
                files[part_of(file.name)].append(file)
        splits = []
        for part, found in files.items():
            if not found:
                raise DataError(
                    f"no speaker in {folder} falls into the {part} split; it takes more speakers "
                    "(files SPEAKER_nohash_N.wav)"
                )
            chunks = [
                as_queries(np.stack([read_second(file) for file in found[i : i + CHUNK]]))
                for i in range(0, len(found), CHUNK)
            ]
            labels = np.array([words.index(file.parent.name) for file in found])
            splits.append(Split(np.concatenate(chunks), labels))
        train, validation, test = splits
        return Dataset(train, validation, test, words)


def part_of(file: str) -> str:
    """Return the split of a file by its speaker: the dataset's own rule."""
    speaker = file.split("_nohash_")[0]
    largest = 2**27 - 1
    number = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    percent = number % (largest + 1) * (100 / largest)
    if percent < VALIDATION:
        return "validation"
    return "test" if percent < VALIDATION + TEST else "train"


def spectrogram(seconds: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return powers (n, 161, 101) in Hann windows of 20 ms, every 10 ms, of sounds (n, 16000)."""
    padded = np.pad(seconds.astype(np.float32), ((0, 0), (WINDOW // 2, WINDOW // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::STEP]
    spectra = np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32), axis=-1)
    return (np.square(np.abs(spectra)) / WINDOW).astype(np.float32).transpose(0, 2, 1)


def mel_filters() -> NDArray[np.float32]:
    """Return weights (40, 161) of frequencies in triangular bands, evenly spaced in mel."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, RATE / 2, BINS)
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    weights = np.maximum(np.minimum(rising, falling), 0)
    # The lowest bands are narrower than the distance between frequencies.
    empty = weights.sum(axis=1) == 0
    nearest = np.abs(frequencies - centre).argmin(axis=1)
    weights[empty, nearest[empty]] = 1
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def as_queries(seconds: NDArray[np.int16], *, small: bool = False) -> NDArray[np.float32]:
    """Return log spectrograms (n, 1, frequencies, times) of sounds (n, 16000), each with mean 0 and
    deviation 1; `small`: 40 mel bands by 50 times."""
    powers = spectrogram(seconds)
    if small:
        bands = mel_filters() @ powers
        even = bands[..., : bands.shape[-1] // 2 * 2]
        powers = even.reshape(*even.shape[:2], -1, 2).mean(axis=-1)
    logs = np.log(powers + np.float32(SILENT))[:, None]
    logs -= logs.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(logs.std(axis=(1, 2, 3), keepdims=True), 1e-3)
    return np.asarray(logs / deviation)


def read_second(path: Path) -> NDArray[np.int16]:
    """Return the first second in `path`, (16000,), padded with silence if it is shorter.

    Raises DataError for a file that is not a WAV file of this kind.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            if form != (1, 2, RATE):
                raise DataError(
                    f"{path} has {form[0]} channels of {8 * form[1]} bits at {form[2]} Hz; make "
                    f"it one of 16 bits at {RATE} Hz (sox IN -c 1 -b 16 -r {RATE} OUT)"
                )
            promised = min(file.getnframes(), RATE)
            samples = np.frombuffer(file.readframes(promised), "<i2")
            if not promised or len(samples) < promised:
                raise EOFError("it is cut off")
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a WAV file ({error}); fetch it again or take it out"
        ) from error
    return np.pad(samples, (0, RATE - len(samples)))


def _words(folder: Path) -> tuple[str, ...]:
    """Return the words in `folder`, sorted: its folders that hold WAV files."""
    found = [entry.name for entry in folder.iterdir() if next(entry.glob("*.wav"), None)]
    return tuple(sorted(name for name in found if name != NOISE))


# Made speech

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

HEADER = 44
"""Bytes before the samples in what espeak-ng writes."""

TIMEOUT = 60.0
"""Seconds that one word may take."""


class MadeSpeech(Task):
    """Words by espeak-ng, as small spectrograms.

    A speaker is an accent, a voice, a pitch and a pace; every take of a word varies pace and pitch
    a little, begins at another moment and has noise of its own. Of ten speakers one is for
    validation and one for test. The same espeak-ng makes the same data.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Task.Options):
        """The options."""

        speakers: Annotated[int, Option("Speakers.", at_least=10)] = 150
        takes: Annotated[int, Option("Times that a speaker says a word.", at_least=1)] = 2

    name = "made-speech"
    metric = "top-1"

    def load(self, folder: Path | None = None) -> Dataset:
        if shutil.which(PROGRAM) is None:
            raise DataError(f"{PROGRAM} is not installed; apt install {PROGRAM}")
        cast, takes = range(self.options.speakers), range(self.options.takes)
        splits = []
        for part in PARTS:
            speakers = [speaker for speaker in cast if _part_of(speaker) == part]
            every = [(s, w, take) for s in speakers for w in range(len(WORDS)) for take in takes]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                seconds = list(pool.map(_say, every))
            labels = np.array([word for _, word, _ in every])
            splits.append(Split(as_queries(np.stack(seconds), small=True), labels))
        train, validation, test = splits
        return Dataset(train, validation, test, WORDS)


def _part_of(speaker: int) -> str:
    return {0: "test", 1: "validation"}.get(speaker % 10, "train")


def _say(utterance: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a second (16000,) of a speaker's take of a word, all by their numbers."""
    speaker, word, _ = utterance
    own, random = (np.random.default_rng(seed) for seed in ((0, speaker), (1, *utterance)))
    voice = f"{own.choice(ACCENTS)}+{own.choice(VOICES)}"
    pitch = round(own.uniform(*PITCHES) + random.uniform(-5, 5))
    pace = round(own.uniform(*PACES) * random.uniform(0.9, 1.1))
    command = f"{PROGRAM} -D --stdout -v {voice} -p {pitch} -s {pace} {WORDS[word]}".split()
    try:
        said = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=True).stdout
    except subprocess.SubprocessError as error:
        raise DataError(f"{' '.join(command)} failed: {error}") from error
    samples = np.frombuffer(said[HEADER:], "<i2").astype(np.float64)
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
