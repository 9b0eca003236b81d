"""What the page of the live demo may ask for."""

import msgspec

from parity_models.errors import UserError


class Kill(msgspec.Struct, frozen=True, tag="kill", forbid_unknown_fields=True):
    """kill -9 of an instance."""

    instance: str


class Stop(msgspec.Struct, frozen=True, tag="stop", forbid_unknown_fields=True):
    """An instance gets nowhere for a second."""

    instance: str


class Slow(msgspec.Struct, frozen=True, tag="slow", forbid_unknown_fields=True):
    """An instance takes longer from now on, or as long as usual again."""

    instance: str


class Corrupt(msgspec.Struct, frozen=True, tag="corrupt", forbid_unknown_fields=True):
    """An instance answers wrongly from now on, or rightly again."""

    instance: str


class Load(msgspec.Struct, frozen=True, tag="load", forbid_unknown_fields=True):
    """So many queries a second from now on."""

    rate: float


class Policy(msgspec.Struct, frozen=True, tag="policy", forbid_unknown_fields=True):
    """Another policy on one side."""

    side: int
    policy: str


Control = Kill | Stop | Slow | Corrupt | Load | Policy


def control_of(body: bytes) -> Control:
    """What a request's body asks for. Raises UserError."""
    try:
        control: Control = msgspec.json.decode(body, type=Control)
    except (ValueError, RecursionError) as error:
        raise UserError(f"that is nothing the demo can do: {error}") from error
    return control


def worker_of(instance: str, workers: int) -> int:
    """The number of the worker that an instance is a life of: 2 for "2.1". Raises UserError."""
    number = instance.partition(".")[0]
    if number not in map(str, range(workers)):
        raise UserError(
            f"there is no instance {instance[:40]!r}; they begin with 0 to {workers - 1}"
        )
    return int(number)
