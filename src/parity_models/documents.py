"""Small documents that people write, such as fault plans: read into structs, and checked.

Messages about mistakes are in the terms of the document's author: the place in the document, the
values allowed there, and the value found.
"""

import json
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

T = TypeVar("T")

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "array": "a list",
    "object": "a table of names and values",
    "null": "nothing",
}
"""Words for the kinds of values in msgspec's messages."""

BOUNDS = {">=": "{} or more", "<=": "{} or less", ">": "above {}", "<": "below {}"}

SHOWN = 40
"""Characters of a wrong value that messages show."""

MAX_BYTES = 1 << 20
"""The default maximum size of a document."""


def content_of(file: "Traversable", most: int = MAX_BYTES) -> bytes:
    """Read a file. Raises OSError, and ValueError for one of more than `most` bytes."""
    with file.open("rb") as stream:
        content: bytes = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return content


def read_json(content: bytes, kind: type[T]) -> T:
    """Return the struct that a JSON document describes. Raises ValueError that says what is
    wrong."""
    try:
        document = msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"it is not JSON: {_malformed(content, str(error))}") from error
    return as_struct(document, kind)


def as_struct(document: Any, kind: type[T]) -> T:
    """Return the struct of this kind with the values of a document; plain values, as decoded.

    Raises ValueError that says what is wrong, and whatever else the struct itself raises.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
        raise ValueError(_in_words(said, _find(deepcopy(document), kind, path))) from error


def _malformed(content: bytes, said: str) -> str:
    if "truncated" in said:
        return "it ends too early; is a bracket or a quote not closed?"
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", said)
    if found is None:
        return said
    before = content[: int(found[2])]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return f"{found[1]} at line {line}, column {column}"


class _Place(NamedTuple):
    """A place in a document: its name, the value that is there, and what may be there."""

    name: str
    value: Any
    types: list[inspect.Type]

    @property
    def here(self) -> str:
        """The place at the beginning of a sentence."""
        return self.name or "it"

    @property
    def shown(self) -> str:
        """The value, cut off where it is long."""
        text = json.dumps(self.value, default=str, ensure_ascii=False)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    @property
    def fields(self) -> list[str]:
        """The names that a table may have here."""
        structs = [each for each in self.types if isinstance(each, inspect.StructType)]
        tagged = [s for s in structs if s.tag_field and self.value.get(s.tag_field) == s.tag]
        return [field.encode_name for each in tagged or structs for field in each.fields]


def _find(document: Any, kind: type, path: str) -> _Place:
    """Return the place at a path of msgspec's in a document of this kind."""
    place = _Place("", document, list(_flat(inspect.type_info(kind))))
    for field, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", path):
        step = field or (
            _wrong_entry(document, kind, place.value) if index == "..." else int(index)
        )
        name = f"{place.name}[{step}]" if isinstance(step, int) else f"{place.name}.{step}"
        types = [below for each in place.types for below in _below(each, step)]
        place = _Place(name.lstrip("."), place.value[step], types)
    return place


def _wrong_entry(document: Any, kind: type, table: dict[str, Any]) -> str:
    """Return the first entry of a table in a document that is refused even if it is alone."""
    entries = dict(table)
    for key, value in entries.items():
        table.clear()
        table[key] = value
        try:
            msgspec.convert(document, kind)
        except msgspec.ValidationError:
            return key
    return next(iter(entries))


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Yield the alternatives of a type."""
    match kind:
        case inspect.UnionType(types):
            for each in types:
                yield from _flat(each)
        case inspect.Metadata(below):
            yield from _flat(below)
        case _:
            yield kind


def _below(kind: inspect.Type, step: str | int) -> Iterator[inspect.Type]:
    """Yield the types at a step below a place of this type."""
    match kind:
        case inspect.StructType():
            if step == kind.tag_field:
                yield inspect.LiteralType((kind.tag,))
            for field in kind.fields:
                if field.encode_name == step:
                    yield from _flat(field.type)
        case inspect.DictType():
            yield from _flat(kind.value_type)
        case inspect.ListType() | inspect.VarTupleType():
            yield from _flat(kind.item_type)


def _choices(types: Iterable[inspect.Type]) -> list[str]:
    """Return the texts that values of these types may be."""
    found: list[str] = []
    for kind in types:
        match kind:
            case inspect.EnumType(cls):
                found += [str(each.value) for each in cls]
            case inspect.LiteralType(values):
                found += map(str, values)
    return found


def _in_words(said: str, place: _Place) -> str:
    """Return msgspec's message about a place in words; a struct's own messages are unchanged."""
    choices = _choices(place.types)
    if found := re.fullmatch("Object contains unknown field `(.*)`", said):
        near = get_close_matches(found[1], place.fields, 1)
        instead = f"did you mean {near[0]}?" if near else f"there are {', '.join(place.fields)}"
        return f"{place.here} has no {found[1]!r}; {instead}"
    if found := re.fullmatch("Object missing required field `(.*)`", said):
        known = _choices(below for each in place.types for below in _below(each, found[1]))
        one_of = f", one of {', '.join(known)}" if known else ""
        return f"{place.here} needs {found[1]!r}{one_of}"
    expected = re.fullmatch("Expected `([^`]*)`, got `([^`]*)`", said)
    if re.match("Invalid (enum )?value ", said) or (expected and choices):
        near = get_close_matches(str(place.value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{place.here} is one of {', '.join(choices)}, not {place.shown}{hint}"
    if expected:
        kinds = [KINDS.get(each, each) for each in expected[1].split(" | ") if each != "null"]
        return f"{place.here} must be {' or '.join(kinds)}, not {place.shown}"
    if found := re.fullmatch("Expected `[^`]*` of length (>=|<=) (.*)", said):
        bound = BOUNDS[found[1]].format(found[2])
        return f"{place.here} must have {bound} elements, but has {len(place.value)}"
    if found := re.fullmatch("Expected `[^`]*` ([<>]=?) (.*)", said):
        bound = BOUNDS[found[1]].format(f"{float(found[2]):g}")
        return f"{place.here} must be {bound}, got {place.shown}"
    return f"{place.name}: {said}" if place.name else said
