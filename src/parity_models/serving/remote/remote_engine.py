"""The remote engine: units run on existing servers, over V2 or V1 of KServe's protocol.

An upstream counts as `concurrency` instances. They join when it has passed its checks: it is ready,
has the bundle's models, and predicts the same. They leave when a unit or its health check finds it
gone, hung or answering garbage; then it is checked again, with a back-off, until it passes. An
upstream that is away or wrong at the start joins likewise. One whose answers are of a new version
of the model is checked at once. A unit answered with an error just
fails, as the fault may be its own. A busy upstream stays, and is left alone for a while.

Faults that overload can cause too (DOUBTS) eject at most half of the instances with one model.
If an instance is recycled, only it leaves: its upstream is checked, and the others go on unless
that fails. Error texts of upstreams stay in the log: clients learn only the failed instance.

Stand-ins for which no upstream is named run in threads of the server's process. They go on
answering while no upstream is up, and the engine starts without one.
"""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import ELSEWHERE, PinnedModel
from parity_models.errors import UserError, spell
from parity_models.options import option
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.serving.engine import FIXED, Backoff, Engine, EngineListener, Parts
from parity_models.serving.protocol import answer_limit
from parity_models.serving.remote.upstream import (
    DOUBTS,
    TOLERANCE,
    BusyError,
    Fault,
    Token,
    UnitError,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
)
from parity_models.tensors.pairs import Labels

_SETTINGS = {"concurrency": "[1-9][0-9]{0,2}|1000", "protocol": "v[12]", "version": ".+"}
"""The parameters of a URL, with the pattern of each value."""

MIN_REST, MAX_REST = 0.2, 5.0
"""Minimum and maximum seconds for which a busy upstream is left alone."""

PATIENCE = 5.0
"""Maximum seconds of a health check, and of each check before an upstream is used."""

_IS_OUT = "upstream %s %s; it gets no units until it recovers"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions(Engine.Options):
    """The upstreams' URLs, separated by commas (see `parse_upstreams`), and how to connect."""

    deployed: str | None = option(
        None,
        "Servers that run the model, separated by commas: http, https, grpc or "
        "grpcs://HOST:PORT, with /MODEL and ?concurrency=N&protocol=v1&version=V if needed.",
        metavar="URLS",
    )
    parity: str | None = option(
        None,
        "The same for the parity models, called NAME-parity-0 and so on without a /MODEL; by "
        "default they run in this process.",
        metavar="URLS",
    )
    backup: str | None = option(
        None,
        "The same for the backup, called NAME-backup without a /MODEL; by default it runs in this "
        "process.",
        metavar="URLS",
    )
    upstream_token: str | None = option(
        None,
        "A file with the bearer token for these servers; read again when it changes.",
        metavar="FILE",
    )


def upstreams_of(options: UpstreamOptions, bundle: Bundle) -> tuple[Upstream, ...]:
    """Return the upstreams for the models of a bundle.

    Raises:
        UserError: `parse_upstreams` refuses the URLs, or the bundle does not have the models.

    """
    if options.deployed is None:
        raise UserError(
            "the engine remote needs the URLs of running servers; give those of the deployed "
            f"model with {spell('deployed')}"
        )
    code = bundle.manifest.code
    if options.parity is not None and code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the servers of {spell('parity')}; make one "
            f"with `parm parity --model {bundle.path} --out BUNDLE`"
        )
    if options.backup is not None and bundle.manifest.backup is None:
        raise UserError(
            f"{bundle.path} has no backup model for the servers of {spell('backup')}; make one "
            f"with `parm backup --model {bundle.path} --network linear --out BUNDLE`"
        )
    return parse_upstreams(options, bundle.manifest.name, 0 if code is None else code.r)


