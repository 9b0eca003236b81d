"""The names that parity_models exports exist, and are known to type checkers."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import parity_models
from parity_models.errors import UserError

EXPORTED: list[str] = vars(parity_models)["__all__"]  # which the stub does not name
STUB = Path(parity_models.__file__).with_name("fields.pyi")


@pytest.fixture(scope="module")
def fields_of() -> dict[str, Any]:
    """The types of options by name."""
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
def test_functions_take_all_their_options_by_name(
    fields_of: dict[str, Any], name: str, options: str
) -> None:
    function, kind = getattr(parity_models, name), getattr(parity_models, options)
    (given,) = get_args(get_type_hints(function, localns=fields_of)["given"])
    assert given is fields_of[f"{options}Fields"]
    taken = get_type_hints(given)
    assert taken.keys() == {field.name for field in fields(kind)}
    for field, hint in get_type_hints(kind).items():
        wider = {Path, str, *(get_args(hint) or (hint,))}
        assert taken[field] == hint or set(get_args(taken[field])) <= wider, field


@pytest.mark.parametrize("name", EXPORTED)
def test_everything_exported_is_there(name: str) -> None:
    assert getattr(parity_models, name).__doc__
    assert name in dir(parity_models)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        parity_models.nonsense  # type: ignore[attr-defined]  # noqa: B018  # the mistake under test


def test_a_module_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(parity_models, "_load", hidden)
    monkeypatch.delitem(vars(parity_models), "protect", raising=False)  # it is kept after its use
    with pytest.raises(UserError, match=r"torch.*\[train\]"):
        _ = parity_models.protect
