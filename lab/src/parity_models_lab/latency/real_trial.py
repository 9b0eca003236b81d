"""Real trials: a server process with worker processes, a client process, real contention.

What slows workers from within (service times, pauses, another tenant, kills) is in the server's
fault plan; transfers are made outside.
"""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from math import prod
from pathlib import Path

import numpy as np
from torch import nn

from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.errors import BundleError, LoadError
from parity_models.load import LoadSpec
from parity_models.roles import DEPLOYED, Source
from parity_models.serving.engine import Placement
from parity_models.serving.server import ServeOptions
from parity_models.training.export import export, floats
from parity_models_lab.contention import FRONTEND_ADDRESS, enter, shuffling, star
from parity_models_lab.latency.trial import (
    OUTPUT_SHAPE,
    QUERY_SHAPE,
    Setting,
    Trial,
    TrialResult,
    result_of,
)
from parity_models_lab.processes import offer_load_from_own_process
from parity_models_lab.served import BEGIN_FAULTS, BUSY, LAG, seconds, served

ROWS = 200
"""Different queries that are sent."""


@contextmanager
def contended(
    setting: Setting, seed: int
) -> Iterator[tuple[tuple[Placement, ...], tuple[str, ...], Callable[[], None]]]:
    """Make a setting's contention, of which nothing is left at the end of the context.

    Gives the places of the instances, the beginning of the commands of the server and its clients,
    without which they do not reach the workers and the server, and a function that starts the
    contention, to be called once. Raises ContentionError if the network cannot be made here.
    """
    workers = range(setting.all_instances)
    nodes = [str(worker % setting.nodes) if setting.nodes else None for worker in workers]
    with ExitStack() as stack:
        machines = stack.enter_context(star(len(workers))) if setting.linked else None
        prefix = enter(machines.frontend) if machines else ()
        places = [Placement(node=node) for node in nodes]
        if machines:
            inside = zip(machines.machines, nodes, strict=True)
            places = [Placement(enter(each), FRONTEND_ADDRESS, node) for each, node in inside]

        def begin() -> None:
            if machines:
                stack.enter_context(shuffling(setting.shuffles, machines, seed))

        yield tuple(places), prefix, begin


async def run_real(trial: Trial, folder: Path) -> TrialResult:
    """Run a trial with a bundle, made once, in `folder`. Raises what starting the contention, the
    server or the load raises."""
    setting = trial.setting
    policy, _ = trial.policy.build(trial.stand_ins)
    roles = policy.roles(setting.instances, setting.extra)  # fewer for `none`
    bundle = bundle_for(trial, folder)
    async with AsyncExitStack() as stack:
        contention = contended(setting, trial.seed)
        places, prefix, begin_contention = stack.enter_context(contention)
        options = ServeOptions(
            policy=trial.policy,
            instances=len(roles),
            extra_instances=sum(DEPLOYED not in each for each in roles) or None,
            port=0,
            max_batch=setting.max_batch,
            placements=places[: len(roles)],
            faults=trial.plan(len(roles)),
            share_groups=True,
            agreement=0,  # what may not be answered is drawn, as in simulations: coverage
        )
        server = await stack.enter_async_context(served(bundle.path, options, prefix))
        # Contention begins with the warm-up, which policies that learn would else learn from in
        # vain; so all queries are the load's own, and those of the warm-up are left out later.
        trace, rows = folder / "trace.txt", folder / "queries.npy"
        np.savetxt(trace, trial.arrivals(), fmt="%.9f")
        np.save(rows, np.random.default_rng(0).random((ROWS, *QUERY_SHAPE), np.float32))
        load = LoadSpec(
            url=server.message,
            model=bundle.manifest.name,
            binary=True,
            inputs=str(rows),
            trace=str(trace),
            queries=trial.warm_up + trial.queries,
            seed=trial.seed,
        )
        busy = await seconds(server, BUSY)

        def begin() -> None:
            server.tell(BEGIN_FAULTS)
            begin_contention()

        result = await offer_load_from_own_process(load, begin, prefix)
        busy = await seconds(server, BUSY) - busy
        lag = await seconds(server, LAG)
    counted = slice(trial.warm_up, None)
    answered = result.answered[counted]
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}; offer less load")
    stood_in = sum(result.came_from(source)[counted].sum() for source in Source if source.stands_in)
    return result_of(
        result.latency[counted][answered],
        int((~answered).sum()),
        int(stood_in),
        busy / int(result.answered.sum()),
        **{"send delay": 1e3 * float(np.nanquantile(result.send_delay[counted], 0.99))},
        lag=1e3 * lag,
    )


def bundle_for(trial: Trial, folder: Path) -> Bundle:
    """Return a bundle with the stand-ins that the policy uses, written once. Its models are linear,
    and their answers do not matter: what takes time is the emulated accelerator."""
    code = trial.setting.code if trial.stand_ins.code else None
    words = [code.spec.encoder, code.spec.decoder, str(code.k)] if code else ["uncoded"]
    path = folder / "-".join([*words, *(["backup"] if trial.stand_ins.backup else [])])
    try:
        return open_bundle(path)
    except BundleError:
        model = _linear(QUERY_SHAPE, OUTPUT_SHAPE)
        return write_bundle(
            path,
            deployed=model,
            parity=[_linear(code.parity_shape, code.parity_output_shape)] if code else (),
            backup=model if trial.stand_ins.backup else None,
            code=code.spec if code else None,
        )


def _linear(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> NewModel:
    layer = nn.Linear(prod(inputs), prod(outputs))
    network = nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, outputs))
    return NewModel(export(network, [floats(inputs)]), "linear")
