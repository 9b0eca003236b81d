"""Results that print as tables and sentences."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Printed(ABC):
    """A result that prints as its `parts`: tables, and sentences, which are not wrapped."""

    @property
    @abstractmethod
    def parts(self) -> "Sequence[RenderableType]":
        """The parts that are printed, in order."""

    def show(self, console: "Console | None" = None) -> None:
        """Print the result on a console, by default that of the process."""
        from rich.console import Console  # here: a server prints no results

        console = console or Console()
        for part in self.parts:
            console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None, force_terminal=False)
        with console.capture() as captured:
            self.show(console)
        return captured.get().rstrip()
