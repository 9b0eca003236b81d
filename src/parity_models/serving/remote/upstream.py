"""Upstreams: the servers that a remote engine runs units on, by the URLs that users give."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from numpy.typing import NDArray

from parity_models.errors import OptionError, ServingError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Signature
from parity_models.options import Option, Options, Value
from parity_models.roles import BACKUPS, DEPLOYED, parity_role

MAX_CONCURRENCY = 1000

TOLERANCE = 0.05
"""The largest difference between an upstream's prediction and the bundle's, as a share of the
largest value: room for other precisions, not for other weights."""

_LISTS = ("deployed", "parity", "backup")
"""The options that have URLs."""

_SETTINGS = {"concurrency": "[0-9]{1,9}", "protocol": "v[12]", "model": ".+", "version": ".+"}
"""The parameters of a URL, with the pattern of each value."""


class Fault(StrEnum):
    """The reason why an upstream gets no units for a while."""

    UNREACHABLE = "unreachable"
    NOT_READY = "not ready"
    TIMEOUT = "timeout"
    GARBAGE = "garbage"
    ERRORS = "errors"
    MISMATCH = "mismatch"
    RECYCLED = "recycled"
    """The scheduler has recycled an instance."""


class UpstreamError(ServingError, UserError):
    """An upstream that cannot be used, by `fault`."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault

    @property
    def passes(self) -> bool:
        """True if the server may not be up yet; otherwise it is wrong."""
        return self.fault in (Fault.UNREACHABLE, Fault.NOT_READY, Fault.TIMEOUT)


class UnitError(Exception):
    """An upstream's answer to a unit is an error; it may be the unit's own."""


class BusyError(Exception):
    """An upstream has enough to do. It asks to be left alone for `after` seconds; None: some time.

    Where it is not `certain`, the upstream may be unavailable instead.
    """

    def __init__(self, text: str, after: float | None = None, *, certain: bool = True) -> None:
        super().__init__(text)
        self.after = after
        self.certain = certain


@dataclass(frozen=True)
class Upstream:
    """A server at `url` (scheme://host:port), and the names its models have there, by role.

    It gets up to `concurrency` units at a time, over the Open Inference Protocol ("v2") or its
    predecessor ("v1", `:predict`), for this `version` of its models; None: the one that it chooses.
    Raises UserError if the concurrency is out of range, or the URL cannot be for the `protocol`.
    """

    url: str
    models: Mapping[str, str] = field(hash=False)
    concurrency: int = 1
    protocol: str = "v2"
    version: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise UserError(
                f"the concurrency of {self.url} must be from 1 to {MAX_CONCURRENCY}, got "
                f"{self.concurrency}"
            )
        if self.protocol == "v1" and self.url.startswith("grpc"):
            raise UserError(
                f"V1 is spoken over http and https alone; leave out the protocol of {self.url}, or "
                f"write {self.url}?protocol=v2"
            )

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.models)


