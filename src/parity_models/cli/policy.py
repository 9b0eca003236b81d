"""The options of redundancy policies, for commands that take a policy.

An option that is not given is None, and PolicySpec's own default holds.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from parity_models.scheduling.policies import AnswerRule, Pool
from parity_models.scheduling.spec import (
    OPTIONS,
    DispatchName,
    PolicyName,
    PolicySpec,
    policy_spec,
)

Dispatch = Annotated[
    DispatchName | None,
    typer.Option(
        help="Which instance runs what; by default latency-aware with adaptive-parity, "
        "single-queue with the others.",
        show_default=False,
    ),
]
PoolOption = Annotated[
    Pool | None,
    typer.Option(
        help="Where parity models run: on every instance, at lower priority than originals, or "
        "on instances of their own.",
        show_default=PolicySpec.pool,
    ),
]
MaxGroupWait = Annotated[
    float | None,
    typer.Option(
        help="Milliseconds after which a coding group that is not full is filled up with queries "
        "answered before.",
        show_default=f"{PolicySpec.max_group_wait * 1e3:g}",
    ),
]
ParityDelay = Annotated[
    float | None,
    typer.Option(
        help="Milliseconds that a full group waits before its parity queries are sent; they are "
        "not if all its predictions are there by then.",
        show_default=f"{PolicySpec.parity_delay * 1e3:g}",
    ),
]
Answer = Annotated[
    AnswerRule | None,
    typer.Option(
        help="When a reconstruction or the backup's prediction is the answer: if it is ready "
        "first, or only once the query has waited for --answer-after.",
        show_default=PolicySpec.answer,
    ),
]
AnswerAfter = Annotated[
    float | None, typer.Option(help="Milliseconds; with --answer deadline.", show_default=False)
]
Copies = Annotated[
    int | None,
    typer.Option(
        help="With replication: how often each query is sent.",
        show_default=str(PolicySpec.copies),
    ),
]
HedgeDelay = Annotated[
    float | None,
    typer.Option(
        help="With hedging: milliseconds after which a query is sent once more; by default the "
        "live --hedge-quantile of latencies.",
        show_default=False,
    ),
]
HedgeQuantile = Annotated[
    float | None,
    typer.Option(
        help="With hedging: the quantile of latencies after which a query is sent once more.",
        show_default=f"{PolicySpec.hedge_quantile:g}",
    ),
]
HedgeBudget = Annotated[
    float | None,
    typer.Option(
        help="With hedging: copies a query, on average, at most.",
        show_default=f"{PolicySpec.hedge_budget:g}",
    ),
]


def policy_of(name: PolicyName, **options: Any) -> PolicySpec:
    """The policy `name` with the options (fields of PolicySpec) that are not None.

    Raises UserError as policy_spec does.
    """
    given = {option: value for option, value in options.items() if value is not None}
    return policy_spec(name, given, _flag)


def policy_specs(names: Sequence[PolicyName], **options: Any) -> list[PolicySpec]:
    """The policies `names`, each with those of the options that it has.

    Raises UserError as policy_spec does, and for an option that none of the policies has.
    """
    shared = {option for option in options for name in names if option in OPTIONS[name]}
    return [
        policy_of(
            name,
            **{
                option: value
                for option, value in options.items()
                if option in OPTIONS[name] or option not in shared
            },
        )
        for name in names
    ]


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
