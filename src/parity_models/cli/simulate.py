"""parm simulate: policies compared at any scale, by the scheduler that serves."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.code import CODERS, DecoderName, EncoderName, choose_code
from parity_models.cli.extensions import OWN, Declared, command_for, flag_of, given_options, naming
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.policy import KINDS, DispatchName, choose_policies, policy_options
from parity_models.options import make_options
from parity_models.protection.comparison import simulate as compare
from parity_models.protection.options import SimulationOptions
from parity_models.scheduling.policies import POLICIES

COMMAND = command_for(simulate=Declared(SimulationOptions), **KINDS, **CODERS)

Policies = Annotated[
    list[str] | None,
    typer.Option(
        help="A policy to simulate; may be given several times. One of "
        f"{', '.join(POLICIES.names)}, {OWN}.",
        metavar="POLICY",
        show_default=False,
        callback=naming(POLICIES),
    ),
]


def simulate(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle to be served.", metavar="[BUNDLE]")
    ] = None,
    policy: Policies = None,
    dispatch: DispatchName = None,
    k: Annotated[int, typer.Option("--k", help="Queries in a coding group.", metavar="N")] = 2,
    r: Annotated[int, typer.Option("--r", help="Parity queries per group.", metavar="N")] = 1,
    encoder: EncoderName = None,
    decoder: DecoderName = None,
    json: Json = None,
) -> None:
    """Simulate policies under one load and the same contention.

    Drives the scheduler that serves with simulated instances, so that 10,000 of them and a million
    queries take a minute or two for each policy. Without a bundle, say how long the model takes:
    parm simulate --service-time 25ms --backup-time 10ms --coverage 0.9 --rate 200.
    """
    choices = None
    if policy:
        choices = choose_policies(list(dict.fromkeys(policy)), policy_options(context), dispatch)
    found = compare(
        bundle,
        policies=choices,
        code=choose_code(context, encoder or "stack", decoder or "separate", k, r),
        options=make_options(SimulationOptions, given_options(context, "simulate"), flag_of),
    )
    found.show()
    if json is not None:
        write_json(
            json,
            {
                "rate": found.scene.rate,
                "instances": found.scene.instances,
                "queries": found.scene.queries,
                "contention": found.scene.contention,
                "policies": {each.name: each.outcome for each in found.policies},
                "options": [each.policy.written_out() for each in found.policies],
            },
        )
