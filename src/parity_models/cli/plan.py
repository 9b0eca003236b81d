"""parm plan: the policy and the number of instances for a goal and a load."""

import asyncio
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from rich.console import Console

from parity_models.cli.common import Json, write_json
from parity_models.cli.flags import Without, argument
from parity_models.errors import UserError
from parity_models.load.recorder import record
from parity_models.options import Option
from parity_models.progress import Progress, progress_bars
from parity_models.protection.access_log import advise
from parity_models.protection.options import Goal
from parity_models.protection.plan import plan as find_plan
from parity_models.serving.client import Credentials

RECORDED = 60.0
"""Seconds for which a running server is recorded."""


def plan(
    bundle: Annotated[Path | None, argument("The bundle to be served.", "BUNDLE")] = None,
    *,
    goal: Annotated[Goal, Without("load", "queries", "seed", "max_batch")],
    log: Annotated[
        Path | None,
        Option(
            "An access log, CSV or JSON lines with arrival, latency and upstream: what hedging and "
            "a stand-in would make of it.",
            metavar="FILE",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Find the policy and the number of instances that serve a load within a goal, and the cost.

    For example: parm plan --rate 200 --service-time 20ms --p99 50ms. Policies are simulated by the
    scheduler that serves, with the times of the bundle's models, with those of a running server,
    which is recorded for a minute, or with --service-time alone. Without --instances, the fewest
    that suffice are searched for. Where nothing fits, the nearest plan is printed, and the exit
    status is 2.
    """
    console = Console()
    if log is not None:
        with console.status("reading the log") as status:
            advice = advise(
                log, bundle, on_tried=lambda text: status.update(f"simulating {text}"), options=goal
            )
        write_json(json, {"rows": advice.rows, "per_try_timeout": advice.timeout})
        advice.show()
        return
    with TemporaryDirectory(prefix="parm-plan-") as folder:
        if goal.recorded is not None and "://" in goal.recorded:
            file = Path(folder, "recording.json")
            _record(goal.recorded, file)
            goal = replace(goal, recorded=str(file))
        with console.status("simulating") as status:
            found = find_plan(
                bundle, on_tried=lambda text: status.update(f"simulating {text}"), options=goal
            )
    write_json(json, {"goal": goal, "rate": found.rate, "plans": found.plans})
    found.show()
    if found.best is None:
        raise UserError(found.advice)


def _record(url: str, file: Path) -> None:
    """Record the running server at a URL. Raises as `record` does."""
    credentials = Credentials.of_environment()
    with progress_bars() as bars:

        def progress(done: float) -> None:
            bars.on_progress(Progress("recording", done, RECORDED))

        write_json(file, asyncio.run(record(url, RECORDED, progress, credentials)))
