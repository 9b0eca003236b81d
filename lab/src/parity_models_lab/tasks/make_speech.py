"""Spoken commands by espeak-ng, in the layout of Speech Commands.

A speaker is an accent, a voice, a pitch and a pace; every take of a word varies pace and pitch a
little, begins at another moment and has noise of its own. Of ten speakers one is for validation
and one for test.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.making import Progress, new_folder, run_all
from parity_models_lab.tasks.speech import RATE, part_of, write_wav

PROGRAM = "espeak-ng"

WORDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
)
"""The thirty words of the dataset's first version."""

ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
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
NOISE = (5.0, 30.0)
"""Signal to noise, in decibels."""

HEADER = 44
"""Bytes before the samples in what espeak-ng writes."""

PATIENCE = 60.0
"""Seconds that one word may take."""


@dataclass(frozen=True)
class _Speaker:
    name: str
    voice: str
    pitch: float
    pace: float


def make_speech(
    out: Path,
    *,
    speakers: int = 150,
    takes: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Have `speakers` say every word `takes` times, into a new folder `out`; the number of files.

    The same seed and the same espeak-ng make the same files. Raises DataError without espeak-ng,
    for fewer than 3 speakers, and if there is something at `out`.
    """
    if shutil.which(PROGRAM) is None:
        raise DataError(f"{PROGRAM} is not installed; apt install {PROGRAM}")
    if speakers < 3:
        raise DataError(f"{speakers} speakers are too few; it takes one for each split")
    cast = _draw_speakers(speakers, seed)
    utterances = [
        (number, word, take)
        for number in range(speakers)
        for word in range(len(WORDS))
        for take in range(takes)
    ]
    with new_folder(out) as folder:
        for word in WORDS:
            (folder / word).mkdir()

        def make(utterance: tuple[int, int, int]) -> None:
            number, word, take = utterance
            speaker = cast[number]
            random = np.random.default_rng((seed, *utterance))
            samples = _place(_speak(WORDS[word], speaker, random), random)
            write_wav(folder / WORDS[word] / f"{speaker.name}_nohash_{take}.wav", samples)

        run_all(make, utterances, progress)
    return len(utterances)


def _draw_speakers(count: int, seed: int) -> list[_Speaker]:
    random = np.random.default_rng((seed, 1))
    parts = ["test", "validation", *["train"] * 8]
    speakers = []
    for number in range(count):
        name = random.bytes(4).hex()
        while part_of(name) != parts[number % len(parts)]:
            name = random.bytes(4).hex()
        voice = f"{random.choice(ACCENTS)}+{random.choice(VOICES)}"
        speakers.append(_Speaker(name, voice, random.uniform(*PITCHES), random.uniform(*PACES)))
    return speakers


def _speak(word: str, speaker: _Speaker, random: np.random.Generator) -> NDArray[np.float64]:
    """Return samples (n,) at 16 kHz, without the silence around the word."""
    pitch = round(speaker.pitch + random.uniform(-5, 5))
    pace = round(speaker.pace * random.uniform(0.9, 1.1))
    command = [PROGRAM, "-D", "--stdout", "-v", speaker.voice, "-p", str(pitch), "-s", str(pace)]
    try:
        said = subprocess.run([*command, word], capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command)} {word} took over {PATIENCE:.0f} s") from error
    if said.returncode or len(said.stdout) <= HEADER:
        why = said.stderr.decode(errors="replace").strip() or f"exit code {said.returncode}"
        raise DataError(f"{' '.join(command)} {word} failed: {why}")
    rate = int.from_bytes(said.stdout[24:28], "little")
    samples = np.frombuffer(said.stdout[HEADER:], "<i2").astype(np.float64)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    if not len(loud):
        raise DataError(f"{PROGRAM} says nothing for {word!r}; leave that word out")
    return _resample(samples[loud[0] : loud[-1] + 1], rate)


def _resample(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    wanted = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)[: wanted // 2 + 1]
    resampled: NDArray[np.float64] = np.fft.irfft(spectrum, wanted) * (wanted / len(samples))
    return resampled


def _place(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int16]:
    """Return a second with the sound somewhere in it, at some loudness, in some noise."""
    sound = sound[:RATE]
    second = np.zeros(RATE)
    start = random.integers(RATE - len(sound) + 1)
    second[start : start + len(sound)] = sound
    noise = _noise(random)
    loudness = np.sqrt(np.square(sound).mean())
    noise *= loudness / 10 ** (random.uniform(*NOISE) / 20)
    mixed: NDArray[Any] = second + noise
    mixed *= random.uniform(0.2, 0.9) * np.iinfo(np.int16).max / np.abs(mixed).max()
    return mixed.astype(np.int16)


def _noise(random: np.random.Generator) -> NDArray[np.float64]:
    """Return noise (16000,) of power 1, between white and brown."""
    spectrum = np.fft.rfft(random.standard_normal(RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** random.uniform(0, 1)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, RATE)
    unit: NDArray[np.float64] = noise / noise.std()
    return unit
