"""Real trials: a server process with worker processes, a client process, real contention."""

import asyncio
import os
import resource
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
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.roles import DEPLOYED, Source
from parity_models.serving.server import ServeOptions
from parity_models.training import Queries, TrainingOptions, train
from parity_models_lab.contention.apply import contended
from parity_models_lab.deployed import train_deployed
from parity_models_lab.latency.setting import QUERY_SHAPE
from parity_models_lab.latency.trial import Trial, TrialResult, result_of
from parity_models_lab.processes import cpu_seconds, descendants
from parity_models_lab.served import served
from parity_models_lab.tasks import Dataset, Task, find_task

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
        setting, roles = trial.setting, trial.roles
        bundle = self.bundle_for(trial)
        async with AsyncExitStack() as stack:
            contention = stack.enter_context(contended(setting, trial.seed))
            options = ServeOptions(
                policy=trial.policy,
                instances=len(roles),
                extra_instances=sum(DEPLOYED not in each for each in roles) or None,
                port=0,
                max_batch=setting.max_batch,
                placements=contention.placements[: len(roles)],
                faults=_of_workers(setting.faults(trial.seed, trial.seconds), len(roles)),
                share_groups=True,
                agreement=0,  # what may not be answered is drawn, as in simulations: coverage
            )
            server = await stack.enter_async_context(
                served(bundle.path, options, contention.server_prefix)
            )
            load = self._load(trial, bundle.manifest.name, server.url)
            counting: list[asyncio.Task[float]] = []
            computed: list[tuple[float, float]] = []

            async def busy_in_warm_up() -> float:
                await asyncio.sleep(float(load.due[trial.warm_up]))
                return await server.busy_seconds()

            def begin() -> None:
                computed.append(_computed(server.pid))
                server.begin_faults()
                contention.begin()
                counting.append(asyncio.create_task(busy_in_warm_up()))

            result = await offer_load_from_own_process(load, begin, contention.prefix)
            busy = sum([await server.busy_seconds() - await before for before in counting])
            summed = msgspec.structs.replace(
                _sum_up(result, trial.warm_up, busy), lag_ms=await server.mean_lag() * 1e3
            )
            if setting.hogs:
                return summed  # they compute, too
            ms = 1e3 / len(result)
            (then,) = computed
            workers, serving = (b - a for a, b in zip(then, _computed(server.pid), strict=True))
            return msgspec.structs.replace(summed, workers_ms=ms * workers, serving_ms=ms * serving)

    def _load(self, trial: Trial, model: str, url: str) -> LoadSpec:
        """Contention begins with the warm-up, which policies that learn would else learn from in
        vain; so all queries are the load's own, and those of the warm-up are left out later."""
        trace = self.folder / "trace.txt"
        np.savetxt(trace, trial.arrivals(), fmt="%.9f")
        return LoadSpec(
            url=url,
            model=model,
            binary=True,
            inputs=str(self._queries),
            metric=self._task.metric,
            trace=str(trace),
            queries=trial.warm_up + trial.queries,
            seed=trial.seed,
        )

    @cached_property
    def _task(self) -> Task:
        return find_task(TASK)

    @cached_property
    def _dataset(self) -> Dataset:
        dataset = self._task.load()
        train, validation, test = (
            replace(part, inputs=_enlarge(part.inputs))
            for part in (dataset.train, dataset.validation, dataset.test)
        )
        return Dataset(train, validation, test, dataset.classes)

    @cached_property
    def _queries(self) -> Path:
        """The test set, for the load generator."""
        path = self.folder / "queries.npz"
        np.savez(path, inputs=self._dataset.test.inputs, labels=self._dataset.test.labels)
        return path

    def bundle_for(self, trial: Trial) -> Bundle:
        """Return the bundle of a trial, made once, with the stand-ins that its policy uses."""
        policy, has = trial.policy.policy, trial.setting.stand_ins
        self.folder.mkdir(parents=True, exist_ok=True)
        bundle = self._deployed
        if policy.needs_code or (policy.needs_stand_in and "parity" in has):
            bundle = self._trained(bundle, trial.setting.code)
        if policy.needs_backup or (policy.needs_stand_in and "backup" in has):
            bundle = self._trained(bundle, None)
        return bundle

    @cached_property
    def _deployed(self) -> Bundle:
        path = self.folder / "deployed"
        try:
            return open_bundle(path)
        except BundleError:
            return train_deployed(self._task, self._dataset, NETWORK, path, self.training)

    def _trained(self, bundle: Bundle, code: CodeSpec | None) -> Bundle:
        """Return the bundle with parity models for `code`, or with a backup, trained once."""
        words = ["" if bundle is self._deployed else bundle.path.name, "backup"]
        if code is not None:
            words = [code.encoder, code.decoder, str(code.k)]
        path = self.folder / "-".join(filter(None, words))
        try:
            return open_bundle(path)
        except BundleError:
            inputs = self._dataset.train.inputs
            queries = Queries.of(inputs) if code is None else Queries.of(inputs, code.k)
            network = NETWORK if code is None else None
            return train(bundle, queries, path, network, code, self.training)


def _of_workers(faults: FaultPlan, workers: int) -> FaultPlan:
    """Return the plan for a policy with fewer instances, without the faults of the others."""
    kills, neighbours = (kill for kill in faults.kills if kill.worker < workers), faults.neighbours
    if neighbours is not None:
        here = tuple(worker for worker in neighbours.workers if worker < workers)
        neighbours = msgspec.structs.replace(neighbours, workers=here)
    return msgspec.structs.replace(faults, kills=tuple(kills), neighbours=neighbours)


def _enlarge(images: NDArray[Any]) -> NDArray[Any]:
    return images.repeat(ENLARGED, axis=-2).repeat(ENLARGED, axis=-1)


def _computed(server: int) -> tuple[float, float]:
    """Return the processor seconds so far of a server's workers, and of the server and clients."""
    workers = cpu_seconds(descendants(server))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    clients = ended.ru_utime + ended.ru_stime
    return workers, clients + cpu_seconds(descendants(os.getpid())) - workers


def _sum_up(result: LoadResult, warm_up: int, busy: float) -> TrialResult:
    """`busy` is how long instances were busy, in seconds, for those after the warm-up."""
    answered = result.answered[warm_up:]
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}; offer less load")
    sources = {str(source): int(result.came_from(source)[warm_up:].sum()) for source in Source}
    return msgspec.structs.replace(
        result_of(result.latency[warm_up:][answered], int((~answered).sum()), sources),
        busy_ms=busy / len(answered) * 1e3,
        accuracy=float(result.score[warm_up:][answered].mean()),
        send_delay_p99_ms=float(np.nanquantile(result.send_delay[warm_up:], 0.99) * 1e3),
    )
