"""The options of a search for stand-ins."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.evaluation.calibration import check_levels
from parity_models.options import SHARE, Option
from parity_models.protection.options import Cluster, Workload
from parity_models.training.options import TeachingOptions


@dataclass(frozen=True, kw_only=True)
class SearchOptions(TeachingOptions, Workload, Cluster):
    """The options of a search for stand-ins, and of the load that these are simulated under."""

    minutes: Annotated[
        float, Option("Time for the whole search.", above=0, at_most=10_000, metavar="MINUTES")
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
            "Minimum calibrated agreement with the model for stand-in answers.",
            above=0,
            below=1,
            unit=SHARE,
        ),
    ] = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels([self.agreement])
