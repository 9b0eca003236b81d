"""The names that parity_models exports exist, and are known to type checkers."""

import pytest

import parity_models

EXPORTED: list[str] = vars(parity_models)["__all__"]  # which the stub does not name


@pytest.mark.parametrize("name", EXPORTED)
def test_everything_exported_is_there(name: str) -> None:
    assert getattr(parity_models, name).__doc__
    assert name in dir(parity_models)


def test_what_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        parity_models.nonsense  # type: ignore[attr-defined]  # noqa: B018  # the mistake under test
