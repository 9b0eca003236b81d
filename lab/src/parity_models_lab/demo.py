"""The whole path on real data: train, bundle, evaluate, serve twice under faults, compare."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from parity_models.codes import CodeSpec
from parity_models.emulation import FaultPlan, Kill, Slowdowns, Uniform
from parity_models.errors import LoadError, UserError
from parity_models.evaluation.accuracy import measure_accuracy
from parity_models.evaluation.outputs import Outputs
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.report import report_of
from parity_models.load.result import LoadResult
from parity_models.load.served import served
from parity_models.models.bundle import Bundle, with_measured
from parity_models.roles import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, Parity
from parity_models.serving.server import ServeOptions
from parity_models.training import Trained, TrainingOptions, progress_bars, train
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.plots import plot_latency
from parity_models_lab.results import Row, write_result
from parity_models_lab.tasks import Dataset, Task

NETWORK = "mlp"
CODE = CodeSpec("stack", "separate", k=2)

LOW, HIGH = 0.04, 0.1
"""Seconds that a query takes longer in a slow spell: uniform between the two."""

GROUP_WAIT = PARITY_DELAY = 0.005
"""Seconds: a few times the median latency, so that only what is late costs parity work. All the
workers and the load generator share a few cores."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The instances, load and faults of both runs. Times in seconds, `rate` per second.

    Each worker is slow in spells of `slow` on average, `slow_every` apart. Worker 0 is killed at
    half time.
    """

    instances: int = 6
    rate: float = 250.0
    queries: int = 7_500
    warm_up: int = 500
    slow: float = 0.2
    slow_every: float = 10.0

    @property
    def half_time(self) -> float:
        return self.queries / self.rate / 2

    def faults(self, seed: int) -> FaultPlan:
        """Return the plan that both runs follow from the first counted query on."""
        slowdowns = Slowdowns(self.slow_every, self.slow, Uniform(LOW, HIGH))
        return FaultPlan(seed=seed, slowdowns=slowdowns, kills=(Kill(0, self.half_time),))

    def describe(self) -> str:
        """Say for people what is served, and what is done to it."""
        share = self.slow / (self.slow + self.slow_every)
        return (
            f"Each run: {self.instances} workers, {self.queries:,} queries at {self.rate:g}/s "
            f"(Poisson). Injected in both alike: each worker is slow {share:.0%} of the time, in "
            f"spells of {self.slow:g} s on average, during which a query takes {1e3 * LOW:g} to "
            f"{1e3 * HIGH:g} ms longer; worker 0 is killed after {self.half_time:g} s. Parity: a "
            f"group closes after {1e3 * GROUP_WAIT:g} ms at the latest; its parity query goes "
            f"out {1e3 * PARITY_DELAY:g} ms later if a prediction is still missing."
        )


def run_demo(
    out: Path,
    task: Task,
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    scenario: Scenario | None = None,
    options: TrainingOptions | None = None,
    tell: Callable[[str], None],
) -> list[Row]:
    """Run the demo; leaves `out`/bundle, summary.json and latency.png.

    Returns a row for each policy; latencies in ms. `tell` is given what happens next, for people;
    progress bars go to stderr. Raises UserError if `out` cannot be written, and whatever the steps
    raise.
    """
    scenario = scenario or Scenario()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    dataset = task.load(data_dir)
    tell(f"Training on {task.name}: {len(dataset.train):,} queries, network {NETWORK}, {CODE}.")
    bundle = _train_bundle(out / "bundle", task, dataset, options or TrainingOptions(seed=seed))
    test = dataset.test
    accuracy = measure_accuracy(Outputs(bundle, test.inputs), test.labels, metric=task.metric)
    with_measured(bundle, accuracy=accuracy)
    assert accuracy.degraded_accuracy is not None
    tell(
        f"Deployed model: {accuracy.available_accuracy:.2%} right. Reconstructions alone: "
        f"{accuracy.degraded_accuracy:.2%} right."
    )
    tell(scenario.describe())
    with tempfile.TemporaryDirectory(prefix="parm-demo-") as folder:
        data = Path(folder, "queries.npz")
        np.savez(data, inputs=test.inputs, labels=test.labels)
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
        results = asyncio.run(_serve_twice(bundle, load, scenario, tell))
    rows = [_row(name, load, result) for name, result in results.items()]
    write_result(
        out / "summary.json",
        "Latencies in ms",
        rows,
        A_a=accuracy.available_accuracy,
        A_d=accuracy.degraded_accuracy,
    )
    plot_latency(
        out / "latency.png",
        {name: result.latency[result.answered] * 1e3 for name, result in results.items()},
        "Same instances, same load, same faults",
        f"{scenario.describe()} Data: {task.name}; model: {NETWORK}; code: {CODE}.",
    )
    return rows


def _train_bundle(out: Path, task: Task, dataset: Dataset, options: TrainingOptions) -> Bundle:
    """Train a model for the task and a parity model for that, and write both to the folder `out`.

    Most of the validation set is not used for the parity model: gates can be calibrated with it.
    Raises KeyboardInterrupt where training was interrupted.
    """
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    validation = dataset.validation.part(CODE.k)[0]
    queries = replace(
        queries_of(task, dataset),
        validation=validation.inputs,
        validation_labels=validation.labels,
    )
    with tempfile.TemporaryDirectory(prefix="parm-demo-") as folder, progress_bars() as bars:
        path = Path(folder, "deployed")
        deployed = _finished(train_deployed(task, dataset, NETWORK, path, options, callbacks=bars))
        return _finished(train(deployed, queries, out, None, CODE, options, callbacks=bars))


def _finished(trained: Trained) -> Bundle:
    if trained.fitted.interrupted:
        raise KeyboardInterrupt
    return trained


async def _serve_twice(
    bundle: Bundle, load: LoadSpec, scenario: Scenario, tell: Callable[[str], None]
) -> dict[str, LoadResult]:
    """Offer the load to a server of each policy; its faults begin when the counted load does.

    Raises LoadError without a single answer.
    """
    coded = {"max_group_wait": GROUP_WAIT, "parity_delay": PARITY_DELAY}
    policies = {
        "equal resources": PolicyChoice(EqualResources.name),
        "parity": PolicyChoice(Parity.name, coded),
    }
    results = {}
    for name, policy in policies.items():
        tell(f"Serving: {name}.")
        options = ServeOptions(
            policy=policy,
            instances=scenario.instances,
            faults=scenario.faults(load.seed),
            port=0,
        )
        async with served(bundle.path, options) as server:
            here = replace(load, url=server.url)
            result = await offer_load_from_own_process(here, server.begin_faults)
        if not result.answered.any():
            raise LoadError(f"{name}: no query was answered: {result.errors()}")
        results[name] = result
    return results


def _row(name: str, load: LoadSpec, result: LoadResult) -> Row:
    report = report_of(load, result)
    latency, rebuilt = report.latency, report.sources.get(Source.RECONSTRUCTION)
    assert latency is not None  # there are answers
    return {
        "policy": name,
        "p50": latency.p50_ms,
        "p99": latency.p99_ms,
        "p99.9": latency.p999_ms,
        "gap": latency.gap_ms,
        "answers": report.answered,
        "errors": sum(report.errors.values()),
        "stood in": rebuilt.count / report.answered if rebuilt else 0.0,
        "accuracy": report.accuracy,
    }
