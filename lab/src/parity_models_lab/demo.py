"""The whole path on real data: train, bundle, evaluate, serve twice under faults, compare."""

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from parity_models.codes import CodeSpec
from parity_models.emulation import FaultPlan, Kill, Slowdowns, Uniform
from parity_models.errors import LoadError, UserError
from parity_models.evaluation.accuracy import measure_accuracy
from parity_models.evaluation.outputs import Outputs
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.report import LoadReport, report_of
from parity_models.load.result import LoadResult
from parity_models.load.served import served
from parity_models.models.bundle import Bundle, with_measured
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, Parity
from parity_models.serving.server import ServeOptions
from parity_models.tasks import Dataset, Task
from parity_models.training import Trained, TrainingOptions, progress_bars, train
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.plots import plot_latency
from parity_models_lab.results import Row

NETWORK = "mlp"
CODE = CodeSpec("stack", "separate", k=2)
SLOWDOWNS = Slowdowns(mean_between=10.0, mean_length=0.2, delay=Uniform(0.04, 0.1))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The instances, load and faults of both runs. Times in seconds, `rate` per second.

    Each worker has `slowdowns`, by uniform delays. Worker 0 is killed at half time. `parity_delay`
    is a few times the median latency, so that only what is late costs parity work: all the workers
    and the load generator share a few cores.
    """

    instances: int = 6
    rate: float = 250.0
    queries: int = 7_500
    warm_up: int = 500
    slowdowns: Slowdowns = SLOWDOWNS
    max_group_wait: float = 0.005
    parity_delay: float = 0.005

    @property
    def half_time(self) -> float:
        return self.queries / self.rate / 2

    def faults(self, seed: int) -> FaultPlan:
        """The plan that both runs follow from the first counted query on."""
        return FaultPlan(
            seed=seed,
            slowdowns=self.slowdowns,
            kills=(Kill(worker=0, at=self.half_time),),
        )

    def describe(self) -> str:
        """For people: what is served, and what is done to it."""
        spells = self.slowdowns
        share = spells.mean_length / (spells.mean_length + spells.mean_between)
        assert isinstance(spells.delay, Uniform)
        low, high = 1e3 * spells.delay.low, 1e3 * spells.delay.high
        return (
            f"Each run: {self.instances} workers, {self.queries:,} queries at {self.rate:g}/s "
            f"(Poisson). Injected in both alike: each worker is slow {share:.0%} of the time, in "
            f"spells of {spells.mean_length:g} s on average, during which a query takes {low:g} to "
            f"{high:g} ms longer; worker 0 is killed after {self.half_time:g} s. Parity: a group "
            f"closes after {1e3 * self.max_group_wait:g} ms at the latest; its parity query goes "
            f"out {1e3 * self.parity_delay:g} ms later if a prediction is still missing."
        )


class DemoSummary(msgspec.Struct, frozen=True):
    """The loads by policy, and the accuracy of predictions and of reconstructions."""

    policies: dict[str, LoadReport]
    available_accuracy: float
    degraded_accuracy: float

    def rows(self) -> list[Row]:
        """Return a row for each policy; latencies in ms."""
        rows: list[Row] = []
        for name, report in self.policies.items():
            assert report.latency is not None  # a demo without an answer has no summary
            rebuilt = report.sources.get(Source.RECONSTRUCTION)
            rows.append(
                {
                    "policy": name,
                    "p50": report.latency.p50_ms,
                    "p99": report.latency.p99_ms,
                    "p99.9": report.latency.p999_ms,
                    "gap": report.latency.gap_ms,
                    "answers": report.answered,
                    "errors": sum(report.errors.values()),
                    "stood in": rebuilt.count / report.answered if rebuilt else 0.0,
                    "accuracy": report.accuracy,
                }
            )
        return rows


def run_demo(
    out: Path,
    task: Task,
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    scenario: Scenario | None = None,
    options: TrainingOptions | None = None,
    tell: Callable[[str], None],
) -> DemoSummary:
    """Run the demo; leaves `out`/bundle, summary.json and latency.png.

    `tell` is given what happens next, for people; progress bars go to stderr. Raises UserError
    if `out` cannot be written, and whatever the steps raise.
    """
    scenario = scenario or Scenario()
    options = options or TrainingOptions(seed=seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    dataset = task.load(data_dir)
    tell(f"Training on {task.name}: {len(dataset.train):,} queries, network {NETWORK}, {CODE}.")
    bundle = train_bundle(out / "bundle", task, dataset, options)
    test = dataset.test
    accuracy = measure_accuracy(Outputs(bundle, test.inputs), test.labels, metric=task.metric)
    with_measured(bundle, accuracy=accuracy)
    assert accuracy.degraded_accuracy is not None
    tell(
        f"Deployed model: {accuracy.available_accuracy:.2%} right. Reconstructions alone: "
        f"{accuracy.degraded_accuracy:.2%} right."
    )
    tell(scenario.describe())
    load, results = _serve(bundle, task, dataset, scenario, seed, tell)
    summary = DemoSummary(
        {name: report_of(load, result) for name, result in results.items()},
        accuracy.available_accuracy,
        accuracy.degraded_accuracy,
    )
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    (out / "summary.json").write_bytes(text + b"\n")
    plot_latency(
        out / "latency.png",
        {name: result.latency[result.answered] * 1e3 for name, result in results.items()},
        "Same instances, same load, same faults",
        f"{scenario.describe()} Data: {task.name}; model: {NETWORK}; code: {CODE}.",
    )
    return summary


def train_bundle(out: Path, task: Task, dataset: Dataset, options: TrainingOptions) -> Bundle:
    """Train a model for the task and a parity model for that, and write both to the folder `out`.

    Most of the validation set is not used for the parity model: gates can be calibrated with it.
    Progress bars go to stderr. Raises KeyboardInterrupt where training was interrupted.
    """
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    queries = queries_of(task, dataset)
    validation = dataset.validation.part(CODE.k)[0]
    queries = replace(queries, validation=validation.inputs, validation_labels=validation.labels)
    with tempfile.TemporaryDirectory(prefix="parm-demo-") as folder, progress_bars() as bars:
        path = Path(folder, "deployed")
        deployed = _finished(train_deployed(task, dataset, NETWORK, path, options, callbacks=bars))
        return _finished(train(deployed, queries, out, None, CODE, options, callbacks=bars))


def _finished(trained: Trained) -> Bundle:
    if trained.fitted.interrupted:
        raise KeyboardInterrupt
    return trained


def _serve(
    bundle: Bundle,
    task: Task,
    dataset: Dataset,
    scenario: Scenario,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[LoadSpec, dict[str, LoadResult]]:
    """Return the load, and its results by policy. Raises LoadError without a single answer."""
    coded = {"max_group_wait": scenario.max_group_wait, "parity_delay": scenario.parity_delay}
    servers = {
        name: ServeOptions(
            policy=policy,
            instances=scenario.instances,
            faults=scenario.faults(seed),
            port=0,
        )
        for name, policy in (
            ("equal resources", PolicyChoice(EqualResources.name)),
            ("parity", PolicyChoice(Parity.name, coded)),
        )
    }
    with tempfile.TemporaryDirectory(prefix="parm-demo-") as folder:
        data = Path(folder, "queries.npz")
        np.savez(data, inputs=dataset.test.inputs, labels=dataset.test.labels)
        load = LoadSpec(
            url="",
            model=bundle.manifest.name,
            binary=True,
            inputs=str(data),
            metric=task.metric,
            rate=scenario.rate,
            queries=scenario.queries,
            warm_up=scenario.warm_up,
            seed=seed,
        )
        results = asyncio.run(_compare(bundle, servers, load, tell))
    for name, result in results.items():
        if not result.answered.any():
            raise LoadError(f"{name}: no query was answered: {result.errors()}")
    return load, results


async def _compare(
    bundle: Bundle, servers: Mapping[str, ServeOptions], load: LoadSpec, tell: Callable[[str], None]
) -> dict[str, LoadResult]:
    """Offer the load to each server in turn; its faults begin when the counted load does."""
    results = {}
    for name, options in servers.items():
        tell(f"Serving: {name}.")
        async with served(bundle.path, options) as server:
            here = replace(load, url=server.url)
            results[name] = await offer_load_from_own_process(here, server.begin_faults)
    return results
