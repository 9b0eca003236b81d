"""Shared fixtures of the tests of Late."""

from math import inf

import pytest

from parity_models.late import late as late_module
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.scheduling.process_load import ProcessLoad
from served import write_linear_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its backup predicts twice as much."""
    folder = tmp_path_factory.mktemp("backed")
    return open_bundle(write_linear_bundle(folder, coded=False, backed=True))


@pytest.fixture
def never_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, neither the target nor the event loop seems overloaded."""
    monkeypatch.setattr(late_module, "CONGESTED", inf)
    monkeypatch.setattr(ProcessLoad, "waited", lambda *_: None)
