"""Access to a server: TLS, bearer tokens (RFC 6750), tenants, and a port for metrics.

Certificate and tokens are files that are read again when they change.
"""

import asyncio
import logging
import re
import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from parity_models.errors import UserError, spell
from parity_models.options import Options, option
from parity_models.serving.errors import ForbiddenError, UnauthorizedError

MAX_PORT = 2**16 - 1

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""The paths that need no token."""

METRICS = "/metrics"

CHALLENGE = b"Bearer"
"""The header WWW-Authenticate of a refusal."""

MIN_TOKEN = 16
"""Minimum length of a token: shorter ones can be guessed."""

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/-]{{{MIN_TOKEN},}}=*")

_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}", re.ASCII)

CHECK_INTERVAL = 1.0
"""Seconds between two checks of the files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Access(Options):
    """Access to a server; changed files are read again.

    Raises UserError for options that do not fit together.
    """

    tls_cert: str | None = option(
        None, "The certificate chain in PEM, for HTTP and gRPC.", metavar="FILE"
    )
    tls_key: str | None = option(None, "The certificate's private key in PEM.", metavar="FILE")
    tokens: str | None = option(
        None, "Bearer tokens of clients, one per line, plain or as sha256:HASH.", metavar="FILE"
    )
    admin_tokens: str | None = option(
        None,
        "Bearer tokens of administrators, who alone may load models and change the budget.",
        metavar="FILE",
    )
    metrics_port: int | None = option(
        None, "Port for /metrics, without TLS and tokens; 0: any.", ge=0, le=MAX_PORT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError(
                "TLS needs a certificate and its key; give both, "
                f"{spell('tls_cert')} and {spell('tls_key')}"
            )

    def certificate(self) -> "Certificate | None":
        """Return the certificate, if there is one. Raises UserError if it cannot be used."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return Certificate(Path(self.tls_cert), Path(self.tls_key))

    def clients(self) -> "Clients":
        """Return the clients by their tokens. Raises UserError if a file cannot be used."""
        files = (self.tokens, self.admin_tokens)
        return Clients(*(None if file is None else Tokens(Path(file)) for file in files))


class Reread(ABC):
    """The content of files, read again when they change.

    An error is then logged once, and the previous content stays in force.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._trouble = ""
        self._seen = [_stamp(path) for path in paths]
        self.read()

    @abstractmethod
    def read(self) -> None:
        """Read the files. Raises UserError, and changes nothing, if they are wrong."""

    def refresh(self) -> None:
        """Read the files again if they have changed, or if the last attempt failed: the server may
        have lacked descriptors then."""
        before, self._seen = self._seen, [_stamp(path) for path in self._paths]
        if self._seen == before and not self._trouble:
            return
        names = " and ".join(map(str, self._paths))
        try:
            self.read()
        except Exception as error:  # such as a file that was removed while it was read
            if (trouble := str(error) or repr(error)) != self._trouble:
                _log.error("the previous content of %s stays in force: %s", names, trouble)
            self._trouble = trouble
        else:
            self._trouble = ""
            _log.info("%s changed and was read again", names)


class Certificate(Reread):
    """The certificate that a server shows, with its chain in one PEM file and its private key in
    another.

    Open connections keep the certificate that they began with. Raises UserError for files that
    cannot be read, and for a key of another certificate.
    """

    def read(self) -> None:
        chain, key = self._paths
        pem = read_text(key, "the certificate's key"), read_text(chain, "the certificate")
        contexts = []
        try:
            for protocol in ("http/1.1", "h2"):
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.set_alpn_protocols([protocol])
                context.load_cert_chain(chain, key, _no_password)
                contexts.append(context)
        except ssl.SSLError as error:
            wrong = f"the certificate {chain} with the key {key} cannot be used: {error.reason}"
            if error.reason == "KEY_VALUES_MISMATCH":
                wrong = f"the key {key} is not that of the certificate {chain}"
            raise UserError(f"{wrong}; give a certificate and its own key, in PEM") from error
        self.context, self.http2_context = contexts
        self.pem = pem[0].encode(), pem[1].encode()


def _no_password() -> NoReturn:
    raise UserError("the certificate's key has a passphrase; give a key without one")


class Tokens(Reread):
    """The tokens in a file: one per line, as it is or as `sha256:` and its SHA-256 in hex.

    Empty lines and lines that begin with # are ignored. Raises UserError for a file that cannot be
    read or has no token, such as a half-written one, and for invalid lines.
    """

    def read(self) -> None:
        digests, (path,) = set(), self._paths
        text = read_text(path, "the file of tokens")
        for number, line in enumerate(text.splitlines(), 1):
            token = line.strip()
            if not token or token.startswith("#"):
                continue
            hashed = _HASHED.fullmatch(token)
            if hashed is None and not _TOKEN.fullmatch(token):
                raise UserError(
                    f"line {number} of {path} is not a token: write {MIN_TOKEN} or more of the "
                    "characters A-Z a-z 0-9 . _ ~ + / -, or sha256: and 64 hex digits"
                )
            digests.add(bytes.fromhex(hashed[1]) if hashed else _digest(token))
        if not digests:
            raise UserError(f"{path} has no token; write one per line")
        self._digests = frozenset(digests)

    def admits(self, authorization: str | None) -> bool:
        """Return whether this header holds one of the tokens. They are looked up by their digests,
        so the time taken reveals nothing about them."""
        scheme, _, token = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and _digest(token.strip()) in self._digests


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_text(path: Path, what: str) -> str:
    """Return the text of a file, called `what` in errors. Raises UserError if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{what}, {path}, cannot be read: {why}") from error


@dataclass(frozen=True)
class Clients:
    """The clients of a server, by their `tokens` (None: anyone), and its `administrators`, who may
    also load and unload models, and change their budgets."""

    tokens: Tokens | None = None
    administrators: Tokens | None = None

    def check(self, authorization: str | None) -> None:
        """Raise UnauthorizedError unless this header holds one of the tokens."""
        if self.tokens is None or self.tokens.admits(authorization):
            return
        if self.administrators is None or not self.administrators.admits(authorization):
            raise UnauthorizedError

    def check_administrator(self, authorization: str | None) -> None:
        """Raise ForbiddenError unless this header holds one of the administrators' tokens."""
        if self.administrators is None or not self.administrators.admits(authorization):
            raise ForbiddenError(
                "models and budgets are changed by administrators alone; start the server with "
                f"{spell('admin_tokens')}, and send one of its tokens (Authorization: Bearer ...)"
            )


async def watch(*all_watched: Reread) -> None:
    """Refresh them every CHECK_INTERVAL until cancelled."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        for each in all_watched:
            each.refresh()


def tenant_header(name: str) -> str:
    """Return the name of the header that names tenants, in lower case.

    Raises UserError if HTTP or gRPC cannot carry it.
    """
    lower = name.lower()
    if _HEADER.fullmatch(lower) is None or lower.startswith("grpc-") or lower.endswith("-bin"):
        raise UserError(
            f"{spell('tenant_header')} must be a header's name: letters, digits, '-', '_' and "
            f"'.', at most 100, and neither grpc-... nor ...-bin; got {name!r}"
        )
    return lower
