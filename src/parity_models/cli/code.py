"""The options of commands that take a code, or a bundle that may have one of the user's own."""

from typing import Annotated, Any

import typer

from parity_models.cli.extensions import OWN, command_for, flag_of, given_options, naming
from parity_models.codes import DECODERS, ENCODERS, CodeSpec

EncoderName = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(ENCODERS.names)}, {OWN}; by default stack, as published sum.",
        metavar="NAME",
        callback=naming(ENCODERS),
    ),
]
DecoderName = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(DECODERS.names)}, {OWN}; by default separate, as published "
        "subtraction.",
        metavar="NAME",
        callback=naming(DECODERS),
    ),
]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        help="An encoder or decoder of your own, package.module:Class, that the bundle names and "
        "that may be imported; can be given several times. By default nothing is imported.",
        metavar="CLASS",
        show_default=False,
    ),
]

CODERS: dict[str, Any] = {"encoder": ENCODERS, "decoder": DECODERS}
"""The kinds of extensions whose flags a command that takes a code has."""

CodeCommand = command_for(**CODERS)
"""A command with a flag for each option of an encoder or decoder."""


def coder_options(context: typer.Context) -> dict[str, Any]:
    """The options that were given, by the names that descriptions of codes have for them."""
    return {f"{coder}_options": given_options(context, coder) for coder in CODERS}


def choose_code(context: typer.Context, encoder: str, decoder: str, k: int, r: int) -> CodeSpec:
    """The code with the options given on the command line.

    Raises UserError for options that its encoder and decoder have not, and values out of range.
    """
    for coder, name in (("encoder", encoder), ("decoder", decoder)):
        CODERS[coder].options(name, given_options(context, coder), flag_of)
    return CodeSpec(encoder, decoder, k, r, **coder_options(context))