def parse_upstreams(options: UpstreamOptions, name: str, r: int) -> tuple[Upstream, ...]:
    """Return the upstreams of URLs like http://host:8000?protocol=v1 or grpc://host:8001/MODEL.

    If a URL has no path, the deployed model is called `name`, and the r parity models and the
    backup after it, NAME-parity-0 and NAME-backup, as by `parm export`. A server runs all parity
    models or, if its path is the usual name of one, only that. A server in several lists runs
    several models.

    Raises:
        UserError: A URL is wrong, given twice, or contradicts another, or one of the parity models
            has no server and another has.

    """
    found: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}  # models and settings, by URL
    parities = [parity_role(j) for j in range(r)]
    lists = (options.deployed, [DEPLOYED]), (options.parity, parities), (options.backup, [BACKUP])
    for urls, roles in lists:
        usual = {role: name if role == DEPLOYED else f"{name}-{role}" for role in roles}
        for url in () if urls is None else urls.split(","):
            base, path, own = _split(url)
            named = {role: each for role, each in usual.items() if path in ("", each)}
            if path and len(roles) == 1:
                named = {roles[0]: path}
            elif path and not named:
                raise UserError(
                    f"{url!r} names a model, and there are several for such servers: "
                    f"{', '.join(usual.values())}; name one of these, or leave the path out if "
                    "a server runs all of them"
                )
            models, settings = found.setdefault(base, ({}, {}))
            if models.keys() & named.keys():
                raise UserError(
                    f"{base} is given twice; for more units at a time give {base}?concurrency=2"
                )
            models |= named
            for each, value in own.items():
                if settings.setdefault(each, value) != value:
                    raise UserError(f"{base} is given with {each} {settings[each]} and {value}")
    lacking = [role for role in parities if not any(role in models for models, _ in found.values())]
    if options.parity and lacking:
        raise UserError(
            f"no server of {spell('parity')} runs {name}-{lacking[0]}, and a code needs all its "
            "parity models; give one that does"
        )
    return tuple(Upstream(base, models, **settings) for base, (models, settings) in found.items())


def _split(url: str) -> tuple[str, str, dict[str, Any]]:
    """Return scheme://host:port, the model named after it or "", and the URL's settings."""
    try:
        parts = urlsplit(url.strip())
        has_port = parts.port is not None
    except ValueError:  # refused below, for it has no hostname
        parts, has_port = urlsplit(""), False
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    settings, path = dict[str, Any](pairs), unquote(parts.path.strip("/"))
    is_grpc = parts.scheme in ("grpc", "grpcs")
    if (
        parts.scheme not in ("http", "https", "grpc", "grpcs")
        or not parts.hostname
        or len(pairs) != len(settings)
        or not all(re.fullmatch(_SETTINGS.get(name, "(?!)"), value) for name, value in pairs)
        or (is_grpc and (not has_port or settings.get("protocol") == "v1"))
        or parts.fragment
        or parts.username
        or "/" in path
    ):
        raise UserError(
            f"{url!r} is not an upstream; it is like http://host:8000, https://host, "
            "grpc://host:8001 or grpcs://host:8001 (gRPC has no usual port), with /MODEL after it "
            "if the model has another name, ?concurrency=N for N units at a time, 1 to 1000, "
            "?protocol=v1 or v2 for its protocol over http and https, and ?version=V for a "
            "version of its models"
        )
    if "concurrency" in settings:
        settings["concurrency"] = int(settings["concurrency"])
    return f"{parts.scheme}://{parts.netloc}", path, settings


# The engine


