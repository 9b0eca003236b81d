"""Small documents that people write, such as fault plans: read into structs, and checked.

Messages about mistakes are in the terms of the document's author: the place in the document, the
values allowed there, and the value found.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

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
    return _read(content, kind, msgspec.json.decode, lambda said: _malformed(content, said))


def read_toml(content: bytes, kind: type[T]) -> T:
    """Return the struct that a TOML document describes. Raises ValueError that says what is
    wrong."""
    return _read(content, kind, msgspec.toml.decode, lambda said: f"it is not TOML: {said}")


def _read(
    content: bytes,
    kind: type[T],
    decode: Callable[[bytes], Any],
    in_words: Callable[[str], str],
) -> T:
    try:
        document = decode(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except msgspec.DecodeError as error:
        raise ValueError(in_words(str(error))) from error
    return as_struct(document, kind)


def as_struct(document: Any, kind: type[T]) -> T:
    """Return the struct of this kind with the values of a document; plain values, as decoded.

    Raises ValueError that says what is wrong, and whatever else the struct itself raises.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
        place = _Place(deepcopy(document), kind)
        for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", path):
            place.enter(name or (index if index == "..." else int(index)))
        raise ValueError(_in_words(said, place)) from error


def _malformed(content: bytes, said: str) -> str:
    """Return a description of malformed JSON."""
    if "truncated" in said:
        return "it is not JSON: it ends too early; is a bracket or a quote not closed?"
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", said)
    if found is None:
        return f"it is not JSON: {said}"
    before = content[: int(found[2])]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return f"it is not JSON: {found[1]} at line {line}, column {column}"


class _Place:
    """A place in a document: its name, the value that is there, and what may be there."""

    def __init__(self, document: Any, kind: type) -> None:
        self._document = document
        self._kind = kind
        self.name = ""
        self.value = document
        self.types = list(_flat(inspect.type_info(kind)))

    def enter(self, step: str | int) -> None:
        """Go to a field, to an element, or (`...`) to that entry of a table that is wrong."""
        if step == "...":
            step = self._wrong_entry()
        self.types = [below for each in self.types for below in _below(each, step)]
        self.value = self.value[step]
        if isinstance(step, int):
            self.name += f"[{step}]"
        else:
            self.name = f"{self.name}.{step}" if self.name else step

    def _wrong_entry(self) -> str:
        """Return the first entry of the table that is refused even if it is the only one."""
        table = self.value
        entries = dict(table)
        for key, value in entries.items():
            table.clear()
            table[key] = value
            try:
                msgspec.convert(self._document, self._kind)
            except msgspec.ValidationError:
                return str(key)
        return str(next(iter(entries)))

    @property
    def here(self) -> str:
        """The place at the beginning of a sentence."""
        return self.name or "it"

    @property
    def fields(self) -> list[str]:
        """The names that a table may have here."""
        structs = [each for each in self.types if isinstance(each, inspect.StructType)]
        tagged = [each for each in structs if self._is_of(each)]
        return [field.encode_name for each in tagged or structs for field in each.fields]

    def _is_of(self, struct: inspect.StructType) -> bool:
        field = struct.tag_field
        return field is not None and self.value.get(field) == struct.tag

    @property
    def choices(self) -> list[str]:
        """The texts that may be here."""
        return _texts(self.types)

    def choices_of(self, field: str) -> list[str]:
        """Return the texts that may be in a field of the table here."""
        return _texts([below for each in self.types for below in _below(each, field)])


def _texts(types: list[inspect.Type]) -> list[str]:
    found: list[str] = []
    for kind in types:
        match kind:
            case inspect.EnumType(cls):
                found += [str(each.value) for each in cls]
            case inspect.LiteralType(values):
                found += map(str, values)
    return found


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Return the alternatives of a type."""
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


def _in_words(said: str, place: _Place) -> str:
    """Return msgspec's message about a place in words; a struct's own messages are unchanged."""
    rules: dict[str, Callable[[re.Match[str]], str]] = {
        "Object contains unknown field `(.*)`": lambda found: _unknown(found[1], place),
        "Object missing required field `(.*)`": lambda found: _missing(found[1], place),
        "Invalid (?:enum )?value .*": lambda _: _no_choice(place),
        "Expected `([^`]*)`, got `([^`]*)`": lambda found: _other_kind(found[1], place),
        "Expected `[^`]*` of length (>=|<=) (.*)": lambda found: (
            f"{place.here} must have {BOUNDS[found[1]].format(found[2])} elements, "
            f"but has {len(place.value)}"
        ),
        "Expected `[^`]*` ([<>]=?) (.*)": lambda found: (
            f"{place.here} must be {BOUNDS[found[1]].format(f'{float(found[2]):g}')}, "
            f"got {_shown(place.value)}"
        ),
    }
    for pattern, say in rules.items():
        if found := re.fullmatch(pattern, said):
            return say(found)
    return f"{place.name}: {said}" if place.name else said


def _unknown(name: str, place: _Place) -> str:
    near = get_close_matches(name, place.fields, 1)
    instead = f"did you mean {near[0]}?" if near else f"there are {', '.join(place.fields)}"
    return f"{place.here} has no {name!r}; {instead}"


def _missing(name: str, place: _Place) -> str:
    choices = place.choices_of(name)
    one_of = f", one of {', '.join(choices)}" if choices else ""
    return f"{place.here} needs {name!r}{one_of}"


def _no_choice(place: _Place) -> str:
    choices = place.choices
    near = get_close_matches(str(place.value), choices, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{place.here} is one of {', '.join(choices)}, not {_shown(place.value)}{hint}"


def _other_kind(expected: str, place: _Place) -> str:
    kinds = [KINDS.get(each, each) for each in expected.split(" | ") if each != "null"]
    if place.choices:
        return _no_choice(place)
    return f"{place.here} must be {' or '.join(kinds)}, not {_shown(place.value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
