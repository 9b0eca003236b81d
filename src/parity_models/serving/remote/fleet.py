"""The fleet of the remote engine: its upstreams, by the URLs that users give."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from parity_models.errors import OptionError, UserError
from parity_models.models.bundle import Bundle
from parity_models.options import Option, Options, Value
from parity_models.scheduling import BACKUP, BACKUPS, DEPLOYED, parity_role
from parity_models.serving.remote.upstream import (
    MAX_CONCURRENCY,
    PredictionProtocol,
    Upstream,
)

SCHEMES = ("http", "https", "grpc", "grpcs")

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, kw_only=True)
class FleetOptions(Options):
    """Where the upstreams are. URLs are separated by commas; see `parse_upstreams`."""

    deployed: Annotated[
        str | None,
        Option(
            "Servers that run the deployed model already, separated by "
            "commas: http://HOST:PORT, https, grpc or grpcs, and /MODEL after it where the model "
            "has another name there than here.",
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
    concurrency: Annotated[
        int,
        Option(
            "Units at a time on each server whose URL does not say it, as "
            "http://HOST:PORT?concurrency=4 does.",
            at_least=1,
            at_most=MAX_CONCURRENCY,
        ),
    ] = Upstream.concurrency
    protocol: Annotated[
        PredictionProtocol,
        Option(
            "What each server speaks whose URL does not say it, as http://HOST:PORT?protocol=v1 "
            "does: v2, the Open Inference Protocol, or v1, `instances` in and `predictions` out."
        ),
    ] = Upstream.protocol
    upstream_model: Annotated[
        str | None,
        Option(
            "What the deployed model is called on servers whose URL does not name it, by default "
            "as in the bundle; the others are called after it. With --repository it may have "
            "{model} and {version} in it; by default {model}.",
            metavar="NAME",
        ),
    ] = None
    upstream_version: Annotated[
        str | None,
        Option(
            "The version of the models that servers are asked for; by default that which each "
            "chooses. With --repository it is the bundle's, unless the name has it.",
            metavar="VERSION",
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
            raise OptionError(
                lambda spell: f"there is no upstream; give one or more with {spell('deployed')}"
            )

    @property
    def roles(self) -> list[frozenset[str]]:
        """What each instance runs: as many instances an upstream as its concurrency, in order."""
        return [each.roles for each in self.upstreams for _ in range(each.concurrency)]

    def node(self, upstream: Upstream) -> str:
        """What the upstream is slow or gone together with: its host, or itself if all share one."""
        if len({each.host for each in self.upstreams}) == 1:
            return upstream.url
        return upstream.host


def fleet_of(options: FleetOptions, bundle: Bundle) -> Fleet:
    """The fleet at these URLs, for the models of this bundle.

    Raises UserError for URLs that `parse_upstreams` refuses, and of models that the bundle has not.
    """
    if options.deployed is None:
        raise OptionError(
            lambda spell: (
                "the engine remote needs the URLs of servers that run already; give those of the "
                f"deployed model with {spell('deployed')}"
            )
        )
    code = bundle.manifest.code
    if options.parity is not None and code is None:
        raise OptionError(
            lambda spell: (
                f"{bundle.path} has no parity model for the servers of {spell('parity')}; make one "
                f"with `parm parity --from {bundle.path} --out BUNDLE`"
            )
        )
    if options.backup is not None and not bundle.manifest.backups:
        raise OptionError(
            lambda spell: (
                f"{bundle.path} has no backup model for the servers of {spell('backup')}; make one "
                f"with `parm backup --from {bundle.path} --network linear --out BUNDLE`"
            )
        )
    upstreams = parse_upstreams(
        options.upstream_model or bundle.manifest.name,
        code.r if code is not None else 0,
        len(bundle.manifest.backups),
        deployed=_urls(options.deployed),
        parity=_urls(options.parity),
        backup=_urls(options.backup),
        concurrency=options.concurrency,
        protocol=options.protocol,
        version=options.upstream_version,
    )
    ca_file = None if options.ca_file is None else Path(options.ca_file)
    return Fleet(upstreams, ca_file)


def check_for_several(options: FleetOptions) -> None:
    """Raises UserError for options that say of all models what can only be true of one."""
    for url in (*_urls(options.deployed), *_urls(options.parity), *_urls(options.backup)):
        _, path, _ = _split(url)
        if path:
            raise UserError(
                f"{url!r} names one model, and a repository may have several: leave out the path, "
                "and give models that have other names upstream a line in their serve.toml, "
                f'upstream-model = "{path}"'
            )
    name = options.upstream_model
    if name is not None and "{model}" not in name:
        raise OptionError(
            lambda spell: (
                f"{spell('upstream_model')} is for all models of a repository: write {{model}} "
                f"into {name!r}, or give it in the serve.toml of the model"
            )
        )
    if options.upstream_version is not None:
        raise _versions_are_asked_for()


def _versions_are_asked_for() -> OptionError:
    return OptionError(
        lambda spell: (
            f"leave out {spell('upstream_version')}: each version of a repository is asked for as "
            f"such, or is part of {spell('upstream_model')}, as {{version}}"
        )
    )


def options_of_model(
    given: Mapping[str, Value], own: Mapping[str, Value], bundle: Bundle, model: str, version: str
) -> Mapping[str, Value]:
    """The options for a version of a repository's model: those `given` for all models, as far as
    the bundle has what they are for, and the model's `own`.

    Raises UserError for those of its own that cannot be.
    """
    if "upstream_version" in own:
        raise _versions_are_asked_for()
    lacks = {
        "parity": bundle.manifest.code is None,
        "backup": not bundle.manifest.backups,
    }
    options = {each: value for each, value in given.items() if not lacks.get(each)} | dict(own)
    name = str(options.get("upstream_model", "{model}"))
    if "{version}" not in name:
        options["upstream_version"] = version
    options["upstream_model"] = name.replace("{model}", model).replace("{version}", version)
    return options


def parse_upstreams(
    name: str,
    r: int,
    backups: int = 1,
    *,
    deployed: Sequence[str],
    parity: Sequence[str] = (),
    backup: Sequence[str] = (),
    concurrency: int = Upstream.concurrency,
    protocol: PredictionProtocol = Upstream.protocol,
    version: str | None = None,
) -> tuple[Upstream, ...]:
    """The upstreams of URLs like http://host:8000?protocol=v1 or grpc://host:8001/MODEL.

    Where a URL has no path, the deployed model is called `name`, parity model j `name`-parity-j,
    and the backups, of which there are `backups`, `name`-backup, `name`-backup-2, ..., as `parm
    export` calls them. Of several parity models or backups a server runs all, or the one whose
    usual name is its path. A server in several lists runs several models. `concurrency` and
    `protocol` are of those whose URLs do not say theirs, and `version` is that of all models.
    Raises UserError for URLs that are none, given twice, or contradict each other, and where one of
    the parity models has no server and another has.
    """
    models: dict[str, dict[str, str]] = {}
    said: dict[str, dict[str, int | PredictionProtocol]] = {}
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
        there = models.setdefault(base, {})
        for role in _roles_of(roles[kind], name, url, path):
            if role in there:
                raise UserError(
                    f"{base} is given twice; more units at a time are {base}?concurrency=2"
                )
            there[role] = path or (name if role == DEPLOYED else f"{name}-{role}")
        before = said.setdefault(base, {})
        for what, value in own.items():
            if before.setdefault(what, value) != value:
                raise UserError(f"{base} is given with {what} {before[what]} and {value}")
    run = {role for there in models.values() for role in there}
    lacking = [role for role in roles["parity"] if role not in run]
    if parity and lacking:
        raise _no_server_of_parity(f"{name}-{lacking[0]}")
    usual: dict[str, Any] = {
        "concurrency": concurrency,
        "protocol": protocol,
        "version": version,
    }
    return tuple(Upstream(base, named, **(usual | said[base])) for base, named in models.items())


def _no_server_of_parity(model: str) -> OptionError:
    return OptionError(
        lambda spell: (
            f"no server of {spell('parity')} runs {model}, and a code needs all its parity "
            "models; give one that does"
        )
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


def _split(url: str) -> tuple[str, str, dict[str, int | PredictionProtocol]]:
    """scheme://host:port, the model named after it, if there is one, and what else it says."""
    try:
        parts: SplitResult = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no URL: {error}") from error
    said = _said(parts.query)
    path = unquote(parts.path.strip("/"))
    wrong = said is None or parts.fragment or parts.username or "/" in path
    if parts.scheme not in SCHEMES or not parts.hostname or wrong:
        raise UserError(
            f"{url!r} is no upstream; it is like http://host:8000, https://host, grpc://host:8001 "
            "or grpcs://host:8001, with /MODEL after it where the model has another name, "
            "?concurrency=N for N units at a time, and ?protocol=v1 or v2 for what it speaks"
        )
    if port is None and parts.scheme.startswith("grpc"):
        raise UserError(f"{url!r} has no port; gRPC has no usual one")
    return f"{parts.scheme}://{parts.netloc}", path, said or {}


def _said(query: str) -> dict[str, int | PredictionProtocol] | None:
    """What the query of a URL says of its server, each once; None where it is none."""
    said: dict[str, int | PredictionProtocol] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "concurrency" and name not in said and _NUMBER.fullmatch(value):
            said[name] = int(value)
        elif name == "protocol" and name not in said and value in set(PredictionProtocol):
            said[name] = PredictionProtocol(value)
        else:
            return None
    return said
