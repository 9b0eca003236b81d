"""The books of a chaos run: nothing is counted twice, and nothing that must not be goes unseen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.scheduling import Source
from parity_models_lab.chaos.ledger import Ending, Kind, Ledger, Sent

MODEL, RECONSTRUCTION = Source.MODEL, Source.RECONSTRUCTION


def ledger_with(kind: Kind = Kind.HONEST, queries: int = 1) -> Ledger:
    """A ledger with request 1 under way since time 10."""
    ledger = Ledger()
    ledger.sent(1, Sent(kind, "kill", queries, 10.0))
    return ledger


def what_failed(ledger: Ledger) -> str:
    (failure,) = ledger.failures
    return failure.text


def test_right_answers_count_by_source_and_fail_nothing() -> None:
    ledger = ledger_with(queries=2)
    assert ledger.answered(1, 10.5, [True, True], [MODEL, RECONSTRUCTION], lied_to=False)
    page = ledger.page("kill")
    assert page.by_detail(Ending.RIGHT) == {"model": 1, "reconstruction": 1}
    assert page.quantile(0.5) == 500
    assert not ledger.failures


def test_wrong_answers_fail_unless_an_instance_lied() -> None:
    ledger = ledger_with()
    assert not ledger.answered(1, 11.0, [False], [MODEL], lied_to=True)
    assert not ledger.failures
    assert ledger.page("kill").by_detail(Ending.WRONG) == {"model, instance lied": 1}
    ledger = ledger_with()
    ledger.answered(1, 11.0, [False], [MODEL], lied_to=False)
    assert what_failed(ledger) == "wrong answer, source=model"
    ledger = ledger_with(Kind.NONSENSE)
    ledger.answered(1, 11.0, [True], [MODEL], lied_to=False)
    assert what_failed(ledger) == "nonsense was answered (source=model)"
    ledger = ledger_with()
    ledger.answered(1, 11.0, [True], [RECONSTRUCTION], lied_to=False, exact=True)
    assert "an exact answer was asked for" in what_failed(ledger)


def test_a_second_end_of_a_request_is_noticed() -> None:
    ledger = ledger_with()
    ledger.answered(1, 11.0, [True], [MODEL], lied_to=False)
    ledger.refused(1, 11.5, 503, "overloaded: there are too many queries")
    assert ledger.page("kill").endings.total() == 1
    assert what_failed(ledger) == "request 1 ended twice"


@pytest.mark.parametrize(
    ("kind", "status", "text", "clear"),
    [
        (Kind.HONEST, 504, "deadline exceeded: not answered within 2 s", True),
        (Kind.HONEST, 500, "the server failed to handle the request", False),
        (Kind.HONEST, 500, "instances failed: tried on 3", True),
        (Kind.HONEST, 408, "Request 7c1b timed out after 3.0s.", True),
        (Kind.NONSENSE, 400, "the input has values that are not finite", True),
    ],
)
def test_errors_must_be_clear_for_their_kind_of_request(
    kind: Kind, status: int, text: str, clear: bool
) -> None:
    ledger = ledger_with(kind)
    ledger.refused(1, 11.0, status, text)
    assert (not ledger.failures) == clear
    assert ledger.page("kill").count(Ending.ERROR) == 1


def test_connections_break_only_where_that_is_expected() -> None:
    ledger = ledger_with()
    ledger.broken(1, 11.0, "reset", expected=True)
    assert not ledger.failures
    ledger = ledger_with()
    ledger.broken(1, 11.0, "reset", expected=False)
    assert "lost its connection: reset" in what_failed(ledger)


def test_an_outage_is_the_time_between_two_right_answers_but_not_over_a_quiet_spell() -> None:
    ledger = Ledger()

    def answer(number: int, at: float) -> None:
        ledger.sent(number, Sent(Kind.HONEST, "stop", 1, at))
        ledger.answered(number, at, [True], [MODEL], lied_to=False)

    for number, at in enumerate((1.0, 1.5, 3.0)):
        answer(number, at)
    ledger.begin_quiet()
    answer(9, 20.0)
    assert ledger.page("stop").longest_outage == 1.5


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 8), st.integers(0, 3))))
def test_every_query_that_was_sent_is_on_one_page_once(
    requests: list[tuple[Kind, int, int]],
) -> None:
    ledger = Ledger()
    for number, (kind, queries, end) in enumerate(requests):
        ledger.sent(number, Sent(kind, f"event {number % 3}", queries, 0.0))
        match end:
            case 0:
                right, sources = [True] * queries, [MODEL] * queries
                ledger.answered(number, 1.0, right, sources, lied_to=False)
            case 1:
                ledger.refused(number, 1.0, 503, "overloaded: too much")
            case 2:
                ledger.broken(number, 1.0, "closed", expected=True)
            case 3:
                ledger.ended(number, 1.0, Ending.NOTHING, failure="did not end")
    assert ledger.ended_queries == ledger.sent_queries
    without_end = sum(queries for _, queries, end in requests if end == 3)
    assert sum(page.count(Ending.NOTHING) for page in ledger.pages.values()) == without_end
