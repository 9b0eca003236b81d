"""parm bundle: a bundle of the user's own ONNX model, without training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import click

from parity_models.bundle.servable import make_bundle
from parity_models.errors import UserError
from parity_models.options import Option, option
from parity_models.tensors.signature import Axis

V = TypeVar("V")


def bundle(
    model: Annotated[Path, Option("The model, an ONNX file.", argument=True)],
    *,
    out: Annotated[Path, Option("The bundle's folder.", metavar="BUNDLE")],
    inputs: Path | None = option(
        None,
        "Queries that bound dynamic axes: an .npz file with an array for each input, padded.",
        metavar="FILE",
    ),
    axis: list[str] | None = option(
        None,
        "Bound of a dynamic axis (length=512), or sizes to pad to (length=64,512); repeatable.",
        metavar="NAME=SIZES",
    ),
    padding: list[str] | None = option(
        None,
        "The value that fills up shorter rows of an input; by default 0. Repeatable.",
        metavar="INPUT=VALUE",
    ),
    backup: Path | None = option(
        None,
        "A cheaper model for the same queries, an ONNX file with the same inputs and one output.",
        metavar="MODEL",
    ),
    output: str | None = option(
        None, "Which of several outputs the backup imitates.", metavar="OUTPUT"
    ),
) -> None:
    """Make a bundle of an ONNX model with any named inputs and outputs, of numbers or texts.

    All axes except the first may be dynamic: bound them with --axis, or with queries. A backup of
    your own may be added; calibrate it afterwards with parm calibrate.
    """
    paddings = _pairs(padding or (), "--padding takes INPUT=NUMBER", float)
    axes = _pairs(axis or (), "--axis takes NAME=SIZE or NAME=SIZE,SIZE,..., ascending", _sizes)
    written = make_bundle(
        model, out=out, inputs=inputs, axes=axes, padding=paddings, backup=backup, output=output
    )
    signature = written.manifest.deployed.signature
    for tensor in signature.inputs:
        click.echo(f"input {tensor}")
    for tensor in signature.outputs:
        click.echo(f"output {tensor}")
    for each, sizes in signature.axes.items():
        click.echo(f"axis {each!r} is padded to {', '.join(map(str, sizes.buckets))}")
    click.echo(f"wrote {written.path}")


def _sizes(text: str) -> Axis | int:
    parts = text.split(",")
    if not all(each.isdecimal() and int(each) for each in parts):
        raise ValueError("sizes are whole numbers of 1 or more")
    sizes = tuple(map(int, parts))
    return Axis(sizes) if len(sizes) > 1 else sizes[0]


def _pairs(texts: Sequence[str], form: str, read: Callable[[str], V]) -> dict[str, V]:
    """Read texts as NAME=VALUE. Raises UserError, with the `form`, for other texts."""
    found: dict[str, V] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            if not name or name in found:
                raise ValueError("give each name once")
            found[name] = read(value)
        except ValueError as error:
            raise UserError(f"{form}, not {text!r} ({error})") from None
    return found
