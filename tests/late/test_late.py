"""Calls that are late or fail are answered by what may answer them, and nothing is left running."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError
from functools import partial
from math import nan
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from late_targets import (
    KNOWN,
    MODEL,
    ROWS,
    SAID,
    BundleOf,
    CalmLate,
    RefusedError,
    Target,
    in_turn,
    know_backup,
    labelled,
    learned,
)
from parity_models import Form, Late, UserError
from parity_models.bundle.bundle import Bundle
from parity_models.errors import DataError
from parity_models.late.values import form_of
from parity_models.tensors.signature import Tensor
from served import queries, write_linear_bundle
from text_models import expected, imitated, texts, write_text_bundle


async def test_a_late_call_is_answered_by_the_backup_and_cancelled(bundle: Bundle) -> None:
    target = Target()
    async with CalmLate(bundle, differ=0.01) as late:
        await learned(late, target)
        target.hangs = True
        answer = await late(target, ROWS)
    assert answer.source == "backup"
    assert answer.agreement == pytest.approx(0.9, abs=0.02)
    np.testing.assert_allclose(answer.value, 2 * MODEL, rtol=1e-4, atol=1e-6)
    await asyncio.sleep(0)
    assert target.hung == target.cancelled >= 1


@pytest.mark.parametrize(("threshold", "source"), [(-1e9, "backup"), (1e9, "copy")])
async def test_a_gate_is_a_floor_and_a_copy_answers_what_it_refuses(
    make_bundle: BundleOf, threshold: float, source: str
) -> None:
    target, other = Target(), Target()
    async with CalmLate(make_bundle(threshold=threshold), agreement=0.9, differ=0.01) as late:
        await learned(late, target)
        target.hangs = True
        other.hangs = source == "backup"
        answer = await late(in_turn(target, other), ROWS)
    assert answer.source == source


@pytest.mark.parametrize("differ", [0.0, 1e-5])
async def test_outputs_that_the_budget_does_not_cover_never_answer(
    bundle: Bundle, differ: float
) -> None:
    """A copy does, even if the call fails."""
    target, other = Target(), Target()
    async with CalmLate(bundle, differ=differ) as late:
        await learned(late, target)
        target.hangs = True
        assert (await late(in_turn(target, other), ROWS)).source == "copy"
        target.hangs, target.fails = False, True
        with pytest.raises(RefusedError):
            await late(target, ROWS)
        assert bool(late.counts["backups"]) == bool(differ)
        late.differ = 0.01
        assert (await late(target, ROWS)).source == "backup"


async def test_backup_with_little_doubt_answers_in_place_of_the_call(make_bundle: BundleOf) -> None:
    """Some calls are made for a comparison alone, after the answer."""
    target = Target()
    async with CalmLate(make_bundle(doubt=1e-4), differ=0.01, cpu=1) as late:
        await learned(late, target)
        know_backup(late, 1e-4)
        target.calls = 0
        late.counts.clear()
        while not late.counts["compared late"]:
            await late(target, ROWS)
        assert late.counts["in place"] > 0
        assert target.calls < late.counts["backup"] / 4 + 10


async def test_an_error_is_late_as_well(bundle: Bundle, make_bundle: BundleOf) -> None:
    target = Target()
    async with CalmLate(bundle, differ=0.01) as late:
        target.fails = True
        with pytest.raises(RefusedError):  # nothing is known of answers yet
            await late(target, ROWS)
        target.fails = False
        await late(target, ROWS)
        target.fails = True
        assert (await late(target, ROWS)).source == "backup"
        with pytest.raises(RefusedError):  # as it was, without rows
            await late(target)
    async with CalmLate(make_bundle(threshold=1e9), agreement=0.9, differ=0.01) as late:
        target.fails = False
        await late(target, ROWS)
        target.fails = True
        with pytest.raises(RefusedError):
            await late(target, ROWS)


async def test_calls_that_fail_at_once_are_all_answered(bundle: Bundle) -> None:
    """Even if they cannot be made at all; they wait for the stand-in's only thread."""

    def broken() -> Any:
        raise RefusedError("before anything was sent")

    target = Target()
    async with CalmLate(bundle, differ=0.01, cpu=1) as late:
        await late(target, ROWS)
        target.fails = True
        calls: list[Callable[[], Any]] = [target, broken] * 10
        answers = await asyncio.gather(*[late(each, ROWS) for each in calls])
        assert {each.source for each in answers} == {"backup"}


