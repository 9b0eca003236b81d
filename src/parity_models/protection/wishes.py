"""What the user wants of the stand-ins, and the load that they are simulated under."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.evaluation.calibration import check_levels
from parity_models.faults.fault_plan import FaultPlan
from parity_models.options import Option, Options
from parity_models.simulation.recording import load_contention
from parity_models.tasks.output_kind import OUTPUT_KINDS


@dataclass(frozen=True, kw_only=True)
class Wishes(Options):
    """What is wanted. Raises UserError for values out of range."""

    minutes: Annotated[
        float, Option("How long all of it may take.", above=0, at_most=10_000, metavar="MINUTES")
    ] = 10.0
    extra_work: Annotated[
        float,
        Option(
            "Redundant work that is allowed for each query, on average, in runs of the deployed "
            "model.",
            above=0,
            at_most=10,
        ),
    ] = 0.1
    agreement: Annotated[
        float,
        Option(
            "The share of a stand-in's answers that are to say what the deployed model says; it "
            "answers only where it is sure enough of that.",
            above=0,
            below=1,
            metavar="SHARE",
        ),
    ] = 0.99
    load: Annotated[
        float,
        Option(
            "Offered load in the simulation, as a share of what the instances can carry one query "
            "at a time.",
            above=0,
            at_most=1.5,
        ),
    ] = 0.5
    rate: Annotated[
        float | None, Option("Queries per second, in place of --load.", above=0, excludes="load")
    ] = None
    instances: Annotated[int, Option("Instances in the simulation.", at_least=2, at_most=1000)] = 12
    max_batch: Annotated[
        int | None,
        Option(
            "Queries that wait and are run at once, as one batch, at the most, in the simulation; "
            "times are measured for as many, too. By default as parm serve has it: 4 where the "
            "model runs these in the time of two, or less, else 1.",
            at_least=1,
            at_most=1024,
        ),
    ] = None
    contention: Annotated[
        str | None,
        Option(
            "What slows instances down in the simulation: a fault plan, or a recording of a "
            "running server (parm record). By default background transfers, as in the paper, in "
            "units of the model's time.",
            metavar="FILE",
        ),
    ] = None
    output_kind: Annotated[
        str | None,
        Option(
            f"What predictions are: {', '.join(OUTPUT_KINDS)}. By default what they look like.",
            metavar="KIND",
        ),
    ] = None
    seed: Annotated[int, Option("Fixes weights, order of data and simulation.", at_least=0)] = 0
    device: Annotated[
        str | None,
        Option(
            "Train on this: cpu, cuda, cuda:1, mps. By default the fastest there is.",
            metavar="NAME",
        ),
    ] = None
    resume: Annotated[bool, Option("Go on with a search that was cut off.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels([self.agreement])

    def plan(self) -> FaultPlan | None:
        """The contention that was asked for. Raises UserError if it is none."""
        if self.contention is None:
            return None
        plan = load_contention(self.contention)
        plan.check(self.instances)
        return plan
