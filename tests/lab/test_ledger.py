"""The books of a chaos run: nothing is counted twice, and nothing that must not be goes unseen."""

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.scheduling import Source
from parity_models_lab.chaos.clients import HttpClients, UnreadError
from parity_models_lab.chaos.ledger import Ending, Kind, Ledger, Sent

MODEL, RECONSTRUCTION = Source.MODEL, Source.RECONSTRUCTION


def ledger_with(kind: Kind = Kind.HONEST, queries: int = 1) -> Ledger:
    """A ledger with request 1 under way since time 10, to end by 12."""
    ledger = Ledger()
    ledger.sent(1, Sent(kind, "kill", queries, 10.0, 12.0))
    return ledger


def what_failed(ledger: Ledger) -> str:
    (failure,) = ledger.failures
    return failure.what


def test_right_answers_count_by_source_and_fail_nothing() -> None:
    ledger = ledger_with(queries=2)
    ledger.answered(1, 10.5, [True, True], [MODEL, RECONSTRUCTION], lied_to=False)
    page = ledger.page("kill")
    assert page.count(Ending.RIGHT, detail="model") == 1
    assert page.count(Ending.RIGHT, detail="reconstruction") == 1
    assert page.quantile(0.5) == 0.5
    assert not ledger.failures
    assert ledger.open == 0


def test_a_wrong_answer_fails_unless_an_instance_lied() -> None:
    ledger = ledger_with()
    ledger.answered(1, 11.0, [False], [MODEL], lied_to=True)
    assert not ledger.failures
    assert ledger.page("kill").count(Ending.WRONG, detail="model, instance lied") == 1
    ledger = ledger_with()
    ledger.answered(1, 11.0, [False], [MODEL], lied_to=False)
    assert what_failed(ledger) == "wrong answer, source=model"


def test_a_second_end_of_a_request_is_noticed() -> None:
    ledger = ledger_with()
    ledger.answered(1, 11.0, [True], [MODEL], lied_to=False)
    ledger.refused(1, 11.5, 503, "overloaded: there are too many queries")
    assert ledger.ended_twice == 1
    assert ledger.page("kill").queries == 1
    assert what_failed(ledger) == "request 1 ended twice"


def test_a_request_without_an_end_is_overdue_and_fails() -> None:
    ledger = ledger_with(queries=3)
    ledger.without_end(1, 12.0)
    assert ledger.page("kill").count(Ending.NOTHING) == 3
    assert "no end within 2.0 s" in what_failed(ledger)


def test_what_nobody_read_has_no_end_either_but_is_told_apart() -> None:
    ledger = ledger_with(queries=3)
    ledger.without_end(1, 12.0, unread=True)
    (row,) = ledger.rows()
    assert row["no end"] == 3
    assert what_failed(ledger).endswith("no end within 2.0 s, and it was not even read")


@pytest.mark.slow
async def test_a_client_knows_whether_its_request_was_read() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2**16)

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        unread = HttpClients(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(UnreadError):
            async with asyncio.timeout(0.2):
                await unread.ask(b"GET / HTTP/1.1\r\n\r\n", say_if_unread=True)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        read = HttpClients(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await read.ask(b"GET / HTTP/1.1\r\n\r\n", say_if_unread=True)


def test_errors_must_be_clear_for_their_kind_of_request() -> None:
    ledger = ledger_with()
    ledger.refused(1, 11.0, 504, "deadline exceeded: not answered within 2 s")
    assert not ledger.failures
    assert ledger.page("kill").count(Ending.ERROR, detail="504 deadline exceeded") == 1
    ledger = ledger_with()
    ledger.refused(1, 11.0, 500, "the server failed to handle the request")
    assert "got 500" in what_failed(ledger)
    ledger = ledger_with()
    ledger.refused(1, 11.0, 500, "instances failed: tried on 3")
    assert not ledger.failures
    ledger = ledger_with()
    ledger.refused(1, 11.0, 408, "Request 7c1b timed out after 3.0s.")
    assert not ledger.failures
    ledger = ledger_with(Kind.NONSENSE)
    ledger.refused(1, 11.0, 400, "the input has values that are not finite")
    assert not ledger.failures


def test_nonsense_must_not_be_answered() -> None:
    ledger = ledger_with(Kind.NONSENSE)
    ledger.answered(1, 11.0, [True], [MODEL], lied_to=False)
    assert what_failed(ledger) == "nonsense was answered (source=model)"


def test_who_asked_for_an_exact_answer_must_get_the_model_s() -> None:
    ledger = ledger_with()
    ledger.answered(1, 11.0, [True], [RECONSTRUCTION], lied_to=False, exact=True)
    assert "an exact answer was asked for" in what_failed(ledger)


def test_connections_break_only_where_that_is_expected() -> None:
    ledger = ledger_with()
    ledger.broken(1, 11.0, "reset", expected=True)
    assert not ledger.failures
    ledger = ledger_with()
    ledger.broken(1, 11.0, "reset", expected=False)
    assert "broke: reset" in what_failed(ledger)


def test_an_outage_is_the_time_between_two_right_answers_but_not_over_a_quiet_spell() -> None:
    ledger = Ledger()

    def answer(number: int, at: float) -> None:
        ledger.sent(number, Sent(Kind.HONEST, "stop", 1, at, at + 2))
        ledger.answered(number, at, [True], [MODEL], lied_to=False)

    for number, at in enumerate((1.0, 1.5, 3.0)):
        answer(number, at)
    ledger.begin_quiet()
    answer(9, 20.0)
    assert ledger.page("stop").longest_outage == 1.5


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 8), st.integers(0, 4))))
def test_every_query_that_was_sent_is_on_one_page_once(
    requests: list[tuple[Kind, int, int]],
) -> None:
    ledger = Ledger()
    for number, (kind, queries, end) in enumerate(requests):
        ledger.sent(number, Sent(kind, f"event {number % 3}", queries, 0.0, 1.0))
        match end:
            case 0:
                right, sources = [True] * queries, [MODEL] * queries
                ledger.answered(number, 1.0, right, sources, lied_to=False)
            case 1:
                ledger.refused(number, 1.0, 503, "overloaded: too much")
            case 2:
                ledger.cut(number, 1.0)
            case 3:
                ledger.broken(number, 1.0, "closed", expected=True)
            case 4:
                ledger.without_end(number, 1.0)
    assert ledger.open == 0
    assert ledger.ended == ledger.sent_queries
    without_end = sum(queries for _, queries, end in requests if end == 4)
    assert sum(page.count(Ending.NOTHING) for page in ledger.pages.values()) == without_end
