"""The contention of a setting for a real server and its workers, while a context lasts.

    async with contended(setting, seed, bundle) as contention:
        options = replace(options, placements=contention.placements)
        async with served(bundle, options, contention.prefix) as server:
            contention.begin(server.pid)

Kills are part of the server's own fault plan; so are service times, if they are emulated.
"""

import asyncio
import heapq
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Event, Thread
from typing import NamedTuple

import msgspec
import numpy as np
import psutil

from parity_models.emulation import Exponential, FaultPlan, Pauses, Spells, course_of
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.engine import Placement
from parity_models.serving.server import ServeOptions
from parity_models.serving.worker.wire import Assignment
from parity_models_lab.contention.network import FRONTEND_ADDRESS, enter, shuffling, star
from parity_models_lab.contention.processor import hogging
from parity_models_lab.latency.setting import Setting, Tenant
from parity_models_lab.served import served

LONGEST_LOAD = 3600.0
"""Seconds for which another tenant's queries come, if the contention does not end before."""

LONGEST_PAUSE = 1.5
"""Seconds: an engine considers a worker dead after two without a heartbeat."""


@dataclass(frozen=True)
class Contended:
    """Contention that is set up.

    The server's i-th instance belongs at the i-th of `placements`. `prefix` must come before
    the commands of the server and of its clients: only they reach the workers and the server.
    `begin` starts the contention for the server with this process id; to be called once.
    """

    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]
    begin: Callable[[int], None]


@asynccontextmanager
async def contended(setting: Setting, seed: int, bundle: Path) -> AsyncIterator[Contended]:
    """Make a setting's contention.

    The server of `bundle` is to be started, and stopped again, while the context lasts. At its end
    nothing is left. Raises ContentionError if the network cannot be made here, and what serving
    raises if another tenant cannot be served.
    """
    workers, cores = setting.all_instances, sorted(os.sched_getaffinity(0))
    network = setting.network
    beginnings: list[Callable[[float], None]] = []
    async with AsyncExitStack() as stack:
        machines = stack.enter_context(star(network, workers)) if network else None
        prefix = enter(machines.frontend) if machines else ()
        placements = [Placement()] * workers
        for worker in range(workers):
            inside = enter(machines.machines[worker]) if machines else ()
            if setting.hogs:
                inside += ("taskset", "--cpu-list", str(cores[worker % len(cores)]))
            placements[worker] = Placement(inside, FRONTEND_ADDRESS if machines else None)
        for worker in setting.shared(seed):
            # The tenant shares a device with each of its neighbours: a file without a name.
            device = os.memfd_create(f"device {worker}")
            stack.callback(os.close, device)
            path = f"/proc/{os.getpid()}/fd/{device}"
            placements[worker] = replace(placements[worker], device=path)
        if setting.hogs:
            beginnings.append(stack.enter_context(hogging(setting.hogs, cores, seed)))
        if setting.tenant:
            shared = [placements[worker] for worker in setting.shared(seed)]
            tenant = _tenant(setting.tenant, seed, bundle, shared, prefix)
            beginnings.append(await stack.enter_async_context(tenant))

        def begin(server: int) -> None:
            start = time.monotonic()
            for each in beginnings:
                each(start)
            if network and machines:
                stack.enter_context(shuffling(network, machines, seed, start))
            if pauses := setting.pauses_by_node:
                course = steps(pauses, workers, seed)
                stack.enter_context(_pausing(course, server, start))

        yield Contended(prefix, tuple(placements), begin)


@asynccontextmanager
async def _tenant(
    tenant: Tenant, seed: int, bundle: Path, placements: Sequence[Placement], prefix: Sequence[str]
) -> AsyncIterator[Callable[[float], None]]:
    """Serve the bundle to another tenant, whose load begins when the function is called.

    Raises BundleError or ServingError if it cannot be served.
    """
    manifest = open_bundle(bundle).manifest
    options = ServeOptions(
        policy=PolicyChoice(NoRedundancy.name),
        instances=len(placements),
        port=0,
        placements=tuple(placements),
        faults=FaultPlan(seed, tenant.service_time),
    )
    loads: list[asyncio.Task[object]] = []
    with NamedTemporaryFile(suffix=".npy") as queries:
        np.save(queries, manifest.deployed.signature.input.zeros(1))
        queries.flush()
        async with served(bundle, options, prefix) as server:
            load = LoadSpec(
                url=server.url,
                model=manifest.name,
                inputs=queries.name,
                rate=tenant.rate,
                queries=max(1, int(tenant.rate * LONGEST_LOAD)),
                seed=seed,
            )

            def begin(_: float) -> None:
                offering = offer_load_from_own_process(load, server.begin_faults, prefix)
                loads.append(asyncio.create_task(offering))

            try:
                yield begin
            finally:
                for each in loads:
                    each.cancel()
                await asyncio.gather(*loads, return_exceptions=True)


# Pauses


class Step(NamedTuple):
    """At `time`, worker number `worker` is stopped, or else continued."""

    time: float
    worker: int
    stops: bool


def steps(pauses: Pauses, workers: int, seed: int) -> Iterator[Step]:
    """Yield the course of all workers' pauses, in order of time, without end.

    None is longer than LONGEST_PAUSE, so that the engine does not consider the worker dead.
    """
    return heapq.merge(*(_steps_of(pauses, worker, seed) for worker in range(workers)))


def _steps_of(pauses: Pauses, worker: int, seed: int) -> Iterator[Step]:
    rng = FaultPlan(seed).rng(course_of(pauses, worker), "pauses")  # as simulated
    spells = Spells(rng, Exponential(pauses.mean_between), pauses.length)
    end = 0.0
    while True:
        start, end = spells.after(end)
        yield Step(start, worker, True)
        yield Step(min(end, start + LONGEST_PAUSE), worker, False)


@contextmanager
def _pausing(course: Iterator[Step], server: int, start: float) -> Iterator[None]:
    """Stop and continue a server's workers; the course begins at `start` of time.monotonic()."""
    stop = Event()
    thread = Thread(target=_pause, args=(course, server, start, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _pause(course: Iterator[Step], server: int, start: float, stop: Event) -> None:
    stopped: dict[int, psutil.Process] = {}
    for step in course:
        if stop.wait(max(0.0, start + step.time - time.monotonic())):
            break
        process = _find_worker(server, step.worker) if step.stops else None
        with suppress(psutil.NoSuchProcess):  # killed, and perhaps replaced, meanwhile
            if process is not None:
                process.suspend()
                stopped[step.worker] = process
            elif step.worker in stopped:
                stopped.pop(step.worker).resume()
    for process in stopped.values():
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _find_worker(server: int, number: int) -> psutil.Process | None:
    """Return the server's worker with this number, if it is up."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server).children():
            with suppress(psutil.Error, IndexError, msgspec.DecodeError):
                assignment = msgspec.json.decode(process.cmdline()[-1], type=Assignment)
                if assignment.instance.partition(".")[0] == str(number):
                    return process
    return None
