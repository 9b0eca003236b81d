"""Whatever happens to calls, copies keep to their budget, and nothing is left running."""

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models import Late
from parity_models.late import late as late_module
from parity_models.scheduling.policies.adaptive import BURST

HANG = 1e4
MAX_ALARMS = 100
"""Times that one call is reconsidered, at most, even if it hangs."""

CALLS = st.tuples(
    st.sampled_from([0.0, 0.0005, 0.02]),  # seconds since the call before
    st.sampled_from([0.0, 0.001, 0.001, 0.001, 0.1, HANG]),  # run times of the call
    st.sampled_from([0.001, 0.1, HANG]),  # and of a copy
    st.sampled_from(["answers", "answers", "fails", "cannot be made", "is cancelled"]),
)


class VirtualTime(selectors.SelectSelector):
    """Waits for nothing, but moves the time on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for ever"
        self.now += timeout
        return []


class FailedError(Exception):
    """An error of the target."""


@settings(max_examples=20, deadline=None)
@given(
    st.lists(CALLS, min_size=1, max_size=100),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0, 60]),
)
def test_copies_keep_to_their_budget(
    history: list[tuple[float, float, float, str]], budget: float, known: int
) -> None:
    running: set[object] = set()
    alarms = 0
    on_alarm = late_module._Race._on_alarm

    async def run(seconds: float, outcome: str) -> str:
        key = object()
        running.add(key)
        try:
            await asyncio.sleep(seconds)
            if outcome == "fails":
                raise FailedError
            return "value"
        finally:
            running.remove(key)

    def counted(race: Any, time: float) -> Any:
        nonlocal alarms
        alarms += 1
        return on_alarm(race, time)

    async def ask(late: Late, call: float, copy: float, outcome: str) -> None:
        seconds = iter([call])

        def make() -> Any:
            if outcome == "cannot be made":
                raise FailedError
            return run(next(seconds, copy), outcome)

        patience = 5.0 if outcome == "is cancelled" else 2 * HANG
        try:
            async with asyncio.timeout(patience):
                assert (await late(make)).value == "value"
        except TimeoutError:
            assert outcome == "is cancelled"
        except FailedError:
            assert outcome in ("fails", "cannot be made")
        assert late.counts["copies"] <= BURST + budget * late.counts["calls"] + 1e-6

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[Any] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        async with Late(budget=budget) as late:
            for _ in range(known):
                await ask(late, 0.001, 0.001, "answers")
            calls = []
            for gap, call, copy, outcome in history:
                await asyncio.sleep(gap)
                calls.append(asyncio.ensure_future(ask(late, call, copy, outcome)))
            await asyncio.gather(*calls)
        await asyncio.sleep(0)
        assert not running
        assert len(asyncio.all_tasks()) == 1
        assert not errors
        assert alarms <= MAX_ALARMS * late.counts["calls"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late_module._Race, "_on_alarm", counted)
        run_in_virtual_time(main())


def run_in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    virtual = VirtualTime()
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(virtual)) as runner,
    ):
        patch.setattr(runner.get_loop(), "time", lambda: virtual.now)
        patch.setattr(late_module, "now", lambda: virtual.now)
        runner.run(main)


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
    assert copies[999] > 40
    assert copies[-1] - copies[999] < 10  # 50 without the rule
