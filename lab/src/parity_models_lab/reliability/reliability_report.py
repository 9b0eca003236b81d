"""parm-lab report: what the lab's commands found, as one page. Whatever is "met" is computed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from parity_models.errors import UserError
from parity_models_lab.reliability.chaos_result import ChaosResult, Claim, Row
from parity_models_lab.reliability.course import EVENTS
from parity_models_lab.reliability.liars import LiarsResult
from parity_models_lab.reliability.overload import OverloadResult
from parity_models_lab.reliability.plots import plot_soak
from parity_models_lab.reliability.soak import SoakResult
from parity_models_lab.reliability.table_result import TableResult
from parity_models_lab.reliability.timeouts import TimeoutsResult
from parity_models_lab.report_page import provenance

FAILURES = 10
"""Failures of a run that are shown."""


def write_report(results: Path, out: Path, command: str) -> bool:
    """Write the page `out`, with pictures in the folder beside it, from all results in a folder;
    returns whether all that was found is met.

    Raises UserError if there are none, or if one cannot be read.
    """
    found = [
        (section, read(path, kind))
        for pattern, kind, section in SECTIONS
        for path in sorted(results.glob(pattern))
    ]
    if not found:
        raise UserError(f"there are no results in {results}; run the other commands of parm-lab")
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Reliability: what the lab found\n",
        *provenance(command),
        "What is run and how to read it: [reliability](../notes/reliability.md).",
        "Every *met* is computed from the numbers beside it.\n",
    ]
    for section, result in found:
        lines += section(result, out)
    out.write_text("\n".join(lines).rstrip() + "\n")
    return all(result.met for _, result in found)


def read(path: Path, kind: type[Any]) -> Any:
    """A result of this kind. Raises UserError if the file holds none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} is no result of this parm-lab: {error}; run it again") from error


def chaos_section(result: ChaosResult, out: Path) -> Iterator[str]:
    """Faults by queries, how they ended, outages and recovery."""
    yield f"## Chaos on the engine {result.engine}\n"
    yield (
        f"{result.queries:,} queries in {result.minutes:g} minutes, {result.rate:g} requests a "
        f"second outside bursts, seed {result.seed} (`{result.command}`, {result.date}). The "
        f"clients took {result.load_cores:.0%} of a core.\n"
    )
    yield from _table(
        ("during", "times", "queries", "right answers", "wrong answers", "errors", "hung up",
         "without an end", "longest outage s", "p99.9 ms", "full strength after s"),
        [_chaos_row(row) for row in sorted(result.rows, key=_order)],
    )  # fmt: skip
    yield from _claims(result.claims)
    if result.failures:
        yield "First failures:\n"
        yield from (f"- {failure}" for failure in result.failures[:FAILURES])
        yield ""


def overload_section(result: OverloadResult, out: Path) -> Iterator[str]:
    """Loads by goodput, waits, refusals, memory and recovery."""
    yield f"## Overload on the engine {result.engine}\n"
    yield (
        f"Capacity: {result.capacity:.0f} queries a second, as closed-loop clients measured it; "
        f"loads of at least {result.seconds:g} s (`{result.command}`, {result.date}). "
        "*At the most*: where clients "
        "leave no room for a queue, what the best admission answers, simulated, with what a "
        "request of no work takes there and back"
        f" ({1e3 * max((load.way for load in result.loads), default=0.0):.1f} ms).\n"
    )
    rows = []
    for load in result.loads:
        goodput, p99, on_time, memory, back = load.claims
        rows.append(
            (
                f"{load.factor:g}x",
                f"{load.deadline:g}",
                "no" if load.gives_up is None else f"after {load.gives_up:.2g} s",
                f"{load.offered:,}",
                _judged(goodput),
                "-" if load.best is None else f"{load.best:.1%}",
                _judged(p99),
                _judged(on_time),
                _counts(load.refusals),
                f"{load.cut:,}",
                _judged(memory),
                _judged(back),
                "-" if load.fast is None else f"{load.fast:.1f}",
            )
        )
    yield from _table(
        ("load", "deadline s", "clients give up", "queries", "in time, of capacity",
         "at the most", "p99",
         "sent", "refused", "hung up", "memory", "back to normal", "queue empty after s"),
        rows,
    )  # fmt: skip


