"""Chaos, overload and attacks: experiments that prove what is claimed of the server."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.duration import duration
from parity_models_lab.cli.judged import conclude, keep, tell_claims
from parity_models_lab.cli.lab_options import EngineName, Out, Quick, Seed, engine_of


def chaos(
    engine: EngineName = "local",
    minutes: Annotated[float, duration("About how long.", "min", at_least=0.01)] = 5.0,
    seed: Seed = 0,
    rate: Annotated[float, typer.Option(help="Requests a second, of 2.8 queries.", min=1)] = 70.0,
    out: Out = Path("runs/reliability"),
    events: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas; lab/notes/reliability.md lists them.",
            metavar="EVENT,...",
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Serve under load and faults; account for every query.

    A server process of its own, clients over HTTP and gRPC, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed. Exits with 1 if a query did not get one
    right answer or one clear error.
    """
    from parity_models_lab.reliability.chaos import run_chaos

    tested = engine_of(engine)
    console = Console(stderr=True, highlight=False)
    folder = out / f"chaos-{engine}"
    result = asyncio.run(
        run_chaos(
            tested,
            minutes=minutes,
            seed=seed,
            rate=rate,
            folder=folder,
            events=events.split(",") if events else (),
            quick=quick,
            say=console.print,
        )
    )
    tell_claims(console, result)
    if not result.met:
        console.print(f"seed {seed}; first failure: {next(iter(result.failures), 'none noted')}")
    keep(out / f"chaos-{engine}.json", result)


def overload(
    engine: EngineName = "local",
    seconds: Annotated[float, duration("Of each load, at least.", "s", at_least=1)] = 10.0,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
    quick: Quick = False,
) -> None:
    """Send 1.2 to 5 times the load that a server can carry.

    Deadlines are from 0.1 to 10 s, with and without clients that give up. Exits with 1 if a target
    is missed.
    """
    from parity_models_lab.reliability.overload import DEADLINES, FACTORS, Overload, run_overload

    console = Console(stderr=True, highlight=False)

    def say(load: Overload) -> None:
        who = "wait" if load.gives_up is None else f"give up after {load.gives_up:.2g} s"
        found = "; ".join(
            f"{claim.found}{'' if claim.met else ' (NOT MET)'}" for claim in load.claims
        )
        console.print(f"{load.factor:g}x, deadline {load.deadline:g} s, clients {who}: {found}")

    result = asyncio.run(
        run_overload(
            engine_of(engine),
            folder=out / f"overload-{engine}",
            seed=seed,
            seconds=3.0 if quick else seconds,
            factors=(3.0,) if quick else FACTORS,
            deadlines=(1.0,) if quick else DEADLINES,
            say=say,
        )
    )
    keep(out / f"overload-{engine}.json", result)


def timeouts(
    seconds: Annotated[float, duration("For each policy.", "s", at_least=1)] = 60.0,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
    quick: Quick = False,
) -> None:
    """Send timeouts near the service time, under each policy.

    Then asks the idle server. Exits with 1 if it does not answer at once, or if there was a 500.
    """
    from parity_models_lab.reliability.timeouts import PolicyTimeouts, run_timeouts

    console = Console(stderr=True, highlight=False)

    def say(found: PolicyTimeouts) -> None:
        claims = "; ".join(
            f"{claim.claim}: {claim.found}{'' if claim.met else ' (NOT MET)'}"
            for claim in found.claims
        )
        console.print(f"{found.policy}, {found.requests:,} requests: {claims}")

    result = asyncio.run(
        run_timeouts(folder=out / "timeouts", seed=seed, seconds=5.0 if quick else seconds, say=say)
    )
    keep(out / "timeouts.json", result)


def rollout(
    load: Annotated[float, typer.Option(help="Of what the instances can do.", min=0.01)] = 0.8,
    seconds: Annotated[float, duration("Of load before the rollouts.", "s", at_least=1)] = 60.0,
    rollouts: Annotated[int, typer.Option(help="How many, and as many kills alone.", min=1)] = 12,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
    quick: Quick = False,
) -> None:
    """Roll out versions under load, with a kill -9 in each rollout.

    Exits with 1 if a request fails, versions are mixed in an answer, or p99.9 rises by more than
    half.
    """
    from parity_models_lab.reliability.rollout import run_rollout

    console = Console(stderr=True, highlight=False)
    folder = out / "rollout"
    folder.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(
        run_rollout(
            folder=folder,
            seed=seed,
            load=load,
            seconds=3.0 if quick else seconds,
            rollouts=1 if quick else rollouts,
            say=console.print,
        )
    )
    for row in result.rows:
        cells = zip(result.columns, row, strict=True)
        console.print("; ".join(f"{column} {cell}" for column, cell in cells))
    for claim in result.claims:
        console.print(f"{'met' if claim.met else 'NOT MET'}: {claim.claim}: {claim.found}")
    keep(out / "rollout.json", result)


