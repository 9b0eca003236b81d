"""The command `promises`: gates calibrated on some queries, and held to others.

Each seed draws queries that rank the stand-ins, queries that calibrate the first of them as
`parm protect` does, and takes the rest as those that are served. A promise is kept if, of the
served queries that pass the gate, at least the level agree with the model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from parity_models.cli.flags import argument
from parity_models.errors import UserError
from parity_models.evaluation.calibration import RISK, reached_levels, surest_share
from parity_models.evaluation.judging import GivenInputs, load_queries, metric_for
from parity_models.evaluation.outputs import Outputs
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.gate import confidences, suited
from parity_models.options import Option
from parity_models.protection.finalists import FIRST_CHOICE
from parity_models.tasks.metrics import agreement_for
from parity_models_lab.results import Out, Row, report

USUAL = 0.99
"""The level that ranks where the best one is taken."""

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""For n queries the confidence of a stand-in, and whether it agrees with the model."""


def promises(
    bundles: Annotated[
        list[Path], argument("Bundles of one model with different stand-ins.", "BUNDLES")
    ],
    inputs: Annotated[Path, Option("Queries that no stand-in was trained on.", metavar="FILE")],
    agreement: Annotated[float, Option("The level that is named.", metavar="SHARE")] = 0.95,
    queries: Annotated[
        int, Option("Queries that rank, and again as many that calibrate.", at_least=100)
    ] = 1000,
    seeds: Annotated[int, Option("How often these are drawn.", at_least=1)] = 20,
    out: Out = None,
) -> None:
    """Calibrate on some queries, count how often others keep the promised agreement.

    Stand-ins are ranked by other queries than calibrate the best of them, as parm protect does.
    """
    opened = map(open_bundle, bundles)
    found = [each for bundle in opened for each in stand_in_answers(bundle, inputs)]
    rows = len(found[0][0])
    if rows < 3 * queries:
        raise UserError(f"there are {rows:,} --inputs; {queries:,} --queries take 3 times as many")
    counts: list[Row] = []
    for named in (agreement, None):
        kept, coverages = 0, []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(rows)
            ranking, calibrating, served = np.split(order, [queries, 2 * queries])
            shares = [
                surest_share(each[0][ranking], each[1][ranking], named or USUAL) for each in found
            ]
            sure, agreed = found[int(np.argmax(shares))]
            gates = reached_levels(
                sure[calibrating],
                agreed[calibrating],
                named=[] if named is None else [named],
                seed=seed,
                risk=FIRST_CHOICE * RISK,
            )
            gates = [gate for gate in gates if named in (None, gate.level)]
            if gates:
                given = sure[served] >= gates[-1].threshold
                kept += bool(agreed[served][given].mean() >= gates[-1].level)
                coverages.append(float(given.mean()))
        counts.append(
            {
                "level": "the best of all" if named is None else f"{named:g}",
                "seeds": seeds,
                "shown": len(coverages),
                "kept": kept,
                "coverage": round(sum(coverages) / seeds, 3),
            }
        )
    title = f"Promises kept, {queries:,} queries to calibrate with"
    report(title, counts, out and out / "promises.json")


def stand_in_answers(bundle: Bundle, inputs: GivenInputs) -> Iterator[Answers]:
    """Yield the answers of each stand-in to the inputs, in their order."""
    outputs = Outputs(bundle, load_queries(inputs, bundle))
    agreement = agreement_for(metric_for(bundle, None), outputs.predictions)
    for answers in outputs.answers().values():
        given = answers.outputs[np.argsort(answers.rows)]
        sure = confidences(suited(agreement.kind, given), given)
        yield sure, agreement(given, outputs.predictions)
