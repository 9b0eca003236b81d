"""The names that parity_models exports exist, and are known to type checkers."""

import pytest

import parity_models
from parity_models.errors import UserError

EXPORTED: list[str] = vars(parity_models)["__all__"]  # which the stub does not name


@pytest.mark.parametrize("name", EXPORTED)
def test_everything_exported_is_there(name: str) -> None:
    assert getattr(parity_models, name).__doc__
    assert name in dir(parity_models)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        parity_models.nonsense  # type: ignore[attr-defined]  # noqa: B018  # the mistake under test


def test_a_module_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(module: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(parity_models, "import_module", hidden)
    with pytest.raises(UserError, match=r"torch.*\[train\]"):
        _ = parity_models.protect
