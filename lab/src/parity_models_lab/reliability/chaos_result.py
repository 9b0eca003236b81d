"""What a chaos run came to, and whether that is as it must be."""

import msgspec

from parity_models.scheduling import Source
from parity_models_lab.reliability.ledger import UNREAD, Ending, Ledger, Page

MODEL_WRONG = Source.MODEL.value
"""The detail of a wrong answer by the model while no instance lied."""


class Row(msgspec.Struct, frozen=True):
    """What became of the queries of one kind of event. Times in seconds, latencies in ms.

    `answered`: right answers; `wrong`: by source, and whether an instance lied; `errors`: by
    status and reason. `full_strength`: the longest time until all instances were up again and
    answered; None where the event lets none of them go.
    """

    event: str
    times: int
    queries: int
    answered: int
    wrong: dict[str, int]
    errors: dict[str, int]
    cut: int
    broken: dict[str, int]
    without_end: int
    longest_outage: float
    p50_ms: float | None
    p999_ms: float | None
    full_strength: float | None
    unread: int = 0
    """The queries without an end that the listening process has not even read."""


class Claim(msgspec.Struct, frozen=True):
    """Something that must hold, what was found, and whether it holds."""

    claim: str
    found: str
    met: bool


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a result says that is judged: its claims, when it was had, and by which command."""

    claims: tuple[Claim, ...]
    date: str
    command: str = ""

    @property
    def met(self) -> bool:
        return all(claim.met for claim in self.claims)


class ChaosResult(Judged, frozen=True):
    """A run; `failures` are the first ones, each with the seconds since the run began."""

    engine: str
    seed: int
    minutes: float
    rate: float
    queries: int
    rows: tuple[Row, ...]
    failures: tuple[str, ...]
    load_cores: float
    """How much of a core the load's clients took."""


def rows_of(ledger: Ledger) -> tuple[Row, ...]:
    """A row for each page of the books, in the order in which they were opened."""
    return tuple(_row(event, page) for event, page in ledger.pages.items() if page.queries)


def claims_of(ledger: Ledger, surplus: int, repairs: float | None) -> tuple[Claim, ...]:
    """What must hold of every run. `surplus`: answers that nobody had asked for; `repairs`: the
    server's parm_repairs_total, None if it has none."""
    nothing = ledger.count(Ending.NOTHING)
    twice = ledger.ended_twice + surplus
    by_model = ledger.count(Ending.WRONG, detail=MODEL_WRONG)
    wrong = ledger.count(Ending.WRONG)
    under_lies = sum(
        count
        for page in ledger.pages.values()
        for (_, ending, detail), count in page.endings.items()
        if ending is Ending.WRONG and "lied" in detail
    )
    ended = sum(page.queries for page in ledger.pages.values())
    others = wrong - under_lies - by_model
    return (
        Claim("every query that was sent is accounted for",
              f"{ended:,} of {ledger.sent_queries:,}", ended == ledger.sent_queries),
        Claim("no query is without an end", f"{nothing:,}", nothing == 0),
        Claim("no query ends twice", f"{twice:,}", twice == 0),
        Claim("no wrong answer by the model while no instance lies", f"{by_model:,}",
              by_model == 0),
        Claim("no wrong answer by a stand-in while no instance lies", f"{others:,}", others == 0),
        Claim("nothing else that must not be: unclear errors, broken connections, late recovery",
              f"{ledger.failed:,} failures in all", ledger.failed == 0),
        Claim("parm_repairs_total stays 0", "there is none" if repairs is None else f"{repairs:g}",
              repairs == 0),
    )  # fmt: skip


def _row(event: str, page: Page) -> Row:
    def by_detail(ending: Ending) -> dict[str, int]:
        found: dict[str, int] = {}
        for (_, each, detail), count in sorted(page.endings.items()):
            if each is ending:
                found[detail] = found.get(detail, 0) + count
        return found

    p50, p999 = page.quantile(0.5), page.quantile(0.999)
    return Row(
        event,
        len(page.full_strength),
        page.queries,
        page.count(Ending.RIGHT),
        by_detail(Ending.WRONG),
        by_detail(Ending.ERROR),
        page.count(Ending.CUT),
        by_detail(Ending.BROKEN),
        page.count(Ending.NOTHING),
        page.longest_outage,
        None if p50 is None else p50 * 1e3,
        None if p999 is None else p999 * 1e3,
        max(page.full_strength, default=None),
        page.count(Ending.NOTHING, detail=UNREAD),
    )
