"""parm simulate: policies compared at any scale, with the server's own scheduler."""

from pathlib import Path
from typing import Annotated

import click

from parity_models.cli.common import Json, write_json
from parity_models.cli.flags import Without
from parity_models.cli.policies import DispatchName, PolicyNames
from parity_models.errors import UserError
from parity_models.options import option
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.journal import Recording
from parity_models.sizing.comparison import simulate as compare
from parity_models.sizing.scenario import SimulationOptions


def simulate(
    bundle: Path | None = option(None, "The bundle to be served.", argument=True),
    *,
    policy: PolicyNames = None,
    dispatch: DispatchName = None,
    journal: Path | None = option(
        None,
        "The journal of a server of this bundle: replay it, and simulate its load.",
        metavar="FILE",
    ),
    query: str | None = option(
        None,
        "Only tell the story of a query in the journal, or of a request by its id.",
        metavar="ID",
    ),
    options: Annotated[SimulationOptions, Without("seed")],
    json: Json = None,
) -> None:
    """Simulate policies under one load and the same contention.

    The server's own scheduler drives simulated instances. 10,000 of them and a million queries take
    a minute or two for each policy. Without a bundle, give times: parm simulate --service-time 25ms
    --backup-time 10ms --rate 200.
    """
    if dispatch is not None and not policy:
        raise UserError("--dispatch needs --policy as well")
    if query is not None:
        if journal is None:
            raise UserError("--query needs --journal as well")
        for line in Recording(journal).story(query):
            click.echo(line)
        return
    choices = [PolicyChoice.parse(each, dispatch) for each in dict.fromkeys(policy or ())]
    found = compare(bundle, policies=choices or None, journal=journal, options=options)
    found.show()
    report = {
        "rate": found.scenario.rate,
        "instances": found.scenario.instances,
        "queries": found.scenario.queries,
        "contention": found.scenario.simulation.faults,
        "policies": {each.name: each.outcome for each in found.policies},
        "options": [each.policy.written_out() for each in found.policies],
    }
    write_json(json, report)
