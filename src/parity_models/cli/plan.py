"""parm plan: the policy and the number of instances for a goal and a load."""

from pathlib import Path
from typing import Annotated

from rich.console import Console

from parity_models.cli.common import Json, write_json
from parity_models.cli.flags import Without
from parity_models.errors import UserError
from parity_models.options import option
from parity_models.sizing.plan import Goal
from parity_models.sizing.plan import plan as find_plan


def plan(
    bundle: Path | None = option(None, "The bundle to be served.", argument=True),
    *,
    goal: Annotated[Goal, Without("queries", "seed")],
    json: Json = None,
) -> None:
    """Find the policy and the number of instances that serve a load within a goal.

    For example: parm plan --rate 200 --service-time 20ms --p99 50ms. The server's own scheduler
    simulates the policies, with the times of the bundle's models, or with --service-time alone.
    Without --instances, plan finds the fewest that suffice. If no plan fits, the nearest one is
    printed, and the exit status is 2.
    """
    with Console().status("simulating"):
        found = find_plan(bundle, options=goal)
    write_json(json, {"goal": goal, "rate": found.rate, "plans": found.plans})
    found.show()
    if found.best is None:
        raise UserError(found.advice)
