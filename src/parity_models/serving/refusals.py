"""Reasons for refusing requests, as metrics count them, and times to retry after."""

import random
from enum import StrEnum
from random import Random

SOON = 1.0
"""Seconds until a retry is worthwhile, if nothing better is known."""

_RANDOM = Random()


class Refused(StrEnum):
    """The reason for refusing a request or a connection: the limit that it met, or its mistake.

    These are all that there are: what a client sends never becomes a label of a metric.
    """

    MAX_CONNECTIONS = "max_connections"
    DESCRIPTORS = "descriptors"
    MAX_RPCS = "max_rpcs"
    MAX_BODY = "max_body"
    MAX_IN_FLIGHT = "max_in_flight"
    MAX_QUEUE = "max_queue"
    ADMISSION = "admission"
    UNAVAILABLE = "unavailable"
    STAND_IN = "stand_in"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    HEAD_SIZE = "head_size"
    PIPELINED = "pipelined"
    COSTLY = "costly"
    HTTP = "http"
    CONNECT = "connect"
    TRANSFER_CODING = "transfer_coding"
    CONTENT_ENCODING = "content_encoding"
    NOT_FOUND = "not_found"
    METHOD = "method"
    INVALID = "invalid"
    NOT_ACCEPTABLE = "not_acceptable"
    FORBIDDEN = "forbidden"


def soon() -> float:
    """Return the seconds until a refused client may retry, if nothing better is known. They are
    jittered, so that not all clients come at once."""
    return random.uniform(SOON, 2 * SOON)


def whole_seconds(seconds: float, chance: Random = _RANDOM) -> int:
    """Return the seconds as HTTP takes them (RFC 9110, section 10.2.3): whole, and 1 or more.

    They are rounded up or down at random, so that their mean does not change, and clients with
    different times still have different times.
    """
    return max(1, int(seconds + chance.random()))