@dataclass(frozen=True)
class UpstreamModel:
    """A model as an upstream must have it, in this `version`, or in the one that it chooses.

    It is known by the `sha256` of its file, and by the `prediction` for a `query`, both without a
    batch axis.
    """

    name: str
    version: str | None
    signature: Signature
    query: NDArray[Any]
    prediction: NDArray[Any]
    sha256: str

    def __str__(self) -> str:
        return f"model {self.name!r}" + (f" version {self.version}" if self.version else "")


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions(Options):
    """The upstreams' URLs, separated by commas (see `parse_upstreams`), and how to connect."""

    deployed: Annotated[
        str | None,
        Option(
            "Servers that run the deployed model already, separated by "
            "commas: http://HOST:PORT, https, grpc or grpcs, /MODEL where the model has another "
            "name there, and ?concurrency=N, protocol=v1 and version=V joined by &.",
            metavar="URLS",
        ),
    ] = None
    parity: Annotated[
        str | None,
        Option(
            "Likewise, of the parity model; it is called NAME-parity-0 where no MODEL is given. Of "
            "several, NAME-parity-0, NAME-parity-1, ..., a server runs all, or the one that its "
            "address names.",
            metavar="URLS",
        ),
    ] = None
    backup: Annotated[
        str | None,
        Option(
            "Likewise, of the approximate backup, NAME-backup, or of several, NAME-backup, "
            "NAME-backup-2, ...: a server runs all, or the one that its address names.",
            metavar="URLS",
        ),
    ] = None
    ca_file: Annotated[
        str | None,
        Option(
            "The certificates to trust over https and grpcs, a PEM file; by default the system's.",
            metavar="FILE",
        ),
    ] = None
    upstream_token: Annotated[
        str | None,
        Option(
            "A file with the bearer token for these servers; read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    upstream_cert: Annotated[
        str | None, Option("The client certificate for these servers in PEM.", metavar="FILE")
    ] = None
    upstream_key: Annotated[
        str | None, Option("The key of --upstream-cert in PEM.", metavar="FILE")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.upstream_cert is None) != (self.upstream_key is None):
            raise OptionError(
                "a client certificate needs its key; give both, --upstream-cert and --upstream-key"
            )


def upstreams_of(options: UpstreamOptions, bundle: Bundle) -> tuple[Upstream, ...]:
    """Return the upstreams for the models of a bundle.

    Raises:
        UserError: `parse_upstreams` refuses the URLs, or the bundle does not have the models.

    """
    if options.deployed is None:
        raise OptionError(
            "the engine remote needs the URLs of servers that run already; give those of the "
            "deployed model with --deployed"
        )
    code, backups = bundle.manifest.code, len(bundle.manifest.backups)
    if options.parity is not None and code is None:
        raise OptionError(
            f"{bundle.path} has no parity model for the servers of --parity; make one "
            f"with `parm parity --from {bundle.path} --out BUNDLE`"
        )
    if options.backup is not None and not backups:
        raise OptionError(
            f"{bundle.path} has no backup model for the servers of --backup; make one "
            f"with `parm backup --from {bundle.path} --network linear --out BUNDLE`"
        )
    urls = {each: getattr(options, each) for each in _LISTS}
    return parse_upstreams(bundle.manifest.name, 0 if code is None else code.r, backups, **urls)


def options_of_model(
    given: Mapping[str, Value], own: Mapping[str, Value], bundle: Bundle, model: str, version: str
) -> Mapping[str, Value]:
    """Return the options for a version of a repository's model.

    They are those `given` for all models, as far as the bundle has such models, and the model's
    `own`. In URLs, {model} and {version} stand for these; a URL without them is of models called
    after `model`, in this `version`.
    """
    lacks = {"parity": bundle.manifest.code is None, "backup": not bundle.manifest.backups}
    options = {each: value for each, value in given.items() if not lacks.get(each)} | dict(own)

    def of_model(url: str) -> str:
        address, _, query = url.strip().partition("?")
        if not urlsplit(address).path.strip("/") and "model=" not in query:
            query += "&model={model}"
        if "{version}" not in url and "version=" not in query:
            query += "&version={version}"
        url = f"{address}?{query.removeprefix('&')}".removesuffix("?")
        return url.replace("{model}", quote(model, safe="")).replace("{version}", quote(version))

    urls = {each: str(options[each]).split(",") for each in _LISTS if each in options}
    return options | {each: ",".join(map(of_model, its)) for each, its in urls.items()}


def parse_upstreams(
    name: str,
    r: int,
    backups: int = 1,
    *,
    deployed: str,
    parity: str | None = None,
    backup: str | None = None,
) -> tuple[Upstream, ...]:
    """Return the upstreams of URLs like http://host:8000?protocol=v1 or grpc://host:8001/MODEL.

    Where a URL has no path, the deployed model is called `name`, or as `?model=` says, and parity
    models and backups are called after it, NAME-parity-0 and NAME-backup, NAME-backup-2, ..., as by
    `parm export`. Of several parity models or backups a server runs all, or the one whose usual
    name is its path. A server in several lists runs several models.

    Args:
        name: The usual name of the deployed model.
        r: The number of parity models.
        backups: The number of backups.
        deployed: URLs of servers of the deployed model, separated by commas.
        parity: Of the parity models.
        backup: Of the backups.

    Raises:
        UserError: A URL is wrong, given twice, or contradicts another, or one of the parity models
            has no server and another has.

    """
    models: dict[str, dict[str, str]] = {}
    settings: dict[str, dict[str, str]] = {}
    parities = [parity_role(j) for j in range(r)]
    lists = ((deployed, [DEPLOYED]), (parity, parities), (backup, BACKUPS[:backups]))
    for urls, roles in lists:
        for url in () if urls is None else urls.split(","):
            base, path, own = _split(url)
            named = _names(url, path, roles, own.pop("model", name))
            there = models.setdefault(base, {})
            if there.keys() & named.keys():
                raise UserError(
                    f"{base} is given twice; more units at a time are {base}?concurrency=2"
                )
            there |= named
            before = settings.setdefault(base, {})
            for each, value in own.items():
                if before.setdefault(each, value) != value:
                    raise UserError(f"{base} is given with {each} {before[each]} and {value}")
    lacking = [role for role in parities if not any(role in each for each in models.values())]
    if parity and lacking:
        raise OptionError(
            f"no server of --parity runs {name}-{lacking[0]}, and a code needs all its parity "
            "models; give one that does"
        )
    return tuple(
        Upstream(
            base,
            named,
            int(settings[base].get("concurrency", 1)),
            settings[base].get("protocol", "v2"),
            settings[base].get("version"),
        )
        for base, named in models.items()
    )


def _names(url: str, path: str, roles: Sequence[str], name: str) -> dict[str, str]:
    """Return the names of models with these roles at a URL with this path, by role.

    Raises UserError for a path that is none of several usual names.
    """
    usual = {role: name if role == DEPLOYED else f"{name}-{role}" for role in roles}
    if path and len(roles) == 1:
        return {roles[0]: path}
    if path and path not in usual.values():
        raise UserError(
            f"{url!r} names a model, and there are several for such servers: "
            f"{', '.join(usual.values())}; name one of these, or leave out the path where a server "
            "runs all of them"
        )
    return {role: each for role, each in usual.items() if path in ("", each)}


def _split(url: str) -> tuple[str, str, dict[str, str]]:
    """Return scheme://host:port, the model named after it or "", and the URL's settings."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is not a URL: {error}") from error
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    settings, path = dict(pairs), unquote(parts.path.strip("/"))
    if (
        parts.scheme not in ("http", "https", "grpc", "grpcs")
        or not parts.hostname
        or len(pairs) != len(settings)
        or not all(re.fullmatch(_SETTINGS.get(name, "(?!)"), value) for name, value in pairs)
        or parts.fragment
        or parts.username
        or "/" in path
    ):
        raise UserError(
            f"{url!r} is not an upstream; it is like http://host:8000, https://host, "
            "grpc://host:8001 or grpcs://host:8001, with /MODEL after it where the model has "
            "another name, ?concurrency=N for N units at a time, ?protocol=v1 or v2 for what it "
            "speaks, and ?version=V for a version of its models"
        )
    if port is None and parts.scheme.startswith("grpc"):
        raise UserError(f"{url!r} has no port; gRPC has no usual one")
    return f"{parts.scheme}://{parts.netloc}", path, settings
