"""Who may ask a server, and where: TLS, tokens, and a port for metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from parity_models.errors import OptionError
from parity_models.options import Option, Options
from parity_models.serving.tokens import Tokens

if TYPE_CHECKING:
    from parity_models.serving.certificate import Certificate

MAX_PORT = 2**16 - 1

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""The paths that anybody may ask."""

METRICS = "/metrics"


@dataclass(frozen=True, kw_only=True)
class Access(Options):
    """Who may ask a server, and where. Raises UserError for options that do not fit together."""

    tls_cert: Annotated[
        str | None,
        Option(
            "A file with the server's certificate, and those that it rests on, in PEM: HTTP and "
            "gRPC are spoken over TLS. Read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    tls_key: Annotated[
        str | None, Option("The file with the certificate's private key, in PEM.", metavar="FILE")
    ] = None
    tokens: Annotated[
        str | None,
        Option(
            "A file with the bearer tokens of those who may ask, one a line, each as it is or as "
            "sha256: and its SHA-256 in hex. Read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    metrics_port: Annotated[
        int | None,
        Option(
            "Answer /metrics on this port instead, beside /v2/health, without TLS and tokens; 0 "
            "takes any that is free.",
            at_least=0,
            at_most=MAX_PORT,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError(
                lambda spell: (
                    "TLS needs a certificate and its key; give both, "
                    f"{spell('tls_cert')} and {spell('tls_key')}"
                )
            )

    def certificate(self) -> "Certificate | None":
        """The certificate, if there is one. Raises UserError if it cannot be used."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        # Only now: whoever does not use TLS need not wait for it.
        from parity_models.serving.certificate import Certificate

        return Certificate(Path(self.tls_cert), Path(self.tls_key))

    def read_tokens(self) -> Tokens | None:
        """The tokens, if they are asked for. Raises UserError if the file cannot be used."""
        return None if self.tokens is None else Tokens(Path(self.tokens))
