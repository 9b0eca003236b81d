"""parm serve with an engine that serves by itself."""

import signal
from collections import Counter
from threading import Event
from typing import NoReturn

import typer

from parity_models.cli.signals import hangups_count
from parity_models.models.bundle import Bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan


def serve_apart(bundle: Bundle, options: ServeOptions, *, traces: bool) -> None:
    """Have the options' engine serve until Ctrl-C, SIGTERM or SIGHUP; a second one does not wait
    for what is under way. With `traces`, it sends spans."""
    engine = options.engine
    plan = Plan(bundle, options)
    alike = Counter(" + ".join(sorted(roles)) for roles in plan.roles)
    instances = ", ".join(f"{count} of {roles}" for roles, count in alike.items())
    ready = False
    try:
        with engine.kind.served(bundle, options, traces=traces) as url:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray's own would end with another status
            if hangups_count():
                signal.signal(signal.SIGHUP, _interrupt_once)
            ready = True
            typer.echo(
                f"serving {plan.model.name} at {url} (policy {plan.choice.name}; instances: "
                f"{instances}; engine: {engine})"
            )
            Event().wait()
    except KeyboardInterrupt:
        if not ready:
            raise typer.Exit(130) from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _interrupt_once(*_: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt
