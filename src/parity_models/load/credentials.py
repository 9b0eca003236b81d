"""What a client shows a server that asks who it is, and which servers it trusts."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from parity_models.errors import UserError

TOKEN = "PARM_TOKEN"
"""The variable that holds a token, which others on the machine cannot read there."""

_CA_FILE = "PARM_CA_FILE"
_NEEDED = f"the server wants a token that it knows; give one as the variable {TOKEN}"


@dataclass(frozen=True)
class Credentials:
    """A bearer `token` (RFC 6750) if there is one, and the certificates to trust over https: those
    of the PEM file `ca_file`, by default the system's.

    Raises UserError for a token that cannot be one, or a file that has no certificates.
    """

    token: str | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UserError("the token has characters that no token has, as the end of a line")
        _ = self.tls

    @cached_property
    def tls(self) -> ssl.SSLContext | bool:
        """What aiohttp takes: True for the system's certificates."""
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"cannot read certificates from {self.ca_file}: {error}; give a PEM file"
            ) from error

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of each request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, in which a child process finds these credentials alone."""
        others = {name: os.environ[name] for name in os.environ if name not in (TOKEN, _CA_FILE)}
        given = {TOKEN: self.token, _CA_FILE: self.ca_file and str(self.ca_file)}
        return others | {name: value for name, value in given.items() if value}

    @classmethod
    def of_environment(cls) -> "Credentials":
        """Those that whoever started this process gave it."""
        ca_file = os.environ.get(_CA_FILE)
        return cls(os.environ.get(TOKEN), None if ca_file is None else Path(ca_file))


ANONYMOUS = Credentials()


def hint(status: int) -> str:
    """What to do where a server refuses with this HTTP status; empty if nothing is known."""
    return f"; {_NEEDED}" if status == 401 else ""
