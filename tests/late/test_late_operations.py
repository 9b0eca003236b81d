"""Late chooses servers, tells kinds of calls apart, is watched, paused, forked and tested."""

import asyncio
import faulthandler
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

import parity_models as pm
from late_targets import (
    KNOWN,
    MODEL,
    ROWS,
    BundleOf,
    CalmLate,
    RefusedError,
    Target,
    in_turn,
    know_backup,
    learned,
)
from parity_models import Late, LateEvent, UserError
from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.late.metrics import opentelemetry, prometheus
from parity_models.late.servers import FORGET, Servers

# Servers


def shares(servers: Servers, now: float) -> Counter[str]:
    chosen = [servers.choose(now) for _ in range(1000)]
    return Counter(target for each in chosen for target in each.arguments)


def test_of_two_servers_the_one_that_is_expected_to_answer_first_is_chosen() -> None:
    servers = Servers("abcd", Random(0))
    a, b, c, d = servers.all
    assert min(shares(servers, 0.0).values()) > 150
    a.in_flight = 5
    b.ended(0.0, 50.0)
    found = shares(servers, 0.0)
    assert found["a"] == 0  # loses to each
    assert 0 < found["b"] < 250  # wins against a alone
    assert b.slowness(10 * FORGET) == pytest.approx(1.0, abs=1e-3)  # forgotten
    assert servers.choose(0.0, [c, d, b]) is a
    assert servers.choose(0.0, [a, b, c, d]) is not None
    b.ended(20.0, 0.1, finished=False)  # cut short before it says anything
    assert b.slowness(20.0) == pytest.approx(1.0, abs=1e-3)
    assert Servers([], Random(0)).choose(0.0).arguments == ()


async def test_copies_go_to_other_servers_and_a_dead_one_is_left_alone() -> None:
    dead, good, other = Target(), Target(), Target()
    dead.fails = True
    async with CalmLate(servers=[dead, good, other], copies=1) as late:
        for _ in range(200):
            assert (await late(lambda server: server())).value is MODEL
        assert dead.calls < 40
        assert late.counts["failed"] == dead.calls <= late.counts["copies"]
        dead.fails, dead.hangs = False, True
        for _ in range(20):
            await late(lambda server: server())
    late = CalmLate(servers=[dead])
    dead.hangs, dead.fails = False, True
    with pytest.raises(RefusedError):
        await late(lambda server: server())


async def test_a_stand_in_answers_and_is_compared_while_a_copy_of_a_failed_call_hangs(
    bundle: Bundle,
) -> None:
    target, other = Target(), Target()
    async with CalmLate(bundle, differ=1, servers=["a", "b"], copies=1, cpu=1) as late:
        late._client.compare_late = 1
        await learned(late, lambda _: target())
        target.fails = other.hangs = True
        race = in_turn(target, other)
        answer = await asyncio.wait_for(late(lambda _: race(), ROWS), 60)
        assert answer.source == "backup"
        compared = late.counts["compared late"]
        other.released.set()
        await asyncio.sleep(0.01)
        assert late.counts["compared late"] == compared + 1


def test_blocking_calls_are_given_their_server() -> None:
    with CalmLate(servers=["a", "b"]) as late:
        assert {late.call(lambda server: server).value for _ in range(40)} == {"a", "b"}


# Kinds and other options of calls


async def test_kinds_of_calls_have_their_own_times_and_forms_and_one_budget(bundle: Bundle) -> None:
    target, slow = Target(), Target({"scores": MODEL})

    async def takes_long() -> Any:
        await asyncio.sleep(0.02)
        return await slow()

    async with CalmLate(bundle, differ=0.01) as late:
        await learned(late, target)
        for _ in range(KNOWN):
            answer = await late(takes_long, ROWS, kind="rerank")
        assert answer.source == "model"
        assert late.counts["copies"] <= 5
        quick, rerank = (late._client.kind(each) for each in ("", "rerank"))
        assert rerank.rule.median > 3 * quick.rule.median
        assert rerank.rule.purse is quick.rule.purse
        slow.fails = True
        assert (await late(takes_long, ROWS, kind="rerank")).value.keys() == {"scores"}
        for number in range(200):
            late._client.kind(f"kind {number}")
        assert late._client._kind.cache_info().currsize == 100


async def test_rows_may_be_a_function_that_is_called_only_when_the_stand_in_is_asked(
    bundle: Bundle,
) -> None:
    target, made = Target(), 0

    def rows() -> Any:
        nonlocal made
        made += 1
        return ROWS

    async with CalmLate(bundle, differ=0.01) as late:
        await learned(late, target, rows)
        assert made <= late.counts["compared"] + late.counts["backups"] + 1 < KNOWN
        target.fails = True
        assert (await late(target, rows)).source == "backup"