async def test_a_call_without_a_usable_stand_in_gets_a_copy(bundle: Bundle) -> None:
    """The stand-in fails, or the object is closed already."""
    target, other = Target(), Target()
    late = CalmLate(bundle, differ=0.01)
    await learned(late, target)
    target.hangs = True
    for rows in (ROWS[:0], np.full_like(ROWS, np.nan)):  # unlike those that it learned from
        assert (await late(in_turn(target, other), rows)).source == "copy"
    late.close()
    assert (await late(in_turn(target, other), ROWS)).source == "copy"
    with pytest.raises(UserError, match="is closed"):
        late.call(lambda: MODEL, ROWS)


class Never(Random):
    """Draws no call to be compared."""

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize(("threshold", "source", "made"), [(-1e9, "backup", 0), (1e9, "model", 1)])
async def test_while_most_calls_are_slow_a_stand_in_is_asked_instead(
    make_bundle: BundleOf, threshold: float, source: str, made: int
) -> None:
    """The call is made if its gate refuses."""
    slow, target = Target(), Target()
    bundle = make_bundle(threshold=threshold)
    async with CalmLate(bundle, agreement=0.9, differ=0.01, cpu=1) as late:
        late._client.congested, late._client.random = 4.0, Never()
        await learned(late, target)
        know_backup(late)
        slow.hangs = True
        waiting = [asyncio.ensure_future(late(slow)) for _ in range(64)]
        await asyncio.sleep(0.05)
        slow.released.set()
        await asyncio.gather(*waiting)
        before, asked = 0, late.counts["in place"]
        while late.counts["in place"] == asked:
            before = target.calls
            answer = await late(target, ROWS)
        assert (answer.source, target.calls - before) == (source, made)


@pytest.mark.parametrize("agreement", [None, 0.9])
async def test_a_backup_that_no_longer_agrees_answers_no_more(
    make_bundle: BundleOf, agreement: float | None
) -> None:
    """Some calls that it answered run on; what they say raises its doubts, or closes its gate."""
    target = Target()
    async with CalmLate(make_bundle(), agreement=agreement, differ=0.05, cpu=1) as late:
        late._client.compare_late = 1
        await learned(late, target)
        paid = late._client.purse.left
        target.prediction = -MODEL
        target.hangs = True
        sources: list[str] = []
        for _ in range(200):
            race = asyncio.ensure_future(late(target, ROWS))
            before = late.counts["backup"], late.counts["refused"]
            until = time.monotonic() + 1  # redundancy may pause, as all calls are slow
            while (late.counts["backup"], late.counts["refused"]) == before and not race.done():
                await asyncio.sleep(0)
                if time.monotonic() > until:
                    break
            target.released.set()
            sources.append((await race).source)
            target.released.clear()
            if late.counts["refused"] > before[1] or late._client.purse.left < 1:
                break
        assert late.counts["compared late"] >= late.counts["disagreed late"] > 0
        assert sources.count("backup") < 1.5 * paid  # doubts of 0.1 would pay for 10 times as many


@pytest.mark.parametrize(
    ("gate", "differ"), [({"level": 0.99}, 1.0), ({"doubt": 1e-4}, 0.001)], ids=["gate", "budget"]
)
async def test_a_backup_that_disagrees_from_the_start_gives_few_wrong_answers(
    make_bundle: BundleOf, gate: dict[str, float], differ: float
) -> None:
    """Calibration was wrong about it: every answer that it gives differs."""
    target = Target(-MODEL)
    agreement = gate.get("level")
    async with CalmLate(make_bundle(**gate), agreement=agreement, differ=differ, cpu=1) as late:
        for number in range(400):
            target.hangs = number % 4 == 0 and number > KNOWN
            race = asyncio.ensure_future(late(target, ROWS))
            await asyncio.wait([race], timeout=0.05)
            target.released.set()  # what runs on for a comparison ends, too
            await race
            await asyncio.sleep(0.001)
            target.released.clear()
        assert late.counts["backup"] <= 20
        assert late.counts["disagreed"] == late.counts["compared"] > 0
        assert late.counts["disagreed late"] == late.counts["compared late"]