def timeouts_section(result: TimeoutsResult, out: Path) -> Iterator[str]:
    """Policies by how requests ended, and what became of the server."""
    yield "## Timeouts near the service time\n"
    yield f"{result.seconds:g} s for each policy (`{result.command}`, {result.date}).\n"
    rows = []
    for policy in result.policies:
        idle, failed, repairs = policy.claims
        rows.append(
            (
                policy.policy,
                f"{policy.requests:,}",
                _counts(policy.endings),
                _judged(idle),
                _judged(failed),
                _judged(repairs),
            )
        )
    columns = ("policy", "requests", "ended", "idle server, slowest answer", "500s", "repairs")
    yield from _table(columns, rows)


def liars_section(result: LiarsResult, out: Path) -> Iterator[str]:
    """Lies by how soon they were found out, and the honest load."""
    yield f"## Liars on the engine {result.engine}\n"
    yield (
        "Answers that clients got until the liar was quarantined; its own queries are about its "
        f"share of these (`{result.command}`, {result.date}).\n"
    )
    rows = []
    for lie in result.lies:
        (found,) = lie.claims
        answers = "-" if lie.answers is None else f"{lie.answers:,}"
        rows.append((lie.lie, answers, f"{lie.wrong:,}", _judged(found)))
    columns = ("lie", "answers of all instances", "wrong answers", "queries of the liar's")
    yield from _table(columns, rows)
    yield f"Honest instances that were recycled, by reason: {_counts(result.honest.recycled)}.\n"
    yield from _claims(result.honest.claims)


def soak_section(result: SoakResult, out: Path) -> Iterator[str]:
    """Memory and descriptors over time."""
    picture = out.with_suffix("") / f"soak-{result.engine}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_soak(picture, result)
    yield f"## Soak on the engine {result.engine}\n"
    yield (
        f"{result.queries:,} queries in {result.minutes:g} minutes at {result.load:.0%} of what "
        f"the instances can do (`{result.command}`, {result.date}).\n"
    )
    yield f"![memory and descriptors]({picture.relative_to(out.parent)})\n"
    yield from _claims(result.claims)


def table_section(result: TableResult, out: Path) -> Iterator[str]:
    """An experiment that made its own table."""
    yield f"## {result.title}\n"
    yield f"{result.note} (`{result.command}`, {result.date}).\n"
    yield from _table(result.columns, result.rows)
    yield from _claims(result.claims)


SECTIONS: tuple[tuple[str, type[Any], Callable[[Any, Path], Iterator[str]]], ...] = (
    ("chaos-*.json", ChaosResult, chaos_section),
    ("overload-*.json", OverloadResult, overload_section),
    ("timeouts.json", TimeoutsResult, timeouts_section),
    ("attack*.json", TableResult, table_section),
    ("liars-*.json", LiarsResult, liars_section),
    ("soak-*.json", SoakResult, soak_section),
    ("rollout.json", TableResult, table_section),
    ("costs.json", TableResult, table_section),
)
"""Which files hold which results, and what is said of them."""


def _chaos_row(row: Row) -> tuple[str, ...]:
    strength = "-" if row.full_strength is None else f"{row.full_strength:.1f}"
    return (
        row.event,
        f"{row.times}",
        f"{row.queries:,}",
        f"{row.answered:,}",
        _counts(row.wrong),
        _counts({**row.errors, **{f"broken: {why}": n for why, n in row.broken.items()}}),
        f"{row.cut:,}",
        f"{row.without_end:,}" + (f", of these unread {row.unread:,}" if row.unread else ""),
        f"{row.longest_outage:.2f}",
        "-" if row.p999_ms is None else f"{row.p999_ms:.0f}",
        strength,
    )


def _order(row: Row) -> int:
    return [*EVENTS, row.event].index(row.event)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{what}: {count:,}" for what, count in sorted(counts.items())) or "0"


def _judged(claim: Claim) -> str:
    return f"{claim.found}, {'met' if claim.met else '**not met**'}"


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    rows = [(claim.claim, claim.found, "met" if claim.met else "**not met**") for claim in claims]
    return _table(("what must hold", "found", ""), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""
