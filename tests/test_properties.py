"""Properties are tried with the same inputs each time."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import LONG

ODD = 8_675_309


def drawn() -> list[tuple[int, str]]:
    """What a property is tried with."""
    inputs: list[tuple[int, str]] = []

    @given(st.integers(), st.text())
    @settings(max_examples=300)
    def tried(number: int, text: str) -> None:
        inputs.append((number, text))

    tried()
    return inputs


@pytest.mark.skipif(LONG or not settings().derandomize, reason="they are to be new ones")
def test_inputs_do_not_depend_on_what_was_imported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn()
    assert len(before) == 300
    (tmp_path / "odd.py").write_text(f"ODD = {ODD}\nNAME = 'an odd name'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("odd")
    try:
        assert drawn() == before
    finally:
        del sys.modules["odd"]
