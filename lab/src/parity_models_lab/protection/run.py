"""Cases: for each `parm protect` with a model, and perhaps what it recommends, run for real."""

import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import msgspec

from parity_models_lab.protection.given import QUICK, SLOW, UNNAMED, Given, Subject, make
from parity_models_lab.protection.results import Proof, Search
from parity_models_lab.protection.searched import search
from parity_models_lab.protection.tails import run_for_real
from parity_models_lab.real.results import digest
from parity_models_lab.result_cache import ResultCache

INSTANCES = 4
"""Of the model, in simulations and for real."""

COMPUTING = 1 / 6
"""The share of the cores that the model takes; server and clients take as much again."""

MOST_LOAD = 0.5
"""The load at most, as a share of what the instances can carry."""

TWO = 2.0
"""Minutes for the MLP."""

Say = Callable[[str], None]


class Case(msgspec.Struct, frozen=True):
    """`parm protect` for so many `minutes`, for stand-ins that agree as often as `agreement`.

    With `seconds` it has queries without labels, and what it recommends is run for real for so
    long. Without, the queries are those of the model's task, whose labels tell accuracies.
    """

    subject: Subject
    minutes: float
    seconds: float | None
    agreement: float
    seed: int


def whole(minutes: float, seconds: float, seed: int) -> tuple[Case, ...]:
    """What the targets are about."""
    return (Case(SLOW, minutes, seconds, 0.95, seed), Case(UNNAMED, TWO, None, 0.95, seed))


def quick(seed: int) -> tuple[Case, ...]:
    """The same with a small model, in seconds."""
    return (Case(QUICK, 0.1, 2.0, 0.05, seed), Case(QUICK, 0.05, None, 0.05, seed))


def prove(cases: Sequence[Case], work: Path, say: Say) -> list[Proof]:
    """What came of each; what is in the folder `work` already is not measured again.

    Raises DataError where a task's data are not here, and what a server or a load raises.
    """
    cache = ResultCache(work / "results")
    proofs = []
    for case in cases:
        key = digest(msgspec.json.encode(case))
        proof = cache.get(key, Proof)
        if proof is None:
            say(f"{case.subject.title}: the model is made, if it is not there")
            given = make(case.subject, work / "models", case.seed)
            proof = _measured(case, given, work / key[:8], cache, say)
            cache.put(key, proof)
        proofs.append(proof)
    return proofs


def _measured(case: Case, given: Given, folder: Path, cache: ResultCache, say: Say) -> Proof:
    before = os.getloadavg()[0]
    load = min(MOST_LOAD, COMPUTING * len(os.sched_getaffinity(0)) / INSTANCES)
    labelled = case.seconds is None
    queries = ("--task", case.subject.task) if labelled else ("--inputs", str(given.inputs))
    options = ("--agreement", f"{case.agreement:g}", "--instances", str(INSTANCES))
    arguments = ("--model", str(given.model), *queries, *options, "--load", f"{load:.3g}")
    say(f"{case.subject.title}: parm protect {' '.join(arguments)} --minutes {case.minutes:g}")
    # Kept apart, so that it is not made again where a real run fails.
    kept = f"{folder.name}-search"
    found = cache.get(kept, Search)
    if found is None:
        found = search(arguments, case.minutes, folder, case.seed)
        cache.put(kept, found)
    tails = None
    if case.seconds is not None and found.found is not None:
        bundle, asked = folder / "bundle", given.queries

        def starting(plan: str) -> None:
            say(f"{case.subject.title}: {plan}, for real")

        real = run_for_real(bundle, found.found, asked, case.agreement, case.seconds, starting)
        tails = asyncio.run(real)
    return Proof(
        case.subject.title,
        case.agreement,
        date.today().isoformat(),
        (before, os.getloadavg()[0]),
        found,
        tails,
    )
