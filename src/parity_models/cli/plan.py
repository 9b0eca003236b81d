"""parm plan: which policy, and how many instances, for a goal and a load."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.json_file import Json, write_json
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.options import declared_in, make_options
from parity_models.scheduling import DEPLOYED
from parity_models.serving.deployment import default_batch
from parity_models.simulation.recording import Recording, read_recording
from parity_models.sizing.goal import Goal
from parity_models.sizing.plans import Plan, Sized, Sizing, nearest, times_of
from parity_models.sizing.served import Served, served

COMMAND = command_for(
    plan=Declared(Goal, tuple(each.name for each in declared_in(Goal) if each.name != "spare"))
)


def share(written: str | float) -> float:
    """A share, as 30% or 0.3. Raises typer.BadParameter for anything else."""
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
    bundle: Annotated[Path, typer.Argument(help="The bundle to be served.", metavar="BUNDLE")],
    spare: Annotated[
        float,
        typer.Option(
            help="The share of the instances' time that is to be spare, as 30% or 0.3.",
            metavar="SHARE",
            parser=share,
        ),
    ] = Goal.spare,
    json: Json = None,
) -> None:
    """Say which policy and how many instances serve a load within a goal, and what it costs.

    For example: parm plan bundle --p99 50ms --instances 4 --spare 30% --rate 40. Policies are
    simulated by the scheduler that serves, with the times that the bundle's models take, or those
    of a running server (parm record). Without --instances, as few as will do are looked for. Where
    nothing fits, it says what is nearest, and ends with 2.
    """
    goal = make_options(Goal, {**given_options(context, "plan"), "spare": spare}, flag_of)
    recording = None if goal.recorded is None else read_recording(Path(goal.recorded))
    opened = open_bundle(bundle)
    known = served(opened, goal.agreement, recording, goal.max_batch or default_batch(opened))
    sizing = Sizing(known, goal, recording)
    console = Console()
    with console.status("simulating") as status:
        found = sizing.size(lambda text: status.update(f"simulating {text}"))
        enough = None
        if found.best is None and goal.instances is not None:
            enough = sizing.enough(lambda text: status.update(f"simulating {text}"))
    _print(console, known, found, recording)
    if json is not None:
        write_json(json, {"goal": goal, "rate": found.rate, "plans": found.plans})
    if found.best is None:
        raise UserError(_nothing(found, enough, goal))
    typer.echo(_recommended(bundle, found.best, found))


def _print(console: Console, known: Served, found: Sized, recording: Recording | None) -> None:
    times = ", ".join(f"{role} {ms:.2f} ms" for role, ms in times_of(known).items())
    where = "where the bundle was made" if recording is None else "recorded"
    console.print(f"A unit takes, {where}: {times}. Load: {found.rate:.4g} queries/s.")
    if known.max_batch > 1:
        console.print(
            f"Each further query in a unit, of up to {known.max_batch}, adds "
            f"{known.further_rows[DEPLOYED]:.0%} to the time of the model."
        )
    if recording is not None:
        console.print(
            f"The recorded server had p50 {recording.p50_ms:.1f}, p99 {recording.p99_ms:.1f}, "
            f"p99.9 {recording.p999_ms:.1f} ms at {recording.rate:.4g} queries/s, with "
            f"{recording.instances} instances."
        )
    console.print(_table(found.plans))


def _table(plans: list[Plan]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        caption="simulated; times in ms",
        caption_justify="right",
    )
    table.add_column("policy", overflow="fold")
    table.add_column("stand-in", overflow="fold")
    for heading in (
        "inst.",
        "p50",
        "p99",
        "p99.9",
        "busy a\nquery",
        "spare",
        "agrees",
        "stood\nin",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("misses", overflow="fold")
    for plan in plans:
        outcome = plan.outcome
        table.add_row(
            plan.name,
            plan.stand_in,
            str(plan.instances),
            *(f"{ms:.1f}" for ms in (outcome.p50_ms, outcome.p99_ms, outcome.p999_ms)),
            f"{outcome.busy_ms:.1f}",
            f"{outcome.spare:.0%}",
            "?" if plan.agreement is None else f"{plan.agreement:.2%}",
            f"{outcome.stood_in:.1%}",
            ", ".join(plan.missed),
        )
    return table


def _recommended(bundle: Path, best: Plan, found: Sized) -> str:
    outcome = best.outcome
    said = (
        f"Take {best.name} with {_counted(best.instances)}: p50 {outcome.p50_ms:.1f}, p99 "
        f"{outcome.p99_ms:.1f}, p99.9 {outcome.p999_ms:.1f} ms; {outcome.busy_ms:.1f} ms of an "
        f"instance for each query, {outcome.spare:.0%} spare.\n"
    )
    others = [plan for plan in found.plans if plan.missed or plan.instances > best.instances]
    if best.stand_in == "none" and len(others) < len(found.plans) - 1:
        said += "The goal is met without a stand-in.\n"
    return f"{said}Serve it with: parm serve {bundle} {best.flags}"


def _nothing(found: Sized, enough: Plan | None, goal: Goal) -> str:
    near = nearest(found.plans, goal)
    said = (
        f"no plan fits: the nearest is {near.name} with {_counted(near.instances)}, which has "
        f"{', '.join(near.missed)}"
    )
    if enough is not None:
        return f"{said}; {enough.name} fits with {_counted(enough.instances)}"
    return f"{said}; give it more time, a faster model, or a stand-in"


def _counted(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances} instances"
