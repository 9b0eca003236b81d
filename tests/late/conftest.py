"""Shared fixtures of the tests of Late."""

from math import inf

import pytest

from parity_models.late import late as late_module
from parity_models.scheduling.process_load import ProcessLoad


@pytest.fixture
def never_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, neither the target nor the event loop seems overloaded."""
    monkeypatch.setattr(late_module, "CONGESTED", inf)
    monkeypatch.setattr(ProcessLoad, "waited", lambda *_: None)
