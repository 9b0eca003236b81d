"""The bounds that a scheduler keeps to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of the scheduler.

    `max_batch`: rows a unit may hold. `max_queue`: queries that may wait; more are refused.
    `deadline`: seconds after which an unanswered query fails, unless it brings its own.
    `max_attempts`: how often a query is tried on instances that fail before it fails too.
    `default_prediction`: answer with a default instead of failing at the deadline (Crankshaw
    et al., Clipper, NSDI 2017, section 5.2.1). `verify_every`: an instance answers a golden query
    of each role when it joins, after so many queries of that role, and when its answers are
    suspected; 0: never. `compare_one_in`: of so many outputs of stand-ins that come too late to be
    needed, one is had all the same, and compared with the deployed model's. `compare_every`: at
    most once in so many seconds a query that the deployed model has answered is run on a stand-in
    as well, to be compared, if an instance is idle; 0: never. `fleet`: the roles of each instance
    that there always is to be, where that is given; those that are not there count as out for good.
    """

    max_batch: int = 1
    max_queue: int = 1000
    deadline: float = 10.0
    max_attempts: int = 5
    default_prediction: bool = False
    verify_every: int = 0
    compare_one_in: int = 20
    compare_every: float = 10.0
    fleet: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("verify_every", "compare_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("max_batch", "max_queue", "deadline", "max_attempts", "compare_one_in"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
