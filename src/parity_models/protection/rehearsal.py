"""A rehearsal: a bundle is served, an instance is harmed, and it is seen who answers then.

The same queries meet the same harm twice: once with all instances on the model alone, once with
the bundle's stand-ins. Everything is real, and on this machine.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.emulation import Constant, FaultPlan, Kill, Pauses, Slowdowns
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.serving.deployment import default_policy, stand_ins_of
from parity_models.serving.errors import RequestError
from parity_models.serving.frontend import Frontend
from parity_models.serving.server import ServeOptions, Server

CALM, LEARNED = 0.4, 150
"""The share of each run before the harm, and queries that come before it at least: the policy
learns what is usual."""

MEASURED = 30
"""Queries by which it is measured how long the model takes."""

MOST_RATE = 200.0
"""Queries a second at most: the machine does everything else besides."""

LOADED = 0.3
"""The share of what the instances can carry that is asked, at most."""


class Harm(StrEnum):
    """What is done to an instance."""

    KILL = "kill"
    """It is killed, and comes back, twice a second."""
    STOP = "stop"
    """It is stopped for a moment, again and again, as in a long garbage collection."""
    SLOW = "slow"
    """Its units take far longer, as beside a noisy neighbour."""


def faults_of(harm: Harm, seconds: float, usual: float) -> FaultPlan:
    """What happens to the first instance for so many seconds, where a query takes `usual` ones."""
    match harm:
        case Harm.KILL:
            times = np.arange(0.01, max(seconds, 0.02), 0.5)
            return FaultPlan(kills=tuple(Kill(0, float(at)) for at in times))
        case Harm.STOP:
            length = Constant(max(0.1, 10 * usual))
            return FaultPlan(pauses=Pauses(max(0.2, 20 * usual), length, workers=(0,)))
        case Harm.SLOW:
            delay = Constant(max(0.05, 10 * usual))
            return FaultPlan(slowdowns=Slowdowns(0.0, 3600.0, delay, workers=(0,)))


@dataclass(frozen=True)
class Run:
    """What came of one run: latencies in ms of the answers while there was harm, and their
    sources; `failed` queries had none."""

    policy: str
    answers: int
    sources: Mapping[str, int]
    failed: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


@dataclass(frozen=True)
class Rehearsed:
    """Both runs of a rehearsal, without stand-ins and with; `rate` queries a second were asked."""

    usual_ms: float
    rate: float
    without: Run
    with_stand_ins: Run


async def rehearse(
    bundle: Bundle,
    inputs: NDArray[Any],
    harm: Harm,
    *,
    instances: int = 4,
    seconds: float = 4.0,
    rate: float | None = None,
    seed: int = 0,
    told: Callable[[str], None] = lambda text: None,
) -> Rehearsed:
    """Ask `bundle` queries of `inputs` (n, *input shape), for so many seconds in each run.

    It takes longer where it takes that to be asked LEARNED queries before the harm. By default it
    is asked as much as leaves the instances idle most of the time. Raises UserError for a bundle
    without a stand-in, and what a server raises that cannot start.
    """
    if not stand_ins_of(bundle):
        raise UserError(
            f"{bundle.path} has no stand-in to see at work; find one with: parm protect"
        )
    usual = await _usual(bundle, inputs)
    rate = rate or min(MOST_RATE, LOADED * instances / usual)
    calm, harmed = max(CALM * seconds, LEARNED / rate), (1 - CALM) * seconds
    runs = []
    for policy in (EqualResources.name, default_policy(bundle)):
        told(f"{policy}: {calm + harmed:.0f} s, {rate:.0f} queries/s")
        options = _options(policy, instances, faults_of(harm, harmed, usual))
        async with Server(bundle, options) as server:
            schedule = _schedule(len(inputs), rate, calm + harmed, seed)
            runs.append(await _run(server, policy, inputs, schedule, calm))
    return Rehearsed(1e3 * usual, rate, *runs)


def _options(policy: str, instances: int, faults: FaultPlan | None) -> ServeOptions:
    return ServeOptions(
        policy=PolicyChoice(policy),
        instances=instances,
        faults=faults,
        port=0,
        deadline=5.0,
    )


async def _usual(bundle: Bundle, inputs: NDArray[Any]) -> float:
    """Seconds that a query takes, alone."""
    async with Server(bundle, _options("none", 1, None)) as server:
        times = []
        for row in range(MEASURED):
            began = time.monotonic()
            await server.deployment.frontend.infer(inputs[row % len(inputs)][np.newaxis])
            times.append(time.monotonic() - began)
    return median(times)


def _schedule(rows: int, rate: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    """When which row is asked."""
    rng = np.random.default_rng(seed)
    count = max(1, round(rate * seconds))
    times = np.cumsum(rng.exponential(1 / rate, count))
    return list(zip(times.tolist(), rng.integers(0, rows, count).tolist(), strict=True))


async def _run(
    server: Server,
    policy: str,
    inputs: NDArray[Any],
    schedule: Sequence[tuple[float, int]],
    harmed_from: float,
) -> Run:
    began = time.monotonic()
    calm = True
    asked = []
    for at, row in schedule:
        await asyncio.sleep(began + at - time.monotonic())
        if calm and at >= harmed_from:
            calm = False
            server.deployment.begin_faults()
        query = _ask(server.deployment.frontend, inputs[row][np.newaxis], began + at)
        asked.append((at >= harmed_from, asyncio.ensure_future(query)))
    ended = [(await query, counts) for counts, query in asked]
    found = [each for each, counts in ended if counts and each is not None]
    failed = sum(counts and each is None for each, counts in ended)
    if not found:
        raise UserError(f"no query was answered with the policy {policy}: ask less, with --rate")
    p50, p99 = np.quantile([ms for ms, _ in found], (0.5, 0.99)).tolist()
    sources = Counter(source for _, source in found)
    return Run(policy, len(found), sources, failed, p50, p99, max(ms for ms, _ in found))


async def _ask(frontend: Frontend, row: NDArray[Any], due: float) -> tuple[float, str] | None:
    """Milliseconds from when it was due, and the answer's source; None: it had no answer."""
    try:
        answers = await frontend.infer(row)
    except RequestError:
        return None
    return 1e3 * (time.monotonic() - due), str(answers.sources[0])
