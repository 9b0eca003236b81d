"""One-second sounds in WAV files: 16,000 samples of 16 bits, one channel."""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError

RATE = 16_000
"""Samples in a second."""

BYTES = 2
"""Of a sample."""


def read_second(path: Path) -> NDArray[np.int16]:
    """The first second in `path`, (16000,), padded with silence if it is shorter.

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
