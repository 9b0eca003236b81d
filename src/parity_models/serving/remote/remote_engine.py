"""The remote engine: units run on servers that run already, over V2 or V1 of KServe's protocol.

An upstream counts as `concurrency` instances. They join when it has passed its checks: it is ready,
has the bundle's models and predicts what they do. They leave when a unit finds it gone, hung or
answering garbage, or its health check does; then it is checked again, with a back-off, until it
passes. An upstream that is away at the start joins likewise. Units answered with errors may be the
units' own fault, so too many in a row only have it checked. A busy one stays, and is left alone for
a while.

Faults that load may look like (DOUBTS) never eject more than half of the instances with one model.
An instance that the scheduler recycles leaves alone: its upstream is checked, and the others go on
unless it fails. The words of upstreams stay in the log: clients hear only which instance failed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import PinnedModel
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import FIXED, Engine, EngineListener, Parts
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.upstream import (
    TOLERANCE,
    BusyError,
    Fault,
    Fleet,
    FleetOptions,
    UnitError,
    Upstream,
    UpstreamError,
    UpstreamModel,
    check_for_several,
    fleet_of,
    options_of_model,
)

if TYPE_CHECKING:
    from parity_models.serving.remote.clients import Connect, UpstreamClient

DOUBTS = frozenset({Fault.NOT_READY, Fault.TIMEOUT, Fault.ERRORS})
"""Faults that load may look like, or many upstreams have at once for a reason that they share."""

MAX_FAILURES = 3
"""Units in a row that an upstream answers with errors until it is checked as at the start."""

MIN_REST, MAX_REST = 0.05, 5.0
"""Seconds for which a busy upstream is left alone: at least, and at most."""

FORGIVEN = 60.0
"""Seconds without a recycled slot after which the next one is away for as short as the first."""

LOG_INTERVAL = 1.0
"""Minimum seconds between two errors of units of one upstream that are logged."""

PATIENCE = 5.0
"""Seconds an upstream has for a health check, and for each check before it is used."""

_OVERHEAD = 2**16
"""Bytes that an answer may have besides its outputs."""

_IS_OUT = "upstream %s %s; it gets no units until it is well"

_log = logging.getLogger(__name__)


class RemoteEngine(Engine):
    """Runs units on upstreams: servers that run already.

    `start` returns when every upstream has been checked, and raises UpstreamError if one is not
    what it must be or a role has none that is there. Instance "u.s" is slot s of upstream u, called
    "u.s.n" when it joins again.

    Args:
        models: The bundle's ONNX files, by role.
        fleet: The upstreams.
        metrics: Count ejections and refusals.
        max_batch: Maximum rows of a unit.
        unit_timeout: Seconds after which an upstream that still has a unit is ejected.
        health_interval: Seconds between health checks.
        connect: Connects to an upstream; by default as its URL and protocol say.

    """

    name = "remote"
    refuses = FIXED

    @dataclass(frozen=True, kw_only=True)
    class Options(FleetOptions):
        """The upstreams' URLs."""

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
        connect: "Connect | None" = None,
    ) -> None:
        self._models = models
        self._max_batch = max_batch
        self._connect = connect
        self.fleet = fleet
        self.metrics = metrics
        self.unit_timeout = unit_timeout
        self.health_interval = health_interval
        self.versions: dict[str, tuple[str, tuple[str, ...]]] = {}
        """An upstream's URL, and the versions that all must have, by role."""
        self._links: list[_Link] = []
        self._supervisors: list[asyncio.Task[None]] = []

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        if list(roles) != self.fleet.roles:
            raise ServingError("the instances to start are not those that the fleet has")
        self.listener = listener
        models = {
            role: await asyncio.to_thread(_known, self._models[role])
            for role in sorted(frozenset[str]().union(*roles))
        }
        connect = self._connect
        if connect is None:
            # Imported late: other engines need no aiohttp.
            from parity_models.serving.remote import clients

            connect = clients.connect
        try:
            for upstream in self.fleet.upstreams:
                there = {
                    role: replace(models[role], name=name, version=upstream.version)
                    for role, name in upstream.models.items()
                }
                for model in there.values():
                    if model.signature.batch:
                        raise UserError(
                            f"the {model} takes {model.signature.batch} rows at once and no other "
                            "number; serve it with the engine local, or export it with a free one"
                        )
                row = max(each.signature.largest.output.row_bytes for each in there.values())
                client = connect(upstream, self.fleet.ca_file, _OVERHEAD + self._max_batch * row)
                self._links.append(_Link(self, len(self._links), upstream, client, there))
            faults = await asyncio.gather(*(link.check() for link in self._links))
            self._check_enough(faults)
        except BaseException:
            await self.stop()
            raise
        for link, fault in zip(self._links, faults, strict=True):
            if fault is None:
                link.admit()
            self._supervisors.append(asyncio.create_task(link.supervise(fault)))
        await asyncio.sleep(0)  # until the listener has heard of the instances

    def _check_enough(self, faults: Sequence[UpstreamError | None]) -> None:
        """Raise UpstreamError for a fault that does not pass, or a role that no upstream runs."""
        there = frozenset[str]()
        for link, fault in zip(self._links, faults, strict=True):
            if fault is None:
                there |= link.upstream.roles
            elif not fault.passes:
                raise UpstreamError(fault.fault, f"{link.upstream.url} {fault}")
        for link, fault in zip(self._links, faults, strict=True):
            missing = link.upstream.roles - there
            if fault is not None and missing:
                text = f"no upstream that runs {min(missing)} is there: {link.upstream.url} {fault}"
                raise UpstreamError(fault.fault, text)

    def _link_of(self, instance: str) -> "_Link | None":
        return next((link for link in self._links if instance in link.units), None)

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        link = self._link_of(instance)
        if link is not None:
            link.run(instance, unit, role, rows)

    def cancel(self, instance: str, unit: int) -> None:
        """End the call if the upstream notices; others work on, and are busy until they answer."""
        link = self._link_of(instance)
        if link is not None and link.client.abandons:
            link.cancel(instance, unit)

    def recycle(self, instance: str, why: str) -> None:
        link = self._link_of(instance)
        if link is not None:
            link.recycle(instance, why)

    def running(self) -> Mapping[str, int | None]:
        units = {name: unit for link in self._links for name, unit in link.units.items()}
        return {instance: unit and unit.number for instance, unit in units.items()}

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    async def stop(self) -> None:
        links, self._links = self._links, []
        tasks = [*self._supervisors]
        tasks += [unit.task for link in links for unit in link.units.values() if unit is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in links:
            await link.client.close()

    def can_spare(self, link: "_Link") -> bool:
        """Return whether half of the instances of each role would remain without this upstream."""
        for role in link.upstream.roles if link.units else ():
            alike = [each for each in self._links if role in each.upstream.roles]
            left = sum(len(each.units) for each in alike if each is not link)
            if 2 * left < sum(each.upstream.concurrency for each in alike):
                return False
        return True


def _known(pinned: PinnedModel) -> UpstreamModel:
    """Return a model as upstreams have to have it, known by a query and its prediction."""
    model = pinned.load()
    kind = model.signature.smallest
    query = kind.input.draw(np.random.default_rng(0), 1)
    return UpstreamModel(
        "",
        None,
        model.signature,
        kind.input.join(query)[0, ...],
        kind.output.join(model(query))[0, ...],
        pinned.sha256,
    )


class _Unit(NamedTuple):
    number: int
    task: asyncio.Task[None]


class _Link:
    """An upstream as the engine has it: in use or ejected, busy or not, and its units.

    `units` has its instances that have joined and not left, each with its unit, if it has one.
    `_doubted` is set where the upstream has to be checked while it is in use: it may be to blame
    for errors, or a slot was recycled.
    """

    def __init__(
        self,
        engine: RemoteEngine,
        number: int,
        upstream: Upstream,
        client: "UpstreamClient",
        models: Mapping[str, UpstreamModel],
    ) -> None:
        self.upstream = upstream
        self.client = client
        self.units: dict[str, _Unit | None] = {}
        self._engine = engine
        self._number = number
        self._models = models
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._fault: UpstreamError | None = None
        """Why it is not in use."""
        self._doubted = asyncio.Event()
        self._failures = 0
        self._kept_for: Fault | None = None
        self._busy_until = 0.0
        self._next_rest = MIN_REST
        self._log_from = 0.0
        self._lives: Counter[int] = Counter()
        self._away: dict[int, float] = {}
        """Slots that were recycled, and when each may come back."""
        self._returns = Backoff(FORGIVEN)
        self._recycled = 0.0

    # Units

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        had = self.units[instance]
        if had is not None:
            raise ValueError(f"instance {instance} still has unit {had.number}")
        model = self._models.get(role)
        if model is None:
            wrong = f"instance {instance} does not run {role}"
            self._loop.call_soon(self._engine.listener.unit_failed, unit, wrong)
            return
        task = self._loop.create_task(self._run(instance, unit, model, rows))
        self.units[instance] = _Unit(unit, task)

    async def _run(
        self, instance: str, unit: int, model: UpstreamModel, rows: Sequence[NDArray[Any]]
    ) -> None:
        listener, timeout = self._engine.listener, self._engine.unit_timeout
        try:
            if self._rest():
                raise BusyError("is busy still")
            async with asyncio.timeout(timeout):
                outputs = await self.client.infer(model, rows, listener.headers_of(unit))
        except BusyError as error:
            rest = self._turned_away(error)
            self._engine.metrics.upstream_busy.labels(self.upstream.url).inc()
            self.units[instance] = None
            listener.unit_failed(unit, f"instance {instance} is busy", busy=rest)
        except Exception as error:
            if isinstance(error, TimeoutError):
                text = f"had unit {unit} for more than {timeout:g} s"
                error = UpstreamError(Fault.TIMEOUT, text)
            if isinstance(error, UnitError):
                self._failures += 1
                if self._failures >= MAX_FAILURES:
                    self._doubted.set()
            elif self._eject(error):
                return
            self.units[instance] = None
            if self._loop.time() >= self._log_from:
                self._log_from = self._loop.time() + LOG_INTERVAL
                _log.warning("upstream %s, instance %s: %s", self.upstream.url, instance, error)
            text = f"instance {instance} answered with an error, which the server's log has"
            listener.unit_failed(unit, text)
        else:
            self._recovered()
            self.units[instance] = None
            listener.unit_finished(unit, outputs)

    def cancel(self, instance: str, number: int) -> None:
        unit = self.units[instance]
        if unit is not None and unit.number == number:
            unit.task.cancel()
            self.units[instance] = None
            self._loop.call_soon(self._engine.listener.unit_failed, number, "was cancelled")

    def recycle(self, instance: str, why: str) -> None:
        """Keep the slot of this instance out until the upstream has passed a check."""
        self._leave(instance, f"is to be checked anew: {why}")
        now = self._loop.time()
        self._away[int(instance.split(".")[1])] = now + self._returns.after(now - self._recycled)
        self._recycled = now
        self._doubted.set()
        self._engine.metrics.ejections.labels(self.upstream.url, Fault.RECYCLED).inc()

    def _turned_away(self, error: BusyError) -> float:
        """Leave the upstream alone as long as it asks for, within bounds, or else for twice as long
        as the last time. Returns the seconds from now."""
        if not self._rest():
            self._next_rest, rest = min(2 * self._next_rest, MAX_REST), self._next_rest
            if error.after is not None:
                rest = min(max(error.after, MIN_REST), MAX_REST)
            self._busy_until = self._loop.time() + rest
        if not error.certain:
            self._doubted.set()
        return max(self._rest(), 1e-3)

    def _rest(self) -> float:
        """Return for how many seconds from now the upstream is to be left alone."""
        return max(0.0, self._busy_until - self._loop.time())

    def _recovered(self) -> None:
        """It has run a unit, or passed its checks."""
        self._failures = 0
        self._next_rest = MIN_REST
        self._kept_for = None

    # Membership

    def admit(self) -> None:
        """Let its instances join: it has passed its checks."""
        self._fault = None
        self._recovered()
        self._doubted.clear()
        self._away.clear()
        for slot in range(self.upstream.concurrency):
            self._join(slot)

    def _join(self, slot: int) -> None:
        life = self._lives[slot]
        self._lives[slot] += 1
        instance = f"{self._number}.{slot}" + (f".{life}" if life else "")
        self.units[instance] = None
        roles, node = self.upstream.roles, self._engine.fleet.node(self.upstream)
        # Not called from here: a listener's mistake must not end the supervision.
        self._loop.call_soon(self._engine.listener.instance_joined, instance, roles, node)

    def _leave(self, instance: str, why: str) -> None:
        """The instance is gone, and its unit with it."""
        unit = self.units.pop(instance)
        if unit is not None:
            unit.task.cancel()
        self._loop.call_soon(self._engine.listener.instance_left, instance, why)

    def _eject(self, error: Exception) -> bool:
        """Eject the upstream for its fault, unless that is a doubt and more than half of the
        instances with its models would be out. Return whether it was ejected."""
        fault, url = self._fault_of(error), self.upstream.url
        if fault.fault in DOUBTS and not self._engine.can_spare(self):
            if self._kept_for is not fault.fault:
                self._kept_for = fault.fault
                _log.warning(
                    "upstream %s %s; it stays in use, as no more than half of the instances with "
                    "its models are ejected for that",
                    url,
                    fault,
                )
            return False
        if self._fault is None:
            self._fault = fault
            self._report(fault)
            for instance in list(self.units):
                self._leave(instance, str(fault))
            if self._watching is not None:
                self._watching.cancel()
        return True

    def _fault_of(self, error: Exception) -> UpstreamError:
        """Return the fault that `error` shows; log an unforeseen error."""
        if isinstance(error, UpstreamError):
            return error
        if isinstance(error, BusyError):
            return UpstreamError(Fault.NOT_READY, f"cannot be checked: it {error}")
        _log.error("upstream %s caused an unexpected error", self.upstream.url, exc_info=error)
        text = f"caused an unexpected error: {type(error).__name__}"
        return UpstreamError(Fault.GARBAGE, text)

    # Supervision

    async def supervise(self, fault: UpstreamError | None) -> None:
        """Watch the upstream while it is well, and check it while it is not, for good.

        `fault` is that of its first check; None: it has been admitted.
        """
        backoff = Backoff()
        if fault is not None:
            self._report(fault)
        while True:
            began = self._loop.time()
            if fault is None:
                self._watching = asyncio.create_task(self._watch())
                try:
                    await asyncio.wait((self._watching,))
                finally:
                    self._watching.cancel()
            await asyncio.sleep(backoff.after(self._loop.time() - began))
            before, fault = fault or self._fault, await self.check()
            if fault is None:
                _log.warning("upstream %s is well and gets units", self.upstream.url)
                self.admit()
            elif before is None or fault.fault is not before.fault:
                _log.warning(_IS_OUT, self.upstream.url, fault)

    def _report(self, fault: UpstreamError) -> None:
        """Say that the upstream is out."""
        _log.warning(_IS_OUT, self.upstream.url, fault)
        self._engine.metrics.ejections.labels(self.upstream.url, fault.fault).inc()

    async def _watch(self) -> None:
        """Eject the upstream when it does not say that it is ready, or is doubted with reason."""
        while self._fault is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._engine.health_interval):
                    await self._doubted.wait()
            await asyncio.sleep(self._rest())
            now = self._loop.time()
            due = [slot for slot, until in self._away.items() if until <= now]
            try:
                if self._doubted.is_set() or due:
                    self._failures = 0
                    self._doubted.clear()
                    await self._check()
                    for slot in due:
                        del self._away[slot]
                        self._join(slot)
                else:
                    async with asyncio.timeout(PATIENCE):
                        for model in self._models.values():
                            await self.client.check_ready(model)
            except BusyError as error:
                self._turned_away(error)
            except TimeoutError:
                text = f"did not say within {PATIENCE:g} s whether it is ready"
                self._eject(UpstreamError(Fault.TIMEOUT, text))
            except Exception as error:
                self._eject(error)

    async def check(self) -> UpstreamError | None:
        """Return the fault of an upstream that is not what it must be, or cannot be checked."""
        try:
            await self._check()
        except Exception as error:
            return self._fault_of(error)
        return None

    async def _check(self) -> None:
        """Raise UpstreamError unless the upstream has the bundle's models and runs them, and
        BusyError if it cannot be checked for now."""
        for role, model in self._models.items():
            try:
                async with asyncio.timeout(PATIENCE):
                    versions = await self.client.check(model)
            except TimeoutError:
                text = f"did not answer within {PATIENCE:g} s"
                raise UpstreamError(Fault.TIMEOUT, text) from None
            except UnitError as error:
                text = f"cannot run {model}: it {error}"
                raise UpstreamError(Fault.ERRORS, text) from error
            if versions is None:
                continue
            other, others = self._engine.versions.setdefault(role, (self.upstream.url, versions))
            if versions != others:
                raise UpstreamError(
                    Fault.MISMATCH,
                    f"has versions {list(versions)} of {model}, {other} has {list(others)}",
                )
