"""parm serve --engine ray."""

import signal
from collections import Counter
from dataclasses import replace
from threading import Event
from typing import NoReturn

import typer

from parity_models.cli.signals import hangups_count
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.serving.engines import EngineChoice
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.serving.ray.cluster import served_on_ray
from parity_models.serving.ray.cluster_engine import ClusterEngine
from parity_models.serving.ray.cluster_options import ClusterOptions


def serve_on_ray(bundle: Bundle, options: ServeOptions, *, traces: bool) -> None:
    """Serve by the options' engine, which is Ray, until Ctrl-C, SIGTERM or SIGHUP; a second one
    does not wait for what is under way. With `traces`, frontends send spans."""
    cluster: ClusterOptions = options.engine.settings
    plan = Plan(bundle, options)
    alike = Counter(" + ".join(sorted(roles)) for roles in plan.roles)
    instances = ", ".join(f"{count} of {roles}" for roles, count in alike.items())
    ready = False
    try:
        with served_on_ray(bundle, options, cluster, traces=traces) as url:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray's own would end with another status
            if hangups_count():
                signal.signal(signal.SIGHUP, _interrupt_once)
            ready = True
            typer.echo(
                f"serving {plan.model.name} at {url} (policy "
                f"{plan.choice.name}; instances: {instances}; frontends: "
                f"{cluster.frontends})"
            )
            Event().wait()
    except KeyboardInterrupt:
        if not ready:
            raise typer.Exit(130) from None


def with_instances_on_ray(options: ServeOptions) -> ServeOptions:
    """The options of a server here whose instances are on the cluster of its engine, which is Ray.

    Raises UserError for faults, which they do not take.
    """
    if options.faults is not None:
        raise UserError("faults are not for a repository on Ray; leave them out")
    engine = f"{ClusterEngine.__module__}:{ClusterEngine.__qualname__}"
    return replace(options, engine=EngineChoice(engine, options.engine.options))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _interrupt_once(*_: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt
