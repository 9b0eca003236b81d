"""Options are declared once: what users type becomes values in their units, or a sentence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from parity_models import options
from parity_models.errors import UserError
from parity_models.options import declared_in, option
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
        """Options."""

        size: int = option(2**20, "Bytes.", unit="MiB", gt=0)
        wait: float = option(1, "Time.", unit="ms", gt=0, le=1)
        pause: float = option(5.0, "Time.", unit="s", ge=0)
        tea_time: float = option(4.0, "Time.", unit="min", ge=0.1, le=60)
        milk: float = option(0.25, "Share.", unit="share", ge=0, lt=1)
        hot: bool = option(False, "Is it?")
        port: int | None = option(None, "Where.", ge=0, le=9)
        place: Path | None = option(None, "Where.")
        programs_only: int = 1


class Pan(Thing):
    """Another, without options."""

    name = "pan"


THINGS = Registry[Any]("thing", Thing, Kettle, Pan)
TIME = "a time with a unit, as 50ms, 2s, 5m or 1h"
FIELDS = {field.name: field for field in declared_in(Kettle.Options)}


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("size", "2.5", 2621440),
        ("wait", 250, 0.25),
        ("wait", "0.5 S", 0.5),
        ("pause", "3", 3),
        ("pause", "50ms", 0.05),
        ("tea_time", "1h", 60),
        ("wait", "9", 0.009),
        ("milk", "57%", 0.57),
        ("milk", "30%", 0.3),
        ("milk", "0.3", 0.3),
        ("hot", "true", True),
        ("port", "7", 7),
        ("place", "here", Path("here")),
    ],
)
def test_typed_values_are_read_in_their_unit(name: str, typed: Any, value: Any) -> None:
    assert FIELDS[name].parse(typed) == pytest.approx(value) if name != "place" else Path("here")


def test_defaults_are_written_as_users_type_them() -> None:
    assert {name: field.default_in_words for name, field in FIELDS.items()} == {
        "size": "1", "wait": "1000", "pause": "5", "tea_time": "4", "milk": "0.25", "hot": "",
        "port": "", "place": "",
    }  # fmt: skip
    for field in FIELDS.values():
        if field.default is not None:
            assert field.parse(field.write(field.default)) == field.default


@pytest.mark.parametrize(
    ("name", "typed", "reason"),
    [
        ("size", float("inf"), "must be a number of MiB, above 0; got inf"),
        ("size", "x", "must be a number of MiB, above 0; got 'x'"),
        ("wait", "0", f"must be a number of milliseconds, or {TIME}, above 0 and at most 1000 ms"),
        ("wait", float("nan"), f"must be a number of milliseconds, or {TIME}"),
        ("pause", "soon", f"must be a number of seconds, or {TIME}, at least 0; got 'soon'"),
        ("tea_time", "5s", f"must be a number of minutes, or {TIME}, from 0.1 to 60 min; got '5s'"),
        ("milk", "a lot", "must be a share, as 30% or 0.3, at least 0 and below 1; got 'a lot'"),
        ("milk", "100%", "must be a share, as 30% or 0.3, at least 0 and below 1; got '100%'"),
        ("hot", "perhaps", "must be true or false; got 'perhaps'"),
        ("port", "10", "must be a whole number, from 0 to 9; got '10'"),
        ("port", "x", "must be a whole number, from 0 to 9; got 'x'"),
        ("port", True, "must be a whole number, from 0 to 9; got True"),
        ("port", 1.5, "must be a whole number, from 0 to 9; got 1.5"),
        ("port", 2**2000, "must be a whole number, from 0 to 9; got 1"),
    ],
)
def test_invalid_values_are_refused(name: str, typed: Any, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        FIELDS[name].parse(typed)
    assert str(refused.value).startswith(reason)


def test_options_may_follow_a_name() -> None:
    kind, found = THINGS.parse("kettle@wait=500,hot=true,port=3,tea-time=30s")
    assert kind is Kettle
    assert found == Kettle.Options(wait=0.5, hot=True, port=3, tea_time=0.5)
    assert THINGS.parse("kettle@7")[1] == Kettle.Options(size=7 * 2**20)
    assert THINGS.parse("pan") == (Pan, Pan.Options())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kettel", "there is no thing 'kettel'; there are .*; did you mean kettle"),
        ("kettle@", "size of kettle must be a number of MiB, above 0; got ''"),
        ("kettle@hot=perhaps", "hot of kettle must be true or false; got 'perhaps'"),
        ("kettle@prot=1", "prot is not an option of the thing kettle; did you mean port"),
        ("pan@port=1", "port is not an option of the thing pan but of kettle"),
        ("pan@1", "is not an option of the thing pan; it has none"),
    ],
)
def test_a_name_with_options_that_cannot_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        THINGS.parse(text)


def test_options_made_in_python_are_checked() -> None:
    with pytest.raises(UserError, match="port must be a whole number, from 0 to 9; got 11"):
        Kettle.Options(port=11)
    with pytest.raises(UserError, match="size must be a whole number, above 0; got 0"):
        Kettle.Options(size=0)
    made = Kettle.Options(wait=np.float64(0.5), port=cast(int, np.int64(1)))
    assert (made.wait, made.port, type(made.port)) == (0.5, 1, int)
