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
    of each work when it joins, after so many queries of that work, and when its answers are
    suspected; 0: never.
    """

    max_batch: int = 1
    max_queue: int = 1000
    deadline: float = 10.0
    max_attempts: int = 5
    default_prediction: bool = False
    verify_every: int = 0

    def __post_init__(self) -> None:
        if self.verify_every < 0:
            raise ValueError(f"verify_every must be 0 or more, got {self.verify_every}")
        for name in ("max_batch", "max_queue", "deadline", "max_attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
