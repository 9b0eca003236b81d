"""A load as it was asked for: what is sent to whom, with the queries of a task or of a file."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from parity_models.errors import OptionError, UserError
from parity_models.load.credentials import ANONYMOUS, Credentials
from parity_models.load.options import LoadOptions
from parity_models.load.processes import offer_load_from_own_process
from parity_models.load.rest import find_model
from parity_models.load.result import LoadResult
from parity_models.load.spec import Direct, LoadSpec, lasting
from parity_models.tasks import Task, choose_task, find_task


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
    url: str | None = None,
    direct: Direct | None = None,
    trained_on: str | None = None,
    credentials: Credentials = ANONYMOUS,
) -> LoadPlan:
    """The load on the server at `url`, or on `direct`, whose model was `trained_on` a task.

    The server is shown the `credentials`. Raises UserError if nothing says which queries to send,
    and LoadError for a load that cannot be, or a server that does not say which model it has.
    """
    if (options.rate is None) == (options.trace is None):
        raise OptionError(
            lambda spell: (
                f"give {spell('rate')} or {spell('trace')}, to say when queries are sent, and not "
                "both"
            )
        )
    if direct is not None and options.processes > 1:
        raise OptionError(
            lambda spell: (
                f"{spell('processes')} is for a server: several processes cannot share a bundle "
                "that is served in process; leave it out"
            )
        )
    spec = LoadSpec(
        url=url or "",
        direct=direct,
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
    task = None if options.inputs is not None else _task(options.task, trained_on)
    if task is not None:
        data = f"the test set of {task.name}"
        spec = msgspec.structs.replace(spec, data=data, metric=task.metric)
    if url is not None and options.model is None:
        spec = msgspec.structs.replace(spec, model=await find_model(url, credentials))
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    return LoadPlan(spec, task, data_dir, credentials)


def _task(name: str | None, trained_on: str | None) -> Task:
    """The task called `name`, or else the one that the model was trained on."""
    if name is not None:
        return choose_task(name)
    if trained_on is None:
        raise UserError("say which queries to send: a task's with --task, or a file with --inputs")
    return find_task(trained_on)
