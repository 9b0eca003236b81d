"""The report on real models: targets, then a row for each stand-in."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from parity_models_lab.real.results import RealResult, StandInResult
from parity_models_lab.real.targets import targets
from parity_models_lab.report_page import TRAINING, provenance, targets_table

EXPLAINED = """\
Stand-ins for models and queries of others, which the programs in `examples/real/` prepare
([how](../how-to/real-models.md)). A_a is the model's accuracy, A_d a stand-in's own. *Agreement* is
how far a stand-in says what the model says: the share of the same classes, the mean cosine, or of
other numbers the share of their variance that is explained (R²), with the interval that holds the
true value in 95 of 100 cases. *Coverage* is the share of test queries that the gate of level 0.99
lets it answer, *agree there* how many of those answers agree
([what agrees](../explanation/gate.md#what-agrees)). *ms* is the time of one query on one thread of
ONNX Runtime, each query as long as it is: the median of queries, each run several times and
undisturbed (the least). A stand-in with a *k* is a parity model: its *ms* are those of
one run, for so many queries."""


def write_report(path: Path, results: Sequence[RealResult], command: str) -> None:
    """Write the page to `path`, which was made by `command`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_report(results, command)), encoding="utf-8")


def _report(results: Sequence[RealResult], command: str) -> Iterator[str]:
    yield "# Real models\n"
    yield from provenance(command, TRAINING, (result.date for result in results))
    yield f"{EXPLAINED}\n"
    yield from targets_table(targets(results))
    for result in results:
        yield from _model(result)


def _model(result: RealResult) -> Iterator[str]:
    yield f"\n## {result.title}\n"
    yield f"{result.about}\n"
    available = "" if result.available is None else f"A_a {_share(result.available)}. "
    yield f"{result.signature}: {result.output_kind}, judged by {result.metric}."
    yield f"{available}{result.milliseconds:.3g} ms a query; {result.learned_from:,} queries to"
    yield f"learn from, {result.queries:,} to judge. The machine's load was {result.load:.1f}.\n"
    near = any(one.neighbours is not None for one in result.stand_ins)
    columns = ["stand-in", "A_d", "agreement", "interval", *(["same neighbour"] if near else [])]
    columns += ["coverage", "agree there", "ms", "of the model's time", "training"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for one in result.stand_ins:
        yield _row(one, near)


def _row(one: StandInResult, near: bool) -> str:
    interval = "" if one.interval is None else " to ".join(_share(end) for end in one.interval)
    cells = [one.network, _share(one.degraded), _share(one.agreement), interval]
    cells += [_share(one.neighbours)] if near else []
    cells += ["none shown" if one.coverage is None else _share(one.coverage), _share(one.gated)]
    cells += [f"{one.milliseconds:.3g}", f"{one.relative:.1%}"]
    cells += ["elsewhere" if one.seconds is None else f"{one.seconds:g} s"]
    return f"| {' | '.join(cells)} |"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
