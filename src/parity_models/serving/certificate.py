"""The certificate that a server shows over TLS, from two PEM files, read again when they change."""

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from parity_models.errors import UserError, needs
from parity_models.serving.access import Reread, read_text

with needs("tls", "reading a certificate's dates"):
    from cryptography import x509

if TYPE_CHECKING:
    import grpc


class Certificate(Reread):
    """The certificates in a file, the server's own first, with its private key in another.

    Connections that are open keep the certificate that they began with. Raises UserError for files
    that cannot be read, a key of another certificate, and a certificate that is not valid now.
    """

    def read(self) -> None:
        chain, key = self._paths
        pem = read_text(key, "the certificate's key").encode()
        text = read_text(chain, "the certificate").encode()
        try:
            certificates = x509.load_pem_x509_certificates(text)
        except ValueError as error:
            raise UserError(f"{chain} holds no certificate in PEM: {error}") from error
        now = datetime.now(UTC)
        for each in certificates:
            name = f"the certificate of {each.subject.rfc4514_string()} in {chain}"
            ends, begins = each.not_valid_after_utc, each.not_valid_before_utc
            if ends < now:
                raise UserError(f"{name} expired at {ends:%F %T} UTC; renew it")
            if begins > now:
                raise UserError(
                    f"{name} is not valid before {begins:%F %T} UTC; wait, or set this machine's "
                    "clock"
                )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(chain, key, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                wrong = f"the key {key} is not that of the certificate {chain}"
            else:
                wrong = (
                    f"the certificate {chain} with the key {key} cannot be used: "
                    f"{error.reason or error}"
                )
            raise UserError(f"{wrong}; give the two in PEM that belong together") from error
        self.context, self._pem = context, (pem, text)
        self._ends = min(each.not_valid_after_utc for each in certificates)

    def ends(self) -> float:
        """Return when the first of the certificates expires, in seconds since 1970."""
        return self._ends.timestamp()

    def grpc_credentials(self) -> "grpc.ServerCredentials":
        """Return credentials with which a gRPC server shows the newest certificate."""
        import grpc

        shown = self._pem

        def newer() -> "grpc.ServerCertificateConfiguration | None":
            """Called by gRPC, on a thread of its own, for each connection that is made."""
            nonlocal shown
            if shown is self._pem:
                return None
            shown = self._pem
            return grpc.ssl_server_certificate_configuration([shown])

        return grpc.dynamic_ssl_server_credentials(
            grpc.ssl_server_certificate_configuration([shown]),
            newer,  # type: ignore[arg-type]  # None means no change, which grpc's stubs leave out
        )


def _no_password() -> NoReturn:
    raise UserError("the certificate's key has a passphrase; give a key without one")
