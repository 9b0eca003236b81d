"""Why a server cannot be connected to, in words for whoever named it."""

import os
import ssl

import aiohttp


def why_unreachable(error: aiohttp.ClientError) -> str:
    """The reason of the system or of TLS, where a connection failed; else what the error says."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return str(error) or type(error).__name__
    cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):  # whose numbers are not those of the system
        return f"TLS failed: {cause.reason or cause}"
    number = cause.errno
    return os.strerror(number) if number and number > 0 else str(cause)
