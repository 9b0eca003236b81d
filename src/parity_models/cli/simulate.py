"""parm simulate: policies compared at any scale, by the scheduler that serves."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from parity_models.cli.code import CODERS, choose_code, coder_options
from parity_models.cli.extensions import (
    OWN,
    Declared,
    command_for,
    flag_of,
    given_options,
    naming,
)
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.policy import KINDS, DispatchName, choose_policies, policy_options
from parity_models.codes import DECODERS, ENCODERS, SeparateDecoder
from parity_models.errors import UserError
from parity_models.options import make_options
from parity_models.scheduling import Source
from parity_models.scheduling.policies import (
    POLICIES,
    Adaptive,
    EqualResources,
    Hedging,
    Parity,
    Policy,
)
from parity_models.simulation.setting import STAND_INS, StandInKind
from parity_models.simulation.trial import TrialResult
from parity_models.sizing.simulation_plan import (
    SimulationOptions,
    SimulationPlan,
    plan_simulation,
)

DEFAULT = (EqualResources.name, Hedging.name, Parity.name, Adaptive.name)

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
Encoder = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(ENCODERS.names)}, {OWN}; by default the decoder's usual one.",
        metavar="NAME",
        show_default=False,
        callback=naming(ENCODERS),
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(DECODERS.names)}, {OWN}; by default {SeparateDecoder.name}.",
        metavar="NAME",
        show_default=False,
        callback=naming(DECODERS),
    ),
]
StandIn = Annotated[
    list[str] | None,
    typer.Option(
        help="What the bundle has for policies that use either: parity models, which take as "
        "long as the deployed model, or a backup. May be given for both; by default parity.",
        metavar="[parity|backup]",
        show_default=False,
    ),
]


def simulate(
    context: typer.Context,
    policy: Policies = None,
    dispatch: DispatchName = None,
    encoder: Encoder = None,
    decoder: Decoder = None,
    stand_in: StandIn = None,
    json: Json = None,
) -> None:
    """Simulate policies under one load and the same disturbances.

    Drives the scheduler that serves with imagined instances, so that 10,000 of them and a million
    queries take a minute or two for each policy. The policy none has no extra instances; all others
    have the same number.
    """
    names = list(dict.fromkeys(policy or DEFAULT))
    choices = choose_policies(names, policy_options(context), dispatch)
    given, stand_ins = given_options(context, "simulate"), _stand_ins(stand_in)
    options = make_options(SimulationOptions, given, flag_of)
    coding = [name for name, value in (("encoder", encoder), ("decoder", decoder)) if value]
    coding += given_options(context, *CODERS)
    _refuse_unused(
        {*given, *coding, *(["stand_in"] if stand_in else ())},
        coding,
        [choice.policy for choice in choices],
        stand_ins,
        pauses=options.pause_every > 0,
    )
    decoder = decoder or SeparateDecoder.name
    coders: dict[str, Any] = {"encoder": encoder, "decoder": decoder, **coder_options(context)}
    plan = plan_simulation(options, stand_ins, coders)
    choose_code(context, plan.setting.code.encoder, decoder, options.k, options.r)
    results = dict(tqdm(plan.run(choices), desc="policies", total=len(choices)))
    _print(plan, results)
    if json is not None:
        report = {
            "setting": plan.setting,
            "queries": plan.queries,
            "options": [choice.written_out() for choice in choices],
            "policies": results,
        }
        write_json(json, report)


def _stand_ins(given: list[str] | None) -> tuple[StandInKind, ...]:
    if unknown := set(given or ()) - set(STAND_INS):
        raise UserError(f"--stand-in is one of {', '.join(STAND_INS)}, not {unknown.pop()}")
    return tuple(kind for kind in STAND_INS if kind in (given or ("parity",)))


def _refuse_unused(
    given: Collection[str],
    coding: Collection[str],
    policies: Sequence[type[Policy]],
    stand_ins: Collection[StandInKind],
    *,
    pauses: bool,
) -> None:
    """Raises UserError for options that say nothing beside the others; `coding` are the code's."""
    backup = any(policy.needs_backup for policy in policies)
    code = any(policy.needs_code for policy in policies)
    either = any(policy.needs_stand_in for policy in policies)
    for options, used, needs in (
        ({"pause"}, pauses, "--pause-every"),
        ({"stand_in"}, either, _policy_of("needs_stand_in")),
        (
            {"backup_time"},
            backup or "backup" in stand_ins,
            f"--stand-in backup or {_policy_of('needs_backup')}",
        ),
        ({"further_backups"}, "backup" in stand_ins, "--stand-in backup"),
        (
            {"coverage"},
            backup or code or either,
            _policy_of("needs_stand_in", "needs_code", "needs_backup"),
        ),
        (
            coding,
            code or (either and "parity" in stand_ins),
            f"{_policy_of('needs_code')}, or {_policy_of('needs_stand_in')} --stand-in parity",
        ),
    ):
        for option in options:
            if option in given and not used:
                raise UserError(f"{flag_of(option)} needs {needs} beside it")


def _policy_of(*needs: str) -> str:
    """The built-in policies that need any of these, as they are asked for."""
    names = [each.name for each in POLICIES if any(getattr(each, need) for need in needs)]
    return f"--policy {' or '.join(names)}"


def _print(plan: SimulationPlan, results: dict[str, TrialResult]) -> None:
    console, setting = Console(highlight=False), plan.setting
    console.print(
        f"Simulated: {setting.instances:,} + {setting.parity_instances:,} instances, "
        f"{plan.queries:,} queries at {setting.queries_per_second:,.0f}/s, {setting.shuffles:,} "
        f"background transfer{'s' * (setting.shuffles != 1)} at a time (--shuffles). Times in ms; "
        "work: units run for each query; busy: how long instances were busy for it.",
    )
    console.print(_table(results))


def _table(results: dict[str, TrialResult]) -> Table:
    table = Table(pad_edge=False)
    table.add_column("policy", min_width=max(map(len, results)))
    defaults = any(result.share(Source.DEFAULT) for result in results.values())
    for heading in ("p50", "p99", "p99.9", "gap", "stood\nin for", "work", "busy", "errors"):
        table.add_column(heading, justify="right")
    if defaults:
        table.add_column("defaults", justify="right")
    for name, result in results.items():
        stood_in = sum(result.share(source) for source in Source if source.stands_in)
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (result.p50_ms, result.p99_ms, result.p999_ms, result.gap_ms)),
            f"{stood_in:.1%}",
            f"{result.work:.2f}",
            f"{result.busy_ms:.1f}",
            f"{result.errors:,}",
            *((f"{result.share(Source.DEFAULT):.1%}",) if defaults else ()),
        )
    return table
