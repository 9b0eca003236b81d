"""parm serve --engine ray."""

import signal
from collections import Counter
from threading import Event
from typing import NoReturn

import typer

from parity_models.models.bundle import Bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.serving.ray.app import ClusterOptions
from parity_models.serving.ray.cluster import served_on_ray


def serve_on_ray(
    bundle: Bundle, options: ServeOptions, cluster: ClusterOptions, address: str | None
) -> None:
    """Serve until Ctrl-C or SIGTERM; a second one does not wait for what is under way."""
    plan = Plan(bundle, options)
    alike = Counter(" + ".join(sorted(works)) for works in plan.works)
    instances = ", ".join(f"{count} of {works}" for works, count in alike.items())
    ready = False
    try:
        with served_on_ray(bundle, options, cluster, address) as url:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray's own would end with another status
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


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
