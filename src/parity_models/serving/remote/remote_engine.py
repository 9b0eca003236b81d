"""The remote engine: units run on servers that somebody else keeps up, over V2 or V1 of KServe.

An upstream counts as `concurrency` instances. What makes one leave is that a unit finds the
server gone, hung or answering garbage, or that its health check does. It is asked again, with a
back-off, and its instances join again when it passes the checks of the start. So do those of one
that is away at the start. Units answered with errors may be the units' own fault, so they only
make it pass those checks in between. One that is busy stays, and is left alone for a while.

What load may look like (DOUBTS) never ejects more than half of the instances with one model. An
instance that the scheduler has recycled leaves alone: its upstream is checked, and the others go on
unless it fails. What upstreams say stays in the log: clients hear only which instance failed.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from parity_models.errors import ServingError
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import PinnedModel
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import FIXED, Engine, EngineListener, Parts
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.checks import PATIENCE, TOLERANCE, Checks
from parity_models.serving.remote.fleet import (
    Fleet,
    FleetOptions,
    check_for_several,
    fleet_of,
    options_of_model,
)
from parity_models.serving.remote.link import Link, Running, check_enough, fault_of, is_spared
from parity_models.serving.remote.upstream import (
    DOUBTS,
    BusyError,
    Connect,
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
)

MAX_FAILURES = 3
"""Units in a row that an upstream answers with errors until it is checked as at the start."""

_BESIDE = 2**16
"""Bytes that an answer may have besides its outputs."""

_IS_OUT = "upstream %s %s; it gets no units until it is well"

_log = logging.getLogger(__name__)


class RemoteEngine(Engine):
    """Servers that run already: a fleet. They speak the Open Inference Protocol or V1.

    `models` are the bundle's ONNX files, by role.

    Upstreams must have the very models of the bundle, which is checked by what they say of them
    and by a prediction. `start` returns when every upstream has been checked, and raises
    UpstreamError if one is not what it must be or a role has none that is there. Units have up to
    `max_batch` rows. An upstream that has one for `unit_timeout` seconds is ejected. So is one that
    does not say that it is ready, which it is asked every `health_interval` seconds. Instance "u.s"
    is slot s of upstream u, called "u.s.n" when it joins again. `connect` makes the connections to
    an upstream, by default as its URL and protocol say.
    """

    name = "remote"
    refuses = FIXED

    @dataclass(frozen=True, kw_only=True)
    class Options(FleetOptions):
        """Where the upstreams are."""

    @classmethod
    def fixed_roles(cls, options: Any, bundle: Bundle) -> Sequence[frozenset[str]]:
        return fleet_of(options, bundle).roles

    check_several = staticmethod(check_for_several)
    options_of_model = staticmethod(options_of_model)

    @classmethod
    def build(cls, options: Any, parts: Parts) -> "RemoteEngine":
        return cls(
            parts.models,
            fleet_of(options, parts.bundle),
            parts.metrics,
            max_batch=parts.max_batch,
            unit_timeout=parts.unit_timeout,
        )

    def __init__(
        self,
        models: Mapping[str, PinnedModel],
        fleet: Fleet,
        metrics: Metrics,
        *,
        max_batch: int,
        unit_timeout: float = 10.0,
        health_interval: float = 1.0,
        connect: Connect | None = None,
    ) -> None:
        self._models = models
        self._fleet = fleet
        self._metrics = metrics
        self._max_batch = max_batch
        self._unit_timeout = unit_timeout
        self._health_interval = health_interval
        self._connect = connect
        self._links: list[Link] = []
        self._instances: dict[str, Link] = {}
        self._supervisors: list[asyncio.Task[None]] = []

    # Engine

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        if list(roles) != self._fleet.roles:
            raise ServingError("the instances to start are not those that the fleet has")
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        works_there = frozenset[str]().union(*roles)
        self._checks = await asyncio.to_thread(Checks, self._models, works_there)
        connect = self._connect
        if connect is None:
            # Imported late: other engines need no aiohttp.
            from parity_models.serving.remote.clients import connecting

            connect = connecting(self._fleet.ca_file)
        for upstream in self._fleet.upstreams:
            models = self._checks.models_of(upstream)
            row = max(model.signature.largest.output.row_bytes for model in models.values())
            client = connect(upstream, _BESIDE + self._max_batch * row)
            self._links.append(
                Link(
                    len(self._links),
                    upstream,
                    client,
                    models,
                    self._loop.create_future(),
                    self._loop.create_future(),
                )
            )
        self._supervisors = [asyncio.create_task(self._supervise(link)) for link in self._links]
        try:
            faults = await asyncio.gather(*(each.verdict for each in self._links))
            check_enough(self._links, faults)
        except BaseException:
            await self.stop()
            raise
        for link, fault in zip(self._links, faults, strict=True):
            if fault is not None:
                _log.warning(_IS_OUT, link.upstream.url, fault)

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        link = self._instances.get(instance)
        if link is None:
            return
        if instance in link.running:
            raise ValueError(f"instance {instance} still has unit {link.running[instance].unit}")
        model = link.models.get(role)
        if model is None:
            wrong = f"instance {instance} does not run {role}"
            self._loop.call_soon(self._listener.unit_failed, unit, wrong)
            return
        task = self._loop.create_task(self._run(link, instance, unit, model, rows))
        link.running[instance] = Running(unit, task, self._loop.time())

    def cancel(self, instance: str, unit: int) -> None:
        """End the call if the upstream notices; others work on, and are busy until they answer."""
        link = self._instances.get(instance)
        if link is None or not link.client.abandons:
            return
        running = link.running.get(instance)
        if running is not None and running.unit == unit:
            link.cancelled(instance)
            self._loop.call_soon(self._listener.unit_failed, unit, "was cancelled")

    def recycle(self, instance: str, why: str) -> None:
        link = self._instances.get(instance)
        if link is not None:
            self._leave(instance, f"is to be checked anew: {why}")
            link.recycle(instance)
            self._metrics.ejections.labels(link.upstream.url, Fault.RECYCLED).inc()

    def running(self) -> Mapping[str, int | None]:
        return {
            instance: link.running[instance].unit if instance in link.running else None
            for instance, link in self._instances.items()
        }

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    async def stop(self) -> None:
        tasks = [*self._supervisors]
        for link in self._links:
            tasks += [running.task for running in link.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._instances.clear()
        for link in self._links:
            link.verdict.cancel()
            await link.client.close()
        self._links.clear()

    # Units

    async def _run(
        self,
        link: Link,
        instance: str,
        unit: int,
        model: UpstreamModel,
        rows: Sequence[NDArray[Any]],
    ) -> None:
        try:
            if link.rest():
                raise BusyError("is busy still")
            async with asyncio.timeout(self._unit_timeout):
                outputs = await link.client.infer(model, rows, self._listener.headers_of(unit))
        except BusyError as error:
            rest = link.turned_away(error, is_spared=self._spares(link))
            self._metrics.upstream_busy.labels(link.upstream.url).inc()
            del link.running[instance]
            self._listener.unit_failed(unit, f"instance {instance} is busy", busy=rest)
        except UnitError as error:
            link.failures += 1
            if link.failures >= MAX_FAILURES:
                link.doubted.set()
            del link.running[instance]
            self._listener.unit_failed(unit, link.failed(instance, error))
        except Exception as error:
            if isinstance(error, TimeoutError):
                text = f"had unit {unit} for more than {self._unit_timeout:g} s"
                error = UpstreamError(Fault.TIMEOUT, text)
            if not self._eject(link, error):
                del link.running[instance]
                self._listener.unit_failed(unit, link.failed(instance, error))
        else:
            link.well()
            del link.running[instance]
            self._listener.unit_finished(unit, outputs)

    def _eject(self, link: Link, error: Exception) -> bool:
        """Eject the upstream for what it has done, unless that is a doubt and more than half of
        the instances with its models would be out. Return whether it was ejected."""
        fault = fault_of(link.upstream.url, error)
        if fault.fault in DOUBTS and not self._spares(link):
            link.keep(fault)
            return False
        link.eject(fault)
        return True

    def _spares(self, link: Link) -> bool:
        return is_spared(link, self._links, self._instances.values())

    # Upstreams

    async def _supervise(self, link: Link) -> None:
        url = link.upstream.url
        backoff = Backoff()
        reason = None
        while True:
            try:
                await self._checks.check(url, link.client, link.models)
            except Exception as error:
                fault = fault_of(url, error)
                if not link.verdict.done() and not fault.passes:
                    link.verdict.set_exception(UpstreamError(fault.fault, f"{url} {fault}"))
                    return
                if not link.verdict.done():
                    link.verdict.set_result(fault)
                    self._metrics.ejections.labels(url, fault.fault).inc()
                elif fault.fault is not reason:
                    _log.warning(_IS_OUT, url, fault)
                reason = fault.fault
                await asyncio.sleep(backoff.after(0.0))
                continue
            began = self._loop.time()
            link.admit()
            for slot in range(link.upstream.concurrency):
                self._join(link, slot)
            if link.verdict.done():
                _log.warning("upstream %s is well and gets units", url)
            else:
                link.verdict.set_result(None)
            health = asyncio.create_task(self._watch(link))
            try:
                fault = await link.fault
                reason = fault.fault
            finally:
                health.cancel()
            for instance in [name for name, each in self._instances.items() if each is link]:
                self._leave(instance, str(fault))
            self._metrics.ejections.labels(url, reason).inc()
            _log.warning(_IS_OUT, url, fault)
            await asyncio.sleep(backoff.after(self._loop.time() - began))

    def _join(self, link: Link, slot: int) -> None:
        instance = link.instance(slot)
        self._instances[instance] = link
        # Not called from here: a listener's mistake must not end the supervision.
        roles, node = link.upstream.roles, self._fleet.node(link.upstream)
        self._loop.call_soon(self._listener.instance_joined, instance, roles, node)

    def _leave(self, instance: str, why: str) -> None:
        """The instance is gone, and its unit with it."""
        link = self._instances.pop(instance)
        running = link.running.pop(instance, None)
        if running is not None:
            running.task.cancel()
        self._loop.call_soon(self._listener.instance_left, instance, why)

    async def _watch(self, link: Link) -> None:
        """Eject the upstream when it does not say that it is ready, or is doubted with reason."""
        while link.in_use:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._health_interval):
                    await link.doubted.wait()
            if link.rest():
                await asyncio.sleep(link.rest())
            try:
                if link.doubted.is_set() or link.due():
                    link.failures = 0
                    link.doubted.clear()
                    await self._checks.check(link.upstream.url, link.client, link.models)
                    for slot in link.due() if link.in_use else ():
                        del link.away[slot]
                        self._join(link, slot)
                    continue
                async with asyncio.timeout(PATIENCE):
                    for model in link.models.values():
                        await link.client.check_ready(model)
            except BusyError as error:
                link.turned_away(error, is_spared=self._spares(link))
            except TimeoutError:
                text = f"did not say within {PATIENCE:g} s whether it is ready"
                self._eject(link, UpstreamError(Fault.TIMEOUT, text))
            except Exception as error:
                self._eject(link, error)
