"""Real trials: a server process with worker processes, a client process, real contention."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.emulation import FaultPlan
from parity_models.errors import BundleError, LoadError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.result import LoadResult
from parity_models.load.served import Computed, Served, served
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.scheduling import Source
from parity_models.serving.engine import Placement
from parity_models.serving.server import ServeOptions
from parity_models.tasks import Dataset, Task, find_task
from parity_models.training import Queries, TrainingOptions, train
from parity_models_lab.contention.apply import contended
from parity_models_lab.contention.processor import quota
from parity_models_lab.deployed import train_deployed
from parity_models_lab.latency.setting import QUERY_SHAPE, SLOWED
from parity_models_lab.latency.trial import Emulation, Trial, TrialResult, result_of

TASK = "digits"
NETWORK = "linear"
ENLARGED = QUERY_SHAPE[-1] // 8
"""Pixels of a query for each of a digit's, each way."""

TRAINING = TrainingOptions(seconds=15)
"""For each model: enough for a linear one."""


@dataclass(frozen=True)
class Laboratory:
    """Runs trials for real; keeps the bundles they serve in `folder`.

    They are trained on enlarged digits, and linear: what takes time is the emulated accelerator.
    """

    folder: Path
    training: TrainingOptions = TRAINING

    def run(self, trial: Trial) -> TrialResult:
        """Run a trial. Raises what starting the contention, the server or the load raises."""
        return asyncio.run(self._run(trial))

    async def _run(self, trial: Trial) -> TrialResult:
        bundle = self.bundle_for(trial)
        setting = trial.setting
        links = trial.network is Emulation.NOTHING
        drawn = trial.network is Emulation.EVERYTHING
        faults = (setting.simulated_faults if drawn else setting.faults)(trial.seed, trial.seconds)
        if not links:
            faults = msgspec.structs.replace(faults, shuffles=setting.drawn_shuffles())
        faults = _spared(faults, trial.workers)
        options = ServeOptions(
            policy=trial.policy,
            instances=trial.workers,
            extra_instances=trial.extra or None,
            port=0,
            max_batch=setting.max_batch,
            faults=faults,
            agreement=0,  # what may not be answered is drawn, as in simulations: coverage
        )
        plan = None if drawn else setting.contention(trial.seed, links=links)
        async with AsyncExitStack() as stack:
            contention = None
            if plan is not None:
                contention = await stack.enter_async_context(
                    contended(plan, setting.all_instances, bundle.path)
                )
                options = replace(options, placements=contention.placements[: trial.workers])
            if setting.nodes:
                options = replace(options, placements=_on_nodes(options.placements, trial))
            prefix = contention.prefix if contention else ()
            slowed = None
            if 0 < setting.speed < 1:
                slowed = stack.enter_context(quota(SLOWED * setting.speed))
            enter = slowed.prefix if slowed else ()
            server = await stack.enter_async_context(
                served(bundle.path, options, prefix=enter + prefix, allow_code=bundle.allowed)
            )

            counting: list[asyncio.Task[float]] = []
            computed: list[Computed] = []

            def begin() -> None:
                computed.append(Computed.until_now(server.pid))
                server.begin_faults()
                if slowed is not None:
                    slowed.begin()
                if contention is not None:
                    contention.begin(server.pid)
                counting.append(asyncio.create_task(_busy_by(warm, server)))

            load = self._load(trial, bundle.manifest.name, server.url)
            warm = float(load.due[trial.warm_up])
            result = await offer_load_from_own_process(load, begin, prefix)
            busy = [await server.busy_seconds() - await before for before in counting]
            summed = _sum_up(result, trial.warm_up, sum(busy) if busy else None)
            lag_ms = await server.mean_lag() * 1e3
            summed = msgspec.structs.replace(summed, lag_ms=lag_ms)
            if setting.hogs or setting.tenants:
                return summed  # they compute, too
            ms = 1e3 / len(result)
            took = Computed.until_now(server.pid).since(*computed)
            return msgspec.structs.replace(
                summed, workers_ms=ms * took.workers, serving_ms=ms * took.serving
            )

    def _load(self, trial: Trial, model: str, url: str) -> LoadSpec:
        """Contention begins with the warm-up, which policies that learn would else learn from in
        vain; so all queries are the load's own, and those of the warm-up are left out later."""
        bursts = trial.setting.bursts
        return LoadSpec(
            url=url,
            model=model,
            binary=True,
            inputs=str(self._queries),
            metric=self._task.metric,
            rate=None if bursts else trial.setting.queries_per_second,
            trace=self._trace(trial) if bursts else None,
            queries=trial.warm_up + trial.queries,
            seed=trial.seed,
        )

    @cached_property
    def _task(self) -> Task:
        return find_task(TASK)

    @cached_property
    def _dataset(self) -> Dataset:
        dataset = self._task.load(None)
        train, validation, test = (
            replace(part, inputs=_enlarge(part.inputs))
            for part in (dataset.train, dataset.validation, dataset.test)
        )
        return Dataset(train, validation, test, dataset.classes)

    @cached_property
    def _queries(self) -> Path:
        """The test set, for the load generator."""
        path = self.folder / "queries.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, inputs=self._dataset.test.inputs, labels=self._dataset.test.labels)
        return path

    def _trace(self, trial: Trial) -> str:
        """A file with the times at which queries arrive, for the load generator."""
        path = self.folder / "trace.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, trial.arrivals(), fmt="%.6f")
        return str(path)

    @cached_property
    def _deployed(self) -> Bundle:
        path = self.folder / "deployed"
        try:
            return open_bundle(path)
        except BundleError:
            return train_deployed(self._task, self._dataset, NETWORK, path, self.training)

    def bundle_for(self, trial: Trial) -> Bundle:
        """The bundle that a trial serves, made once: its stand-ins are those that the policy needs,
        or of which it uses what it has."""
        policy, has = trial.policy.policy, trial.setting.stand_ins
        if policy.needs_backup or (policy.needs_stand_in and "parity" not in has):
            return self._with_backup(self._deployed)
        bundle = self._bundle(trial.setting.code)
        both = policy.needs_stand_in and "backup" in has
        return self._with_backup(bundle) if both else bundle

    def _bundle(self, code: CodeSpec) -> Bundle:
        """Return the deployed model with parity models for `code`, trained once."""
        options = {**code.encoder_options, **code.decoder_options}
        words = (
            code.encoder,
            code.decoder,
            code.k,
            code.r,
            *(f"{k}={v}" for k, v in options.items()),
        )
        path = self.folder / "-".join(map(str, words))
        try:
            return open_bundle(path, code.own)
        except BundleError:
            inputs = self._dataset.train.inputs
            queries = Queries.of(inputs, code.k)
            return train(self._deployed, queries, path, None, code, self.training)

    def _with_backup(self, bundle: Bundle) -> Bundle:
        """Return the bundle with a backup, trained once."""
        path = self.folder / (
            "backup" if bundle is self._deployed else f"{bundle.path.name}-backup"
        )
        try:
            return open_bundle(path, bundle.allowed)
        except BundleError:
            queries = Queries.of(self._dataset.train.inputs)
            return train(bundle, queries, path, NETWORK, None, self.training)