@pytest.mark.parametrize("agreement", [None, 0.9])
async def test_without_a_calibration_it_learns_and_what_it_learned_is_kept(
    tmp_path: Path, agreement: float | None
) -> None:
    bundle, target = write_linear_bundle(tmp_path, coded=False, backed=True), Target()

    def opened() -> Late:
        state = tmp_path / "state"
        return CalmLate(bundle, agreement=agreement, differ=0.05, state=state, cpu=1)

    async with opened() as late:
        late._client.compare_in_time = 1
        await learned(late, target)
        target.hangs = True
        other = Target()
        assert (await late(in_turn(target, other), ROWS)).source == "copy"
        target.hangs = False
        while late.counts["compared"] < 1000:
            await late(target, ROWS)
        assert late.counts["disagreed"] == 0
    async with opened() as late:
        await learned(late, target)
        target.hangs = True
        answer = await late(target, ROWS)
        assert answer.source == "backup"
        assert answer.agreement > 0.9


async def test_calls_in_time_are_compared_more_often_at_first(bundle: Bundle) -> None:
    target = Target()
    async with CalmLate(bundle, differ=0.01, cpu=1) as late:
        for _ in range(400):
            await late(target, ROWS)
            if late.counts["calls"] == 10:
                await asyncio.sleep(0.01)
                assert late.counts["compared"] >= 5
        assert late.counts["compared"] < 300
        assert late.counts["disagreed"] == 0
        before = late.counts["compared"]
        for _ in range(20):
            await late(target)  # without rows, there is nothing to compare
        assert late.counts["compared"] <= before + 1


def test_blocking_calls_are_raced_in_threads(bundle: Bundle) -> None:
    release = threading.Event()

    def quick() -> NDArray[Any]:
        time.sleep(0.001)
        return MODEL

    def hanging() -> NDArray[Any]:
        release.wait()
        return MODEL

    with CalmLate(bundle, differ=0.01) as late:
        for _ in range(KNOWN):
            late.call(quick, ROWS)
        assert late.call(hanging, ROWS).source == "backup"
        release.set()
    before = threading.active_count()
    with CalmLate() as late:
        assert late.call(quick).source == "model"
        release.clear()
        began, ended = threading.Event(), threading.Event()

        def waiting() -> None:
            began.set()
            release.wait()

        def in_flight(late: Late) -> None:
            with pytest.raises(CancelledError):
                late.call(waiting)
            ended.set()

        threading.Thread(target=in_flight, args=(late,)).start()
        began.wait()
    assert ended.wait(60)
    release.set()
    del late
    gc.collect()
    for _ in range(1000):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


def answering(value: Any) -> Callable[[], Awaitable[Any]]:
    return partial(asyncio.sleep, 0.001, value)


async def test_mistakes_are_told_at_once(bundle: Bundle, tmp_path: Path) -> None:
    async def stream() -> AsyncIterator[int]:
        yield 1

    late = CalmLate(bundle)
    binary = httpx.Response(200, content=b'{"outputs": []}\x80\x81')
    wrong: list[tuple[Callable[[], Any], Any, type[Exception], str]] = [
        (Target(), queries(1)[:, :5], DataError, "784"),
        (Target(), [[1.0, 2.0], [3.0]], DataError, "rows of unequal shapes"),
        (stream, ROWS, UserError, "gave a stream and not an awaitable"),
        (lambda: MODEL, ROWS, UserError, "Late.call for calls that block"),
    ]
    for answer, message in (
        ("free text", "answer cannot be made like it"),
        ({"output": MODEL, "other": MODEL}, "ask for that output alone"),
        (MODEL.argmax(axis=1), "ask for that output alone"),
        (binary, "binary bodies are read by tritonclient only"),
    ):
        wrong.append((answering(answer), ROWS, UserError, message))
    loading = {"error": "the model is loading"}
    assert (await late(answering(loading), ROWS)).value is loading
    for call, rows, error, message in wrong:
        with pytest.raises(error, match=message):
            await late(call, rows)
    with pytest.raises(UserError, match="has no backup"):
        CalmLate(write_linear_bundle(tmp_path, coded=False))
    shares: list[dict[str, Any]] = [{"copies": 0}, {"copies": 2}, {"cpu": 0}, {"agreement": 0.9}]
    shares += [{"not_before": -1}, {"not_before": nan}, {"servers": "http://one"}]
    for options in (*shares, {"differ": -0.1}, {"differ": 1.1}, {"differ": nan}):
        with pytest.raises(UserError, match="|".join(options)):
            CalmLate(**options)
    with pytest.raises(UserError, match=r"differ is the share of all answers.* got 2"):
        late.differ = 2


# Forms that the user gives


class Label(NamedTuple):
    """An answer with a label, as that of a client of a large model."""

    name: str


