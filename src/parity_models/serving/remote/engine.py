"""The remote engine: units run on Open Inference Protocol servers that somebody else keeps up.

An upstream counts as `concurrency` instances. What makes one leave is that a unit finds the
server gone, hung or answering garbage, or that its health check does. It is asked again, with a
back-off, and its instances join again when it passes the checks of the start. So do those of one
that is away at the start. Units answered with errors may be the units' own fault, so they only
make it pass those checks in between.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError
from parity_models.models.onnx_model import OnnxModel
from parity_models.serving.backoff import Backoff
from parity_models.serving.engine import EngineListener
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.grpc import GrpcClient
from parity_models.serving.remote.rest import RestClient
from parity_models.serving.remote.upstream import (
    MAX_HEAD,
    Fault,
    Fleet,
    UnitError,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
    check_metadata,
)

HEALTH_INTERVAL = 1.0
"""Seconds between two health checks of an upstream that is in use."""

PATIENCE = 5.0
"""Seconds an upstream has for a health check, and for each check before it is used."""

MAX_FAILURES = 3
"""Units in a row that an upstream answers with errors until it is checked as at the start."""

TOLERANCE = 0.05
"""How far an upstream's prediction may be from the bundle's, as a share of the largest value:
room for other precisions, not for other weights."""

_AWAY = (Fault.UNREACHABLE, Fault.NOT_READY, Fault.TIMEOUT)
"""Faults that pass: of a server that is not there yet, not of one that is not what it must be."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reference:
    """A bundle's model: what it looks like, and a query with its prediction, to know it by."""

    model: OnnxModel
    query: NDArray[Any]
    prediction: NDArray[Any]


@dataclass(eq=False)
class _Link:
    """An upstream in use or out of it; `running` units by instance, `fault` ends its use.

    `verdict` is of its first check: what keeps it from being used for now, or None. `doubted` is
    set where a check has to tell whose the errors of its units are.
    """

    upstream: Upstream
    client: UpstreamClient
    models: Mapping[str, UpstreamModel]
    verdict: asyncio.Future[UpstreamError | None]
    fault: asyncio.Future[UpstreamError]
    running: dict[str, tuple[int, asyncio.Task[None]]] = field(default_factory=dict)
    failures: int = 0
    doubted: asyncio.Event = field(default_factory=asyncio.Event)

    def eject(self, error: Exception) -> None:
        if not self.fault.done():
            self.fault.set_result(_fault(self.upstream.url, error))


