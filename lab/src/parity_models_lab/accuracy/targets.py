"""What the project aims at in accuracy, held against what a matrix measured."""

from collections.abc import Iterator, Sequence
from math import nan

from parity_models_lab.accuracy.results import CodeResult, ModelResults
from parity_models_lab.accuracy.rivals import behind
from parity_models_lab.target import Target

RESNET_POINTS = {2: 0.6, 3: 1.5, 4: 2.0, 8: 7.0}
"""By k, the points of accuracy that reconstructions may lose."""


def targets(results: Sequence[ModelResults]) -> Iterator[Target]:
    """The targets that the results say something about."""
    for model in results:
        match model.cell.task, model.cell.network:
            case "fashion-mnist", "resnet-small":
                yield from _resnet(model)
            case "fashion-mnist" | "fashion-mnist-pixels", "mlp":
                yield from _mlp(model)
            case "localization", _:
                yield from _ratio(model, "mean IoU", 0.85)
            case "diabetes" | "california", _:
                yield from _ratio(model, "R²", 0.95)
            case "speech-commands" | "speech-commands-small", _:
                if best := model.best(2):
                    yield _points(f"{model.cell}, k=2: A_a - A_d", 3.0, best.lost)
    codes = [list(behind(model, code)) for model in results for code in model.codes]
    if codes:
        ahead = codes.count([])
        yield Target(
            "codes that beat Berrut coding of the same k and r, and the default prediction",
            "all",
            f"{ahead} of {len(codes)}" + ("" if ahead == len(codes) else ", see below each table"),
            ahead == len(codes),
        )


def _resnet(model: ModelResults) -> Iterator[Target]:
    for k, points in RESNET_POINTS.items():
        if best := model.best(k):
            yield _points(f"{model.cell}, k={k}: A_a - A_d", points, best.lost)
    if best := model.best(2):
        drop = 0.1 * best.lost
        yield _points(f"{model.cell}, k=2: A_a - A_o with 10 % unavailable", 0.06, drop)
    if summed := model.code("sum", "subtraction", 2, "distilled"):
        yield _at_least(f"{model.cell}, sum + subtraction, k=2: A_d", 0.885, summed)
    yield from _second(model)


def _mlp(model: ModelResults) -> Iterator[Target]:
    yield from _second(model)
    best = model.best(2)
    if best is not None and model.cell.recipe == "usual":
        yield _at_least(f"{model.cell}, k=2: A_d", 0.887, best)
    for theirs in model.codes:
        if (theirs.cell.k, theirs.cell.r, theirs.cell.recipe) != (2, 1, "published"):
            continue
        what = f"{model.cell}, k=2: A_d above the published recipe's with {theirs.cell.encoder}"
        wanted = "at least 9 points in the same time"
        ours = model.best(2, seconds=1.05 * theirs.seconds)
        if ours is None:
            yield Target(what, wanted, f"no code was trained for {theirs.seconds:.0f} s", False)
            continue
        ahead = 100 * (ours.degraded - theirs.degraded)
        most = 100 * (model.deployed.available - theirs.degraded)
        limit = f"A_a is {most:.2f} above" if most >= 9 else f"A_a itself is only {most:.2f} above"
        yield Target(
            f"{what} ({theirs.seconds:.0f} s of training, ours {ours.seconds:.0f} s)",
            wanted,
            f"{ahead:.2f} points ({limit})",
            ahead >= 9,
        )


def _second(model: ModelResults) -> Iterator[Target]:
    if best := model.best(4, r=2):
        one, two = best.accuracy.degraded_by_unavailable
        yield _points(f"{model.cell}, k=4, r=2: A_d, a second one unavailable", 3.0, one - two)


def _ratio(model: ModelResults, what: str, least: float) -> Iterator[Target]:
    if best := model.best(2):
        available = model.deployed.available
        ratio = best.degraded / available if available > 0 else nan
        yield Target(
            f"{model.cell}, k=2: {what} of reconstructions over the deployed model's",
            f"at least {least:.2f}",
            f"{ratio:.3f}",
            ratio >= least,
        )


def _at_least(what: str, least: float, code: CodeResult) -> Target:
    met = code.degraded >= least
    return Target(what, f"at least {100 * least:.1f} %", f"{100 * code.degraded:.2f} %", met)


def _points(what: str, most: float, lost: float) -> Target:
    return Target(what, f"at most {most:g} points", f"{100 * lost:.2f} points", 100 * lost <= most)
