"""How a new version of a model takes the place of the old one."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.errors import OptionError
from parity_models.options import SECONDS, Option, Options


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Options):
    """How traffic moves to a new version. Raises UserError for values out of range."""

    canary: Annotated[
        str | None,
        Option(
            "With --repository: a new version takes this share of requests, and all of them once "
            "it has proved no worse than the old one; it goes back by itself if it is worse. By "
            "default it takes all at once.",
            metavar="SHARE%",
        ),
    ] = None
    canary_predictions: Annotated[
        int,
        Option(
            "Predictions of a canary that are compared with the old version's before it takes all.",
            at_least=1,
        ),
    ] = 500
    canary_time: Annotated[
        float,
        Option("For how long it is a canary, at least.", unit=SECONDS, typed="s", at_least=0),
    ] = 10.0
    canary_agreement: Annotated[
        float,
        Option(
            "A canary is worse if less than this share of its predictions say what the old "
            "version says.",
            at_least=0,
            at_most=1,
            metavar="SHARE",
        ),
    ] = 0.9
    canary_failures: Annotated[
        float,
        Option(
            "A canary is worse if it fails more than this share of the requests that the old "
            "version answers.",
            at_least=0,
            below=1,
            metavar="SHARE",
        ),
    ] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        share_of(self.canary)

    @property
    def share(self) -> float | None:
        """The share of requests that a new version takes first; None: all of them."""
        return share_of(self.canary)


def share_of(text: str | None) -> float | None:
    """The share that is written like 5%; None of None, or of all. Raises UserError."""
    if text is None:
        return None
    try:
        if not text.endswith("%"):
            raise ValueError
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        raise OptionError(
            lambda spell: f"{spell('canary')} is a share like 5%, not {text!r}"
        ) from None
    if not 0 < share <= 1:
        raise OptionError(
            lambda spell: f"{spell('canary')} must be above 0% and at most 100%, got {text}"
        )
    return None if share == 1 else share