class RemoteEngine:
    """An Engine that runs units on a fleet; `models` are the bundle's ONNX files, by work.

    Upstreams must have the very models of the bundle, which is checked by what they say of them
    and by a prediction. `start` returns when every upstream has been checked, and raises
    UpstreamError if one is not what it must be or a work has none that is there. Units have up to
    `max_batch` rows. An upstream that has one for `unit_timeout` seconds is ejected. Instance
    "u.s" is slot s of upstream u, called "u.s.n" when it joins again.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        fleet: Fleet,
        metrics: Metrics,
        *,
        max_batch: int,
        unit_timeout: float = 10.0,
    ) -> None:
        self._models = models
        self._fleet = fleet
        self._metrics = metrics
        self._max_batch = max_batch
        self._unit_timeout = unit_timeout
        self._links: list[_Link] = []
        self._instances: dict[str, _Link] = {}
        self._supervisors: list[asyncio.Task[None]] = []
        self._versions: dict[str, tuple[str, tuple[str, ...]]] = {}

    # Engine

    async def start(self, works: Sequence[frozenset[str]], listener: EngineListener) -> None:
        if list(works) != self._fleet.works:
            raise ServingError("the instances to start are not those that the fleet has")
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._references = await asyncio.to_thread(self._load)
        tls, credentials = _trust(self._fleet.ca_file)
        for upstream in self._fleet.upstreams:
            models = {}
            for work, name in upstream.models.items():
                model = self._references[work].model
                models[work] = UpstreamModel(name, model.input, model.output)
            row = max(model.output.zeros(1).nbytes for model in models.values())
            client = _client(upstream.url, tls, credentials, MAX_HEAD + self._max_batch * row)
            self._links.append(
                _Link(
                    upstream, client, models, self._loop.create_future(), self._loop.create_future()
                )
            )
        self._supervisors = [
            asyncio.create_task(self._supervise(number, link))
            for number, link in enumerate(self._links)
        ]
        try:
            _check_enough(
                self._links, await asyncio.gather(*(each.verdict for each in self._links))
            )
        except BaseException:
            await self.stop()
            raise

    def run(self, instance: str, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> None:
        link = self._instances.get(instance)
        if link is None:
            return
        if instance in link.running:
            raise ValueError(f"instance {instance} still has unit {link.running[instance][0]}")
        model = link.models.get(work)
        if model is None:
            wrong = f"instance {instance} does not run {work}"
            self._loop.call_soon(self._listener.unit_failed, unit, wrong)
            return
        task = self._loop.create_task(self._run(link, instance, unit, model, rows))
        link.running[instance] = (unit, task)

    def cancel(self, instance: str, unit: int) -> None:
        """An upstream works on whatever becomes of the connection: it is busy until it answers."""

    def recycle(self, instance: str, why: str) -> None:
        link = self._instances.get(instance)
        if link is not None:
            link.eject(UpstreamError(Fault.ERRORS, why))

    def running(self) -> Mapping[str, int | None]:
        return {
            instance: link.running[instance][0] if instance in link.running else None
            for instance, link in self._instances.items()
        }

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    async def stop(self) -> None:
        tasks = [*self._supervisors]
        for link in self._links:
            tasks += [task for _, task in link.running.values()]
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
        link: _Link,
        instance: str,
        unit: int,
        model: UpstreamModel,
        rows: Sequence[NDArray[Any]],
    ) -> None:
        try:
            async with asyncio.timeout(self._unit_timeout):
                outputs = await link.client.infer(model, rows)
        except UnitError as error:
            link.failures += 1
            if link.failures >= MAX_FAILURES:
                link.doubted.set()
            del link.running[instance]
            self._listener.unit_failed(unit, str(error))
        except TimeoutError:
            text = f"had unit {unit} for more than {self._unit_timeout:g} s"
            link.eject(UpstreamError(Fault.TIMEOUT, text))
        except Exception as error:
            link.eject(error)
        else:
            link.failures = 0
            del link.running[instance]
            self._listener.unit_finished(unit, outputs)

    # Upstreams

    async def _supervise(self, number: int, link: _Link) -> None:
        url = link.upstream.url
        backoff = Backoff()
        reason = None
        for life in count():
            try:
                await self._check(link)
            except Exception as error:
                fault = _fault(url, error)
                if not link.verdict.done() and fault.fault not in _AWAY:
                    link.verdict.set_exception(UpstreamError(fault.fault, f"{url} {fault}"))
                    return
                if not link.verdict.done():
                    link.verdict.set_result(fault)
                    self._metrics.ejections.labels(url, fault.fault).inc()
                if fault.fault is not reason:
                    _log.warning("upstream %s %s; it gets no units until it is well", url, fault)
                    reason = fault.fault
                await asyncio.sleep(backoff.after(0.0))
                continue
            began = self._loop.time()
            link.fault = self._loop.create_future()
            link.failures = 0
            link.doubted.clear()
            suffix = f".{life}" if life else ""
            instances = [f"{number}.{slot}{suffix}" for slot in range(link.upstream.concurrency)]
            for instance in instances:
                self._instances[instance] = link
                # Not called from here: a listener's mistake must not end the supervision.
                works, node = link.upstream.works, self._fleet.node(link.upstream)
                self._loop.call_soon(self._listener.instance_joined, instance, works, node)
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
            for instance in instances:
                del self._instances[instance]
                self._loop.call_soon(self._listener.instance_left, instance, str(fault))
            for _, task in link.running.values():
                task.cancel()
            link.running.clear()
            self._metrics.ejections.labels(url, reason).inc()
            _log.warning("upstream %s %s; it gets no units until it is well", url, fault)
            await asyncio.sleep(backoff.after(self._loop.time() - began))

    async def _watch(self, link: _Link) -> None:
        """Eject the upstream when it does not say that it is ready, or is doubted with reason."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEALTH_INTERVAL):
                        await link.doubted.wait()
                if link.doubted.is_set():
                    await self._check(link)
                    link.failures = 0
                    link.doubted.clear()
                    continue
                async with asyncio.timeout(PATIENCE):
                    for name in link.upstream.models.values():
                        await link.client.check_ready(name)
        except TimeoutError:
            text = f"did not say within {PATIENCE:g} s whether it is ready"
            link.eject(UpstreamError(Fault.TIMEOUT, text))
        except Exception as error:
            link.eject(error)

    async def _check(self, link: _Link) -> None:
        """Raises UpstreamError unless the upstream has the bundle's models, and they run."""
        for work, model in link.models.items():
            reference = self._references[work]
            try:
                async with asyncio.timeout(PATIENCE):
                    await link.client.check_ready(model.name)
                    about = await link.client.metadata(model.name)
                    check_metadata(about, model)
                    versions = tuple(sorted(about.versions or ()))
                    self._check_versions(link.upstream.url, model.name, work, versions)
                    prediction = await link.client.infer(model, [reference.query])
            except TimeoutError:
                text = f"did not answer within {PATIENCE:g} s"
                raise UpstreamError(Fault.TIMEOUT, text) from None
            except UnitError as error:
                text = f"cannot run model {model.name!r}: {error}"
                raise UpstreamError(Fault.ERRORS, text) from error
            _compare(prediction[0], reference.prediction, model.name)

    def _check_versions(self, url: str, model: str, work: str, versions: tuple[str, ...]) -> None:
        other, others = self._versions.setdefault(work, (url, versions))
        if versions != others:
            raise UpstreamError(
                Fault.MISMATCH,
                f"has versions {list(versions)} of model {model!r}, {other} has {list(others)}",
            )

    def _load(self) -> dict[str, _Reference]:
        references = {}
        for work in sorted(frozenset[str]().union(*self._fleet.works)):
            model = OnnxModel(self._models[work])
            query = np.random.default_rng(0).uniform(size=model.input.shape)
            row = query.astype(model.input.dtype)
            references[work] = _Reference(model, row, model(row[np.newaxis])[0])
        return references


