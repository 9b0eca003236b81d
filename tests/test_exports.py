"""The names that parity_models exports exist, and are known to type checkers."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import parity_models
from parity_models.errors import UserError

EXPORTED: list[str] = vars(parity_models)["__all__"]  # which the stub does not name
STUB = Path(parity_models.__file__).with_suffix(".pyi")


@pytest.fixture(scope="module")
def stub() -> dict[str, Any]:
    """The names that the stub declares."""
    names: dict[str, Any] = {}
    exec(compile(STUB.read_text(), STUB, "exec"), names)
    return names


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("protect", "SearchOptions"),
        ("train_parity", "TrainingOptions"),
        ("train_backup", "TrainingOptions"),
        ("plan", "Goal"),
        ("simulate", "SimulationOptions"),
        ("serve", "ServeOptions"),
    ],
)
def test_the_stub_has_the_options_of_functions(
    stub: dict[str, Any], name: str, options: str
) -> None:
    declared, kind = stub[name], getattr(parity_models, options)
    (given,) = get_args(get_type_hints(declared)["given"])
    assert given.__name__ == f"_{options}"
    taken = get_type_hints(given)
    assert taken.keys() == {field.name for field in fields(kind)}
    for field, hint in get_type_hints(kind).items():
        wider = {Path, str, *(get_args(hint) or (hint,))}
        assert taken[field] == hint or set(get_args(taken[field])) <= wider, field
    real = inspect.signature(getattr(parity_models, name)).parameters
    assert {each: (one.kind, one.default) for each, one in real.items()} == {
        each: (one.kind, one.default)
        for each, one in inspect.signature(declared).parameters.items()
    }


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
