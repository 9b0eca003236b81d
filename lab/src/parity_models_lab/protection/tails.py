"""What `parm protect` simulated, run for real: the model, its stand-ins, and the contention.

The server has the instances, the policy, the batches and the gates of the simulation, and the load
the same arrivals. Workers obey the same contention, so that what delays whom at which time is the
same, too. Everything else is real: the models run.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from parity_models.errors import LoadError
from parity_models.load import LoadSpec
from parity_models.load.result import LoadResult
from parity_models.models.bundle import open_bundle
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources
from parity_models.serving.server import ServeOptions
from parity_models_lab.comparison import compare
from parity_models_lab.protection.results import Found, Real, Simulated, Tails, latencies_of

WITHOUT = "no redundancy"
"""The plan that has no stand-in."""


async def run_for_real(
    bundle: Path,
    found: Found,
    queries: Path,
    agreement: float,
    seconds: float,
    starting: Callable[[str], None],
) -> Tails:
    """The recommended plan and the one without redundancy, each for so many seconds. `starting`
    is told which is next.

    Raises ServingError if a server does not start, LoadError if no query is answered.
    """
    scene = found.scene
    counted = max(1, int(scene.rate * seconds))
    warm_up = counted * scene.warm_up // scene.queries
    load = LoadSpec(
        model=open_bundle(bundle).manifest.name,
        data=str(queries),
        rate=scene.rate,
        count=warm_up + counted,
        seed=scene.seed,
    )
    plans = [found.plan(name) for name in (WITHOUT, found.recommended)]
    servers = {plan.name: _server(plan, found, agreement) for plan in plans}
    results = await compare(bundle, servers, load, starting)
    return Tails({name: _real(result, warm_up) for name, result in results.items()})


def _server(plan: Simulated, found: Found, agreement: float) -> ServeOptions:
    """What serves as the plan says."""
    scene = found.scene
    policy = PolicyChoice(EqualResources.name)
    level: float | None = None
    if plan.name != WITHOUT:
        options = {} if plan.urgency is None else {"urgency": plan.urgency}
        policy, level = PolicyChoice(Adaptive.name, options), agreement
    return ServeOptions(
        policy=policy,
        instances=scene.instances,
        parity_instances=0,
        port=0,
        max_batch=scene.max_batch,
        agreement=level,
        faults=scene.contention,
    )


def _real(result: LoadResult, warm_up: int) -> Real:
    answered = result.answered[warm_up:]
    kinds = Counter(result.outcomes[result.outcome[warm_up:][~answered]].tolist())
    if not answered.any():
        raise LoadError(f"no query was answered: {dict(kinds)}; offer less load")
    model = result.came_from(Source.MODEL)[warm_up:][answered]
    took = latencies_of(1e3 * result.latency[warm_up:][answered], float(1 - model.mean()))
    return Real(**msgspec.structs.asdict(took), queries=int(answered.sum()), failures=dict(kinds))