async def test_nothing_is_asked_before_an_age_that_the_user_gives(make_bundle: BundleOf) -> None:
    target = Target()
    async with CalmLate(make_bundle(doubt=1e-4), differ=0.01, not_before=0.1, cpu=1) as late:
        await learned(late, target)
        know_backup(late, 1e-4)
        target.hangs = True
        began = time.monotonic()
        assert (await late(target, ROWS)).source == "backup"
        assert time.monotonic() - began >= 0.1


async def test_only_errors_that_the_user_names_are_answered(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """By default all are, and the log and a counter say so."""

    async def mistaken() -> Any:
        raise KeyError("scores")

    async with CalmLate(bundle, differ=0.01, cpu=1) as late:
        await learned(late, Target())
        for _ in range(9):
            assert (await late(mistaken, ROWS)).source == "backup"
        assert late.counts["failed"] == 9
        assert "8 calls have failed; the newest: KeyError" in caplog.text
        assert caplog.text.count("have failed") == 4
    async with CalmLate(bundle, differ=0.01, errors=RefusedError) as late:
        target = Target()
        await learned(late, target)
        with pytest.raises(KeyError):
            await late(mistaken, ROWS)
        target.fails = True
        assert (await late(target, ROWS)).source == "backup"


# The load of the event loop


@pytest.mark.parametrize("computes", [0.0, 0.008])
def test_help_stops_where_a_late_event_loop_also_computes(bundle: Bundle, computes: float) -> None:
    """Alarms are 10 ms late, one every 20 ms: while other processes keep the processors busy, the
    loop has time for help."""
    with Late(bundle) as late:
        client = late._client
        for at in np.arange(1, 3, 0.02).tolist():
            until = time.thread_time() + computes
            while time.thread_time() < until:
                pass
            client.woke(at, at - 0.01, 0.01)
        assert client.process_load.is_bottleneck == bool(computes)


# Events and metrics


async def test_events_say_what_happens_and_metrics_count_them(bundle: Bundle) -> None:
    events: list[LateEvent] = []
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    watchers = [events.append, prometheus(registry), opentelemetry(meter)]

    def watch(event: LateEvent) -> None:
        for each in watchers:
            each(event)
        raise ValueError("of the user's function")  # calls are unaffected

    target = Target()
    async with CalmLate(bundle, differ=0.01, cpu=1, on_event=watch) as late:
        await learned(late, target)
        target.hangs = True
        await late(target, ROWS)
        await late(in_turn(target, Target()))
        target.hangs, target.fails = False, True
        await late(target, ROWS)
        with pytest.raises(RefusedError):
            await late(target, np.full_like(ROWS, np.nan))
        counts = late.counts
    seen = Counter((each.event, str(each.source)) for each in events)
    assert seen["answer", "model"] == counts["model"]
    assert seen["answer", "backup"] == counts["backup"] >= 2
    assert seen["answer", "copy"] == counts["copy"] >= 1
    assert seen["start", "copy"] == counts["copies"]
    assert seen["start", "backup"] == counts["backups"]
    assert seen["refusal", "backup"] == counts["refused"] >= 1
    assert seen["failure", "model"] == counts["failed"] == 2
    assert seen["comparison", "backup"] == counts["compared"] + counts["compared late"] > 0
    reasons = {(each.event, each.reason) for each in events if each.reason}
    assert {("refusal", "unlike"), ("failure", "RefusedError")} < reasons
    assert all(each.seconds >= 0 for each in events)
    labels = {"event": "answer", "source": "backup", "kind": "", "reason": ""}
    assert registry.get_sample_value("parm_late_events_total", labels) == counts["backup"]
    data = reader.get_metrics_data()
    assert data is not None
    told = json.loads(data.to_json())
    (scope,) = told["resource_metrics"][0]["scope_metrics"]
    assert {each["name"] for each in scope["metrics"]} == {"parm.late.events", "parm.late.answer"}
    assert prometheus(registry) is prometheus(registry)  # two Lates share its metrics


# Off, and in tests


async def test_a_paused_late_only_makes_calls(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target()
    async with CalmLate(bundle, differ=0.01, servers=["a"]) as late:
        await learned(late, lambda server: target())
        late.pause()
        target.fails = True
        with pytest.raises(RefusedError):
            await late(lambda server: target(), ROWS)
        assert late.call(lambda server: server, ROWS).value == "a"
        with pytest.raises(ZeroDivisionError):
            late.call(lambda server: 1 / 0)
        assert late.counts["paused"] == 3
        late.resume()
        assert (await late(lambda server: target(), ROWS)).source == "backup"
    monkeypatch.setenv("PARM_LATE", "off")
    async with CalmLate(bundle, differ=0.01) as late:
        assert (await late(Target(), "not rows")).value is MODEL
        assert late.counts == {"paused": 1}


async def test_tests_choose_the_answers(bundle: Bundle) -> None:
    target, before = Target(), threading.active_count()
    late = CalmLate(bundle)
    with pm.testing("model", "backup", "copy", "backup"):
        sources = [(await late(target, ROWS)).source for _ in range(4)]
        assert sources == ["model", "backup", "copy", "backup"]
        assert target.calls == 4  # one to learn the form of answers, and one for a copy
        answer = late.call(target, lambda: ROWS)
        np.testing.assert_allclose(answer.value, 2 * MODEL, rtol=1e-4, atol=1e-6)
        with pytest.raises(UserError, match="no answer to these rows: unlike"):
            await late(target, np.full_like(ROWS, np.nan))
        with pm.testing("model"):
            target.fails = True
            with pytest.raises(RefusedError):
                await late(target, ROWS)
    assert late.counts == {"paused": 0}
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="guess"), pm.testing("guess"):
        pass


# Processes, threads and event loops


def answers_in_child(late: Late, rows: Any) -> str:
    """Fork, and return what the child gets of calls of both kinds; it may take some seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # whatever happens, this process ends here
        try:
            faulthandler.dump_traceback_later(20, exit=True)

            def failing() -> Any:
                raise RefusedError

            target = Target()
            target.fails = True
            answers = [
                late.call(failing, rows),
                late.call(lambda: MODEL, rows),
                asyncio.run(late(target, rows)),
            ]
            os.write(writing, " ".join(each.source for each in answers).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_goes_on_with_threads_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    """As with `gunicorn --preload`, while calls of the parent are in flight."""
    release = threading.Event()
    with CalmLate(bundle, differ=0.05, cpu=1, state=tmp_path / "state") as late:
        for _ in range(KNOWN):
            late.call(lambda: MODEL, ROWS)
        caller = threading.Thread(target=late.call, args=(release.wait,))
        caller.start()
        time.sleep(0.05)
        asking = threading.Event()

        def ask() -> None:
            while not asking.is_set():
                late._client.submit(answer, ROWS, run_options()).result()

        backup = late._client.backup
        assert backup is not None
        answer = backup.answer
        asker = threading.Thread(target=ask)
        asker.start()
        assert late._client.lock.acquire()
        try:  # a thread of the parent may hold it
            for _ in range(3):
                first, _, last = answers_in_child(late, ROWS).split()
                assert first == last == "backup"
        finally:
            late._client.lock.release()
        asking.set()
        asker.join()
        release.set()
        caller.join()
        assert late.call(lambda: MODEL, ROWS).source == "model"


def test_a_blocking_call_that_ends_its_thread_ends_no_other(bundle: Bundle) -> None:
    def exits() -> Any:
        raise SystemExit(3)

    with CalmLate(bundle) as late:
        for _ in range(2):
            with pytest.raises(SystemExit):
                late.call(exits, ROWS)
        with pytest.raises(RuntimeError, match="StopIteration"):
            late.call(lambda: next(iter(())), ROWS)
        assert late.call(lambda: MODEL, ROWS).source == "model"


def test_several_threads_have_an_event_loop_each(bundle: Bundle) -> None:
    """As asynchronous views of Flask and Django have."""
    failures: list[BaseException] = []

    async def some(late: Late) -> None:
        target = Target()
        for number in range(100):
            target.hangs = number % 10 == 9
            answer = await late(target, ROWS)
            assert answer.source != "model" or not target.hangs

    def run(late: Late) -> None:
        try:
            for _ in range(3):
                asyncio.run(some(late))
        except BaseException as error:
            failures.append(error)

    with CalmLate(bundle, differ=1, cpu=1) as late:
        asyncio.run(learned(late, Target()))
        threads = [threading.Thread(target=run, args=(late,)) for _ in range(4)]
        for each in threads:
            each.start()
        for _ in range(100):
            late.call(lambda: MODEL, ROWS)
        for each in threads:
            each.join()
    assert not failures
    assert late.counts["calls"] == 4 * 300 + 100 + KNOWN
    assert late.counts["backup"] >= 4 * 30


# Gates


async def test_a_gate_that_late_calls_closed_opens_on_late_calls(make_bundle: BundleOf) -> None:
    """A late call that the model answers is compared, though the stand-in may not answer."""
    target = Target()
    backup = GatedBackup(make_bundle(level=0.9), 0.9, budgeted=True)
    made = backup.run(backup.read(ROWS), run_options())
    assert not isinstance(made, Refusal)
    async with CalmLate(backup, differ=1, cpu=1) as late:
        await learned(late, target)
        while backup._judge.is_open:
            backup.compare(made, -MODEL, late=True, answered=True)
        before = late.counts["compared late"]
        target.hangs = True
        call = asyncio.ensure_future(late(target, ROWS))
        while not late.counts["refused"]:
            await asyncio.sleep(0.001)
        target.released.set()
        assert (await call).source != "backup"
        assert late.counts["compared late"] == before + 1
        for _ in range(2000):
            backup.compare(made, MODEL, late=True)
        assert backup._judge.is_open
