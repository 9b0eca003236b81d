"""The command `parm-lab`: mistakes are refused in one line, help is written out in full."""

from pathlib import Path

import pytest

from commands import Here, assert_refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("bench page --rate high", "'high' is not a number"),
        ("chaos --minutes 0.1s", "must be 0.01 min or more, got 0.1s"),
        ("rollout --seconds soon", "'soon' is no time"),
        ("reproduce protect --minutes 5s", "must be 0.1 min or more, got 5s"),
        ("reproduce latency --figure lat", "did you mean late? Give a file, or one of 10, 11"),
        ("demo --port 99999", "must be 65535 or less, got 99999"),
        ("train --task nothing --network mlp --out x", "nothing"),
        ("train --task digits --network nothing --out x", "nothing"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(
    lab_here: Here, arguments: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lab_here(*arguments.split()), reason)
    assert list(tmp_path.iterdir()) == []
