"""Documents that people write are read, or refused in words that say where and why."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.documents import as_struct, read_json
from parity_models.emulation import FaultPlan

PLAN = {
    "seed": 7,
    "service_time": {"type": "lognormal", "median": 0.02, "sigma": 0.1},
    "service_times": {"backup": {"type": "constant", "seconds": 1.0}},
    "slowdowns": {
        "mean_between": 4.0,
        "mean_length": 1.0,
        "delay": {"type": "uniform", "low": 0.02, "high": 0.06},
        "workers": [0, 2],
    },
    "kills": [{"worker": 1, "at": 3.5}],
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "type", "x"]),
    lambda below: (
        st.lists(below, max_size=2) | st.dictionaries(st.text("ab", max_size=4), below, max_size=2)
    ),
    max_leaves=4,
)


@given(st.data())
def test_whatever_is_wrong_is_told_with_its_place_and_in_our_words(data: st.DataObject) -> None:
    document = msgspec.json.decode(msgspec.json.encode(PLAN))
    here, place = document, ""
    while True:
        step = data.draw(
            st.sampled_from([*here] if isinstance(here, dict) else [*range(len(here))])
        )
        place = f"{place}[{step}]" if isinstance(step, int) else f"{place}.{step}".lstrip(".")
        if not isinstance(here[step], dict | list) or data.draw(st.booleans()):
            break
        here = here[step]
    here[step] = data.draw(VALUES)
    before, said = repr(document), ""
    try:
        plan = as_struct(document, FaultPlan)
        assert plan == msgspec.convert(document, FaultPlan)
    except ValueError as error:
        said = str(error)
    # What two values say together is told of the table that they are in.
    assert said.startswith(place) or ": low (" in said or not said
    assert "`" not in said
    assert repr(document) == before


class Sized(msgspec.Struct):
    """What the next test reads."""

    size: int


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"size": "3"}', 'size must be a whole number, not "3"'),
        (b'["\xff"]', "it is not text in UTF-8"),
        (b"[" * 10_000, "it is nested too deeply"),
        (b'{"size": ', "it is not JSON: it ends too early; is a bracket or a quote not closed?"),
        (b'{\n"size": x}', "it is not JSON: invalid character at line 2, column 9"),
    ],
)
def test_json_that_cannot_be_read_is_refused(text: bytes, reason: str) -> None:
    assert read_json(b'{"size": 3}', Sized) == Sized(3)
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # its text is compared
        read_json(text, Sized)
    assert str(refused.value) == reason