def _on_nodes(placements: Sequence[Placement], trial: Trial) -> tuple[Placement, ...]:
    """Return the placements of a trial's workers, on its nodes."""
    there = placements or (Placement(),) * trial.workers
    nodes = trial.setting.nodes
    return tuple(replace(each, node=str(slot % nodes)) for slot, each in enumerate(there))


def _spared(faults: FaultPlan, workers: int) -> FaultPlan:
    """Return the plan for a policy with fewer instances, without the faults of the others."""
    kills = tuple(kill for kill in faults.kills if kill.worker < workers)
    neighbours = faults.neighbours
    if neighbours is not None:
        there = tuple(worker for worker in neighbours.workers if worker < workers)
        neighbours = msgspec.structs.replace(neighbours, workers=there)
    return msgspec.structs.replace(faults, kills=kills, neighbours=neighbours)


def _enlarge(images: NDArray[Any]) -> NDArray[Any]:
    return images.repeat(ENLARGED, axis=-2).repeat(ENLARGED, axis=-1)


async def _busy_by(seconds: float, server: Served) -> float:
    """Return the busy time of instances so many seconds from now."""
    await asyncio.sleep(seconds)
    return await server.busy_seconds()


def _sum_up(result: LoadResult, warm_up: int, busy: float | None) -> TrialResult:
    """`busy` is how long instances were busy, in seconds, for those after the warm-up."""
    answered = result.answered[warm_up:]
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}; offer less load")
    sources = {str(source): int(result.came_from(source)[warm_up:].sum()) for source in Source}
    return msgspec.structs.replace(
        result_of(result.latency[warm_up:][answered], int((~answered).sum()), sources),
        busy_ms=None if busy is None else busy / len(answered) * 1e3,
        accuracy=float(result.score[warm_up:][answered].mean()),
        send_delay_p99_ms=float(np.nanquantile(result.send_delay[warm_up:], 0.99) * 1e3),
    )
