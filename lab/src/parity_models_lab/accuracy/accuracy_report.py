"""The report of a matrix: tables for people, with the pictures beside it."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from parity_models.evaluation.approaches import Approach, parity_approach, plain_approach
from parity_models_lab.accuracy.figures import (
    plot_against_k,
    plot_by_model,
    plot_codes,
    plot_overall,
    plot_overhead,
)
from parity_models_lab.accuracy.results import CodeResult, ModelResults
from parity_models_lab.accuracy.rivals import behind, berrut_of
from parity_models_lab.accuracy.targets import targets
from parity_models_lab.report_page import TRAINING, provenance, targets_table


def write_report(
    path: Path, title: str, results: Sequence[ModelResults], command: str, *, complete: bool
) -> None:
    """Write a report to `path` and its pictures into a folder of that name beside it.

    One that is not `complete` says so.
    """
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    plot_by_model(pictures / "models.png", results)
    plot_against_k(pictures / "k.png", results)
    for model in results:
        if len(model.codes) > 1:
            plot_codes(pictures / f"{_slug(model)}-codes.png", model)
        plot_overall(pictures / f"{_slug(model)}-overall.png", model, approaches(model))
        plot_overhead(pictures / f"{_slug(model)}-overhead.png", model, approaches(model))
    path.write_text("\n".join(_report(path, title, results, command, complete)), encoding="utf-8")


def approaches(model: ModelResults) -> list[Approach]:
    """Everything that could answer an unavailable prediction of this model, dearest last."""
    available = model.deployed.available
    codes = [
        parity_approach(str(one.cell), one.overhead, one.accuracy, one.encode_us, one.decode_us)
        for one in model.codes
    ]
    replication = plain_approach("replication", 1.0, available, available)
    return sorted((replication, *codes, *model.approaches), key=lambda one: one.overhead)


def _report(
    path: Path, title: str, results: Sequence[ModelResults], command: str, complete: bool
) -> Iterator[str]:
    measured = [model.deployed.date for model in results]
    measured += [one.date for model in results for one in model.codes]
    yield f"# {title}\n"
    if not complete:
        yield "**Interrupted**: this is what was measured until then.\n"
    yield from provenance(command, TRAINING, measured)
    yield "A_a is the accuracy of the deployed model, A_d that of reconstructions alone, with every"
    yield "member of every group of the test set unavailable in turn, and A_o that of all answers"
    yield "with a share of predictions unavailable. *Time* is a parity model's inference time over"
    yield "the deployed model's, *Berrut* A_d of Berrut coding (ApproxIFER) with the same k and r;"
    yield "*training* is in seconds.\n"
    yield from targets_table(targets(results))
    yield "\n## By task and network\n"
    yield f"![A_a and A_d by task and network]({path.stem}/models.png)\n"
    yield "| task, network | metric | A_a | best code at the smallest k | A_d | lost | agree |"
    yield "|---|---|---|---|---|---|---|"
    for model in results:
        best = best_of(model)
        if best is not None:
            yield (
                f"| {model.cell} | {model.deployed.metric} "
                f"| {_share(model.deployed.available)} | {best.cell} | {_share(best.degraded)} "
                f"| {100 * best.lost:.2f} | {_share(best.accuracy.agreement)} |"
            )
    yield "\n## By k\n"
    yield f"![A_d against k]({path.stem}/k.png)\n"
    yield "The best code with one parity query at each k.\n"
    yield "| task, network | k | code | A_d | lost |"
    yield "|---|---|---|---|---|"
    for model in results:
        for k in sorted({one.cell.k for one in model.codes}):
            if best := model.best(k):
                yield (
                    f"| {model.cell} | {k} | {best.cell.pair} | {_share(best.degraded)} "
                    f"| {100 * best.lost:.2f} |"
                )
    yield ""
    yield from chain.from_iterable(_model(path, model) for model in results)


def best_of(model: ModelResults) -> CodeResult | None:
    """The best code with one parity query at the smallest k there is."""
    ks = [one.cell.k for one in model.codes if one.cell.recipe == "distilled" and one.cell.r == 1]
    return model.best(min(ks)) if ks else None


def _model(path: Path, model: ModelResults) -> Iterator[str]:
    deployed = model.deployed
    yield f"## {model.cell}\n"
    yield f"A_a {_share(deployed.available)} ({deployed.metric}, {deployed.queries:,} queries;"
    yield f"trained for {deployed.epochs} epochs in {deployed.seconds:.0f} s).\n"
    if model.codes:
        if len(model.codes) > 1:
            yield f"![A_d and costs by encoder and decoder]({path.stem}/{_slug(model)}-codes.png)\n"
        yield "Codes with parity models, costs of coding in µs for a group:\n"
        yield (
            "| encoder + decoder | k | r | A_d | 2 unavailable | 3 unavailable | agree "
            "| Berrut | time | training | encode | decode |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
        for one in model.codes:
            more = [_share(share) for share in one.accuracy.degraded_by_unavailable[1:]]
            second, third = (*more, "", "")[:2]
            berrut = berrut_of(model, one)
            yield (
                f"| {one.cell.pair} | {one.cell.k} | {one.cell.r} | {_share(one.degraded)} "
                f"| {second} | {third} | {_share(one.accuracy.agreement)} "
                f"| {_share(None if berrut is None else berrut.degraded[0])} "
                f"| {one.relative_time:.2f}x | {one.seconds:.0f} | {_us(one.encode_us)} "
                f"| {_us(one.decode_us)} |"
            )
        yield ""
    yield "Everything that could answer, by the work it costs beyond one run of F for each query:\n"
    yield (
        f"![A_d against overhead]({path.stem}/{_slug(model)}-overhead.png)\n"
        f"![A_o against the share unavailable]({path.stem}/{_slug(model)}-overall.png)\n"
    )
    some = approaches(model)
    fractions = list(some[0].overall)
    headings = " | ".join(f"A_o at {float(f):.0%}" for f in fractions)
    yield f"| approach | overhead | all available | A_d | {headings} | encode | decode |"
    yield "|---|---|---|---|" + "---|" * len(fractions) + "---|---|"
    for other in some:
        overall = " | ".join(_share(other.overall.get(f)) for f in fractions)
        degraded = _share(other.degraded[0] if other.degraded else None)
        yield (
            f"| {other.name} | {other.overhead:.2f} | {_share(other.available)} | {degraded} "
            f"| {overall} | {_us(other.encode_us)} | {_us(other.decode_us)} |"
        )
    yield ""
    if model.codes:
        yield from _compared(model)


def _compared(model: ModelResults) -> Iterator[str]:
    said = [sentence for one in model.codes for sentence in behind(model, one)]
    if said:
        yield "Where a code is not ahead:\n"
        yield from (f"- {sentence}" for sentence in said)
    else:
        yield "Every code beats the default prediction and Berrut coding of the same k and r."
    alone = [str(one.cell) for one in model.codes if berrut_of(model, one) is None]
    if alone:
        yield f"\nBerrut coding was not measured for {'; '.join(alone)}."
    yield ""


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _us(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds:.0f}"


def _slug(model: ModelResults) -> str:
    recipe = "" if model.cell.recipe == "usual" else f"-{model.cell.recipe}"
    return f"{model.cell.task}-{model.cell.network}{recipe}".replace(":", "-").replace("@", "-")
