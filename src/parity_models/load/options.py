"""The options of a load, and the load that they describe."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
import numpy as np

from parity_models.errors import OptionError, UserError
from parity_models.load.processes import offer_load_from_own_process
from parity_models.load.result import LoadResult
from parity_models.load.spec import BOUNDS, LoadSpec, lasting
from parity_models.load.target import find_model
from parity_models.options import SECONDS, Option, Options
from parity_models.serving.client import ANONYMOUS, Credentials
from parity_models.tasks import METRICS, TASKS, Task, choose_task

DURATION = 30.0
"""Seconds that a load lasts where nothing else is said."""

DEFAULTS = LoadSpec(data="", rate=1, count=1)


def _bounded(help: str, what: str, **more: Any) -> Option:
    """An option that is within the bounds of a load's field `what`."""
    low, high = BOUNDS[what]
    return Option(help, at_least=low, at_most=high, **more)


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """A load, whatever it is on. Times in seconds.

    Raises UserError for values out of range.
    """

    model: Annotated[
        str | None,
        Option("The model; by default the only one of the server.", metavar="NAME"),
    ] = None
    binary: Annotated[bool, Option("Tensors as binary data; JSON without this.")] = False
    task: Annotated[
        str | None,
        Option(
            f"Send queries of this task's test set ({', '.join(TASKS.names)}, or "
            "package.module:Class) and judge the answers.",
            metavar="TASK",
        ),
    ] = None
    data_dir: Annotated[str | None, Option("The folder of the task's data.", metavar="DIR")] = None
    inputs: Annotated[
        str | None,
        Option(
            "Send the rows of this file: .npy, or .npz with inputs, or an array for each input of "
            "the model, and maybe labels.",
            metavar="FILE",
        ),
    ] = None
    labels: Annotated[
        str | None, Option("What is right for --inputs, an .npy file.", metavar="FILE")
    ] = None
    metric: Annotated[
        str,
        Option(f"How labels of --inputs judge answers: {', '.join(METRICS)}.", metavar="NAME"),
    ] = DEFAULTS.metric
    output: Annotated[
        str | None,
        Option(
            "Ask for this output alone; by default for all, and labels judge the first.",
            metavar="NAME",
        ),
    ] = None
    batch: Annotated[int, _bounded("Queries (rows) in a request.", "batch")] = DEFAULTS.batch
    rate: Annotated[float | None, _bounded("Queries per second, Poisson arrivals.", "rate")] = None
    trace: Annotated[
        str | None,
        Option(
            "Send a request at each time in this file: one number of seconds per line, in order; "
            "the first is sent at once.",
            metavar="FILE",
        ),
    ] = None
    speed: Annotated[
        float, _bounded("How many times faster than recorded the --trace is.", "speed")
    ] = DEFAULTS.speed
    queries: Annotated[
        int | None, _bounded("Queries to send and count.", "count", excludes="duration")
    ] = None
    duration: Annotated[
        float | None,
        Option(
            f"How long to send, in place of --queries. Without either: {DURATION:g} s, or the "
            "whole trace.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = None
    warm_up: Annotated[
        float,
        Option(
            "Time before that, whose queries are not counted.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = 0.0
    processes: Annotated[
        int, _bounded("Generator processes, which take turns in sending.", "processes")
    ] = DEFAULTS.processes
    connections: Annotated[
        int,
        _bounded(
            "Requests under way at most, per process; one that is due beyond that is not sent and "
            "counts as an error.",
            "max_in_flight",
        ),
    ] = DEFAULTS.max_in_flight
    timeout: Annotated[
        float,
        _bounded(
            "How long until a request fails, from when it was due.",
            "timeout",
            unit=SECONDS,
            typed="s",
        ),
    ] = DEFAULTS.timeout
    seed: Annotated[int, _bounded("Fixes arrivals and queries.", "seed")] = DEFAULTS.seed

    @property
    def lasts(self) -> float | None:
        """Seconds for which queries are counted; inf: all of the trace; None: `queries` are."""
        if self.queries is not None or self.duration is not None:
            return self.duration
        return DURATION if self.trace is None else inf


@dataclass(frozen=True)
class LoadPlan:
    """A load, whose queries are those of a task's test set unless `task` is None.

    `spec` names these by words; its `data` are a file otherwise. A server is shown the
    `credentials`.
    """

    spec: LoadSpec
    task: Task | None
    data_dir: Path | None
    credentials: Credentials = ANONYMOUS

    async def offer(self, stop: asyncio.Event, started: Callable[[], None]) -> LoadResult:
        """Offer the load from processes of its own, until `stop` is set.

        Raises as `offer_load_from_own_process` does, and DataError if the task's data are not
        there.
        """
        with TemporaryDirectory(prefix="parm-load-") as folder:
            spec = self.spec
            if self.task is not None:
                path = Path(folder, "queries.npz")
                test = self.task.load(self.data_dir).test
                np.savez(path, inputs=test.inputs, labels=test.labels)
                spec = msgspec.structs.replace(spec, data=str(path))
            return await offer_load_from_own_process(
                spec, started, stop=stop, credentials=self.credentials
            )


async def plan_load(
    options: LoadOptions,
    *,
    url: str,
    credentials: Credentials = ANONYMOUS,
) -> LoadPlan:
    """The load on the server at `url`, which is shown the `credentials`.

    Raises UserError if nothing says which queries to send,
    and LoadError for a load that cannot be, or a server that does not say which model it has.
    """
    if (options.rate is None) == (options.trace is None):
        raise OptionError("give --rate or --trace, to say when queries are sent, and not both")
    spec = LoadSpec(
        url=url,
        model=options.model or "",
        binary=options.binary,
        data=options.inputs or "",
        labels=options.labels,
        metric=options.metric,
        output=options.output,
        batch=options.batch,
        rate=options.rate,
        trace=options.trace,
        speed=options.speed,
        count=options.queries or 1,
        seed=options.seed,
        timeout=options.timeout,
        max_in_flight=options.connections,
        processes=options.processes,
    )
    spec = lasting(spec, options.warm_up, options.lasts)
    task = None if options.inputs is not None else _task(options.task)
    if task is not None:
        data = f"the test set of {task.name}"
        spec = msgspec.structs.replace(spec, data=data, metric=task.metric)
    if options.model is None:
        spec = msgspec.structs.replace(spec, model=await find_model(url, credentials))
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    return LoadPlan(spec, task, data_dir, credentials)


def _task(name: str | None) -> Task:
    if name is None:
        raise UserError("say which queries to send: a task's with --task, or a file with --inputs")
    return choose_task(name)
