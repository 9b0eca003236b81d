"""The log of the server: lines for people, or JSON objects.

The standard library's logging with a formatter of its own, not structlog: gRPC, asyncio and Ray log
through it in any case, so all lines get the same form without a bridge.
"""

import atexit
import json
import logging
import queue
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from logging.handlers import QueueHandler, QueueListener
from typing import IO, Any

from parity_models.options import Options, option

ACCESS = "parity_models.access"
"""The logger of requests."""

_WAITING = 10_000
"""Lines that may wait to be written; further ones are dropped."""


class LogFormat(StrEnum):
    """The form of a line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Logging(Options):
    """Logging to standard error, and tracing of requests."""

    log_format: LogFormat = option(LogFormat.TEXT, "text, or json: an object per line.")
    log_level: LogLevel = option(
        LogLevel.INFO, "Minimum level of messages; libraries log warnings and errors."
    )
    access_log: bool = option(False, "Log a line per request, except health and metrics.")
    traces: bool = option(
        False, "Send OpenTelemetry spans, set up by OTEL_... variables; needs the extra otel."
    )


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time (RFC 3339, UTC), level, logger, message, the record's `fields`
    and, if there is one, the exception."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class LinesToThread(QueueHandler):
    """Hands lines to a thread that writes them, so that a slow reader does not slow requests."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


def set_up(options: Logging, stream: IO[str] | None = None) -> Callable[[], None]:
    """Log to `stream` from now on, by default to standard error, unless the process logs already.

    Returns a function that writes all waiting lines and stops; it also runs at exit.
    """
    root = logging.getLogger()
    if stream is None and root.handlers:
        return lambda: None
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING)
    handler = LinesToThread(waiting)
    is_json = options.log_format is LogFormat.JSON
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if is_json else text)
    listener = QueueListener(waiting, logging.StreamHandler(stream or sys.stderr))
    listener.start()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("parity_models").setLevel(options.log_level.upper())
    logging.getLogger(ACCESS).setLevel("INFO" if options.access_log else "CRITICAL")

    def stop() -> None:
        atexit.unregister(stop)
        root.removeHandler(handler)
        listener.stop()

    atexit.register(stop)
    return stop
