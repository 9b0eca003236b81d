"""How many instances the models of a repository share, and which of them are reserved."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.errors import OptionError, UserError
from parity_models.options import Amounts, Option, Options


@dataclass(frozen=True, kw_only=True)
class SharingOptions(Options):
    """How models share instances. Raises UserError for values out of range."""

    shared_instances: Annotated[
        int | None,
        Option(
            "With --repository: so many instances for all models together, in place of "
            "--instances for each; they move to the models that need them.",
            at_least=1,
        ),
    ] = None
    reserve: Annotated[
        Amounts | None,
        Option(
            "Of the shared instances, the least that these models have, as digits=2,prices=1; "
            "others have 1."
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reserve and self.shared_instances is None:
            raise OptionError(
                lambda spell: (
                    f"{spell('reserve')} needs {spell('shared_instances')} beside it: how many "
                    "there are for all models"
                )
            )
        for name, count in (self.reserve or {}).items():
            if count < 1 or count != int(count):
                raise UserError(
                    f"reserve a whole number of instances for {name}, 1 or more, not {count:g}"
                )

    @property
    def reserves(self) -> dict[str, int]:
        """The least that each model has for which instances are reserved."""
        return {name: int(count) for name, count in (self.reserve or {}).items()}
