"""Why a server cannot be connected to, in words for whoever named it."""

import os

import aiohttp


def why_unreachable(error: aiohttp.ClientError) -> str:
    """The system's reason, where a connection failed; else what the error says."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return os.strerror(number) if number and number > 0 else str(error.os_error)
    return str(error) or type(error).__name__