def soak(
    engine: EngineName = "local",
    minutes: Annotated[float, duration("How long.", "min", at_least=0.1)] = 60.0,
    load: Annotated[float, typer.Option(help="Of what the instances can do.", min=0.01)] = 0.7,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
) -> None:
    """Look for leaks of memory and descriptors under steady load.

    Every query is accounted for, too. Exits with 1 if memory grows by 1 % or more after the first
    ten minutes, or if descriptors do.
    """
    from parity_models_lab.reliability.soak import Sample, run_soak

    console = Console(stderr=True, highlight=False)
    said = -60.0

    def say(sample: Sample) -> None:
        nonlocal said
        if sample.at >= said + 60:
            said = sample.at
            console.print(
                f"{sample.at / 60:.0f} min: {sample.resident / 2**20:.1f} MiB, "
                f"{sample.descriptors} descriptors, {sample.processes} processes"
            )

    result = asyncio.run(
        run_soak(
            engine_of(engine),
            folder=out / f"soak-{engine}",
            seed=seed,
            minutes=minutes,
            load=load,
            say=say,
        )
    )
    tell_claims(console, result)
    keep(out / f"soak-{engine}.json", result)


def liars(
    engine: EngineName = "local",
    honest: Annotated[
        int, typer.Option(help="Queries of the honest load, which is simulated.", min=1)
    ] = 1_000_000,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
    quick: Quick = False,
) -> None:
    """Let an instance answer wrongly until it is quarantined.

    It answers by other weights, or with a flipped bit. Exits with 1 if that takes more than 500 of
    its queries, or if an honest one is quarantined.
    """
    from parity_models_lab.reliability.liars import FLIPS, run_liars

    console = Console(stderr=True, highlight=False)
    result = asyncio.run(
        run_liars(
            engine_of(engine),
            folder=out / f"liars-{engine}",
            seed=seed,
            honest_queries=min(honest, 10_000) if quick else honest,
            flips=1 if quick else FLIPS,
            say=console.print,
        )
    )
    keep(out / f"liars-{engine}.json", result)


def attack(
    victims: Annotated[
        int, typer.Option(help="Queries of victims beside each attacker.", min=10)
    ] = 800,
    seed: Seed = 0,
    out: Out = Path("runs/reliability"),
    quick: Quick = False,
) -> None:
    """Attack other clients' reconstructions by absurd inputs.

    The bundle's slots are not isolated. Victims' reconstructions are compared with what the model
    says, beside honest partners and beside attackers, with the bundle's envelope and without. Exits
    with 1 if an attacker changes victims' answers, or a request is refused.
    """
    from parity_models.tasks import find_task
    from parity_models_lab.reliability.attack import run_attack

    console = Console(stderr=True, highlight=False)
    result = run_attack(
        find_task("digits"),
        out / "attack",
        victims=100 if quick else victims,
        seed=seed,
        seconds=5.0 if quick else None,
        say=console.print,
    )
    tell_claims(console, result)
    keep(out / "attack.json", result)


def fuzz(
    minutes: Annotated[float, duration("About how long.", "min", at_least=0.1)] = 30.0,
    seed: Seed = 0,
) -> None:
    """Run the fuzzers of the tests for long.

    They are of REST, gRPC, ZeroMQ frames, manifests and bundles. To be called in a checkout of the
    repository. Each round tries a hundred times what the test run does, by another seed. Exits with
    1 at the first failure, which Hypothesis makes small.
    """
    from parity_models_lab.reliability.fuzz import run_fuzzers

    conclude(run_fuzzers(minutes * 60, seed))


def report(
    results: Annotated[
        Path, typer.Option(help="The folder that the other commands wrote to.", metavar="DIR")
    ] = Path("runs/reliability"),
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = Path(
        "lab/results/reliability.md"
    ),
) -> None:
    """Write one page of all results, with tables and pictures.

    Exits with 1 if a target is missed.
    """
    from parity_models_lab.cli.report_file import check_report, typed_command
    from parity_models_lab.reliability.reliability_report import write_report

    check_report(out)
    met = write_report(results, out, typed_command())
    Console(stderr=True, highlight=False).print(f"Wrote {out}.")
    conclude(met)
