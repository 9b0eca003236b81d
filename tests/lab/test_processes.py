"""A load from a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from parity_models.errors import LoadError
from parity_models.load import LoadSpec
from parity_models_lab.processes import offer_load_from_own_process


@pytest.mark.slow
async def test_the_last_line_of_a_generator_that_fails_is_the_error(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((2, 4), np.float32))
    spec = LoadSpec(url="http://127.0.0.1:1", inputs=f"{tmp_path}/rows.npy", rate=10, queries=5)
    script = "print('ready'); print('started'); print('no space'); exit(1)"
    with pytest.raises(LoadError, match="no space"):
        await offer_load_from_own_process(spec, prefix=(sys.executable, "-c", script))
    with pytest.raises(LoadError, match="no server answers"):
        await offer_load_from_own_process(spec)
