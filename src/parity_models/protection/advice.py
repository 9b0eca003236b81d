"""Which stand-ins to take, and what it would cost to do better, in words and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parity_models.errors import UserError
from parity_models.protection.finalists import Finalist
from parity_models.protection.simulated import Plan
from parity_models.protection.wishes import Wishes
from parity_models.training.worth import worth


@dataclass(frozen=True)
class Advice:
    """The plan that is recommended, and sentences that say why and what else there is.

    `together` say of two stand-ins in one bundle why they are taken, or not.
    """

    plan: Plan
    sentences: tuple[str, ...]
    together: tuple[str, ...] = ()


ALIKE = 1.05
"""Two p99 of which one is at most so many times the other differ by chance."""


def able(finalists: Sequence[Finalist], wishes: Wishes) -> list[Finalist]:
    """Those that may answer at all. Raises UserError, with the nearest, if none may."""
    found = [each for each in finalists if each.covered > 0]
    if found:
        return found
    nearest = max(finalists, key=lambda each: each.agreement)
    raise UserError(
        f"no stand-in was shown to agree with the model in {wishes.agreement:g} of cases: the "
        f"nearest is {nearest.name}, which scores {nearest.agreement:.3f} on all queries; give a "
        "lower --agreement, more --inputs, or more --minutes"
    )


def two_together(plans: Sequence[Plan], wishes: Wishes) -> tuple[Finalist, ...]:
    """The parity model and the backup, of plans with one stand-in each, that are the best by
    themselves within the extra work; () where there are not both."""
    within = [plan for plan in plans if plan.extra_work <= wishes.extra_work]
    found: list[Finalist] = []
    for coded in (True, False):
        alike = [plan for plan in within if (plan.finalists[0].candidate.code is not None) == coded]
        if not alike:
            return ()
        found += min(alike, key=lambda plan: plan.p99_ms).finalists
    return tuple(found)


def two_backups(plans: Sequence[Plan], wishes: Wishes) -> tuple[Finalist, ...]:
    """The two backups, of plans with one stand-in each, with the lowest p99 by themselves within
    the extra work, the faster first; () where no two are on the frontier of time and coverage: one
    that takes longer and may not answer more adds nothing."""
    found = [
        plan
        for plan in plans
        if plan.extra_work <= wishes.extra_work and plan.finalists[0].candidate.code is None
    ]
    frontier = [plan for plan in found if not any(_beats(other, plan) for other in found)]
    best = sorted(frontier, key=lambda plan: plan.p99_ms)[:2]
    if len(best) < 2:
        return ()
    return tuple(sorted((plan.finalists[0] for plan in best), key=lambda each: each.share))


def _beats(one: Plan, other: Plan) -> bool:
    """Is its stand-in as fast and may answer as much, and is better in one of them?"""
    mine, its = one.finalists[0], other.finalists[0]
    as_good = mine.share <= its.share and mine.covered >= its.covered
    return as_good and (mine.share, mine.covered) != (its.share, its.covered)


def advise(
    plans: Sequence[Plan], at_full: Sequence[Plan], others: Sequence[Plan], wishes: Wishes
) -> Advice:
    """The plan within the extra work with the lowest p99; of those that are about the same, one
    with a single stand-in, the one that saves most.

    `at_full` are the stand-ins without regard to the extra work, `others` the plans without one.
    Raises UserError, with the nearest, if no plan keeps within the extra work.
    """
    within = [plan for plan in plans if plan.extra_work <= wishes.extra_work]
    if not within:
        nearest = min(plans, key=lambda plan: plan.extra_work)
        raise UserError(
            f"no stand-in keeps within --extra-work {wishes.extra_work:g}: the nearest is "
            f"{nearest.name}, with {nearest.extra_work:.3f}; give --extra-work "
            f"{_above(nearest.extra_work):g}"
        )
    lowest = min(plan.p99_ms for plan in within)
    alike = [plan for plan in within if plan.p99_ms <= ALIKE * lowest]
    best = max(alike, key=lambda plan: (-len(plan.finalists), _worth(plan), -plan.p99_ms))
    sentences = [_recommended(best, others), *_compared(best, others), _better(best, at_full)]
    more = _agreeing_more(best, plans)
    return Advice(best, tuple(filter(None, [*sentences, more])), _together(plans, wishes))


def _together(plans: Sequence[Plan], wishes: Wishes) -> tuple[str, ...]:
    """Of two together, whether they are better than the better one of them alone."""
    alone = {plan.finalists[0].name: plan for plan in plans if len(plan.finalists) == 1}
    said = [_compared_with(plan, alone, wishes) for plan in plans if len(plan.finalists) > 1]
    backups = [each for each in alone.values() if each.finalists[0].candidate.code is None]
    if len(backups) > 1 and not two_backups(backups, wishes):
        said.append(
            "No two backups were tried together: of those within the extra work one is as fast as "
            "each other and may answer as many queries."
        )
    return tuple(said)


def _compared_with(plan: Plan, alone: Mapping[str, Plan], wishes: Wishes) -> str:
    best = min((alone[each.name] for each in plan.finalists), key=lambda each: each.p99_ms)
    told = (
        f"{plan.name} together have a p99 of {plan.p99_ms:.2f} ms for {plan.extra_work:.1%} more "
        f"work, {best.name} alone {best.p99_ms:.2f} ms for {best.extra_work:.1%}: "
    )
    if plan.extra_work > wishes.extra_work:
        return f"{told}two take more work than --extra-work {wishes.extra_work:g}."
    better = best.p99_ms > ALIKE * plan.p99_ms
    return told + (
        f"two are better, by more than the {ALIKE - 1:.0%} that may be chance."
        if better
        else f"not better by more than the {ALIKE - 1:.0%} that may be chance, so that one will do."
    )


def _worth(plan: Plan) -> float:
    """What its stand-ins save for a late query, at most, as the gate and the times say."""
    return max((worth(each.covered, each.share) for each in plan.finalists), default=0.0)


def _above(extra: float) -> float:
    return round(extra + 0.005, 2) if extra < 10 else extra


def _recommended(plan: Plan, others: Sequence[Plan]) -> str:
    without = others[0]
    return (
        f"Recommended{' together' * (len(plan.finalists) > 1)}: {_described(plan.finalists)} "
        f"Simulated: p99 {plan.p99_ms:.2f} ms, not "
        f"{without.p99_ms:.2f}; p99.9 {plan.p999_ms:.2f} ms, not {without.p999_ms:.2f}; for "
        f"{plan.extra_work:.1%} more work."
    )


def _described(finalists: Sequence[Finalist]) -> str:
    if len(finalists) == 1:
        (one,) = finalists
        return (
            f"{one.name}. It takes {one.share:.2f} of the model's time and may answer "
            f"{one.covered:.1%} of queries."
        )
    each = (
        f"{one.name} (takes {one.share:.2f} of the model's time, may answer {one.covered:.1%} of "
        "queries)"
        for one in finalists
    )
    told = f"{' and '.join(each)}. Each late query is asked of the better one for it, live"
    if any(one.candidate.code for one in finalists):
        return f"{told}."
    return f"{told}; one that the first may not answer is asked of the second, if it is still late."


def _compared(plan: Plan, others: Sequence[Plan]) -> list[str]:
    said = []
    for other in others[1:]:
        if other.p99_ms <= plan.p99_ms:
            said.append(
                f"{other.name.capitalize()} alone does as well: p99 {other.p99_ms:.2f} ms for "
                f"{other.extra_work:.1%} more work, and every answer is the model's own."
            )
        else:
            said.append(
                f"{other.name.capitalize()} has a p99 of {other.p99_ms:.2f} ms for "
                f"{other.extra_work:.1%} more work."
            )
    return said


def _better(plan: Plan, at_full: Sequence[Plan]) -> str:
    faster = [each for each in at_full if each.p99_ms < plan.p99_ms]
    if not faster:
        return "Nothing that was tried has a lower p99, whatever the work; more --minutes may."
    best = min(faster, key=lambda each: each.p99_ms)
    return (
        f"To do better: {best.name} has a p99 of {best.p99_ms:.2f} ms, for {best.extra_work:.1%} "
        f"more work (--extra-work {_above(best.extra_work):g})."
    )


def _agreeing_more(plan: Plan, plans: Sequence[Plan]) -> str | None:
    mine = max(plan.finalists, key=lambda each: each.agreement)
    others = [each for other in plans for each in other.finalists]
    more = [each for each in others if each.agreement > mine.agreement]
    if not more:
        return None
    best = max(more, key=lambda each: each.agreement)
    return (
        f"{best.name} says what the model says more often ({best.agreement:.1%} of all queries, "
        f"not {mine.agreement:.1%}), in {best.share:.2f} of the model's time, not {mine.share:.2f}."
    )
