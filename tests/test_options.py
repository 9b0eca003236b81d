"""Options are declared once: what users type becomes values in their units, or a sentence."""

from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from parity_models import options
from parity_models.errors import OptionError, UserError
from parity_models.options import (
    BYTES,
    SECONDS,
    Amounts,
    Option,
    make_options,
    options_of,
)
from parity_models.registry import Registry


class Thing:
    """The base of a kind of extensions."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""


class Kettle(Thing):
    """One of the kind."""

    name = "kettle"

    @dataclass(frozen=True, kw_only=True)
    class Options(Thing.Options):
        """What can be set."""

        size: Annotated[int, Option("Bytes.", unit=BYTES, typed="MiB", at_least=1)] = 2**20
        wait: Annotated[float, Option("Time.", unit=SECONDS, above=0, hint="never is too long")] = 1
        pause: Annotated[float, Option("Time.", unit=SECONDS, typed="s", at_least=0)] = 5.0
        cups: Annotated[Amounts | None, Option("How many of each.")] = None
        hot: Annotated[bool, Option("Is it?")] = False
        port: Annotated[int | None, Option("Where.", at_least=0, at_most=9)] = None


class Pan(Thing):
    """Another, without options."""

    name = "pan"


THINGS = Registry[Any]("thing", Thing, Kettle, Pan)
FIELDS = {field.name: field for field in options_of(Kettle.Options)}


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("size", 2.5, 2621440),
        ("wait", 250, 0.25),
        ("pause", 3, 3),
        ("cups", "red=1,blue=0.5", {"red": 1.0, "blue": 0.5}),
        ("hot", True, True),
        ("port", 7, 7),
    ],
)
def test_what_users_type_becomes_a_value_in_its_unit(name: str, typed: Any, value: Any) -> None:
    field = FIELDS[name]
    assert field.convert(field.from_typed(typed, str), str) == value


def test_defaults_are_written_as_users_type_them() -> None:
    words = {name: field.default_in_words for name, field in FIELDS.items()}
    assert words == {
        "size": "1",
        "wait": "1000",
        "pause": "5",
        "cups": "",
        "hot": "",
        "port": "",
    }


@pytest.mark.parametrize(
    ("name", "typed", "reason"),
    [
        ("size", float("inf"), "--size is a number of MiB, not inf"),
        ("size", 0, "--size must be 1 bytes or more, got 0"),
        ("wait", 0, "--wait must be above 0, got 0; never is too long"),
        ("wait", float("nan"), "--wait must be above 0, got nan"),
        ("cups", "red", "--cups takes amounts by name, as gpu=1,disk=0.5, not 'red'"),
        ("cups", "red=nan", "--cups must be amounts of 0 or more by name"),
        ("cups", "red=1, blue=1, red=2", "--cups has two amounts of red"),
        ("cups", "red=-1", "--cups must be amounts of 0 or more by name"),
        ("cups", {"red": "one"}, "--cups must be amounts of 0 or more by name"),
        ("hot", 1, "--hot must be a bool, got 1"),
        ("port", 10, "--port must be from 0 to 9, got 10"),
        ("port", "x", "--port must be an int, got 'x'"),
    ],
)
def test_what_cannot_be_is_refused_as_it_is_spelt(name: str, typed: Any, reason: str) -> None:
    def spell(option: str) -> str:
        return f"--{option}"

    with pytest.raises(UserError, match=reason):
        FIELDS[name].convert(FIELDS[name].from_typed(typed, spell), spell)


def test_options_may_follow_a_name() -> None:
    kind, found = THINGS.parse("kettle@wait=0.5,hot=true,port=3")
    assert kind is Kettle
    assert found == Kettle.Options(wait=0.5, hot=True, port=3)
    assert THINGS.parse("kettle@7")[1] == Kettle.Options(size=7)
    assert THINGS.parse("pan") == (Pan, Pan.Options())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kettel", "there is no thing 'kettel'; did you mean kettle"),
        ("kettle@", "size must be an int, got ''"),
        ("kettle@hot=perhaps", "hot must be a bool, got 'perhaps'"),
        ("kettle@prot=1", "prot is no option of the thing kettle; did you mean port"),
        ("kettle@colour=1", "colour is no option of the thing kettle; it has size, wait"),
        ("pan@port=1", "port is no option of the thing pan but of kettle; leave it out"),
        ("pan@1", "is no option of the thing pan; it has none"),
    ],
)
def test_a_name_with_options_that_cannot_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        THINGS.parse(text)


def test_every_field_of_options_is_declared() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Undeclared(options.Options):
        size: int = 1

    with pytest.raises(TypeError, match=r"Undeclared.size is not Annotated with an Option"):
        options_of(Undeclared)
    with pytest.raises(UserError, match="port must be from 0 to 9"):
        make_options(Kettle.Options, {"port": 11})


def test_an_error_of_options_has_the_names_of_fields_and_of_what_was_typed() -> None:
    error = OptionError(lambda spell: f"{spell('port')} needs {spell('hot')} beside it")
    assert str(error) == "port needs hot beside it"
    assert error.spelled(str.upper) == "PORT needs HOT beside it"
    assert UserError("of no option").spelled(str.upper) == "of no option"
    copied = copy(error)  # as pickled
    assert isinstance(copied, UserError)
    assert str(copied) == str(error)
