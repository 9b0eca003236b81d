"""The whole path on real data: train, bundle, evaluate, serve twice under faults, compare."""

import asyncio
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from parity_models.codes import CodeSpec
from parity_models.emulation import FaultPlan, Kill, Slowdowns, Uniform
from parity_models.errors import LoadError
from parity_models.evaluation.judging import evaluate
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.report import report_of
from parity_models.load.result import LoadResult
from parity_models.models.bundle import Bundle
from parity_models.roles import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, Parity
from parity_models.serving.server import ServeOptions
from parity_models.training import TrainingOptions, parity, progress_bars
from parity_models_lab.deployed import train_deployed
from parity_models_lab.plots import plot_latency
from parity_models_lab.results import Row, check_out, write_result
from parity_models_lab.served import served
from parity_models_lab.tasks import find_task

TASK, NETWORK, CODE = "digits", "mlp", CodeSpec("stack", "separate", k=2)
INSTANCES, RATE = 6, 250.0

WAIT = 0.005
"""Seconds until a group is closed, and again until its parity query is sent: a few times the median
latency, so that only what is late costs parity work. All processes share a few cores."""

POLICIES = {
    "equal resources": PolicyChoice(EqualResources.name),
    "parity": PolicyChoice(Parity.name, {"max_group_wait": WAIT, "parity_delay": WAIT}),
}
FAULTS = (
    "Injected in both runs alike: each worker is slow 2 % of the time, in spells of 0.2 s, "
    "in which a query takes 40 to 100 ms longer; worker 0 is killed at half time."
)


def run_demo(out: Path, options: TrainingOptions, queries: int, console: Console) -> list[Row]:
    """Run the demo; leaves `out`/bundle, summary.json and latency.png.

    Args:
        out: The folder to write.
        options: The options of both trainings; the seed fixes load and faults, too.
        queries: Queries of each run.
        console: Where results are printed, and what happens next.

    Returns:
        A row for each policy; latencies in ms.

    Raises:
        UserError: If `out` cannot be written, and whatever the steps raise.

    """
    check_out(out)
    task = find_task(TASK)
    dataset = task.load()
    test = dataset.test
    console.print(f"Training on {TASK}: {len(dataset.train):,} queries, network {NETWORK}, {CODE}.")
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="parm-demo-") as folder, progress_bars() as bars:
        path = Path(folder, "deployed")
        deployed = train_deployed(task, dataset, NETWORK, path, options, callbacks=bars)
        train, bundle_path = dataset.train.inputs, out / "bundle"
        bundle = parity(
            deployed, train, out=bundle_path, code=CODE, callbacks=bars, options=options
        )
        evaluate(bundle, test.inputs, test.labels, metric=task.metric).show(console)
        data = Path(folder, "queries.npz")
        np.savez(data, inputs=test.inputs, labels=test.labels)
        load = LoadSpec(
            url="",
            model=bundle.manifest.name,
            binary=True,
            inputs=str(data),
            metric=task.metric,
            rate=RATE,
            queries=queries,
            warm_up=queries // 15,
            seed=options.seed,
        )
        console.print(f"Each run: {INSTANCES} workers, {queries:,} queries at {RATE:g}/s. {FAULTS}")
        kill = Kill(0, queries / RATE / 2)
        results = asyncio.run(_serve_twice(bundle, load, kill, console))
    rows = [_row(name, load, result) for name, result in results.items()]
    write_result(out / "summary.json", "Latencies in ms", rows)
    plot_latency(
        out / "latency.png",
        {name: result.latency[result.answered] * 1e3 for name, result in results.items()},
        "Same instances, same load, same faults",
        f"{FAULTS} Data: {TASK}; model: {NETWORK}; code: {CODE}.",
    )
    return rows


async def _serve_twice(
    bundle: Bundle, load: LoadSpec, kill: Kill, console: Console
) -> dict[str, LoadResult]:
    """Offer the load to a server of each policy; its faults begin when the counted load does.

    Raises LoadError without a single answer.
    """
    slowdowns = Slowdowns(10.0, 0.2, Uniform(0.04, 0.1))
    faults = FaultPlan(load.seed, slowdowns=slowdowns, kills=(kill,))
    results = {}
    for name, policy in POLICIES.items():
        console.print(f"Serving: {name}.")
        options = ServeOptions(policy=policy, instances=INSTANCES, faults=faults, port=0)
        async with served(bundle.path, options) as server:
            here = replace(load, url=server.url)
            results[name] = await offer_load_from_own_process(here, server.begin_faults)
        if not results[name].answered.any():
            raise LoadError(f"{name}: no query was answered: {results[name].errors()}")
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
