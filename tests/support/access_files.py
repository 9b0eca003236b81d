"""A certificate with its key, and tokens, in files."""

import os
import ssl
from hashlib import sha256
from pathlib import Path

import trustme

TOKEN, OTHER, LATER = "first-token-of-this-test", "second-token-of-this-test", "a-token-of-later-on"
HASHED = f"sha256:{sha256(OTHER.encode()).hexdigest()}"
HOST = "127.0.0.1"


class Files:
    """A certificate with its key, and tokens, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.tokens = folder / "tokens"
        self.renew()
        self.tokens.write_text(f"# who may ask\n\n{TOKEN}\n{HASHED}\n")

    def renew(self, authority: trustme.CA | None = None) -> None:
        """A new certificate, of another authority if it is given."""
        issued = (authority or self.authority).issue_cert(HOST)
        issued.private_key_pem.write_to_path(self.key)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        replacement = self.certificate.with_suffix(".new")
        replacement.write_bytes(chain)
        os.replace(replacement, self.certificate)

    @property
    def trusting(self) -> ssl.SSLContext:
        return trusting(self.authority)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
