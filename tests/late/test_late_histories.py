"""Whatever happens to calls, budgets hold, the one rule decides, and nothing is left running."""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from functools import partial
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models import Late
from parity_models.bundle.backup import GatedBackup, Judged, Refusal
from parity_models.late import client as client_module
from parity_models.late import driver as driver_module
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.race import BURST, WINDOW, Answer, Ask, Race
from parity_models.tensors.signature import Tensor

HANG = 1e4
MAX_ALARMS = 100
"""Times that one call is reconsidered, at most, even if it hangs."""

CALLS = st.tuples(
    st.sampled_from([0.0, 0.0005, 0.02]),  # seconds since the call before
    st.sampled_from([0.0, 0.001, 0.001, 0.001, 0.1, HANG]),  # run times of the call
    st.sampled_from([0.001, 0.1, HANG]),  # and of a copy
    st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 1.0, nan]),  # doubt; NaN if the backup refuses
    st.sampled_from(["answers", "answers", "fails", "cannot be made", "is cancelled"]),
)
MODEL, OTHER = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)


class VirtualTime(selectors.SelectSelector):
    """Waits for nothing, but moves the time on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for ever"
        self.now += timeout
        return []

    def read(self) -> float:
        """Return the time; reading it takes a while."""
        self.now += 1e-7
        return self.now


class VirtualThread:
    """Runs each function after a while, on the event loop."""

    def __init__(self) -> None:
        self._draw = random.Random(0)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        run: Future[Any] = Future()

        def compute() -> None:
            if run.set_running_or_notify_cancel():
                run.set_result(function(*arguments))

        seconds = self._draw.choice([0.0, 0.0002, 0.002, 1.0])
        asyncio.get_running_loop().call_later(seconds, compute)
        return run

    def shutdown(self, **_: Any) -> None: ...


class DoubtedBackup(GatedBackup):
    """Its rows say how much its answer is doubted."""

    def __init__(self) -> None:
        self.output, self.other_outputs = Tensor("output", "FP32", (3,)), set()
        self.labels = ()

    def change(self, differ: float) -> None: ...

    def read(self, inputs: Any) -> Any:
        return inputs

    def answer(self, rows: Any, run: object) -> Judged | Refusal:
        doubt = float(rows)
        return Refusal.UNSURE if isnan(doubt) else Judged(OTHER, np.array([doubt]), doubt)

    def run(self, rows: Any, run: object) -> Any:
        return OTHER

    def compare(self, made: Any, predictions: Any, *, late: bool, answered: bool = False) -> bool:
        assert made is OTHER
        assert predictions is MODEL
        return late

    def close(self) -> None: ...


class FailedError(Exception):
    """An error of the target."""


@settings(max_examples=30, deadline=None)
@given(
    st.lists(CALLS, min_size=1, max_size=100),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([None, 0.0, 1e-4, 0.01, 1.0]),
    st.sampled_from([0, 60, 600]),
)
def test_budgets_are_kept(
    history: list[tuple[float, float, float, float, str]],
    copies: float,
    differ: float | None,
    known: int,
) -> None:
    """`differ` is None without a backup."""
    running: set[object] = set()
    alarms, made = 0, 0
    decided: Counter[str] = Counter()
    wake = driver_module.Driver._wake

    class Recorded(Race):
        """Counts what the rule decides."""

    def recorded(name: str) -> Callable[..., Any]:
        def decide(race: Race, *arguments: Any) -> Collection[Any]:
            actions: Collection[Any] = getattr(Race, name)(race, *arguments)
            for action in actions:
                decided[action.role if isinstance(action, Ask) else type(action).__name__] += 1
            return actions

        return decide

    for name in ("begin", "started", "answered", "refused", "failed", "lost", "alarm"):
        setattr(Recorded, name, recorded(name))

    async def run(seconds: float, outcome: str) -> Any:
        key = object()
        running.add(key)
        try:
            await asyncio.sleep(seconds)
            if outcome == "fails":
                raise FailedError
            return MODEL
        finally:
            running.remove(key)

    def counted(*arguments: Any) -> None:
        nonlocal alarms
        alarms += 1
        wake(*arguments)

    async def ask(late: Late, call: float, copy: float, doubt: float, outcome: str) -> None:
        seconds = iter([call])

        def make() -> Any:
            nonlocal made
            made += 1
            if outcome == "cannot be made":
                raise FailedError
            return run(next(seconds, copy), outcome)

        patience = 5.0 if outcome == "is cancelled" else 2 * HANG
        purse, counts = late._client.purse, late.counts
        try:
            async with asyncio.timeout(patience):
                answer = await late(make, np.float64(doubt))
            said = OTHER if answer.source == "backup" else MODEL
            np.testing.assert_array_equal(answer.value, said)
            assert answer.source == "backup" or answer.agreement == 1
        except TimeoutError:
            assert outcome == "is cancelled"
        except FailedError:
            assert outcome in ("fails", "cannot be made")
        assert counts["copies"] <= BURST + copies * counts["calls"] + 1e-6
        assert purse.spent <= (differ or 0.0) * (WINDOW + counts["calls"]) + 1e-9

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[Any] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        backup = None if differ is None else DoubtedBackup()
        async with Late(backup, copies=copies, differ=differ or 0.0, cpu=1) as late:
            late._client.threads.backup = VirtualThread()  # type: ignore[assignment]  # in virtual time
            late._client.compare_late = 3
            for _ in range(known):
                await ask(late, 0.001, 0.001, 0.001, "answers")
            calls = []
            for gap, call, copy, doubt, outcome in history:
                await asyncio.sleep(gap)
                calls.append(asyncio.ensure_future(ask(late, call, copy, doubt, outcome)))
            await asyncio.gather(*calls)
            await asyncio.sleep(1.0)  # for comparisons
        await asyncio.sleep(0)
        counts = late.counts
        assert decided[BACKUP] == counts["backups"] >= counts["in place"]
        assert decided[Answer.__name__] == counts["backup"]
        assert decided[DEPLOYED] <= made <= decided[DEPLOYED] + counts["backup"]
        assert counts["disagreed"] == counts["compared"] <= counts["model"] + counts["copy"]
        assert counts["disagreed late"] == 0
        assert counts["compared late"] <= counts["backups"]
        assert not running
        assert len(asyncio.all_tasks()) == 1
        assert not errors
        assert alarms <= MAX_ALARMS * counts["calls"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_module.Driver, "_wake", counted)
        patch.setattr(driver_module, "Race", Recorded)
        run_in_virtual_time(main())


def run_in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    virtual = VirtualTime()
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(virtual)) as runner,
    ):
        patch.setattr(runner.get_loop(), "time", lambda: virtual.now)
        patch.setattr(driver_module, "now", virtual.read)
        patch.setattr(client_module, "now", virtual.read)
        runner.run(main)


def test_calls_that_hang_before_times_are_known_are_answered_by_the_backup() -> None:
    async def main() -> None:
        async with Late(DoubtedBackup(), differ=0.01) as late:
            late._client.threads.backup = VirtualThread()  # type: ignore[assignment]  # in virtual time
            await late(partial(asyncio.sleep, 0.001, MODEL), np.float64(0.1))
            answer = await late(partial(asyncio.sleep, HANG), np.float64(0.1))
            assert answer.source == "backup"
            assert not late.counts["copies"]

    run_in_virtual_time(main())


def test_a_target_that_is_slow_for_everybody_gets_no_copies() -> None:
    """A server with one slot is nearly full, after a time in which it idles."""
    draw = random.Random(0)
    copies: list[int] = []

    async def main() -> None:
        slot = asyncio.Lock()

        async def run() -> str:
            async with slot:
                await asyncio.sleep(draw.choice([*[0.005] * 15, 0.085]))
            return "value"

        async with Late() as late:
            calls = []
            for load in [0.1] * 1000 + [0.9] * 4000:
                await asyncio.sleep(draw.expovariate(load / 0.01))
                calls.append(asyncio.ensure_future(late(run)))
                copies.append(late.counts["copies"])
            await asyncio.gather(*calls)

    run_in_virtual_time(main())
    assert copies[999] > 20
    assert copies[-1] - copies[999] < 10  # 50 without the rule
