"""Files of measured service times."""

from pathlib import Path

import numpy as np
import pytest

from parity_models.errors import UserError
from parity_models.faults import Empirical
from parity_models.simulation.service_times import read_service_times
from parity_models.simulation.setting import Setting


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("times.txt", "0.02\nfast\n", "one number of seconds per line"),
        ("times.txt", "", "has 0 service times"),
        ("times.txt", "0.1 0.2\n0.3 0.4\n", "of shape"),
        ("times.txt", "0.02\n0\n", "that are 0"),
        ("times.txt", "nan\n", "not finite"),
        ("times.npy", "0.02\n", "must be an .npy file"),
        ("", None, "cannot read"),
    ],
)
def test_what_is_no_file_of_service_times_is_refused(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        read_service_times(tmp_path / name)


def test_service_times_are_read_from_arrays_and_lists(tmp_path: Path) -> None:
    np.save(tmp_path / "times.npy", np.array([0.02, 0.03]))
    (tmp_path / "times.txt").write_text("# measured\n0.02\n0.03\n")
    for name in ("times.npy", "times.txt"):
        assert read_service_times(tmp_path / name) == Empirical((0.02, 0.03))
    measured = Setting(service=Empirical((0.02, 0.03)), load=0.5)
    assert measured.queries_per_second == pytest.approx(0.5 * 12 / 0.025)
