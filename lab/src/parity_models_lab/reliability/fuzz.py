"""parm-lab fuzz: the fuzzers of the test suite, for long."""

import os
import subprocess
import sys
import time
from pathlib import Path

from parity_models.errors import UserError

FUZZERS = "tests/**/test_fuzz_*.py"


def run_fuzzers(seconds: float, seed: int) -> bool:
    """Run them one after the other, round after round, until the time is over; False at the first
    failure. What pytest says goes to standard output.

    Raises UserError unless the working directory is a checkout of the repository.
    """
    found = sorted(Path().glob(FUZZERS))
    if not found:
        raise UserError(f"there is no {FUZZERS} here; run this in a checkout of the repository")
    end = time.monotonic() + seconds
    while True:
        for file in found:
            left = end - time.monotonic()
            if left <= 0:
                return True
            command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=0", str(file)]
            command += [f"--hypothesis-seed={seed}"]
            try:
                ended = subprocess.run(
                    command, env=os.environ | {"PARM_FUZZ": "long"}, timeout=left, check=False
                )
            except subprocess.TimeoutExpired:
                return True
            if ended.returncode:
                return False
        seed += 1
