"""Real trials: a server process with worker processes, a client process, real contention."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, LoadError
from parity_models.faults import FaultPlan
from parity_models.lab.contention.apply import contended
from parity_models.lab.latency.engines import EngineName, served_on
from parity_models.lab.latency.trial import Emulation, Trial, TrialResult, result_of
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.result import LoadResult
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.scheduling import Source
from parity_models.serving.server import ServeOptions
from parity_models.tasks import Dataset, Task, find_task
from parity_models.training import Settings, train_backup, train_deployed, train_parity

TASK = "digits"
NETWORK = "linear"
ENLARGED = 14
"""Pixels of a query for each of a digit's, each way: 8x8 become 112x112, 50 kB. That is to the
shaped links what the paper's queries of some 600 kB are to its own, ten times as fast."""

TRAINING = Settings(seconds=15)
"""For each model: enough for a linear one."""


@dataclass(frozen=True)
class Laboratory:
    """Runs trials for real, on an engine; keeps the bundles they serve in `folder`.

    They are trained on enlarged digits, and linear: what takes time is the emulated accelerator.
    """

    folder: Path
    engine: EngineName = EngineName.LOCAL

    def run(self, trial: Trial) -> TrialResult:
        """Run a trial. Raises what starting the contention, the server or the load raises."""
        return asyncio.run(self._run(trial))

    async def _run(self, trial: Trial) -> TrialResult:
        backup = trial.policy.policy.needs_backup
        bundle = self._with_backup if backup else self._bundle(trial.setting.code)
        setting = trial.setting
        links = trial.network is Emulation.NOTHING
        drawn = trial.network is Emulation.EVERYTHING
        faults = (setting.simulated_faults if drawn else setting.faults)(trial.seed, trial.seconds)
        if not links:
            faults = msgspec.structs.replace(faults, shuffles=setting.drawn_shuffles())
        faults = _spared(faults, trial.workers)
        options = ServeOptions(
            policy=trial.policy,
            instances=setting.instances,
            parity_instances=setting.parity_instances,
            port=0,
            max_batch=setting.max_batch,
            faults=faults,
        )
        # Contention begins with the warm-up, which policies that learn would else learn from in
        # vain; so all queries are the load's own, and those of the warm-up are left out later.
        load = LoadSpec(
            model=bundle.manifest.name,
            data=str(self._queries),
            metric=self._task.metric,
            rate=setting.queries_per_second,
            count=trial.warm_up + trial.queries,
            seed=trial.seed,
        )
        plan = None if drawn else setting.contention(trial.seed, links=links)
        async with AsyncExitStack() as stack:
            contention = None
            if plan is not None:
                contention = await stack.enter_async_context(
                    contended(plan, setting.all_instances, bundle.path)
                )
                options = replace(options, placements=contention.placements[: trial.workers])
            prefix = contention.prefix if contention else ()
            server = await stack.enter_async_context(
                served_on(self.engine, bundle, options, prefix)
            )

            def begin() -> None:
                server.begin_faults()
                if contention is not None:
                    contention.begin(server.pid)

            here = msgspec.structs.replace(load, url=server.url)
            result = await offer_load_from_own_process(here, begin, prefix)
            return _sum_up(result, trial.warm_up)

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

    @cached_property
    def _deployed(self) -> Bundle:
        path = self.folder / "deployed"
        try:
            return open_bundle(path)
        except BundleError:
            return train_deployed(self._task, self._dataset, NETWORK, path, TRAINING).bundle

    def _bundle(self, code: CodeSpec) -> Bundle:
        """The deployed model with parity models for `code`, trained once."""
        path = self.folder / f"{code.encoder}-{code.decoder}-{code.k}-{code.r}"
        try:
            return open_bundle(path)
        except BundleError:
            inputs = self._dataset.train.inputs
            return train_parity(self._deployed, code, inputs, path, TRAINING).bundle

    @cached_property
    def _with_backup(self) -> Bundle:
        path = self.folder / "backup"
        try:
            return open_bundle(path)
        except BundleError:
            inputs = self._dataset.train.inputs
            return train_backup(self._deployed, NETWORK, inputs, path, TRAINING).bundle


def _spared(faults: FaultPlan, workers: int) -> FaultPlan:
    """The plan for a policy with fewer instances: it is spared what the others would have met."""
    kills = tuple(kill for kill in faults.kills if kill.worker < workers)
    neighbours = faults.neighbours
    if neighbours is not None:
        there = tuple(worker for worker in neighbours.workers if worker < workers)
        neighbours = msgspec.structs.replace(neighbours, workers=there)
    return msgspec.structs.replace(faults, kills=kills, neighbours=neighbours)


def _enlarge(images: NDArray[Any]) -> NDArray[Any]:
    return images.repeat(ENLARGED, axis=-2).repeat(ENLARGED, axis=-1)


def _sum_up(result: LoadResult, warm_up: int) -> TrialResult:
    answered = result.answered[warm_up:]
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}; offer less load")
    return result_of(
        result.latency[warm_up:][answered],
        int((~answered).sum()),
        {str(source): int(result.came_from(source)[warm_up:].sum()) for source in Source},
        accuracy=float(result.score[warm_up:][answered].mean()),
        send_delay_p99_ms=float(np.nanquantile(result.send_delay[warm_up:], 0.99) * 1e3),
    )
