"""The frontier as a table, and what was dropped, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from parity_models.evaluation.interval import Interval
from parity_models.protection.finalists import Finalist
from parity_models.protection.in_place import InPlace
from parity_models.protection.protect import Protected
from parity_models.protection.simulated import Plan, Scene
from parity_models.simulation.course import SHARES


def frontier_table(found: Protected) -> Table:
    """Time against agreement and coverage, the fastest first; * are on the frontier.

    "Agrees" is of all queries, "answers" the share that the gate lets the stand-in answer.
    """
    base, finalists, metric = found.base, found.finalists, found.metric
    table = Table(title=f"stand-ins found; {metric} agreement, %", title_justify="left")
    table.add_column("stand-in", min_width=20)
    labelled = found.accuracy is not None
    times = ["ms" if batch == 1 else f"ms/{batch}" for batch in base]
    for heading in [*times, "of F", "agrees", "answers", *([metric] if labelled else [])]:
        table.add_column(heading, justify="right")
    own = [] if found.accuracy is None else [f"{100 * found.accuracy:.1f}"]
    table.add_row("the model, F", *(f"{ms:.3f}" for ms in base.values()), "1.00", "100", "", *own)
    best = on_frontier(finalists)
    for each in sorted(finalists, key=lambda one: one.share):
        row = [
            f"{each.name}{' *' if each.name in best else ''}",
            *(f"{each.ms[batch]:.3f}" for batch in base),
            f"{each.share:.2f}",
            f"{100 * each.agreement:.1f} {_span(each.interval)}",
            f"{100 * each.covered:.1f}",
        ]
        if labelled:
            row.append("" if each.accuracy is None else f"{100 * each.accuracy:.1f}")
        table.add_row(*row)
    table.caption = "in brackets: intervals that hold the true value in 95 of 100 cases"
    slotwise = {each.candidate.network for each in finalists if each.slot_ms is not None}
    if slotwise:
        table.caption += f"; parity models of {', '.join(sorted(slotwise))} are k runs of it in one"
    return table


def _span(interval: Interval | None) -> str:
    return "(too few)" if interval is None else f"({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def on_frontier(finalists: Sequence[Finalist]) -> set[str]:
    """The names of those that none is faster than and agrees as often as."""
    return {
        one.name
        for one in finalists
        if not any(
            other.share <= one.share
            and other.agreement >= one.agreement
            and (other.share, -other.agreement) != (one.share, -one.agreement)
            for other in finalists
        )
    }


def plan_table(plans: Sequence[Plan], scene: Scene, served: InPlace | None) -> Table:
    """What each plan does in the simulation, of a model that takes so long where it is `served`."""
    title = f"simulated, {scene.queries:,} queries"
    if scene.max_batch > 1:
        title += f", batches of up to {scene.max_batch}"
    table = Table(title=title, title_justify="left")
    table.add_column("plan", min_width=24)
    for heading in ("p50 ms", "p99", "p99.9", "stood in", "extra work"):
        table.add_column(heading, justify="right")
    for plan in plans:
        table.add_row(
            plan.name,
            f"{plan.p50_ms:.2f}",
            f"{plan.p99_ms:.2f}",
            f"{plan.p999_ms:.2f}",
            f"{plan.stood_in:.1%}",
            f"{plan.extra_work:.1%}",
        )
    if served is not None:
        p50, p99 = np.interp((0.5, 0.99), SHARES, served.outside)
        table.caption = (
            f"with what a calm server took here besides the model, of {served.queries:,} queries: "
            f"{served.held:.2f} ms on an instance, {p50:.2f} elsewhere ({p99:.2f} at p99)"
        )
        if served.cores:
            table.caption += f"; and on {said_of_cores(served)}"
    return table


def said_of_cores(served: InPlace) -> str:
    """What is computed on the cores that instances share."""
    serving = served.serving + served.unseen
    return (
        f"{served.cores} cores that all share, {serving:.2f} ms for a query in server and client, "
        f"{served.unit:.2f} for a unit in a worker"
    )


def dropped_table(dropped: Mapping[str, str]) -> Table:
    """Each candidate that is not among the finalists, and why."""
    table = Table(title="dropped", title_justify="left", show_lines=True)
    table.add_column("candidate")
    table.add_column("because")
    for name, why in dropped.items():
        table.add_row(name, why)
    return table


def as_json(found: Protected) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "model_ms": {str(batch): ms for batch, ms in found.base.items()},
        "model_accuracy": found.accuracy,
        "served": None if found.served is None else msgspec.to_builtins(found.served),
        "metric": found.metric,
        "output_kind": found.output_kind,
        "finalists": [
            {
                "name": each.name,
                "ms": {str(batch): ms for batch, ms in each.ms.items()},
                "share": each.share,
                "agreement": each.agreement,
                "interval": each.interval,
                "accuracy": each.accuracy,
                "covered": each.covered,
                "training_seconds": each.trainee.seconds,
            }
            for each in found.finalists
        ],
        "test_queries": found.test_queries,
        "simulated_queries": found.scene.queries,
        "scene": msgspec.to_builtins(found.scene),
        "recommended": found.advice.plan.name,
        "plans": [
            {
                "name": plan.name,
                "stand_ins": [each.name for each in plan.finalists],
                "p50_ms": plan.p50_ms,
                "p99_ms": plan.p99_ms,
                "p999_ms": plan.p999_ms,
                "stood_in": plan.stood_in,
                "extra_work": plan.extra_work,
                "urgency": plan.urgency,
            }
            for plan in found.plans
        ],
        "dropped": found.dropped,
        "advice": list(found.advice.sentences),
        "together": list(found.advice.together),
        "interrupted": found.interrupted,
    }
