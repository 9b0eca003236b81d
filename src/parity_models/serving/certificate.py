"""The certificate that a server shows over TLS, from two PEM files, read again when they change."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from parity_models.errors import UserError, needs
from parity_models.serving.access import WatchedFiles, read_text

with needs("tls", "reading a certificate's dates"):
    from cryptography import x509

if TYPE_CHECKING:
    import grpc


class Certificate:
    """The certificates in `chain`, the server's own first, with its private `key`.

    Raises UserError for files that cannot be read, a key of another certificate, and a certificate
    that is not valid now.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self.files = WatchedFiles(chain, key)
        self._is_new_to_grpc = False
        self.read()

    def read(self) -> None:
        """Read the files. Raises UserError as the constructor does; then what it had before holds.

        Connections that are open keep the certificate that they began with.
        """
        chain = read_text(self._chain, "the certificate")
        key = read_text(self._key, "the certificate's key")
        expires = _check_dates(self._chain, chain)
        self.context = self._context()
        self._expires = expires
        self._pem = key.encode(), chain.encode()
        self._is_new_to_grpc = True

    def ends(self) -> float:
        """When the first of the certificates ends, in seconds since 1970."""
        return self._expires.timestamp()

    def grpc_credentials(self) -> "grpc.ServerCredentials":
        """What a gRPC server needs to show the certificate, whichever is the newest."""
        import grpc

        self._is_new_to_grpc = False
        return grpc.dynamic_ssl_server_credentials(
            grpc.ssl_server_certificate_configuration([self._pem]),
            # By gRPC's documentation it may return None for no change, which its stubs leave out.
            self._newer_for_grpc,  # type: ignore[arg-type]
        )

    def _newer_for_grpc(self) -> "grpc.ServerCertificateConfiguration | None":
        """Called by gRPC, on a thread of its own, for each connection that is made."""
        if not self._is_new_to_grpc:
            return None
        import grpc

        self._is_new_to_grpc = False
        return grpc.ssl_server_certificate_configuration([self._pem])

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._chain, self._key, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"the key {self._key} is not that of the certificate {self._chain}"
            else:
                text = (
                    f"the certificate {self._chain} with the key {self._key} cannot be used: "
                    f"{error.reason or error}"
                )
            raise UserError(f"{text}; give the two in PEM that belong together") from error
        return context


def _check_dates(path: Path, chain: str) -> datetime:
    """When the first of the certificates ends. Raises UserError if one is not valid now."""
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError as error:
        raise UserError(f"{path} holds no certificate in PEM: {error}") from error
    now = datetime.now(UTC)
    for each in certificates:
        if each.not_valid_after_utc < now:
            raise UserError(
                f"{_named(each)} in {path} expired at {each.not_valid_after_utc:%F %T} UTC; renew "
                "it"
            )
        if each.not_valid_before_utc > now:
            raise UserError(
                f"{_named(each)} in {path} is not valid before {each.not_valid_before_utc:%F %T} "
                "UTC; wait, or set this machine's clock"
            )
    return min(each.not_valid_after_utc for each in certificates)


def _named(certificate: x509.Certificate) -> str:
    subject = certificate.subject.rfc4514_string()
    return f"the certificate of {subject}" if subject else "the certificate"


def _no_password() -> NoReturn:
    raise UserError("the certificate's key has a passphrase; give a key without one")
