"""Google Speech Commands: one-second words, one folder of WAV files for each.

(P. Warden: Speech Commands, 2018.) `make_speech` makes such a folder. Files are
called SPEAKER_nohash_N.wav, and a hash of the speaker says which split they are in, so that no
speaker is in two of them.
"""

import hashlib
import wave
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.tasks.task import Dataset, Split
from parity_models_lab.tasks.folder import FolderTask

RATE = 16_000
"""Samples in a second."""

BYTES = 2
"""Of a sample."""

WINDOW, STEP = 320, 160
"""Samples in a window of the spectrogram, and between windows: 20 and 10 ms."""

BINS, FRAMES = WINDOW // 2 + 1, RATE // STEP + 1
MEL_BANDS = 40
SILENT = 1.0
"""Added to powers before their logarithm is taken; samples go to 32,768."""

NOISE = "_background_noise_"
"""The folder that holds no words."""

TEST, VALIDATION = 10, 10
"""Per cent of speakers."""

CHUNK = 256

Part = Literal["train", "validation", "test"]


class SpeechCommands(FolderTask):
    """Words as log spectrograms of 161 frequencies by 101 times, as in the paper."""

    name = "speech-commands"
    metric = "top-1"
    places = ("speech_commands", "speech_commands_v0.02", "speech_commands_v0.01", "")
    needs = (
        "a folder speech_commands there with one folder of WAV files for each word (from "
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz)"
    )

    def holds(self, folder: Path) -> bool:
        return len(_words(folder)) > 1

    def read(self, folder: Path) -> Dataset:
        words = _words(folder)
        files: dict[Part, list[Path]] = {"train": [], "validation": [], "test": []}
        for word in words:
            for file in sorted((folder / word).glob("*.wav")):
                files[part_of(file.name)].append(file)
        for part, found in files.items():
            if not found:
                raise DataError(
                    f"no speaker in {folder} falls into the {part} split; it takes more speakers "
                    "(files SPEAKER_nohash_N.wav)"
                )
        train, validation, test = (self._split(found, words) for found in files.values())
        return Dataset(train, validation, test, words)

    def _split(self, files: list[Path], words: tuple[str, ...]) -> Split:
        chunks = [
            self.queries(np.stack([read_second(file) for file in files[start : start + CHUNK]]))
            for start in range(0, len(files), CHUNK)
        ]
        labels = np.array([words.index(file.parent.name) for file in files])
        return Split(np.concatenate(chunks), labels)

    def queries(self, seconds: NDArray[np.int16]) -> NDArray[np.float32]:
        """Return queries (n, 1, frequencies, times) for sounds (n, 16000)."""
        return _as_queries(spectrogram(seconds))


class SmallSpeechCommands(SpeechCommands):
    """Words as log spectrograms of 40 mel bands by 50 times, an eighth of the numbers."""

    name = "speech-commands-small"

    def queries(self, seconds: NDArray[np.int16]) -> NDArray[np.float32]:
        powers = mel_filters() @ spectrogram(seconds)
        n, bands, frames = powers.shape
        return _as_queries(powers[..., : frames // 2 * 2].reshape(n, bands, -1, 2).mean(axis=-1))


def part_of(file: str) -> Part:
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
    rising, falling = (
        (frequencies - lower) / (centre - lower),
        (upper - frequencies) / (upper - centre),
    )
    weights = np.maximum(np.minimum(rising, falling), 0)
    # The lowest bands are narrower than the distance between frequencies.
    empty = weights.sum(axis=1) == 0
    nearest = np.abs(frequencies - centre).argmin(axis=1)
    weights[empty, nearest[empty]] = 1
    filters: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return filters


def read_second(path: Path) -> NDArray[np.int16]:
    """Return the first second in `path`, (16000,), padded with silence if it is shorter.

    Raises DataError for a file that is no WAV file of this kind.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            if form != (1, BYTES, RATE):
                raise DataError(
                    f"{path} has {form[0]} channels of {8 * form[1]} bits at {form[2]} Hz; make "
                    f"it one of 16 bits at {RATE} Hz (sox IN -c 1 -b 16 -r {RATE} OUT)"
                )
            promised = min(file.getnframes(), RATE)
            sound = file.readframes(promised)
            if not promised or len(sound) < promised * BYTES:
                raise EOFError
            samples = np.frombuffer(sound, "<i2")
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a WAV file ({str(error) or 'it is cut off'}); fetch it "
            "again or take it out"
        ) from error
    second = np.zeros(RATE, np.int16)
    second[: len(samples)] = samples
    return second


def write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    """Write `samples` (n,) to `path`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(BYTES)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def _as_queries(powers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return logarithms of powers (n, ...), each query's to mean 0 and deviation 1."""
    logs = np.log(powers + np.float32(SILENT))[:, None]
    rest = tuple(range(1, logs.ndim))
    logs -= logs.mean(axis=rest, keepdims=True)
    queries: NDArray[np.float32] = logs / np.maximum(logs.std(axis=rest, keepdims=True), 1e-3)
    return queries


def _words(folder: Path) -> tuple[str, ...]:
    """Return the words in `folder`, sorted: its folders that hold WAV files."""
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name != NOISE and next(entry.glob("*.wav"), None)
        )
    )