class RemoteEngine(Engine):
    """Runs units on upstreams: existing servers.

    `start` returns when every upstream has been checked, and raises UpstreamError if a role has
    no healthy one. Instance "u.s" is slot s of upstream u, called "u.s.n" when it joins again.
    The `upstreams` are by default those of the options.
    """

    name = "remote"
    refuses = FIXED
    tolerance = TOLERANCE
    health_interval = 1.0
    """Seconds between health checks."""
    Options = UpstreamOptions

    @classmethod
    def fixed_roles(cls, options: Any, bundle: Bundle) -> Sequence[frozenset[str]]:
        return roles_of(upstreams_of(options, bundle))

    @classmethod
    def own_roles(cls, options: Any, bundle: Bundle) -> frozenset[str]:
        return frozenset(
            role
            for role in bundle.manifest.models
            if role != DEPLOYED and (options.backup if role == BACKUP else options.parity) is None
        )

    def __init__(
        self, options: UpstreamOptions, parts: Parts, upstreams: Sequence[Upstream] = ()
    ) -> None:
        self._options = options
        self.parts = parts
        self._upstreams = upstreams or upstreams_of(options, parts.bundle)
        self._links: list[_Link] = []
        self._supervisors: list[asyncio.Task[None]] = []

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        self.listener = listener
        used = sorted(frozenset[str]().union(*(each.models for each in self._upstreams)))
        models = {role: await asyncio.to_thread(_known, self.parts.models[role]) for role in used}
        try:
            for number, upstream in enumerate(self._upstreams):
                there = {
                    role: replace(models[role], name=name, version=upstream.version)
                    for role, name in upstream.models.items()
                }
                values = max(each.signature.largest.output.row_values for each in there.values())
                most = answer_limit(self.parts.max_batch * values)
                client = connect(upstream, self._options, most)
                self._links.append(_Link(self, number, upstream, client, there))
            await asyncio.gather(*(link.check() for link in self._links))
            well = {role for link in self._links if link.fault is None for role in link.models}
            for link in self._links:
                if link.fault is None:
                    continue
                wrong = link.fault.fault is Fault.MISMATCH
                missing = link.models.keys() - well
                if missing and (wrong or not self.parts.own):
                    raise UpstreamError(
                        link.fault.fault,
                        f"no upstream that runs {min(missing)} is available: {link.upstream.url} "
                        f"{link.fault}",
                    )
        except BaseException:
            await self.stop()
            raise
        for link in self._links:
            link.begin()
            self._supervisors.append(asyncio.create_task(link.supervise()))
        await asyncio.sleep(0)  # until the listener has heard of the instances

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        if (link := self._link(instance)) is not None:
            link.run(instance, unit, role, rows)

    def cancel(self, instance: str, unit: int) -> None:
        if (link := self._link(instance)) is not None:
            link.cancel(instance, unit)

    def recycle(self, instance: str, why: str) -> None:
        if (link := self._link(instance)) is not None:
            link.recycle(instance, why)

    def _link(self, instance: str) -> "_Link | None":
        """Return what runs the units of an instance; None if it has gone."""
        return next((link for link in self._links if instance in link.units), None)

    def running(self) -> Mapping[str, int | None]:
        units = {name: unit for link in self._links for name, unit in link.units.items()}
        return {instance: unit and unit.number for instance, unit in units.items()}

    async def stop(self) -> None:
        links, self._links = self._links, []
        tasks = [*self._supervisors]
        tasks += [unit.task for link in links for unit in link.units.values() if unit is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in links:
            await link.client.close()

    def node(self, upstream: Upstream) -> str:
        """Return the upstream's failure domain: its host, or itself if all share one."""
        hosts = {urlsplit(each.url).hostname for each in self._upstreams}
        return upstream.url if len(hosts) == 1 else urlsplit(upstream.url).hostname or ""

    def can_spare(self, link: "_Link") -> bool:
        """Return whether half of the instances of each role would remain without this upstream."""
        for role in link.models if link.units else ():
            alike = [each for each in self._links if role in each.models]
            left = sum(len(each.units) for each in alike if each is not link)
            if 2 * left < sum(each.upstream.concurrency for each in alike):
                return False
        return True


def connect(upstream: Upstream, options: UpstreamOptions, max_answer: int) -> UpstreamClient:
    """Connect to an upstream by its URL and protocol.

    An answer over gRPC has up to `max_answer` bytes. Over https and grpcs, the certificates of the
    PEM file PARM_CA_FILE are trusted, by default the system's. Raises UserError for a file that
    cannot be used.
    """
    # Imported late: other engines need no aiohttp, and fleets that speak HTTP no gRPC.
    from parity_models.serving.client import Credentials
    from parity_models.serving.remote.clients import RestClient, V1Client

    token = None if options.upstream_token is None else Token(Path(options.upstream_token))
    credentials = replace(Credentials.of_environment(), token=None)
    scheme, address = upstream.url.split("://")
    if scheme.startswith("http"):
        kind = V1Client if upstream.protocol == "v1" else RestClient
        return kind(token, upstream.url, credentials)
    from parity_models.serving.remote.grpc import GrpcClient

    secure = scheme == "grpcs"
    return GrpcClient(token, address, max_answer, secure=secure, ca_file=credentials.ca_file)


def roles_of(upstreams: Sequence[Upstream]) -> list[frozenset[str]]:
    """Return the roles of each instance, in order; an upstream has `concurrency` instances."""
    return [frozenset(each.models) for each in upstreams for _ in range(each.concurrency)]


def _known(pinned: PinnedModel) -> UpstreamModel:
    """Return a model that upstreams must have, known by a query and its prediction."""
    model = None if pinned.sha256 == ELSEWHERE else pinned.load()
    signature = pinned.signature if model is None else model.signature
    assert signature is not None
    kind = signature.smallest
    query = kind.input.draw(np.random.default_rng(0), 1)
    row = kind.input.join(query)[0, ...]
    prediction = None if model is None else kind.output.join(model(query))[0, ...]
    names = Labels.of(pinned.labels) if pinned.labels else None
    return UpstreamModel("", None, signature, row, prediction, pinned.sha256, names)


class _Unit(NamedTuple):
    number: int
    task: asyncio.Task[None]


class _Link:
    """An upstream's state in the engine: in use or ejected, busy or not, and its units.

    `fault` is the reason why it is not in use. `units` has its instances that have joined and not
    left, each with its unit, if it has one. `kept_for` is the doubt that does not eject it, as too
    many others are out. `doubted` is set to check the upstream at once: a slot was recycled,
    it was ejected, or it answers with another version of the model.
    """

    def __init__(
        self,
        engine: RemoteEngine,
        number: int,
        upstream: Upstream,
        client: UpstreamClient,
        models: Mapping[str, UpstreamModel],
    ) -> None:
        self.upstream = upstream
        self.client = client
        client.on_new_version = self._on_new_version
        self.models = models
        self.units: dict[str, _Unit | None] = {}
        self.fault: UpstreamError | None = None
        self.doubted = asyncio.Event()
        self.kept_for: Fault | None = None
        self._engine = engine
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._busy_until = 0.0
        self._lives: Counter[int] = Counter()

    # Units

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        had = self.units[instance]
        if had is not None:
            raise ValueError(f"instance {instance} still has unit {had.number}")
        model = self.models.get(role)
        if model is None:
            wrong = f"instance {instance} does not run {role}"
            self._loop.call_soon(self._engine.listener.unit_failed, unit, wrong)
            return
        task = self._loop.create_task(self._run(instance, unit, model, rows))
        self.units[instance] = _Unit(unit, task)

    async def _run(
        self, instance: str, unit: int, model: UpstreamModel, rows: Sequence[NDArray[Any]]
    ) -> None:
        listener, timeout = self._engine.listener, self._engine.parts.unit_timeout
        busy, text = 0.0, f"instance {instance} answered with an error; see the server's log"
        try:
            if self._busy_for():
                raise BusyError("is still busy", self._busy_for())
            async with asyncio.timeout(timeout):
                outputs = await self.client.infer(model, rows, listener.headers_of(unit))
        except BusyError as error:
            busy, text = self._back_off(error), f"instance {instance} is busy"
        except Exception as error:
            if isinstance(error, TimeoutError):
                late = f"had unit {unit} for more than {timeout:g} s"
                error = UpstreamError(Fault.TIMEOUT, late)
            if not isinstance(error, UnitError) and self._eject(error):
                return
            _log.warning("upstream %s, instance %s: %s", self.upstream.url, instance, error)
        else:
            self.kept_for = self.units[instance] = None
            listener.unit_finished(unit, outputs)
            return
        self.units[instance] = None
        listener.unit_failed(unit, text, busy=busy)

    def cancel(self, instance: str, number: int) -> None:
        """End the call if the upstream gives up the unit; others are busy until they answer."""
        unit = self.units[instance]
        if self.client.abandons and unit is not None and unit.number == number:
            unit.task.cancel()
            self.units[instance] = None
            self._loop.call_soon(self._engine.listener.unit_failed, number, "was cancelled")

    def recycle(self, instance: str, why: str) -> None:
        """Keep this instance's slot out until the upstream has passed a check."""
        self._leave(instance, f"is to be checked anew: {why}")
        self.doubted.set()
        self._engine.parts.metrics.ejections.labels(self.upstream.url, Fault.RECYCLED).inc()

    def _on_new_version(self, model: UpstreamModel, old: str, new: str) -> None:
        """Check an upstream anew that answers with another version of a model."""
        _log.warning(
            "upstream %s answers with version %s of %s, before with %s; stand-ins have learned "
            "from the bundle's model: if the two differ much, make a bundle of the new one",
            self.upstream.url,
            new,
            model.name,
            old,
        )
        self.doubted.set()

    def _back_off(self, error: BusyError) -> float:
        """Leave a busy upstream alone as it asks, within bounds. Return the seconds left."""
        if not self._busy_for():
            rest = min(max(error.after or 0.0, MIN_REST), MAX_REST)
            self._busy_until = self._loop.time() + rest
        return max(self._busy_for(), 1e-3)

    def _busy_for(self) -> float:
        """Return the seconds for which the upstream still gets no units, as it is busy."""
        return max(0.0, self._busy_until - self._loop.time())

    # Membership

    def _admit(self) -> None:
        """Let the instances that are out join: the upstream has passed its checks."""
        self.kept_for = None
        roles, node = frozenset(self.models), self._engine.node(self.upstream)
        out = set(range(self.upstream.concurrency)) - {
            int(each.split(".")[1]) for each in self.units
        }
        for slot in sorted(out):
            life = self._lives[slot]
            self._lives[slot] += 1
            instance = f"{self._number}.{slot}" + (f".{life}" if life else "")
            self.units[instance] = None
            # Not called from here: a listener's mistake must not end the supervision.
            self._loop.call_soon(self._engine.listener.instance_joined, instance, roles, node)

    def _leave(self, instance: str, why: str) -> None:
        """Report that the instance is gone, and end its unit."""
        unit = self.units.pop(instance)
        if unit is not None:
            unit.task.cancel()
        self._loop.call_soon(self._engine.listener.instance_left, instance, why)

    def _eject(self, error: Exception) -> bool:
        """Eject the upstream for its fault, unless that is a doubt and more than half of the
        instances with its models would be out. Return whether it is out."""
        fault, url = self._fault_of(error), self.upstream.url
        if fault.fault in DOUBTS and not self._engine.can_spare(self):
            if self.kept_for is not fault.fault:
                self.kept_for = fault.fault
                _log.warning(
                    "upstream %s %s; it stays in use, as no more than half of the instances with "
                    "its models are ejected for that",
                    url,
                    fault,
                )
            return False
        if self.fault is None:
            self._out(fault)
            for instance in list(self.units):
                self._leave(instance, str(fault))
            self.doubted.set()
        return True

    def _out(self, fault: UpstreamError) -> None:
        """Record, count and log that it is out for this fault."""
        self.fault = fault
        _log.warning(_IS_OUT, self.upstream.url, fault)
        self._engine.parts.metrics.ejections.labels(self.upstream.url, fault.fault).inc()

    def _fault_of(self, error: Exception) -> UpstreamError:
        """Return the fault that `error` shows; log an unexpected error."""
        if isinstance(error, UpstreamError):
            return error
        if isinstance(error, BusyError):
            return UpstreamError(Fault.NOT_READY, f"cannot be checked: it {error}")
        if isinstance(error, TimeoutError):
            return UpstreamError(Fault.TIMEOUT, f"did not answer within {PATIENCE:g} s")
        _log.error("upstream %s caused an unexpected error", self.upstream.url, exc_info=error)
        text = f"caused an unexpected error: {type(error).__name__}"
        return UpstreamError(Fault.GARBAGE, text)

    # Supervision

    def begin(self) -> None:
        """Let the instances join if the first check found no fault."""
        if self.fault is None:
            self._admit()
        else:
            self._out(self.fault)

    async def supervise(self) -> None:
        """Watch the upstream while it is in use, and check it while it is out, until cancelled."""
        backoff = Backoff()
        while True:
            began = self._loop.time()
            while (before := self.fault) is None:
                await self._watch()
            await asyncio.sleep(backoff.after(self._loop.time() - began))
            await self.check()
            if self.fault is None:
                _log.warning("upstream %s has recovered and gets units", self.upstream.url)
                self.doubted.clear()
                self._admit()
            elif self.fault.fault is not before.fault:
                _log.warning(_IS_OUT, self.upstream.url, self.fault)

    async def _watch(self) -> None:
        """Check after a while that the upstream is ready, or at once, in full, if it is doubted;
        eject it if it fails."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._engine.health_interval):
                await self.doubted.wait()
        await asyncio.sleep(self._busy_for())
        if self.fault is not None:
            return
        try:
            if self.doubted.is_set() or len(self.units) < self.upstream.concurrency:
                self.doubted.clear()
                await self._each(self.client.check)
                if self.fault is None:  # a unit may have shown one meanwhile
                    self._admit()
            else:
                await self._each(self.client.check_ready)
        except BusyError as error:
            self._back_off(error)
        except Exception as error:
            self._eject(error)

    async def check(self) -> None:
        """Check the upstream; set its `fault` if it fails, or cannot be checked."""
        try:
            await self._each(self.client.check)
            self.fault = None
        except Exception as error:
            self.fault = self._fault_of(error)

    async def _each(self, check: Callable[[UpstreamModel], Awaitable[None]]) -> None:
        for model in self.models.values():
            try:
                async with asyncio.timeout(PATIENCE):
                    await check(model)
            except UnitError as error:
                text = f"cannot run {model}: it {error}"
                raise UpstreamError(Fault.ERRORS, text) from error
