"""The bearer tokens (RFC 6750) that clients show, from a file that is read again on changes."""

import hmac
import re
from hashlib import sha256
from pathlib import Path

from parity_models.errors import UserError
from parity_models.serving.watched import WatchedFiles, read_text

CHALLENGE = b"Bearer"
"""What the header WWW-Authenticate of a refusal says."""

LEAST = 16
"""Characters that a token has at the least: shorter ones can be guessed."""

MOST = 1000
"""Tokens that a file may have: a client's is compared with all of them."""

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/-]{{{LEAST},}}=*")


class Tokens:
    """Who may ask: one token a line in the file `path`, or `sha256:` and the SHA-256 of one in hex.

    Empty lines and those that begin with # say nothing. Raises UserError for a file that cannot be
    read or has no token, and for lines that are none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = WatchedFiles(path)
        self.read()

    def read(self) -> None:
        """Read the file. Raises UserError as the constructor does; then the tokens of before
        hold."""
        digests = []
        for number, line in enumerate(read_text(self._path, "the file of tokens").splitlines(), 1):
            token = line.strip()
            if not token or token.startswith("#"):
                continue
            hashed = _HASHED.fullmatch(token)
            if hashed is None and not _TOKEN.fullmatch(token):
                raise UserError(
                    f"line {number} of {self._path} is no token: write {LEAST} or more of the "
                    "characters A-Z a-z 0-9 . _ ~ + / -, or sha256: and 64 hex digits"
                )
            digests.append(bytes.fromhex(hashed[1]) if hashed else _digest(token))
        if not digests:
            raise UserError(f"{self._path} has no token, so nobody could ask; write one a line")
        if len(digests) > MOST:
            raise UserError(f"{self._path} has {len(digests)} tokens, and may have {MOST}")
        self._digests = tuple(digests)

    def admits(self, authorization: str | None) -> bool:
        """Does this header hold one of the tokens? The time it takes does not depend on which."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        digest = _digest(token.strip())
        found = False
        for each in self._digests:
            found |= hmac.compare_digest(each, digest)
        return found


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