def _check_enough(links: Sequence[_Link], verdicts: Sequence[UpstreamError | None]) -> None:
    """Raises UpstreamError if there is a work that no upstream in use runs."""
    in_use = [link for link, away in zip(links, verdicts, strict=True) if away is None]
    missing = _works(links) - _works(in_use)
    for link, away in zip(links, verdicts, strict=True):
        if away is not None and missing & link.upstream.works:
            work = min(missing & link.upstream.works)
            text = f"no upstream that runs {work} is there: {link.upstream.url} {away}"
            raise UpstreamError(away.fault, text)


def _works(links: Sequence[_Link]) -> frozenset[str]:
    return frozenset[str]().union(*(link.upstream.works for link in links))


def _fault(url: str, error: Exception) -> UpstreamError:
    """What is wrong with an upstream where `error` was raised; an unforeseen one is logged."""
    if isinstance(error, UpstreamError):
        return error
    _log.error("upstream %s made something fail that should not", url, exc_info=error)
    return UpstreamError(Fault.GARBAGE, f"made something fail that should not: {error!r}")


def _trust(ca_file: Path | None) -> tuple[ssl.SSLContext, grpc.ChannelCredentials]:
    """What https and grpcs take to know a server by."""
    try:
        tls = ssl.create_default_context(cafile=ca_file)
        certificates = None if ca_file is None else ca_file.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"cannot read certificates from {ca_file}: {error}; give a PEM file"
        ) from error
    return tls, grpc.ssl_channel_credentials(certificates)


def _client(
    url: str, tls: ssl.SSLContext, credentials: grpc.ChannelCredentials, max_answer: int
) -> UpstreamClient:
    scheme, address = url.split("://")
    if scheme in ("http", "https"):
        return RestClient(url, tls)
    return GrpcClient(address, credentials if scheme == "grpcs" else None, max_answer)


def _compare(prediction: NDArray[Any], expected: NDArray[Any], model: str) -> None:
    """Raises UpstreamError unless the prediction is the bundle's, within TOLERANCE."""
    scale = float(np.abs(expected.astype(np.float64)).max())
    off = float(np.abs(prediction.astype(np.float64) - expected).max())
    if not off <= TOLERANCE * scale:
        raise UpstreamError(
            Fault.MISMATCH,
            f"predicts something else with model {model!r} than the bundle's model does: {off:.3g} "
            f"off, where the largest value is {scale:.3g}; make the bundle from what runs there",
        )
