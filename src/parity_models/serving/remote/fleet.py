"""The fleet of the remote engine: its upstreams, by the URLs that users give."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from parity_models.errors import OptionError, UserError
from parity_models.models.bundle import Bundle
from parity_models.options import Option, Options, Value
from parity_models.scheduling import BACKUP, BACKUPS, DEPLOYED, parity_role
from parity_models.serving.remote.upstream import PredictionProtocol, Upstream

SCHEMES = ("http", "https", "grpc", "grpcs")

_QUERY = {"concurrency": "[0-9]{1,9}", "protocol": "v[12]", "model": ".+", "version": ".+"}
"""The parameters of a URL, with the pattern of each value."""


@dataclass(frozen=True, kw_only=True)
class FleetOptions(Options):
    """Where the upstreams are. URLs are separated by commas; see `parse_upstreams`."""

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


@dataclass(frozen=True)
class Fleet:
    """Upstreams, and `ca_file`: the certificates that vouch for https and grpcs.

    `ca_file` None: the system's. Raises UserError if there are no upstreams.
    """

    upstreams: tuple[Upstream, ...]
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise OptionError("there is no upstream; give one or more with --deployed")

    @property
    def roles(self) -> list[frozenset[str]]:
        """The roles of each instance; an upstream has as many as its concurrency, in order."""
        return [each.roles for each in self.upstreams for _ in range(each.concurrency)]

    def node(self, upstream: Upstream) -> str:
        """The upstream's failure domain: its host, or itself if all share one."""
        if len({each.host for each in self.upstreams}) == 1:
            return upstream.url
        return upstream.host


def fleet_of(options: FleetOptions, bundle: Bundle) -> Fleet:
    """The fleet at these URLs, for the models of this bundle.

    Raises UserError for URLs that `parse_upstreams` refuses, or for models that the bundle
    lacks.
    """
    if options.deployed is None:
        raise OptionError(
            "the engine remote needs the URLs of servers that run already; give those of the "
            "deployed model with --deployed"
        )
    code = bundle.manifest.code
    if options.parity is not None and code is None:
        raise OptionError(
            f"{bundle.path} has no parity model for the servers of --parity; make one "
            f"with `parm parity --from {bundle.path} --out BUNDLE`"
        )
    if options.backup is not None and not bundle.manifest.backups:
        raise OptionError(
            f"{bundle.path} has no backup model for the servers of --backup; make one "
            f"with `parm backup --from {bundle.path} --network linear --out BUNDLE`"
        )
    upstreams = parse_upstreams(
        bundle.manifest.name,
        code.r if code is not None else 0,
        len(bundle.manifest.backups),
        deployed=_urls(options.deployed),
        parity=_urls(options.parity),
        backup=_urls(options.backup),
    )
    ca_file = None if options.ca_file is None else Path(options.ca_file)
    return Fleet(upstreams, ca_file)


def check_for_several(options: FleetOptions) -> None:
    """Raises UserError for URLs that name one model or one version, where there may be several."""
    for url in (*_urls(options.deployed), *_urls(options.parity), *_urls(options.backup)):
        _, path, said = _split(url)
        if any("{model}" not in name for name in (path, said.get("model", "")) if name):
            raise UserError(
                f"{url!r} names one model, and a repository may have several: write {{model}} in "
                "its place, or give such URLs in the serve.toml of the model"
            )
        if "version" in said:
            raise UserError(
                f"leave out the version of {url!r}: each version of a repository is asked for as "
                "such, or is part of its model's name upstream, as {version}"
            )


def options_of_model(
    given: Mapping[str, Value], own: Mapping[str, Value], bundle: Bundle, model: str, version: str
) -> Mapping[str, Value]:
    """The options for a version of a repository's model: those `given` for all models, as far as
    the bundle has what they are for, and the model's `own`.

    In URLs, {model} and {version} stand for these; where they say neither, models are called after
    `model`, and asked for in this `version`.
    """
    lacks = {"parity": bundle.manifest.code is None, "backup": not bundle.manifest.backups}
    options = {each: value for each, value in given.items() if not lacks.get(each)} | dict(own)
    for role in ("deployed", "parity", "backup"):
        if role in options:
            urls = _urls(str(options[role]))
            options[role] = ",".join(_url_of_version(url, model, version) for url in urls)
    return options


def _url_of_version(url: str, model: str, version: str) -> str:
    _, path, said = _split(url)
    names = {"model": "{model}", **said} if not path else dict(said)
    if "{version}" not in f"{path}{names.get('model', '')}":
        names.setdefault("version", "{version}")
    query = "&".join(f"{name}={value}" for name, value in names.items())
    whole = f"{url.strip().partition('?')[0]}?{query}"
    return whole.replace("{model}", quote(model, safe="")).replace("{version}", quote(version))


