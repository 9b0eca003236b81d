"""parm plan: which policy, and how many instances, for a goal and a load."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.json_file import Json, write_json
from parity_models.errors import UserError
from parity_models.options import declared_in, make_options
from parity_models.protection.options import Goal
from parity_models.protection.plan import plan as find_plan

COMMAND = command_for(
    plan=Declared(Goal, tuple(each.name for each in declared_in(Goal) if each.name != "headroom"))
)


def share(written: str | float) -> float:
    """Read a share, as 30% or 0.3. Raises typer.BadParameter for anything else."""
    text = str(written).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{written!r} is no share; write it as 30% or 0.3") from None
    if not 0 <= value < 1:
        raise typer.BadParameter(f"{written!r} is not from 0 to below 1; write it as 30% or 0.3")
    return value


def plan(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle to be served.", metavar="[BUNDLE]")
    ] = None,
    headroom: Annotated[
        float,
        typer.Option(
            help="The share of the instances' time that is to stay idle, as 30% or 0.3.",
            metavar="SHARE",
            parser=share,
        ),
    ] = Goal.headroom,
    json: Json = None,
) -> None:
    """Say which policy and how many instances serve a load within a goal, and what it costs.

    For example: parm plan --service-time 20ms --rate 200 --p99 50ms. Policies are simulated by the
    scheduler that serves, with the times of the bundle's models, of a running server (parm record),
    or of --service-time alone. Without --instances, as few as will do are looked for. Where nothing
    fits, it says what is nearest, and ends with 2.
    """
    goal = make_options(Goal, {**given_options(context, "plan"), "headroom": headroom}, flag_of)
    console = Console()
    with console.status("simulating") as status:
        found = find_plan(
            bundle, on_tried=lambda text: status.update(f"simulating {text}"), options=goal
        )
    if json is not None:
        write_json(json, {"goal": goal, "rate": found.rate, "plans": found.plans})
    found.show()
    if found.best is None:
        raise UserError(found.advice)
