"""An accelerator that several workers share, as a lock."""

import fcntl
import os


class Device:
    """Held by one worker at a time, by all who give the same file, as in `with device:`.

    A worker that ends, however it does, lets go of it.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