@pytest.mark.parametrize("per_call", [False, True])
async def test_a_stand_in_answers_before_the_first_good_call_in_a_form_that_is_given(
    bundle: Bundle, per_call: bool
) -> None:
    target = Target(Label(SAID))
    target.fails = True
    form = Form(lambda answer: answer.name, Label)
    async with CalmLate(
        labelled(bundle), differ=0.01, cpu=1, form=None if per_call else form
    ) as late:
        options: dict[str, Any] = {"form": form} if per_call else {}
        assert (await late(target, ROWS, **options)).value == Label(SAID)
        target.fails = False
        while late.counts["compared"] < 10:
            await late(target, ROWS, **options)
        assert late.counts["disagreed"] == 0
        numbers = Form(lambda answer: answer, lambda scores: scores)
        target.prediction = MODEL
        for _ in range(20):
            await late(target, ROWS, kind="numbers", form=numbers)
        target.fails = True
        answer = await late(target, ROWS, kind="numbers", form=numbers)
        np.testing.assert_allclose(answer.value, 2 * MODEL, rtol=1e-4, atol=1e-6)
    output = Form(lambda value: value["scores"], lambda scores: {"scores": scores})
    target.fails = True
    async with CalmLate(bundle, differ=0.01, form=output) as late:
        answer = await late(target, ROWS)
        assert answer.source == "backup"
        np.testing.assert_allclose(answer.value["scores"], 2 * MODEL, rtol=1e-4, atol=1e-6)


async def test_labels_are_a_form_and_labels_that_the_stand_in_does_not_know_differ(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target(SAID)
    async with CalmLate(labelled(bundle), differ=0.01, cpu=1) as late:
        await late(target, ROWS)
        target.fails = True
        assert (await late(target, ROWS)).value == SAID
        assert (await late(target, np.repeat(ROWS, 2, axis=0))).value == [SAID, SAID]
        target.fails, target.prediction = False, "other"
        compared = late.counts["compared"]
        while late.counts["compared"] < compared + 3:
            await late(target, ROWS)
        assert late.counts["disagreed"] == 3
        assert caplog.text.count("the model answers 'other', none of the 10 labels") == 1


async def test_a_form_that_cannot_read_or_make_an_answer_loses_no_good_one(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(value: Any) -> Any:
        raise KeyError("label")

    target = Target()
    async with CalmLate(bundle, differ=0.01, cpu=1, form=Form(wrong, wrong)) as late:
        for _ in range(20):
            assert (await late(target, ROWS)).value is MODEL
            await asyncio.sleep(0.001)
        assert caplog.text.count("cannot be compared: KeyError: 'label'") == 1
        target.fails = True
        with pytest.raises(KeyError):
            await late(target, ROWS)


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit])
async def test_no_error_of_the_users_functions_leaves_a_call_waiting(
    bundle: Bundle, error: type[BaseException]
) -> None:
    """Of no class: a panic in Rust is no Exception, and no future can hold StopIteration."""

    def raises(*_: Any) -> Any:
        raise error

    target = Target()
    target.fails = True
    async with asyncio.timeout(60), CalmLate(bundle, differ=1, form=Form(raises, raises)) as late:
        with pytest.raises((error, RuntimeError)):
            await late(target, ROWS)
        with pytest.raises(RefusedError):
            await late(target, raises)


# Queries of unequal length, several outputs, outputs that are text


@pytest.mark.slow
async def test_queries_of_unequal_length_are_answered(tmp_path: Path) -> None:
    async with CalmLate(write_text_bundle(tmp_path, backed=True), differ=1) as late:
        other = expected(texts(1, 4))["logits"]
        with pytest.raises(UserError, match=r"'hidden'.*ask for that output alone"):
            await late(answering({"hidden": other}), texts(1, 4))
        for _ in range(KNOWN):
            await late(answering({"logits": other}), texts(1, 4))
        for length in (2, 5, 16):
            queries = texts(3, length, seed=length)
            answer = await late(asyncio.Event().wait, queries)
            assert answer.source == "backup"
            np.testing.assert_allclose(
                answer.value["logits"], imitated(queries), rtol=1e-3, atol=1e-4
            )


def test_text_is_no_output_that_a_stand_in_gives() -> None:
    words = np.array([[b"cat", b"dog"]], object)
    response = service_pb2.ModelInferResponse(model_name="model")
    response.outputs.add(name="output", datatype="BYTES", shape=[1, 2])
    response.raw_output_contents.append(serialize_byte_tensor(words).item())
    samples: list[Any] = [tritonclient.grpc.InferResult(response), {"output": words}]
    for sample in samples:
        with pytest.raises(UserError, match="ask for that output alone"):
            form_of(sample, Tensor("output", "FP32", (2,)))