def parse_upstreams(
    name: str,
    r: int,
    backups: int = 1,
    *,
    deployed: Sequence[str],
    parity: Sequence[str] = (),
    backup: Sequence[str] = (),
) -> tuple[Upstream, ...]:
    """The upstreams of URLs like http://host:8000?protocol=v1 or grpc://host:8001/MODEL.

    Where a URL has no path, the deployed model is called `name`, or as `?model=` says, parity model
    j is called after it, as NAME-parity-j, and the backups, of which there are `backups`,
    NAME-backup, NAME-backup-2, ..., as `parm export` calls them. Of several parity models or
    backups a server runs all, or the one whose usual name is its path. A server in several lists
    runs several models. Raises UserError for URLs that are none, given twice, or contradict each
    other, and where one of the parity models has no server and another has.
    """
    models: dict[str, dict[str, str]] = {}
    said: dict[str, dict[str, str]] = {}
    roles: dict[str, Sequence[str]] = {
        DEPLOYED: [DEPLOYED],
        "parity": [parity_role(j) for j in range(r)],
        BACKUP: BACKUPS[:backups],
    }
    for url, kind in (
        *((url, DEPLOYED) for url in deployed),
        *((url, "parity") for url in parity),
        *((url, BACKUP) for url in backup),
    ):
        base, path, own = _split(url)
        called = own.pop("model", name)
        there = models.setdefault(base, {})
        for role in _roles_of(roles[kind], called, url, path):
            if role in there:
                raise UserError(
                    f"{base} is given twice; more units at a time are {base}?concurrency=2"
                )
            there[role] = path or (called if role == DEPLOYED else f"{called}-{role}")
        before = said.setdefault(base, {})
        for what, value in own.items():
            if before.setdefault(what, value) != value:
                raise UserError(f"{base} is given with {what} {before[what]} and {value}")
    run = {role for there in models.values() for role in there}
    lacking = [role for role in roles["parity"] if role not in run]
    if parity and lacking:
        raise _no_server_of_parity(f"{name}-{lacking[0]}")
    return tuple(_upstream(base, named, said[base]) for base, named in models.items())


def _upstream(base: str, models: Mapping[str, str], said: Mapping[str, str]) -> Upstream:
    given: dict[str, Any] = {}
    if "concurrency" in said:
        given["concurrency"] = int(said["concurrency"])
    if "protocol" in said:
        given["protocol"] = PredictionProtocol(said["protocol"])
    return Upstream(base, models, version=said.get("version"), **given)


def _no_server_of_parity(model: str) -> OptionError:
    return OptionError(
        f"no server of --parity runs {model}, and a code needs all its parity "
        "models; give one that does"
    )


def _roles_of(roles: Sequence[str], name: str, url: str, path: str) -> Sequence[str]:
    """Which of the roles of a kind the server at `url` runs: all, or the one that its path names,
    where there are several."""
    if not path or len(roles) == 1:
        return roles
    named = [role for role in roles if path == f"{name}-{role}"]
    if not named:
        usual = ", ".join(f"{name}-{role}" for role in roles)
        raise UserError(
            f"{url!r} names a model, and there are several for such servers: {usual}; name one of "
            "these, or leave out the path where a server runs all of them"
        )
    return named


def _urls(text: str | None) -> Sequence[str]:
    return () if text is None else text.split(",")


def _split(url: str) -> tuple[str, str, dict[str, str]]:
    """scheme://host:port, the model named after it, if there is one, and the URL's query."""
    try:
        parts: SplitResult = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no URL: {error}") from error
    said: dict[str, str] = {}
    known = True
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        pattern = _QUERY.get(name)
        known &= name not in said and pattern is not None and bool(re.fullmatch(pattern, value))
        said[name] = value
    path = unquote(parts.path.strip("/"))
    wrong = parts.fragment or parts.username or "/" in path
    if parts.scheme not in SCHEMES or not parts.hostname or not known or wrong:
        raise UserError(
            f"{url!r} is no upstream; it is like http://host:8000, https://host, grpc://host:8001 "
            "or grpcs://host:8001, with /MODEL after it where the model has another name, "
            "?concurrency=N for N units at a time, ?protocol=v1 or v2 for what it speaks, and "
            "?version=V for a version of its models"
        )
    if port is None and parts.scheme.startswith("grpc"):
        raise UserError(f"{url!r} has no port; gRPC has no usual one")
    return f"{parts.scheme}://{parts.netloc}", path, said
