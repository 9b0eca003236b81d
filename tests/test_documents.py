"""Documents that people write are read, or refused with the place and the reason."""

import pytest

from parity_models.documents import read_json
from parity_models.emulation import FaultPlan


def test_a_document_becomes_a_struct() -> None:
    assert read_json(b'{"seed": 3}', FaultPlan) == FaultPlan(seed=3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"seed": "3"}', "seed: Expected `int`, got `str`"),
        (b'{"sed": 3}', "Object contains unknown field `sed`"),
        (b'{"pauses": {"mean_between": 1}}', "pauses: Object missing required field `length`"),
        (b'{"kills": [{"worker": 1, "at": -1}]}', "kills[0].at: Expected `float` >= 0.0"),
        (b'["\xff"]', "it is not JSON: "),
        (b"[" * 10_000, "it is not JSON: "),
        (b'{"seed": ', "it is not JSON: Input data was truncated"),
    ],
)
def test_what_cannot_be_read_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # its text is compared
        read_json(text, FaultPlan)
    assert str(refused.value).startswith(reason)
