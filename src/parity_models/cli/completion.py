"""parm completion: what a shell needs to complete parm's commands and options."""

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # not in __all__

from parity_models.cli.main import COMPLETION


class Shell(StrEnum):
    """The shells there are scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[
        Shell, typer.Argument(metavar="SHELL", help="The shell that the script is for.")
    ],
) -> None:
    """Print the script that completes parm's commands and options in a shell.

    For bash, put `source <(parm completion bash)` into ~/.bashrc; for zsh, the output into a file
    _parm in a folder of $fpath; for fish, into ~/.config/fish/completions/parm.fish.
    """
    typer.echo(get_completion_script(prog_name="parm", complete_var=COMPLETION, shell=shell))
